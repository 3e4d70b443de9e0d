"""The rows of a run's logs: read, and taken back to where a checkpoint stands."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from ..files import holes, is_plain, newest, read_lines, sha256_of, write_whole

_logger = logging.getLogger(__name__)

Row = dict[str, Any]
LOG, TIMING, WATCH = "log.jsonl", "timing.jsonl", "watch.jsonl"
NOTES = "notes.txt"  # what befell the run, in sentences; its page shows them
_COVERED = (LOG, WATCH)  # not timings: those of a resumed run differ, and its checkpoints may not


def read_rows(path: Path) -> list[Row]:
    """The newest rows of a log; the half of one, of a run that was killed, is left out."""
    return [row for _, row in _newest_rows(path)]


def _newest_rows(path: Path) -> list[tuple[bytes, Row]]:
    rows = [(line, row) for line, row in read_lines(path) if row]
    return [rows[index] for index in newest([row["step"] for _, row in rows])]


def cut_rows(path: Path, start: int) -> list[int]:
    """Cut what is not a row of a step before `start`; the steps that are left.

    In place wherever rows are lost at the end alone: this needs no space.

    Raises:
        ValueError: If it is a link or no file: what it leads to is not ours to cut.
    """
    if not os.path.lexists(path):
        return []
    if not is_plain(path):
        raise ValueError(
            f"log: {path} is a link, or no file. Its rows would be cut elsewhere. Move it away."
        )
    rows = [(line, row["step"]) for line, row in _newest_rows(path) if row["step"] < start]
    whole = b"".join(line.rstrip(b"\n") + b"\n" for line, _ in rows)
    if not _starts_with(path, len(whole), hashlib.sha256(whole).hexdigest()):
        write_whole(path, whole)
    os.truncate(path, len(whole))
    return [step for _, step in rows]


def covered(folder: Path) -> dict[str, Any]:
    """What the logs of a run hold now: name -> bytes and their sha256. A checkpoint keeps it."""
    paths = [folder / name for name in _COVERED if is_plain(folder / name)]
    return {path.name: [path.stat().st_size, sha256_of(path)] for path in paths}


def go_back(folder: Path, start: int, saved: Any) -> None:
    """Take the logs back to where a run stood after `start` steps; what of them is lost, is told.

    By a warning, and in the run's notes, which its page shows: training is not repeated for rows.

    Args:
        folder: The run's.
        start: Steps done.
        saved: What `covered` gave then; None = the checkpoint is older than these checks.
    """
    known = saved if isinstance(saved, dict) else {}
    for name in (LOG, TIMING, WATCH):
        path, (length, digest) = folder / name, _entry(known.get(name))
        if digest and is_plain(path) and _starts_with(path, length, digest):
            os.truncate(path, length)
            continue
        kept = cut_rows(path, start)
        missing = holes(kept, start) if name == LOG else ""
        if missing:
            _note(folder, f"{name} lacks rows that the run had written: {missing}.", start)
        elif digest:
            _note(folder, f"{name} is not what was saved: rows of it were changed or lost.", start)


def _entry(found: Any) -> tuple[int, str]:
    """Bytes and their sha256; zero where nothing usable is known."""
    match found:
        case [int(length), str(digest)] if length >= 0:
            return length, digest
    return 0, ""


def _starts_with(path: Path, length: int, digest: str) -> bool:
    return path.stat().st_size >= length and sha256_of(path, length) == digest


def _note(folder: Path, what: str, start: int) -> None:
    note = f"Resumed after {start} steps: {what} The weights are whole.\n"
    file = folder / NOTES
    before = file.read_text("utf-8", "replace") if is_plain(file) else ""
    _logger.warning("log: %s", note.strip())
    if note not in before:
        write_whole(file, before + note)
