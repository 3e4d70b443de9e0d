"""The settings of a run that were in effect, grouped for people; what was off is left out."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from ..text import size_text
from .measured import leaves

# What an unset field meant, where it is a number: path -> (value, (path, values) it belongs to).
_MEANT: dict[str, tuple[Any, str, tuple[Any, ...]]] = {
    "optimizer.warmup": (0.05, "optimizer.schedule", ("cosine",)),
    "optimizer.warmup_epochs": (5, "optimizer.schedule", ("deit", "official")),
    "optimizer.warmup_lr": (1e-6, "optimizer.schedule", ("deit", "official")),
    "optimizer.min_lr": (1e-5, "optimizer.schedule", ("deit", "official")),
    "loss.queue_size": (4096, "loss.token_distance", ("queue",)),
    "loss.temperature": (0.07, "loss.token_distance", ("queue",)),
}
_TERMS = ("token", "feature", "patch")
_TITLES = {
    "model": "Models", "loss": "Loss", "logits": "Logits", "masks": "Masks", "data": "Images",
    "optimizer": "Optimizer", "machine": "Machine", "images": "Images read", "versions": "Versions",
}  # fmt: skip

Group = tuple[str, list[tuple[str, str]]]


def settings_in_effect(facts: Mapping[str, Any], active: Collection[str] = ()) -> list[Group]:
    """What `run.json` says was set, by group; what was off or unset is left out.

    Args:
        facts: Of `run.json`: `recipe` or `settings`, `images`, `versions`.
        active: Loss terms that the log has numbers for.

    Returns:
        Title and (name, value) of each group that has any.

    Examples:
        >>> facts = {"recipe": {"science": {"model": {"student": "vit", "init": None}}}}
        >>> settings_in_effect(facts)
        [('Models', [('student', 'vit')])]
    """
    paths: dict[str, Any] = {}
    for key in ("recipe", "settings"):
        paths |= {p.removeprefix("science."): v for p, v in leaves(facts.get(key)).items()}
    for key in ("images", "versions"):
        paths |= {f"{key}.{path}": value for path, value in leaves(facts.get(key)).items()}
    for term in _TERMS:
        if f"loss.{term}" in paths and paths[f"loss.{term}"] is None and active:
            paths[f"loss.{term}"] = 1 if term in active else 0
    for path, (value, other, fitting) in _MEANT.items():
        if path in paths and paths[path] is None and paths.get(other) in fitting:
            paths[path] = value
    without_patch = active and "patch" not in active
    groups: dict[str, list[tuple[str, str]]] = {}
    for path, value in paths.items():
        group, _, name = path.partition(".") if "." in path else ("run", "", path)
        off = value is None or value is False or value in ("", [], (), {})
        if off or (group == "masks" and without_patch) or path == "images.digest":
            continue
        groups.setdefault(_TITLES.get(group, group.capitalize()), []).append((name, _text(value)))
    return list(groups.items())


def size_of(parameters: int) -> str:
    """The size of a model's weights, as float32.

    Examples:
        >>> size_of(2_720_000)
        '10.4 MiB'
    """
    return size_text(4 * parameters)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(one, str | int | float) for one in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False)
