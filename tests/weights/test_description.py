import numpy as np
import pytest
import torch

import proteus
from conftest import vit
from proteus.models.frozen import as_extractor

HALF = (0.5, 0.5, 0.5)
WRONG = [
    *(None, 1, 0, "imagenet", (), HALF, {"mean": HALF, "std": HALF}, (HALF,), (HALF, HALF, HALF)),
    *((HALF, (0.5, 0.5)), (HALF, (0.5, 0, 0.5)), (HALF, (-1, 1, 1)), (HALF, 0.5), ("abc", HALF)),
    *(((float("nan"),) * 3, HALF), (HALF, (float("nan"),) * 3), (HALF, (float("inf"),) * 3)),
    *(((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)), ((True,) * 3, HALF), ((None,) * 3, HALF)),
]


@pytest.mark.parametrize("normalize", WRONG, ids=repr)
@pytest.mark.parametrize("build", [proteus.Teacher, proteus.Student, as_extractor])
def test_statistics_that_are_none_are_refused_where_they_were_given(build, normalize):
    with pytest.raises(ValueError, match="normalize="):
        build(vit(), image_size=32, normalize=normalize)


@pytest.mark.parametrize("build", [proteus.Teacher, proteus.Student, as_extractor])
@pytest.mark.parametrize(
    "config",
    [
        *("text", [1, 2], 5),
        *({"mean": 0.5}, {"std": [0, 1, 1]}, {"std": "abc"}, {"mean": ["0.5"] * 3}),
        *({"input_size": 224}, {"input_size": (3, "a", 5)}, {"input_size": (1, 28, 28)}),
    ],
    ids=repr,
)
def test_a_module_s_wrong_description_is_named(build, config):
    model = vit()
    model.pretrained_cfg = config
    with pytest.raises(
        ValueError, match=r"VisionTransformer: (mean|std|input_size|pretrained_cfg)"
    ):
        build(model, image_size=32)


@pytest.mark.parametrize(
    "values", [HALF, list(HALF), torch.tensor(HALF), np.array(HALF), np.float32(HALF)], ids=repr
)
def test_statistics_of_any_kind_of_numbers_are_taken(values):
    student = proteus.Student(vit(), image_size=32, normalize=(values, values))
    assert student.inputs(torch.ones(1, 3, 32, 32)).eq(1).all()
    assert student.statistics == (HALF, HALF)
