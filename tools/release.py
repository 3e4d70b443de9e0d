"""The authors' six files to six Hub repositories; for whoever publishes the paper's students.

python tools/release.py --from authors-files --to OWNER --dry-run
python tools/release.py --from authors-files --to OWNER
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from proteus.files import sha256_of
from proteus.hub.convert import convert, identify
from proteus.hub.pretrained import PRETRAINED
from proteus.hub.remote import download, upload
from proteus.weights import from_proteus
from proteus.weights.timm_folder import WEIGHTS
from proteus.words import nearest

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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--from", dest="source", type=Path, required=True, help="folder with the authors' files")
    add("--to", dest="owner", required=True, help="user or organisation on the Hub")
    add("--out", type=Path, help="folder for the export folders (default: FROM/release)")
    add("--only", nargs="+", default=[], metavar="NAME", help="these students alone")
    add("--dry-run", action="store_true", help="everything but the uploads")
    add("--private", action="store_true", help="new repositories are private")
    arguments = vars(parser.parse_args(argv))
    items = release(arguments.pop("source"), arguments.pop("owner"), report=print, **arguments)
    print("\nDry run:" if arguments["dry_run"] else "\nFor the table in proteus/hub/pretrained.py:")
    for item in items:
        print(f'{item.name}: revision="{item.revision}", sha256="{item.sha256}"')


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"release: {error}")
