"""Files are whole or as they were; what is read back is what was written, or an error in words."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from proteus.files import is_plain, read_json, read_lines, replace_files, sha256_of, write_whole


@pytest.mark.parametrize(
    "content", ["text \udcff", b"text \xff", lambda p: p.write_bytes(b"text \xff")]
)
def test_a_file_is_written_whole_with_the_rights_of_any_other(tmp_path, content):
    write_whole(tmp_path / "a", content)
    (tmp_path / "b").touch()
    assert (tmp_path / "a").read_bytes() == b"text \xff"
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"]
    assert modes[0] == modes[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_in_the_place_of_a_file_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="A folder is where a file is to go"):
        write_whole(tmp_path / "a", "text")
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, error):
    (tmp_path / "a").write_text("before")

    def fail(path):
        path.write_text("ha")
        raise error

    with pytest.raises(type(error)):
        write_whole(tmp_path / "a", fail)
    assert (tmp_path / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_is_replaced_and_never_written_through(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a").symlink_to(tmp_path / "mine")
    write_whole(tmp_path / "a", "new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "a").read_text() == "new"
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / "a").write_text("newer")
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to(tmp_path / "mine")
    replace_files(staging, tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "a").read_text() == "newer"


def test_the_digest_of_a_part_is_that_of_its_bytes(tmp_path):
    data = os.urandom(3 << 20)
    (tmp_path / "a").write_bytes(data)
    for length in (0, 1, 1 << 20, (1 << 20) + 1, 9 << 20):
        expected = hashlib.sha256(data[:length]).hexdigest()
        assert sha256_of(tmp_path / "a", length) == expected
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "not there"),
        (os.mkdir, "not a file"),
        (os.mkfifo, "not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a file"),
        (lambda path: path.symlink_to(path), r"not there|symbolic"),
        (lambda path: path.write_bytes(b"\xff"), "utf-8"),
        (lambda path: path.write_text("{'a': 1}"), "double quotes"),
        (lambda path: path.write_text('{"a": 1, "b": {"c": 1, "c": 2}}'), "'c' stands in it twice"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, make, reason):
    path = tmp_path / "a.json"
    make(path)
    with pytest.raises(ValueError, match=reason):
        read_json(path)


def test_only_files_of_the_folder_itself_are_plain(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    found = [name for name in ("a", "link", "pipe", "none", ".") if is_plain(tmp_path / name)]
    assert found == ["a"]
    assert not is_plain(tmp_path / "a\0b")
    assert not list(read_lines(tmp_path / "pipe"))


def test_where_no_folder_can_be_opened_files_are_written_all_the_same(tmp_path, monkeypatch):
    """As on Windows, which flushes only what it may write."""
    opened = os.open

    def windows(path, flags, *more, **options):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        assert flags & (os.O_RDWR | os.O_WRONLY), path
        return opened(path, flags, *more, **options)

    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(os, "open", windows)
    write_whole(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises((PermissionError, AssertionError)):
        write_whole(tmp_path / "a.txt", "other")
