import json

import numpy as np
import pytest
from PIL import Image

from proteus.cli import main
from proteus.recipes import choosing


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A command on 60 photographs in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choosing, "_MEASURED", 0.3)
    draw = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(60):
        pixels = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:02}.png")
    models = ["--teacher", "demo-teacher", "--student", "demo-student"]
    return ["start", "photos", *models, "--minutes", "0.001"]


@pytest.mark.slow
def test_photos_become_a_page_and_an_int8_file_and_a_second_call_goes_on(words, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(words) == 0
    printed = capsys.readouterr().out
    run = tmp_path / "runs/photos"
    for word in ("Images: 60 in", "Held out: 6", "Agreement with the teacher", "agreement  class"):
        assert word in printed
    assert "<h1>" in (run / "report.html").read_text()
    session = onnxruntime.InferenceSession(run / "student-int8.onnx")
    cls, patches = session.run(None, {"images": np.zeros((1, 3, 64, 64), np.float32)})
    assert cls.shape[0] == patches.shape[0] == 1
    steps = json.loads((run / "run.json").read_text())["steps"]
    assert main([*words, "--out", "runs/photos"]) == 0
    assert len((run / "log.jsonl").read_text().splitlines()) == steps


def test_without_onnx_the_run_is_whole_and_the_way_on_is_said(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "No ONNX file: onnx, onnxscript, onnxruntime not installed. Run: pip install" in printed
    assert "proteus export runs/photos --to onnx --dtype int8 --normalize --out" in printed
    assert (tmp_path / "runs/photos/export/model.safetensors").is_file()


def test_minutes_are_checked_before_anything_is_opened(capsys):
    assert main(["start", "nowhere", "--minutes", "-1"]) == 2
    assert "minutes is out of range. Got -1" in capsys.readouterr().err
