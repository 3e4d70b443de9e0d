"""Whose a run's folder is, and what is written into it."""

import errno
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from proteus.training import World, checkpoint, lock
from proteus.training.checkpoint import CheckpointError
from proteus.training.folder import begin, claim, holding, note_skipped

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
            with (
                pytest.raises(ValueError, match=r"nothing can be written there.*not touched"),
                holding(out, ALONE),
            ):
                pass
        finally:
            if os.path.ismount(out):
                subprocess.run(["umount", out], check=True)

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
        with pytest.raises(CheckpointError, match=r"holds no run.*Leave resume"):
            claim(tmp_path, ALONE, resume=True, overwrite=False)

    def test_a_run_that_was_never_saved_is_started_again_and_both_messages_agree(
        self, tmp_path, caplog
    ):
        (tmp_path / "log.jsonl").write_text("{}\n")
        with pytest.raises(ValueError, match=r"resume \(--resume\) to start it again \(it ended"):
            claim(tmp_path, ALONE, resume=False, overwrite=False)
        assert claim(tmp_path, ALONE, resume=True, overwrite=False) is False
        assert "ended before its first checkpoint: it starts again" in caplog.text

    def test_a_log_without_a_row_is_no_run(self, tmp_path):
        (tmp_path / "log.jsonl").write_text("")
        assert claim(tmp_path, ALONE, resume=False, overwrite=False) is False

    def test_resume_and_overwrite_exclude_each_other(self, tmp_path):
        with pytest.raises(ValueError, match="exclude"):
            claim(tmp_path, ALONE, resume=True, overwrite=True)


def in_another_process(folder):
    """The process that has taken the lock, and keeps it until it is killed."""
    code = """
import sys, time
from pathlib import Path
from proteus.training.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("taken", flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", code, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "taken\n"
    return process


class TestHolding:
    def test_a_second_run_is_refused_and_told_by_whom_until_the_first_is_killed(self, tmp_path):
        holder = in_another_process(tmp_path)
        try:
            told = rf"in use.*process {holder.pid} on {re.escape(socket.gethostname())}"
            for _ in range(2):  # a refusal does not end the lock
                with pytest.raises(ValueError, match=told), holding(tmp_path, ALONE):
                    pass
        finally:
            holder.kill()
            holder.communicate()
        with holding(tmp_path, ALONE):  # kill -9 frees it at once
            assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        assert not list(tmp_path.iterdir())

    def test_the_same_thread_may_take_it_again_and_another_may_not(self, tmp_path):
        refused = []

        def other():
            try:
                with holding(tmp_path, ALONE):
                    pass
            except ValueError as error:
                refused.append(str(error))

        with holding(tmp_path, ALONE), holding(tmp_path / "../" / tmp_path.name, ALONE):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert "in another thread" in refused[0]
        with holding(tmp_path, ALONE):
            pass

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    def test_processes_that_load_images_do_not_keep_it(self, tmp_path):
        with holding(tmp_path, ALONE):
            context = multiprocessing.get_context("fork")
            worker = context.Process(target=time.sleep, args=(600,))
            worker.start()
        holder = in_another_process(tmp_path)  # though the worker, forked meanwhile, lives
        for process in (holder, worker):
            process.kill()
        holder.communicate()
        worker.join()

    def test_where_there_are_no_locks_a_warning_says_so(self, tmp_path, monkeypatch, caplog):
        def unsupported(file):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(lock, "_lock", unsupported)
        with holding(tmp_path, ALONE):
            assert "cannot be locked" in caplog.text

    @pytest.mark.parametrize("before", ["missing", "empty", "with other files"])
    def test_a_start_that_failed_leaves_what_was_there(self, tmp_path, before):
        out = tmp_path / "a/b/run"
        if before != "missing":
            out.mkdir(parents=True)
        if before == "with other files":
            (out / "run.json").write_text("mine")
        found = sorted(tmp_path.rglob("*"))
        with pytest.raises(RuntimeError, match="no luck"), holding(out, ALONE):
            if before != "with other files":
                (out / "run.json").write_text("ours")
            raise RuntimeError("no luck")
        assert sorted(tmp_path.rglob("*")) == found

    def test_a_run_that_had_a_row_stays(self, tmp_path):
        out = tmp_path / "a/run"
        with pytest.raises(RuntimeError, match="no luck"), holding(out, ALONE):
            (out / "log.jsonl").write_text("{}\n")
            raise RuntimeError("no luck")
        assert [path.name for path in out.iterdir()] == ["log.jsonl"]

    @pytest.mark.parametrize("place", ["f", "f/below"])
    def test_a_file_is_no_folder(self, tmp_path, place):
        (tmp_path / "f").write_text("")
        with (
            pytest.raises(ValueError, match=r"is a file|nothing can be written"),
            holding(tmp_path / place, ALONE),
        ):
            pass
        assert (tmp_path / "f").read_text() == ""
