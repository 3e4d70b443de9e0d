"""The folder of several runs that were trained together: which ones it holds."""

import json
from collections.abc import Iterable
from pathlib import Path

from ..files import read_json, write_whole

STUDENTS = "students.json"


def note_runs(folder: Path, names: Iterable[str]) -> None:
    """Keep the names of the runs, which are those of their folders."""
    write_whole(folder / STUDENTS, json.dumps({"students": [*names]}) + "\n")


def runs_in(folder: str | Path) -> list[str]:
    """The names of its runs; none where it is another folder.

    Raises:
        ValueError: If the file with the names cannot be read.
    """
    file = Path(folder) / STUDENTS
    if not file.is_file():
        return []
    match read_json(file):
        case {"students": [*names]} if names and all(
            isinstance(name, str) and Path(name).name == name for name in names
        ):
            return [str(name) for name in names]
    raise ValueError(
        f"run folder: {file} is damaged. Expected the names of the runs beside it. Name one of "
        f"them: {str(Path(folder) / 'NAME')!r}."
    )
