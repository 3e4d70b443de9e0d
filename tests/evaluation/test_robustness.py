import json
import math

import pytest
import timm
import torch
from PIL import Image

from proteus.evaluation.classifier import Classifier
from proteus.evaluation.imagenet_sets import (
    ALEXNET_ERRORS,
    imagenet_c,
    imagenet_variant,
    mean_corruption_error,
)
from proteus.evaluation.robustness import robustness

WNIDS = ("n01", "n02", "n03", "n04")


class Brightness:
    """Four classes by mean brightness: a classifier whose mistakes can be foretold."""

    num_classes, image_size, resize = 4, 16, 18

    def __init__(self):
        self.sizes = set()

    def __call__(self, images):
        self.sizes.add(tuple(images.shape[1:]))
        level = images.float().mean((1, 2, 3)) / 255 * 4 - 0.5
        return -(level[:, None] - torch.arange(4.0)).abs()


def flat(label, count=3):
    return [(Image.new("RGB", (24, 20), (32 + 64 * label,) * 3), label) for _ in range(count)]


def save(folder, name, value, count=2):
    (folder / name).mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (24, 20), (value,) * 3).save(folder / name / f"{i}.png")


@pytest.fixture
def images():
    return [item for label in range(4) for item in flat(label)]


def test_what_a_corruption_does_is_seen_in_the_accuracy(images):
    probe = Brightness()
    assert isinstance(probe, Classifier)
    result = robustness(probe, images, corruptions=["brightness", "pixelate"], severities=[1, 5])
    assert result.clean == 1 and result.num_images == 12
    assert result.accuracy["pixelate"] == {1: 1.0, 5: 1.0}  # flat pictures stay flat
    # +0.5 moves every class up by two: the last stays the last.
    assert result.accuracy["brightness"] == {1: 1.0, 5: 0.25}
    assert result.corrupted == pytest.approx((1 + 1 + 1 + 0.25) / 4)
    assert result.kept == result.corrupted
    assert probe.sizes == {(3, 16, 16)}
    json.dumps(result.to_dict())


def test_a_folder_that_lacks_a_class_takes_the_classifiers_names(tmp_path):
    save(tmp_path / "test", "n02", 96)  # class 1 by brightness, 0 among the folder's own
    options = {"corruptions": ["pixelate"], "severities": [1]}
    assert robustness(Brightness(), tmp_path, classes=WNIDS, **options).clean == 1
    with pytest.raises(ValueError, match="Got 2 names; expected 4"):
        robustness(Brightness(), tmp_path, classes=WNIDS[:2], **options)
    with pytest.raises(ValueError, match=r"classes= would be ignored. Got list"):
        robustness(Brightness(), flat(1), classes=WNIDS, **options)


def test_the_batch_size_does_not_matter():
    noisy = [
        (Image.effect_noise((24, 20), 90).convert("RGB"), 1 + i % 2) for i in range(10)
    ]  # near the borders of classes
    options = {"corruptions": ["gaussian_noise", "shot_noise"], "severities": [5]}
    results = [robustness(Brightness(), noisy, batch_size=n, **options) for n in (1, 4, 64)]
    assert results[0] == results[1] == results[2]


def test_a_fitted_probe_of_a_model_can_be_tested(images):
    from proteus import evaluate

    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, depth=1
    )
    fitted = evaluate.knn(model, images, images, ks=(1,), image_size=32)
    result = robustness(fitted.classifier, images, corruptions=["contrast"], severities=[1])
    assert result.clean == 1
    assert 0 <= result.accuracy["contrast"][1] <= 1


def test_a_variant_compares_only_the_classes_it_has(tmp_path):
    save(tmp_path, "n01", 100)  # class 1 by brightness, class 0 among the two of the set
    save(tmp_path, "n04", 230)
    result = imagenet_variant(Brightness(), tmp_path, WNIDS)
    assert result.accuracy == 1 and result.num_classes == 2 and result.num_images == 4
    assert result.to_dict() == {"accuracy": 1.0, "num_classes": 2, "num_images": 4}
    with pytest.raises(ValueError, match="not among those of training"):
        imagenet_variant(Brightness(), tmp_path, ("a", "b", "c", "d"))
    with pytest.raises(ValueError, match="Got 1000 names; expected 4"):
        imagenet_variant(Brightness(), tmp_path, [str(i) for i in range(1000)])


def test_the_mean_corruption_error_is_relative_to_alexnet(tmp_path):
    for severity in range(1, 6):
        save(tmp_path / "fog" / str(severity), "n01", 32)
        save(tmp_path / "fog" / str(severity), "n02", 32 if severity > 3 else 96)
    save(tmp_path / "speckle_noise" / "1", "n01", 32)  # does not count in the mCE
    result = imagenet_c(Brightness(), tmp_path, WNIDS)
    assert result.error == {"fog": (0, 0, 0, 0.5, 0.5)}
    assert result.relative["fog"] == pytest.approx(0.2 / 0.819)
    assert math.isnan(result.mce) and result.to_dict()["mce"] is None
    assert result.num_images == 20
    with pytest.raises(ValueError, match="no corruption found"):
        imagenet_c(Brightness(), tmp_path / "fog", WNIDS)
    (tmp_path / "snow" / "1").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"a severity is missing. Got no .*snow/2"):
        imagenet_c(Brightness(), tmp_path, WNIDS)


def test_the_published_files_are_not_cut_again(tmp_path):
    """A bright border that a centre crop would remove."""
    picture = Image.new("RGB", (16, 16), (255,) * 3)
    picture.paste((0, 0, 0), (1, 1, 15, 15))
    for severity in range(1, 6):
        folder = tmp_path / "snow" / str(severity) / "n01"
        folder.mkdir(parents=True)
        picture.save(folder / "a.png")
    seen = []

    class Watcher(Brightness):
        def __call__(self, images):
            seen.append(int(images[:, :, 0].min()))
            return super().__call__(images)

    imagenet_c(Watcher(), tmp_path, WNIDS)
    assert set(seen) == {255}


def test_alexnet_itself_has_an_mce_of_one():
    errors = {name: [error / 100] * 5 for name, error in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(errors)[0] == pytest.approx(1)
    assert len(ALEXNET_ERRORS) == 15
    errors["fog"] = [0.0] * 5
    assert mean_corruption_error(errors)[0] == pytest.approx(14 / 15)
    with pytest.raises(ValueError, match="AlexNet's error is not known"):
        mean_corruption_error({"gaussian_blur": [0.5]})


def test_what_cannot_be_tested_is_an_error(images):
    with pytest.raises(ValueError, match=r"without a label. Got 1 labels below 0"):
        robustness(Brightness(), [*images, (images[0][0], -1)])
    with pytest.raises(ValueError, match=r"no such corruption\. Got 'rain'"):
        robustness(Brightness(), images, corruptions=["rain"])
    with pytest.raises(ValueError, match="Got no corruption"):
        robustness(Brightness(), images, corruptions=[])
    with pytest.raises(ValueError, match=r"Got label 5 .* it has 4 classes"):
        robustness(Brightness(), flat(5), corruptions=["contrast"])
    several = [(Image.new("RGB", (16, 16)), torch.ones(4).long())]
    with pytest.raises(ValueError, match="one label an image"):
        robustness(Brightness(), several, corruptions=["contrast"])
    with pytest.raises(ValueError, match=r"severity must be 1 to 5. Got 0"):
        robustness(Brightness(), images, corruptions=["contrast"], severities=[1, 0])


def test_scores_of_nan_are_an_error_and_not_class_zero(images, tmp_path):
    class Broken(Brightness):
        def __call__(self, images):
            return super().__call__(images) * float("nan")

    with pytest.raises(ValueError, match="Got NaN for 12 of 12 images"):
        robustness(Broken(), images, corruptions=["contrast"], severities=[1])
    save(tmp_path / "variant", "n01", 32)
    with pytest.raises(ValueError, match="Got NaN for 2 of 2 images"):
        imagenet_variant(Broken(), tmp_path / "variant", WNIDS)
