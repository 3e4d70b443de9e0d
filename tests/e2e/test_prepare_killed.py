"""`proteus prepare` killed in the middle, gone on with, and trained from."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from proteus.prepared import PreparedTargets


def command(*words):
    return [sys.executable, "-m", "proteus", *map(str, words)]


@pytest.mark.slow
def test_killed_and_called_again_it_makes_what_is_missing(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for n in range(700):
        pixels = np.random.default_rng(n).integers(0, 256, (72, 72, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{n:03d}.jpg")
    prepare = command(
        "prepare", "--teacher", "demo-teacher", "--data", images, "--out", tmp_path / "targets",
        "--views", 12, "--dtype", "fp32", "--workers", 1,
    )  # fmt: skip
    first = tmp_path / "targets/shards/00000.json"
    process = subprocess.Popen(prepare, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not first.exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert first.exists() and not (tmp_path / "targets/prepared.json").exists()
    stamp = first.with_suffix(".safetensors").stat().st_mtime_ns
    distill = command(
        "distill", "--prepared", tmp_path / "targets", "--teacher", "demo-teacher",
        "--student", "demo-student", "--data", images, "--steps", 12, "--out", tmp_path / "run",
        "--save-every", 5, "--batch-size", 32,
    )  # fmt: skip
    early = subprocess.run(distill, check=False, capture_output=True, text=True)
    assert early.returncode == 2 and "they are not all made" in early.stderr
    subprocess.run(prepare, check=True, capture_output=True)
    assert first.with_suffix(".safetensors").stat().st_mtime_ns == stamp
    PreparedTargets(tmp_path / "targets").check()
    assert not [*(tmp_path / "targets/shards").glob(".tmp-*")]

    process = subprocess.Popen(distill, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not [*(tmp_path / "run").glob("checkpoint/step-*")]:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run([*distill, "--resume"], check=True, capture_output=True)
    rows = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(12))
    at = distill.index(str(tmp_path / "run"))
    whole = [*distill[:at], str(tmp_path / "whole"), *distill[at + 1 :]]
    subprocess.run(whole, check=True, capture_output=True)
    assert (tmp_path / "whole/log.jsonl").read_text().splitlines() == rows
