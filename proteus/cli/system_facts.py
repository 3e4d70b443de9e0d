"""What a bug report needs to know of a machine: versions, devices, extras, caches; nothing else."""

import getpass
import importlib.metadata
import platform
import re
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch", "torchvision", "timm", "huggingface_hub", "safetensors", "einops", "numpy", "pillow",
    "tqdm", "matplotlib", "transformers",
)  # fmt: skip
_FOR_DEVELOPERS = {"dev", "docs", "test"}


def system_facts() -> dict[str, Any]:
    """JSON-able; no names of users or machines, no environment, no paths but of caches."""
    import torch

    from ..recipes.measuring import cores
    from ..version import __version__

    return {
        "versions": {
            "proteus-distill": __version__,
            **{name: _version(name) for name in _PACKAGES},
            "python": f"{platform.python_version()} ({platform.python_implementation()})",
            "system": platform.platform(),
        },
        "devices": _devices(),
        "threads": {"cores": cores(), "torch": torch.get_num_threads()},
        "extras": extras(),
        "caches": _caches(),
    }


def print_system(facts: dict[str, Any]) -> None:
    """For people: a line each."""
    for title in ("versions", "devices", "threads", "caches"):
        print(f"{title}:")
        for name, value in facts[title].items():
            print(f"  {name:20} {value or 'not installed'}")
    print("extras:")
    for name, packages in facts["extras"].items():
        missing = [package for package, version in packages.items() if version is None]
        state = f"missing {', '.join(missing)}" if missing else "installed"
        print(f"  {name:20} {state}")


def extras() -> dict[str, dict[str, str | None]]:
    """Extra -> its packages with their versions, None where one is missing.

    As this installation's own metadata lists them; empty for a copied folder, which has none.
    """
    try:
        lines = importlib.metadata.requires("proteus-distill") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, dict[str, str | None]] = {}
    for line in lines:
        match = re.match(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]", line)
        if match and match[2] not in _FOR_DEVELOPERS:
            found.setdefault(match[2], {})[match[1]] = _version(match[1])
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    import torch

    found = {"cpu": platform.machine()}
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    if torch.cuda.is_available():
        found["cuda"] = f"CUDA {torch.version.cuda or torch.version.hip}"
    elif torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        found[kind.type if kind else "other"] = f"{torch.accelerator.device_count()}"
    return found


def _caches() -> dict[str, str]:
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from ..data.shards import cache_folder

    places = {"shards": cache_folder(), "hub": HF_HUB_CACHE, "torch": torch.hub.get_dir()}
    return {name: shown(Path(str(place))) for name, place in places.items()}


def shown(path: Path) -> str:
    """A path that may be posted: `~` for the home folder, and no user's name.

    Examples:
        >>> shown(Path.home() / "cache" / "shards")
        '~/cache/shards'
        >>> shown(Path("/data/shards"))
        '/data/shards'
    """
    if path.is_relative_to(Path.home()):
        return "~/" + path.relative_to(Path.home()).as_posix()
    names = {Path.home().name, _user()}
    return str(Path(*("USER" if part in names else part for part in path.parts)))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return ""
