"""Whose a run's folder is, and what is written into it."""

import os
import shutil
import subprocess

import pytest
import torch

from proteus import checkpoint
from proteus.checkpoint import CheckpointError
from proteus.training import World
from proteus.training.folder import begin, claim, note_skipped

ALONE = World(torch.device("cpu"))


def test_skipped_images_are_added_to_those_of_before(tmp_path):
    assert note_skipped(tmp_path, {}) == 0
    assert not (tmp_path / "skipped.tsv").exists()
    assert note_skipped(tmp_path, {"b.png": "no\nimage", "a.png": "empty"}) == 2
    assert note_skipped(tmp_path, {"a.png": "empty", "c.png": "cut off"}) == 3
    lines = (tmp_path / "skipped.tsv").read_text().splitlines()
    assert lines == ["b.png\tno image", "a.png\tempty", "c.png\tcut off"]


def test_skipped_images_may_have_any_name(tmp_path):
    names = {os.fsdecode(b"\xff.png"): "empty", "a\u2028b.png": "cut off"}
    assert note_skipped(tmp_path, names) == 2
    assert note_skipped(tmp_path, {}) == 2
    assert (tmp_path / "skipped.tsv").read_bytes().startswith(b"\xff.png\tempty\n")


def test_the_list_of_skipped_images_is_never_written_through_a_link(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "skipped.tsv").symlink_to(tmp_path / "mine.txt")
    assert note_skipped(tmp_path, {"a.png": "empty"}) == 1
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "skipped.tsv").read_text() == "a.png\tempty\n"


class TestClaim:
    def test_a_folder_that_cannot_be_written_is_found_out_before_any_work(self, tmp_path):
        out = tmp_path / "closed"
        out.mkdir(mode=0o500)
        if os.geteuid() == 0:  # whom permissions do not bind
            command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", out]
            if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
                pytest.skip("no file system may be mounted here")
        try:
            with pytest.raises(ValueError, match=r"nothing can be written there.*not touched"):
                claim(out, ALONE, resume=False, overwrite=False)
        finally:
            if os.path.ismount(out):
                subprocess.run(["umount", out], check=True)

    def test_a_new_folder_is_made(self, tmp_path):
        claim(tmp_path / "a/b", ALONE, resume=False, overwrite=False)
        assert (tmp_path / "a/b").is_dir()

    def test_a_run_is_not_overwritten_by_accident(self, tmp_path):
        (tmp_path / "log.jsonl").write_text("{}\n")
        with pytest.raises(ValueError, match=r"already holds a run.*--resume.*--overwrite"):
            claim(tmp_path, ALONE, resume=False, overwrite=False)

    def test_overwrite_removes_the_run_and_nothing_else(self, tmp_path):
        checkpoint.save(tmp_path, 1, {"weights": {"a": torch.zeros(1)}}, settings={})
        (tmp_path / "log.jsonl").write_text("{}\n")
        (tmp_path / "mine.txt").write_text("keep")
        (tmp_path / "mine.jsonl").write_text("keep")
        assert not claim(tmp_path, ALONE, resume=False, overwrite=True)
        assert (tmp_path / "checkpoint").exists()  # only now is it sure that a run can start
        begin(tmp_path, ALONE, going_on=False)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.jsonl", "mine.txt"]

    def test_overwrite_takes_a_link_to_older_checkpoints_away(self, tmp_path):
        old, out = tmp_path / "old", tmp_path / "out"
        checkpoint.save(old, 9, {"weights": {"a": torch.zeros(1)}}, settings={})
        out.mkdir()
        (out / "checkpoint").symlink_to(old / "checkpoint")
        begin(out, ALONE, going_on=claim(out, ALONE, resume=False, overwrite=True))
        assert checkpoint.newest(out) is None
        assert checkpoint.load(old).step == 9

    def test_nothing_to_resume(self, tmp_path):
        with pytest.raises(CheckpointError, match="no checkpoint"):
            claim(tmp_path, ALONE, resume=True, overwrite=False)

    def test_resume_and_overwrite_exclude_each_other(self, tmp_path):
        with pytest.raises(ValueError, match="exclude"):
            claim(tmp_path, ALONE, resume=True, overwrite=True)

    def test_a_file_is_no_folder(self, tmp_path):
        (tmp_path / "f").write_text("")
        with pytest.raises(ValueError, match="is a file"):
            claim(tmp_path / "f", ALONE, resume=False, overwrite=False)
