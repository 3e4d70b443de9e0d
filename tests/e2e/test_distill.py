"""The command line in processes of its own: train, kill, resume, export, load with plain timm."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

LOAD = """
import sys
sys.modules["proteus"] = None  # any import of it fails
import timm, torch
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for n in range(24):
        pixels = np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 80)).save(folder / f"{n:02}.jpg")
    return folder


def command(images, out, *more):
    return [
        sys.executable, "-W", "error", "-m", "proteus", "distill",
        "--teacher", "demo-teacher", "--student", "demo-student", "--data", str(images),
        "--steps", "12", "--batch-size", "8", "--image-size", "64", "--workers", "0",
        "--device", "cpu", "--save-every", "3", "--out", str(out), *more,
    ]  # fmt: skip


def terms(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_killed_run_resumes_to_the_very_weights_and_log_and_loads_in_plain_timm(images, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(images, whole), check=True, capture_output=True)

    process = subprocess.Popen(command(images, killed), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not list((killed / "checkpoint").glob("step-*")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "export").exists()

    subprocess.run(command(images, killed, "--resume"), check=True, capture_output=True)
    assert terms(killed) == terms(whole)
    assert [row["step"] for row in terms(killed)] == list(range(12))
    ours, theirs = (load_file(run / "export/model.safetensors") for run in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)

    picture = torch.randn(2, 3, 64, 64)
    torch.save(picture, tmp_path / "images.pt")
    arguments = [str(killed / "export"), str(tmp_path / "images.pt"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-W", "error", "-c", LOAD, *arguments], check=True)
    import timm

    model = timm.create_model(f"local-dir:{whole / 'export'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            torch.load(tmp_path / "out.pt"), model(picture), rtol=0, atol=1e-6
        )
