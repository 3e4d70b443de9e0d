"""Recipes as JSON, and single settings by path: `science.loss.patch=0`."""

import contextlib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from ..files import flatten, parse_json, read_json
from ..words import nearest
from .faster import faster
from .paper_runs import RUNS
from .recipe import Preset, Recipe, to_json


def recipe(name: str, preset: Preset = "paper") -> Recipe:
    """A run of the paper by name.

    Args:
        name: `proteus recipes` lists them.
        preset: `paper` (the words), `official` (what the authors' code does), or `fast` (the words
            with prepared targets, see `faster`).

    Raises:
        ValueError: If there is no such run or preset.

    Examples:
        >>> recipe("l14-dinov2-g14").science.data.batch_size
        256
    """
    if name not in RUNS:
        file = f" The run {name!r} goes with `--from`." if Path(name).exists() else ""
        raise ValueError(
            f"recipe: unknown name. Got {name!r}; expected a run of the paper. "
            f"{nearest(name, RUNS)} `proteus recipes` lists all.{file}"
        )
    if preset not in typing.get_args(Preset):
        raise ValueError(
            f"recipe: unknown preset. Got {preset!r}; expected "
            f"{', '.join(typing.get_args(Preset))}. {nearest(str(preset), typing.get_args(Preset))}"
        )
    return faster(RUNS[name]("paper")) if preset == "fast" else RUNS[name](preset)


def with_settings(recipe: Recipe, settings: Iterable[str] | Mapping[str, Any]) -> Recipe:
    """The recipe with some settings changed, all at once.

    Args:
        recipe: Where to start.
        settings: Lines `path=value`, the value as JSON or as plain text; or path -> value.

    Raises:
        ValueError: If a path is unknown, a value has the wrong type, or the whole does not fit.

    Examples:
        >>> changed = with_settings(Recipe(), ["science.loss.patch=0", "machine.workers=2"])
        >>> changed.science.loss.patch, changed.machine.workers
        (0.0, 2)
    """
    plain = to_json(recipe)
    pairs = settings.items() if isinstance(settings, Mapping) else map(parse_setting, settings)
    for path, value in pairs:
        _set(plain, path, value)
    return from_json(plain)


def from_json(data: Any) -> Recipe:
    """A recipe from plain data, as `to_json` gives it and `run.json` holds it.

    Raises:
        ValueError: If a setting is unknown or has the wrong type.
    """
    found: Recipe = _build(Recipe, data, "recipe")
    return found


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a `run.json`, or in a file that holds one alone.

    Raises:
        ValueError: If there is none.
    """
    path = Path(path)
    path = path / "run.json" if path.is_dir() else path
    try:
        data = read_json(path)
    except ValueError as error:
        raise ValueError(f"recipe: {path} cannot be read. Got {error}.") from error
    if isinstance(data, dict) and "recipe" in data:
        data = data["recipe"]
    return from_json(data)


def parse_setting(line: str) -> tuple[str, Any]:
    """`path=value` as path and value, which is JSON or plain text.

    Raises:
        ValueError: If there is no `=`.
    """
    path, separator, text = line.partition("=")
    if not separator:
        raise ValueError(f"--set: no value. Got {line!r}; expected PATH=VALUE.")
    try:
        return path.strip(), parse_json(text)
    except ValueError:
        return path.strip(), text.strip()


def _set(plain: dict[str, Any], path: str, value: Any) -> None:
    *groups, name = path.split(".")
    place: Any = plain
    for group in groups:
        place = place.get(group) if isinstance(place, dict) else None
    if groups == ["science", "logits"] and place is None:
        place = plain["science"]["logits"] = {}  # an optional group: the first setting opens it
    if not isinstance(place, dict) or (name not in place and groups != ["science", "logits"]):
        known = list(flatten({k: plain[k] for k in ("science", "machine")}))
        # Named by its end, it is better found by that than by likeness.
        ends = [one for one in known if one.endswith(f".{path}")]
        hint = nearest(ends[0], ends) if ends else nearest(path, known)
        raise ValueError(
            f"recipe: unknown setting. Got {path!r}; expected a path of the recipe. {hint} "
            f"`proteus recipes NAME` shows all."
        )
    place[name] = value


def _build(kind: Any, data: Any, path: str) -> Any:
    """A dataclass from a dictionary, strictly."""
    if not isinstance(data, Mapping):
        raise _wrong(path, data, "an object")
    hints = typing.get_type_hints(kind)
    unknown = set(data) - set(hints)
    if unknown:
        raise ValueError(
            f"recipe: unknown setting. Got {path}.{sorted(unknown)[0]}; expected among "
            f"{', '.join(hints)}. {nearest(str(sorted(unknown)[0]), hints)}"
        )
    values = {name: _convert(hints[name], data[name], f"{path}.{name}") for name in data}
    try:
        return kind(**values)
    except TypeError as error:  # a required setting is missing
        raise ValueError(f"recipe: {path} is incomplete. Got {error}.") from error


def _convert(kind: Any, value: Any, path: str) -> Any:  # noqa: PLR0911 - one line a type
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_any(arguments, value, path)
    if is_dataclass(kind):
        return _build(kind, value, path)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise _wrong(path, value, f"one of {', '.join(map(repr, arguments))}")
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], item, path) for item in value)
        if len(value) == len(arguments):
            return tuple(_convert(k, v, path) for k, v in zip(arguments, value, strict=True))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer may be larger than any float
            return float(value)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return dict(value)
    if kind is type(value):
        return value
    raise _wrong(path, value, kind.__name__ if isinstance(kind, type) else str(kind))


def _convert_any(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    error: ValueError | None = None
    for kind in kinds:
        if kind is not type(None):
            try:
                return _convert(kind, value, path)
            except ValueError as failure:
                error = error or failure
    assert error is not None
    raise error


def _wrong(path: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"recipe: wrong type. Got {path}={value!r:.200}; expected {expected}.")
