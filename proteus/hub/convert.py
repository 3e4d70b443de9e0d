"""The authors' files -> export folders -> Hub repositories, in one command."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..files import sha256_of
from ..student import Student
from ..weights import from_dinov2, from_openai_clip, from_proteus, from_synclr
from ..weights.timm_folder import WEIGHTS
from ..words import nearest
from .pretrained import PRETRAINED, Pretrained
from .remote import download, upload
from .save import save_pretrained

IMPORTERS: dict[str, Callable[..., nn.Module]] = {
    "proteus": from_proteus,
    "dinov2": from_dinov2,
    "synclr": from_synclr,
    "openai-clip": from_openai_clip,
}
_SUFFIXES = (".pth", ".pt", ".safetensors")


class Released(NamedTuple):
    """One repository of a release.

    Attributes:
        name: Of the student.
        file: The authors' file it was made from.
        folder: The export folder.
        sha256: Of its `model.safetensors`.
        repo: `owner/name`.
        revision: Commit of the upload; None for a dry run.
    """

    name: str
    file: Path
    folder: Path
    sha256: str
    repo: str
    revision: str | None


def convert(
    file: str | Path, folder: str | Path, *, family: str = "proteus", **options: Any
) -> tuple[Path, Pretrained | None]:
    """A weight file of a model family as an export folder in timm's layout.

    Args:
        file: `.pth` or `.safetensors`.
        folder: To write.
        family: "proteus" (the authors' students), "dinov2", "synclr" or "openai-clip".
        **options: Of the importer in `proteus.weights`: `image_size`, `num_heads`; for "proteus"
            also `weights` ("student" or "ema").

    Returns:
        The folder, and which of the paper's students it is, if it is one.

    Raises:
        ValueError: If the family is unknown or the file does not fit it exactly.
    """
    if family not in IMPORTERS:
        raise ValueError(
            f"convert: unknown family. Got {family!r}; expected one of {', '.join(IMPORTERS)}. "
            f"{nearest(family, IMPORTERS)}"
        )
    file = Path(file)
    target = Path(folder) / WEIGHTS
    if target.exists() and file.exists() and target.samefile(file):
        raise ValueError(
            f"convert: the output would replace the input. Got {str(file)!r} in the folder that is "
            f"written; expected another folder."
        )
    model: Any = IMPORTERS[family](file, **options)
    entry = identify(model) if family == "proteus" else None
    details: dict[str, Any] = {"source": f"{file.name}, sha256 {sha256_of(file)}"}
    if entry is not None:
        details |= {
            "teacher": entry.teacher,
            "data": entry.data,
            "license": entry.license,
            "recipe": entry.recipe,
        }
        if options.get("weights", "student") == "student":
            details |= {"name": entry.name, "scores": dict(entry.scores)}
        else:
            details |= {"name": f"{entry.name} (EMA)", "weights": "ema"}
    student = Student(model, image_size=model.patch_embed.img_size)
    return save_pretrained(student, folder, details=details), entry


def identify(model: nn.Module) -> Pretrained | None:
    """Which of the paper's students a converted model is; None if it is of another size."""
    names = set(model.state_dict())
    family = "dinov2" if "blocks.0.ls1.gamma" in names else "synclr"
    if "norm_pre.weight" in names:
        family = "clip"
    described: Any = model
    for entry in PRETRAINED.values():
        size = (entry.family, entry.width, entry.depth)
        if size == (family, described.embed_dim, len(described.blocks)):
            return entry
    return None


def release(
    source: str | Path,
    owner: str,
    *,
    out: str | Path | None = None,
    only: Iterable[str] = (),
    dry_run: bool = False,
    private: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> list[Released]:
    """Convert a folder of the authors' files and publish each under its name.

    Which file is which student is told by the tensors, not by file names. Everything is converted
    and verified before anything is uploaded; each upload is downloaded again and compared.

    Args:
        source: Folder with the authors' `.pth` files.
        owner: User or organisation on the Hub.
        out: Where the export folders go; None = `SOURCE/release`.
        only: Names to release; empty = all six, and a missing one is an error.
        dry_run: Do everything but the uploads.
        private: Whether new repositories are private.
        report: Called with a line for each thing done.

    Returns:
        What was released, in the order of `list_pretrained()`.

    Raises:
        ValueError: If a file is no student of the paper, two are the same one, or one is missing.
    """
    source, wanted = Path(source), list(only) or list(PRETRAINED)
    unknown = [name for name in wanted if name not in PRETRAINED]
    if unknown:
        raise ValueError(
            f"release: unknown student. Got {unknown[0]!r}; expected {', '.join(PRETRAINED)}. "
            f"{nearest(unknown[0], PRETRAINED)}"
        )
    files = _match(source, wanted, report)
    made = []
    for name in (name for name in PRETRAINED if name in wanted):
        folder, _ = convert(files[name], Path(out or source / "release") / name)
        digest = sha256_of(folder / WEIGHTS)
        made.append(Released(name, files[name], folder, digest, f"{owner}/{name}", None))
        report(f"converted {files[name].name} -> {folder}")
    if dry_run:
        return made
    published = []
    for item in made:
        revision = upload(item.folder, item.repo, private=private).rpartition("/")[2]
        found = sha256_of(download(item.repo, revision) / WEIGHTS)
        if found != item.sha256:
            raise ValueError(
                f"release: {item.repo} does not hold what was uploaded. Got sha256 {found}; "
                f"expected {item.sha256}. Delete the repository's files and try again."
            )
        published.append(item._replace(revision=revision))
        report(f"published {item.repo} at {revision}")
    return published


def _match(source: Path, wanted: list[str], report: Callable[[str], None]) -> dict[str, Path]:
    """Name -> file, by what is in the files."""
    if not source.is_dir():
        raise ValueError(f"release: no such folder. Got {str(source)!r}.")
    found: dict[str, Path] = {}
    for file in sorted(path for path in source.iterdir() if path.suffix in _SUFFIXES):
        entry = identify(from_proteus(file))
        if entry is None:
            raise ValueError(
                f"release: {file.name} is none of the paper's students. Expected one of "
                f"{', '.join(PRETRAINED)}. Move it out of the folder."
            )
        if entry.name in found:
            raise ValueError(
                f"release: two files hold {entry.name}. Got {found[entry.name].name} and "
                f"{file.name}; expected one. Move the other out of the folder."
            )
        found[entry.name] = file
        report(f"found {entry.name} in {file.name}")
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(
            f"release: {len(missing)} students are missing in {str(source)!r}: "
            f"{', '.join(missing)}. Add their files, or name the others with only (--only NAME …)."
        )
    return found
