import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from proteus import Features, visualize
from proteus.evaluation import pictures
from proteus.evaluation.dense.maps import open_depth, open_segmentation
from proteus.evaluation.feature_set import FeatureSet
from proteus.evaluation.pictures import (
    patch_errors,
    save_depth,
    save_masks,
    save_neighbours,
    save_segmentation,
    save_side_by_side,
)
from proteus.evaluation.sets.labelled import open_labelled
from proteus.features import ShapeError


@pytest.fixture
def drawn(monkeypatch):
    """The rows that a picture is made of, beside the real file."""
    found = {}
    real = pictures.save_rows

    def watch(rows, names, path):
        found.update(zip(names, rows, strict=True))
        real(rows, names, path)

    monkeypatch.setattr(pictures, "save_rows", watch)
    monkeypatch.setattr(visualize, "save_rows", watch)
    return found


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def colours(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).reshape(-1, 3)


def test_models_of_other_patches_and_widths_stand_side_by_side(tmp_path):
    models = {
        "teacher": timm.create_model("resnet18", num_classes=0),
        "student": nn.Conv2d(3, 12, 8, stride=8),
    }
    photos = [Image.effect_noise((50, 40), 80).convert("RGB") for _ in range(3)]
    save_side_by_side(models, photos, tmp_path / "a.png", image_size=100)
    save_side_by_side(
        {"one": models["student"]}, torch.rand(2, 3, 64, 64), tmp_path / "b.png", image_size=64,
        foreground=0.3,
    )  # fmt: skip
    assert size_of(tmp_path / "a.png")[1] > size_of(tmp_path / "b.png")[1] > 200
    with pytest.raises(ValueError, match="Got 0 models"):
        save_side_by_side({}, photos, tmp_path / "c.png")


def test_hidden_patches_are_grey_and_errors_white(tmp_path, drawn):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    hidden = torch.tensor([[True, False, False, False], [False, False, False, True]])
    errors = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0.5]])
    save_masks(images, hidden, (2, 2), tmp_path / "m.png", errors=errors)
    assert drawn["seen"][0, :, :64, :64].unique().tolist() == [0.5]
    assert drawn["seen"][0, :, 64:].unique().tolist() == [0]
    assert drawn["error"][0, 0, 0, 0] == 1 and drawn["error"][1, 0, 127, 127] == 0.5
    with pytest.raises(ShapeError, match=r"hidden does not fit. Got \(2, 4\)"):
        save_masks(images, hidden, (2, 3), tmp_path / "m.png")
    with pytest.raises(ShapeError, match=r"errors does not fit"):
        save_masks(images, hidden, (2, 2), tmp_path / "m.png", errors=errors[:1])
    with pytest.raises(ShapeError, match=r"Got torch.float32; expected torch.bool"):
        save_masks(images, errors, (2, 2), tmp_path / "m.png")


def test_the_error_of_a_patch_is_about_its_direction():
    teacher = Features(torch.zeros(1, 2), torch.tensor([[[1.0, 0], [0, 1]]]), (1, 2))
    student = teacher._replace(patches=torch.tensor([[[5.0, 0], [0, -1]]]))
    assert patch_errors(student, teacher).tolist() == [[0, 2]]
    with pytest.raises(ShapeError, match="project the student"):
        patch_errors(teacher._replace(patches=torch.zeros(1, 2, 3)), teacher)


def test_neighbours_of_the_same_label_are_framed_in_green(tmp_path):
    rows = [(Image.new("RGB", (12, 12), (60 * i,) * 3), i % 2) for i in range(4)]
    images = open_labelled(rows)
    labels = torch.tensor([0, 1, 0, 1])
    features = FeatureSet(torch.eye(4), torch.zeros(4, 4), labels)
    path = tmp_path / "n.png"
    save_neighbours(features, features, images, images, path, count=2, neighbours=1)
    found = {tuple(c) for c in colours(path)}
    assert (0, 128, 0) in found and (255, 0, 0) not in found  # each is its own neighbour
    turned = FeatureSet(torch.eye(4).roll(1, 0), torch.zeros(4, 4), labels)
    save_neighbours(turned, features, images, images, path, count=2, neighbours=1)
    found = {tuple(c) for c in colours(path)}
    assert (255, 0, 0) in found and (0, 128, 0) not in found
    with pytest.raises(ValueError, match="count=2 and neighbours=5"):
        save_neighbours(features, features, images, images, path, count=2)
    with pytest.raises(ValueError, match="Got 4 and 2"):
        save_neighbours(features, features, images.select([0, 1]), images, path)


class Fixed(nn.Module):
    """A predictor that has learned one answer."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, images):
        return self.output[None]


def test_predicted_classes_have_the_labels_colours(tmp_path, drawn):
    labels = torch.zeros(16, 16).long()
    labels[:, 8:] = 1
    logits = torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1).float()
    unknown = labels.clone()
    unknown[:8] = 255
    data = open_segmentation([(Image.new("RGB", (16, 16)), unknown)] * 2, num_classes=3)
    save_segmentation(Fixed(logits), data, tmp_path / "s.png")
    truth, found = drawn["labels"][0], drawn["prediction"][0]
    assert torch.equal(truth[:, 64:], found[:, 64:])
    assert float(truth[:, :64].max()) == 0
    assert len(found.flatten(1).T.unique(dim=0)) == 2


def test_near_is_bright_in_depth_and_in_the_prediction(tmp_path, drawn):
    metres = torch.linspace(1, 5, 16).expand(16, 16).clone()
    metres[0] = 0
    data = open_depth([(Image.new("RGB", (16, 16)), metres)])
    save_depth(Fixed(metres.clamp(min=1)[None]), data, tmp_path / "d.png")
    for name in ("depth", "prediction"):
        row = drawn[name][0, 0, 64]
        assert row[0] > row[60] > row[127]
    assert float(drawn["depth"][0, 0, 0].max()) == 0
