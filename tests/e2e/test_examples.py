"""Every file in examples/ runs as it stands."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

OF_OTHERS = {"19_serve_onnx"}  # takes a graph: tests/e2e/test_serving.py
EXAMPLES = sorted(
    path
    for path in (Path(__file__).parents[2] / "examples").glob("*.py")
    if path.stem not in OF_OTHERS
)
# What a framework warns about itself, whatever it is given.
THEIR_OWN = {
    "07_lightning": ["ignore:`isinstance(treespec, LeafSpec)` is deprecated:FutureWarning"],
}
# More of the same way of use, or a framework that takes its time: run with the slow tests.
SLOW = {
    "03_cnn_student", "04_weights", "07_lightning", "08_accelerate", "09_many_gpus",
    "11_other_losses", "13_three_students",
    "12_transformers_teacher", "14_chain", "15_two_patch_sizes", "16_two_teachers",
    "17_prepared_targets",
    "18_prepare_on_ray",
}  # fmt: skip
NEEDS = {"07_lightning": "lightning", "08_accelerate": "accelerate", "18_prepare_on_ray": "ray"}
OF_ITS_OWN = {  # what an example is started with in place of images, steps and batch size
    "18_prepare_on_ray": [
        "--teacher", "demo-teacher", "--data", "images", "--out", "targets", "--parts", "2",
    ],
}  # fmt: skip


def saved_names(folder):
    """Tensors of the frameworks' own checkpoints."""
    for path in folder.rglob("*.ckpt"):
        yield from torch.load(path, weights_only=True)["state_dict"]
    for path in folder.rglob("state/*.safetensors"):
        yield from load_file(path)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
        for path in EXAMPLES
    ],
)
def test_the_example_runs(path, tmp_path):
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    arguments = []
    ignored = [word for text in THEIR_OWN.get(path.stem, []) for word in ("-W", text)]
    if "--data" in path.read_text():
        (tmp_path / "images").mkdir()
        for n in range(8):
            pixels = np.random.default_rng(n).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{n}.png")
        arguments = ["--data", "images", "--steps", "2", "--batch-size", "4"]
        arguments = OF_ITS_OWN.get(path.stem, arguments)
    done = subprocess.run(
        [sys.executable, "-W", "error", *ignored, path, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    names = list(saved_names(tmp_path))
    assert bool(names) == (path.stem in NEEDS)
    assert not [name for name in names if "teacher" in name]
    assert not names or any("mask_token" in name for name in names)
