"""Every file in examples/ runs as it stands."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(path, tmp_path):
    arguments = []
    if "--data" in path.read_text():
        (tmp_path / "images").mkdir()
        for n in range(8):
            pixels = np.random.default_rng(n).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{n}.png")
        arguments = ["--data", "images", "--steps", "2", "--batch-size", "4"]
    done = subprocess.run(
        [sys.executable, "-W", "error", path, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
