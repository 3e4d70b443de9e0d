"""Runs that are killed, stopped, or cannot write: every one reaches the same end, to the bit."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from PIL import Image
from training_jobs import run_alone

SAVES = {"lr": 3e-3, "save_every": 3, "keep": 2, "ema": 0.9, "accumulate": 2, "resume": "auto"}
STEPS = 18


@pytest.fixture(scope="module")
def processes():
    """Real processes without the seconds that importing torch takes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["proteus.training", "timm", "matplotlib.pyplot"])
    return context


@pytest.fixture(scope="module")
def run(processes, tmp_path_factory):
    """Start a run; with `wait`, its exit code and what stopped it."""

    def start(out, *, wait=True, trouble=None, job=None, **options):
        seen = tmp_path_factory.mktemp("seen") / "seen.json"
        job = {
            "out": str(out),
            "seen": str(seen),
            "options": SAVES | {"steps": STEPS} | options,
            "trouble": trouble or {},
            **(job or {}),
        }
        process = processes.Process(target=run_alone, args=(job,))
        process.start()
        if not wait:
            return process
        process.join(timeout=300)
        stopped = json.loads(seen.read_text())["stopped"] if seen.exists() else None
        return process.exitcode, stopped

    return start


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The run that nothing disturbed, and the seconds that its steps and saves took."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(out) == (0, None)
    timing = (out / "timing.jsonl").read_text().splitlines()
    return out, json.loads(timing[-1])["seconds"]


def assert_same_end(out, whole):
    assert (out / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()
    newest = f"checkpoint/step-{STEPS:08d}"
    files = sorted(path.name for path in (whole / newest).iterdir())
    assert files == [
        "ema.safetensors",
        "optimizer.safetensors",
        "state.json",
        "weights.safetensors",
    ]
    for name in files:
        assert (out / newest / name).read_bytes() == (whole / newest / name).read_bytes(), name
    names = sorted(path.name for path in (out / "checkpoint").iterdir())
    assert names == [f"step-{STEPS - 3:08d}", f"step-{STEPS:08d}"]  # nothing is left lying about


def kill_at_a_random_moment(process, out, seconds, chance, during_save):
    """SIGKILL; whether a save was under way."""
    while process.is_alive() and not (out / "log.jsonl").exists():
        time.sleep(0.0005)
    deadline = time.monotonic() + (60 if during_save else chance.uniform(0, seconds))
    saves = chance.randrange(1, 6)
    while process.is_alive() and time.monotonic() < deadline:
        if during_save and list((out / "checkpoint").glob(".tmp-*")):
            saves -= 1
            if not saves:
                time.sleep(chance.uniform(0, 0.01))
                break
            while process.is_alive() and list((out / "checkpoint").glob(".tmp-*")):
                time.sleep(0.0005)
        time.sleep(0.0005)
    process.kill()
    process.join()
    return any((out / "checkpoint").glob(".tmp-*"))


def kill_and_resume(run, whole, folder, moments, seed):
    """As often as there are moments, each in a folder of its own; how many hit a save."""
    reference, seconds = whole
    chance, hits, died = random.Random(seed), 0, 0
    for number in range(moments):
        out = folder / f"run-{number}"
        process = run(out, wait=False)
        hits += kill_at_a_random_moment(process, out, seconds, chance, number % 2 == 1)
        died += process.exitcode == -signal.SIGKILL
        assert run(out) == (0, None)
        assert_same_end(out, reference)
        shutil.rmtree(out)
    assert died >= moments * 0.7  # the others had just finished
    return hits


def test_kill_9_costs_nothing(run, whole, tmp_path):
    kill_and_resume(run, whole, tmp_path, moments=2, seed=1)


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments_costs_nothing(run, whole, tmp_path):
    assert kill_and_resume(run, whole, tmp_path, moments=20, seed=2) >= 3


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_gets_there(run, whole, tmp_path):
    out, chance = tmp_path / "run", random.Random(3)
    for _ in range(12):
        process = run(out, wait=False)
        kill_at_a_random_moment(process, out, whole[1] * 0.8, chance, False)
    assert run(out) == (0, None)
    assert_same_end(out, whole[0])


def test_sigterm_saves_says_so_and_leaves_with_0(run, whole, tmp_path):
    out = tmp_path / "run"
    code, stopped = run(out, trouble={"trouble": "sigterm", "at": 7})
    assert code == 0
    assert stopped == [
        "RunStopped",
        f"Stopped by SIGTERM after 8 of {STEPS} steps: saved in {out}; go on with resume "
        f"(--resume).",
    ]
    assert (out / "checkpoint/step-00000008/state.json").exists()
    assert run(out) == (0, None)
    assert_same_end(out, whole[0])


def test_sigterm_to_the_processes_that_load_images_too_saves_as_well(run, tmp_path):
    """As Slurm sends it: to every process of the job."""
    (tmp_path / "images").mkdir()
    for n in range(16):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{n:02}.png")
    out, job = tmp_path / "run", {"folder": str(tmp_path / "images"), "workers": 2}
    options = {"steps": 5000, "save_every": 5000}
    process = run(out, wait=False, job=job, **options)
    deadline = time.monotonic() + 600
    while not (out / "log.jsonl").exists() or not (out / "log.jsonl").stat().st_size:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    process.join(timeout=60)
    assert process.exitcode == 0
    done = len((out / "log.jsonl").read_text().splitlines())
    assert 0 < done < 5000
    assert (out / f"checkpoint/step-{done:08d}/state.json").exists()
    with pytest.raises(ProcessLookupError):  # and none of them is left
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@pytest.mark.parametrize("damage", ["a flipped bit", "garbage"])
def test_a_damaged_newest_checkpoint_costs_only_time(run, whole, tmp_path, damage):
    out = tmp_path / "run"
    run(out, trouble={"trouble": "sigterm", "at": 7})
    names = [path.name for path in sorted((out / "checkpoint").iterdir())]
    assert names == ["step-00000006", "step-00000008"]
    file = out / "checkpoint/step-00000008/optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    {
        "a flipped bit": lambda: file.write_bytes(content),
        "garbage": lambda: (file.parent / "state.json").write_bytes(b"\0" * 300),
    }[damage]()
    # Stopped again before the step of the damaged one: with one checkpoint to keep, it is the good.
    stopped = run(out, keep=1, trouble={"trouble": "sigterm", "at": 6})[1]
    assert stopped[0] == "RunStopped"
    names = [path.name for path in sorted((out / "checkpoint").iterdir())]
    assert names == ["damaged-step-00000008", "step-00000007"]
    shutil.rmtree(out / "checkpoint/damaged-step-00000008")
    assert run(out) == (0, None)
    assert_same_end(out, whole[0])


# A file limit stands for a full disk: the real write fails in the middle of a file.
@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (30_000, r"could not be written after step 8\..*Kept: .*step-00000006.*Make room"),
        (10, "File too large"),  # already the log
    ],
)
def test_a_full_disk_costs_nothing(run, whole, tmp_path, limit, message):
    out = tmp_path / "run"
    code, stopped = run(out, trouble={"trouble": "full disk", "at": 7, "limit": limit})
    assert code == 0
    assert stopped[0] == "OSError"
    assert re.search(message, stopped[1])
    names = [path.name for path in sorted((out / "checkpoint").iterdir())]
    assert names == ["step-00000003", "step-00000006"]  # no half one takes up room
    assert run(out) == (0, None)
    assert_same_end(out, whole[0])


@pytest.fixture
def read_only(tmp_path):
    """Make a folder read-only; for root too, whom permissions do not bind."""
    closed = []

    def close(folder):
        closed.append(folder)
        folder.chmod(0o500)
        if os.geteuid() == 0:
            done = subprocess.run(["chattr", "+i", folder], capture_output=True, check=False)
            if done.returncode:
                pytest.skip("root, and a file system without immutable folders")

    def open_again(folder):
        if os.geteuid() == 0:
            subprocess.run(["chattr", "-i", folder], capture_output=True, check=False)
        folder.chmod(0o700)

    yield close, open_again
    for folder in closed:
        open_again(folder)


def test_a_read_only_folder_costs_nothing(run, whole, tmp_path, read_only):
    close, open_again = read_only
    out = tmp_path / "run"
    run(out, trouble={"trouble": "sigterm", "at": 6})
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    close(out)
    _, stopped = run(out)
    assert stopped[0] == "ValueError"
    assert "nothing can be written there" in stopped[1]
    assert "not touched" in stopped[1]
    open_again(out)
    # Now only the checkpoints' folder, so that it is found out at the first save.
    close(out / "checkpoint")
    _, stopped = run(out)
    assert stopped[0] == "OSError"
    assert "could not be written after step 8" in stopped[1]
    assert "step-00000007" in stopped[1]
    open_again(out / "checkpoint")
    now = {path: path.read_bytes() for path in before}
    assert {p for p in before if now[p] != before[p]} <= {
        out / name for name in ("log.jsonl", "timing.jsonl", "watch.jsonl")
    }
    assert run(out) == (0, None)
    assert_same_end(out, whole[0])
