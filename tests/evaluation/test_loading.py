import pytest
import torch
from PIL import Image

from proteus.evaluate import extract_features, knn, linear_probe, logistic_regression

IMAGES = [(Image.new("RGB", (8, 8), colour), i % 2) for i, colour in enumerate(["red", "blue"] * 5)]


@pytest.mark.parametrize("protocol", [knn, linear_probe, logistic_regression, extract_features])
def test_an_unknown_setting_is_an_error_that_names_the_nearest(protocol):
    sets = [IMAGES] if protocol is extract_features else [IMAGES, IMAGES]
    message = rf"{protocol.__name__}: unknown setting. Got wrokers=; .*Did you mean workers"
    with pytest.raises(TypeError, match=message):
        protocol(torch.nn.Conv2d(3, 5, 4, stride=4), *sets, image_size=8, wrokers=0)


def test_settings_of_the_extraction_are_none_of_a_protocol():
    for name in ("resize", "blocks", "split"):
        with pytest.raises(TypeError, match=rf"knn: unknown setting. Got {name}=; expected"):
            knn(torch.nn.Conv2d(3, 5, 4, stride=4), IMAGES, IMAGES, image_size=8, **{name: 1})


def test_the_size_of_a_batch_is_passed_on():
    seen = []
    model = torch.nn.Conv2d(3, 5, 4, stride=4)
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    knn(model, IMAGES, IMAGES, ks=[1], image_size=8, batch_size=4)
    assert max(seen) == 4
