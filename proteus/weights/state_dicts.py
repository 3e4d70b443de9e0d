"""Weight files -> state dicts: nothing in a file is executed, nothing in it is lost silently."""

import argparse
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

StateDict = Mapping[str, Tensor]
# Where training scripts keep the model's tensors inside a `.pth`.
_CONTAINERS = ("state_dict", "model", "teacher")
# Beside errors of their own, readers raise whatever the bytes of a damaged file make them do.
_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
    struct.error,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)


def read_state_dict(path: str | Path) -> dict[str, Any]:
    """Read a `.safetensors` or `.pth` file without executing anything in it.

    Args:
        path: A local file.

    Returns:
        What the file holds: name -> tensor (for `.pth` also nested dictionaries).

    Raises:
        ValueError: If the file is missing, is not a weight file, or holds anything but tensors,
            plain containers and numbers.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "weights.pth")
        ...     torch.save({"model": {"norm.bias": torch.zeros(3)}}, path)
        ...     read_state_dict(path)
        {'model': {'norm.bias': tensor([0., 0., 0.])}}
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights: no such file. Got {str(path)!r}; expected a local weight file.")
    if _is_program(path):
        raise ValueError(
            f"weights: {path.name} is a TorchScript archive, a program, which is not run. Got a "
            f"zip of code and tensors; expected .safetensors or .pth with tensors only. Where you "
            f"trust it: safetensors.torch.save_file(dict(torch.jit.load(FILE).state_dict()), OUT)."
        )
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # `Namespace` is a bag of attributes; training scripts store their arguments in one.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"weights: {path.name} holds no state dict. Got {type(content).__name__}; expected a "
            f"dictionary of tensors."
        )
    return content


def _is_program(path: Path) -> bool:
    """Whether it is a TorchScript archive, as OpenAI's own downloads: weights inside a program."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, *_UNREADABLE):
        return False


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = str(error).split("\n", 1)[0]
    with path.open("rb") as handle:
        page = handle.read(256).lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml"))
    what = "a web page, probably of a failed download" if page else type(error).__name__
    return ValueError(
        f"weights: {path.name} is not a readable weight file. Got {what}: {reason}. Expected "
        f".safetensors, or .pth with tensors only; download it again."
    )


@contextmanager
def naming(source: object) -> Iterator[None]:
    """Errors within name the file they are about, if it is one."""
    try:
        yield
    except ValueError as error:
        if isinstance(source, str | Path) and Path(source).name not in str(error):
            error.args = (f"{error} The file is {source}.",)
        raise


def open_weights(source: Mapping[str, Any] | str | Path, subject: str) -> dict[str, Any]:
    """A file's or a caller's (possibly nested) dictionary; always a copy of the outer level."""
    if isinstance(source, str | Path):
        return read_state_dict(source)
    if not isinstance(source, Mapping):
        raise ValueError(
            f"{subject}: no weights. Got a {type(source).__name__}; expected a state dict "
            f"(name -> tensor) or the path of a file with one."
        )
    return dict(source)


def model_tensors(content: Mapping[str, Any], subject: str) -> dict[str, Tensor]:
    """The model's tensors of a checkpoint, under bare names.

    Takes what is under `state_dict`, `model` or `teacher` if the dictionary is nested, and removes
    the `module.` that `DistributedDataParallel` puts before every name.

    Raises:
        ValueError: If anything in it is not a tensor.
    """
    for name in _CONTAINERS:
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    tensors = dict(content)
    others = [
        name
        for name, value in tensors.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if others or not tensors:
        raise ValueError(
            f"{subject}: no state dict. Got entries that are not tensors "
            f"({', '.join(map(repr, others[:3])) or 'an empty dictionary'}); expected name -> "
            f"tensor, or such a dictionary under {', '.join(map(repr, _CONTAINERS))}."
        )
    refuse_hollow(tensors, subject)
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def refuse_hollow(tensors: Mapping[str, Any], subject: str) -> None:
    """Raise `ValueError` for tensors that are no plain array of numbers."""
    odd = [k for k, v in tensors.items() if isinstance(v, Tensor) and not _is_plain(v)]
    if odd:
        raise ValueError(
            f"{subject}: tensors without values of their own. Got {', '.join(odd[:3])}: sparse, "
            f"quantised, on no device, or larger than what the file holds; expected plain ones. "
            f"Save the weights as safetensors."
        )


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's values are all there: a few bytes may claim to be a billion numbers."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity; one pass over each, nothing is copied."""
    return [name for name, tensor in tensors.items() if not _is_finite(tensor.detach())]


def refuse_not_finite(
    tensors: Mapping[str, Tensor], subject: str, model: nn.Module | None = None
) -> None:
    """Raise `ValueError` where weights hold NaN or infinity, with their names.

    Args:
        tensors: Name -> tensor.
        subject: First word of the message.
        model: Whose they are: its buffers that are no running statistics may be bounds, and
            without end (Gemma's vision towers clip by such).
    """
    bounds = {} if model is None else dict(model.named_buffers())
    names = [
        name
        for name in not_finite(tensors)
        if name not in bounds or ".running_" in f".{name}" or tensors[name].isnan().any()
    ]
    if names:
        raise ValueError(
            f"{subject}: the weights hold NaN or infinity. Got them in {', '.join(names[:3])}"
            f"{', …' if len(names) > 3 else ''}; expected finite numbers. Whatever wrote them went "
            f"wrong: take an earlier checkpoint, or get the file again."
        )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
        return True
    if tensor.element_size() == 1:  # the 8-bit floats can do little more than be converted
        tensor = tensor.float()
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())  # NaN passes through both


def rename(tensors: StateDict, new_name: Callable[[str], str], subject: str) -> dict[str, Tensor]:
    """The tensors under new names; two for one name are an error, else one would be lost."""
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if new_name(name) in renamed:
            raise ValueError(
                f"{subject}: two tensors for one place. Got {name!r} and another, both for "
                f"{new_name(name)!r} of the model; expected one. Take the other model's tensors "
                f"out of the file."
            )
        renamed[new_name(name)] = value
    return renamed


def without_classifier(model: nn.Module, tensors: StateDict) -> dict[str, Tensor]:
    """The tensors without those of the classifier that timm's model had and this one has not."""
    config = dict(vars(model).get("pretrained_cfg") or {})
    classifier = config.get("classifier") or ()
    heads = tuple(classifier) if isinstance(classifier, list | tuple) else (classifier,)
    own = model.state_dict()
    return {
        name: value
        for name, value in tensors.items()
        if name in own or name.rpartition(".")[0] not in heads
    }


def load_strictly(model: nn.Module, tensors: StateDict, subject: str) -> None:
    """Load a state dict; missing or left-over keys, other shapes or kinds and NaN are errors."""
    own = model.state_dict()
    problems = {
        "missing": [key for key in own if key not in tensors],
        "left over": [key for key in tensors if key not in own],
        "of another shape": [
            f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if key in tensors and tensors[key].shape != own[key].shape
        ],
        "of another kind": [
            f"{key} {tensors[key].dtype} instead of {own[key].dtype}"
            for key in own
            if key in tensors
            # Who casts a whole state dict to half precision casts batch norm's counts, too.
            and own[key].is_floating_point()
            and not tensors[key].is_floating_point()
        ],
    }
    found = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in problems.items()
        if keys
    ]
    if found:
        raise ValueError(
            f"{subject}: the weights do not fit {type(model).__name__}. Got keys {'; '.join(found)}"
            f"; expected exactly the {len(own)} keys of the model. Check that the file belongs to "
            f"this model."
        )
    refuse_not_finite(tensors, subject, model)
    model.load_state_dict(dict(tensors))


def apart(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, copied where they share memory, as tied weights do: safetensors refuses that."""
    found: dict[str, Tensor] = {}
    memories: set[int] = set()
    for key, tensor in named.items():
        value = tensor.contiguous()
        memory = value.untyped_storage().data_ptr()
        found[key] = value.clone() if memory in memories else value
        memories.add(memory)
    return found
