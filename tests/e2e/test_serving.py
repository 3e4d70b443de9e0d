"""The example that serves a graph, where torch cannot be imported."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import proteus
from proteus import exports
from proteus.data import center_resize

EXAMPLE = Path(__file__).parents[2] / "examples" / "19_serve_onnx.py"
WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "timm", "torchvision", "proteus"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("test_vit", depth=2, img_size=32, num_classes=0).eval()


@pytest.fixture(scope="module")
def graph(model, tmp_path_factory):
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("graph") / "student.onnx"
    with warnings.catch_warnings():  # the exporter's own, different in each version of torch
        warnings.simplefilter("ignore")
        return exports.to_onnx(model, path, normalize=True)


def serve(*words):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, EXAMPLE, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_nearest_photographs_are_found_without_torch_and_from_the_index(model, graph, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(5):
        pixels = np.random.default_rng(n).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((60, 40), Image.Resampling.BICUBIC)
        image.save(photos / f"{n}.png")
    words = [graph, photos, photos / "3.png", "--index", tmp_path / "index.npz", "--num", "3"]
    first = serve(*words)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[0] == f"1.000  {photos / '3.png'}"
    assert len(lines) == 3
    (photos / "4.png").unlink()  # the index is used, and no photograph but the query opened again
    assert serve(*words).stdout == first.stdout

    teacher = proteus.Teacher(model, image_size=32)
    squares = [np.array(center_resize(Image.open(photos / f"{n}.png"), 32)) for n in range(4)]
    images = np.stack(squares).transpose(0, 3, 1, 2)
    expected = torch.nn.functional.normalize(teacher(torch.from_numpy(images)).cls, dim=-1)
    with np.load(tmp_path / "index.npz") as stored:
        torch.testing.assert_close(
            torch.from_numpy(stored["features"][:4]), expected, rtol=0, atol=1e-4
        )


def test_a_folder_without_photographs_is_said(graph, tmp_path):
    done = serve(graph, tmp_path, tmp_path / "query.png")
    assert done.returncode == 1
    assert "holds no photographs" in done.stderr
