import numpy as np
import pytest
from PIL import Image

from proteus.evaluation.charts import radar_radii, save_bars, save_radar

SCORES = {
    "DINOv2": {"ADE20K": 51.0, "NYUd": 0.327, "DTD": 80.3},
    "Proteus": {"ADE20K": 50.0, "NYUd": 0.35, "DTD": 78.4},
    "third": {"ADE20K": 46.0, "NYUd": 0.46, "DTD": 70.0},
}


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_missing_score_leaves_a_gap(tmp_path):
    save_bars(SCORES, tmp_path / "a.png", label="per cent")
    fewer = {**SCORES, "third": {"ADE20K": 46.0}}
    save_bars(fewer, tmp_path / "b.png", label="per cent")
    a, b = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    green = np.array([44, 160, 44])  # matplotlib's third colour
    count = [int((np.abs(p.astype(int) - green).max(-1) < 8).sum()) for p in (a, b)]
    assert count[0] > 1.4 * count[1] > 0


def test_the_best_model_is_at_the_rim_in_every_direction():
    assert radar_radii(SCORES, "DINOv2", ["NYUd"]) == [1, 1, 1]
    assert radar_radii(SCORES, "third", ["NYUd"]) == [0.4, 0.4, 0.4]
    assert radar_radii(SCORES, "third")[1] == 1  # a high RMSE would be good
    assert radar_radii({"a": {"x": 1.0}, "b": {"x": 1.0}}, "a") == [1]


def test_a_radar_is_drawn(tmp_path):
    save_radar(SCORES, tmp_path / "r.png", lower_is_better=["NYUd"], title="ViT-S")
    picture = pixels(tmp_path / "r.png")
    assert min(picture.shape[:2]) > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_what_cannot_be_drawn_is_an_error(tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(ValueError, match=r"missing \{'third': \['NYUd', 'DTD'\]\}"):
        save_radar({**SCORES, "third": {"ADE20K": 46.0}}, path)
    with pytest.raises(ValueError, match=r"three or more\. Got 2"):
        save_radar({"a": {"x": 1.0, "y": 2.0}}, path)
    with pytest.raises(ValueError, match=r"unknown in lower_is_better=. Got \['rmse'\]"):
        save_radar(SCORES, path, lower_is_better=["rmse"])
    with pytest.raises(ValueError, match=r"not finite: .'a: x'"):
        save_bars({"a": {"x": float("nan")}}, path)
    with pytest.raises(ValueError, match="Got 0 benchmarks of 0 models"):
        save_bars({}, path)
