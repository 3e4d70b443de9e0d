"""`proteus export --dtype`: the run's own images, others, and what is refused."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from proteus.cli import main
from proteus.exports import quantized


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for n in range(14):
        pixels = np.random.default_rng(n).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((70, 60), Image.Resampling.BICUBIC)
        image.save(folder / f"{n:02}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return folder


@pytest.fixture(scope="module")
def run_folder(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "first"
    words = ["--teacher", "demo-teacher", "--student", "demo-student", "--image-size", "32"]
    data = ["--data", str(photos), "--steps", "1", "--batch-size", "2", "--workers", "0"]
    assert main(["distill", *words, *data, "--out", str(out)]) == 0
    return out


@pytest.fixture
def taken(monkeypatch):
    """What `quantize_onnx` is given, in place of its work."""
    found = {}

    def note(model, path, check, calibration, **options):
        found.update(check=check, calibration=calibration, path=path, **options)
        return quantized.Quantized(path, options["dtype"], 1, 1, len(check), 0, 1, 2, 1, 1, 1)

    monkeypatch.setattr("proteus.exports.quantize_onnx", note)
    return found


def export(*words):
    return main(["export", *map(str, words)])


def test_a_run_is_calibrated_on_its_own_images_and_compared_on_others(
    run_folder, tmp_path, taken, capsys
):
    out = tmp_path / "m.onnx"
    assert export(run_folder, "--to", "onnx", "--dtype", "int8", "--out", out, "--normalize") == 0
    assert taken["calibration"].shape == (10, 3, 32, 32)
    assert taken["check"].shape == (4, 3, 32, 32)
    assert taken["check"].dtype == torch.uint8
    both = torch.cat([taken["calibration"], taken["check"]]).flatten(1)
    assert len(both.unique(dim=0)) == 14
    assert (taken["normalize"], taken["dtype"], taken["opset"]) == (True, "int8", 18)
    captured = capsys.readouterr()
    assert captured.out.endswith(f"Wrote {out}\n")
    assert "Passed over 1, such as broken.jpg" in captured.err


def test_fp16_is_compared_on_the_images_that_are_named(run_folder, photos, tmp_path, taken):
    words = [run_folder / "export", "--to", "onnx", "--dtype", "fp16", "--out", tmp_path / "m.onnx"]
    assert export(*words, "--calibration", photos) == 0
    assert taken["calibration"] is None
    assert len(taken["check"]) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own, different in each version of torch
def test_the_file_of_a_run_says_what_it_is_worth(run_folder, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    out = tmp_path / "m.onnx"
    assert export(run_folder, "--to", "onnx", "--dtype", "int8", "--out", out) == 0
    said = capsys.readouterr().out
    assert "mean cosine to float32, 4 images" in said
    assert "calibrated on 10 other images; 0 of 13 layers stay float" in said
    assert out.stat().st_size < 1.2e6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--to torch --dtype int8", "--dtype would be ignored with --to torch"),
        ("--to transformers --dtype fp16", "--dtype would be ignored with --to transformers"),
        ("--to torch --opset 18", "--opset would be ignored with --to torch"),
        ("--to onnx --calibration X", "--calibration would be ignored without --dtype"),
        ("--to onnx --dtype fp32 --calibration X", "--calibration would be ignored without"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(words, message, tmp_path, capsys):
    assert export("nothing", *words.split(), "--out", tmp_path / "m") == 2
    assert message in capsys.readouterr().err


def test_a_model_that_is_no_run_must_be_told_of_images(run_folder, tmp_path, capsys):
    words = ["--to", "onnx", "--dtype", "int8", "--out", tmp_path / "m.onnx"]
    assert export(run_folder / "export", *words) == 2
    assert "which is no run and names none; expected --calibration" in capsys.readouterr().err


def test_images_that_are_gone_and_too_few_are_said(run_folder, photos, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(run_folder, moved)
    text = (moved / "run.json").read_text()
    (moved / "run.json").write_text(text.replace(str(photos), str(tmp_path / "gone")))
    words = ["--to", "onnx", "--dtype", "int8", "--out", tmp_path / "m.onnx"]
    assert export(moved, *words) == 2
    said = capsys.readouterr().err
    assert "the images of the run cannot be read" in said
    assert str(tmp_path / "gone") in said
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(photos / "00.png", few)
    assert export(moved, *words, "--calibration", few) == 2
    assert "too few images. Got 1 in" in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()
