import sys

import pytest
import torch

import proteus
from proteus.features import ShapeError
from proteus.recipes.pair import open_pair, told, with_sizes
from proteus.recipes.recipe import Models


@pytest.fixture(autouse=True)
def random_teachers(monkeypatch):
    """Any timm name as a teacher, small and without weights."""
    small = {"vit": {"embed_dim": 24, "depth": 1, "num_heads": 3}}
    pair = sys.modules["proteus.recipes.pair"]

    def teacher(name, *, checkpoint, **options):
        import timm

        model = timm.create_model(name, num_classes=0, **small.get(name[:3], {}))
        return proteus.Teacher(model, **options)

    monkeypatch.setattr(pair, "Teacher", teacher)


P14, P16, CNN = "vit_small_patch14_dinov2", "vit_tiny_patch16_224", "test_resnet"
PATCH8 = "vit_small_patch8_224"


@pytest.mark.parametrize(
    ("teacher", "student", "sizes", "expected"),
    [
        (P14, P16, {"image_size": 224}, ((196, 14), (224, 14))),
        (P14, P16, {"image_size": 224, "grids": "average"}, ((224, 16), (224, 14))),
        (P14, P16, {"image_size": 224, "teacher_image_size": 252}, ((252, 18), (224, 14))),
        (P14, P16, {"image_size": 160}, ((140, 10), (160, 10))),  # 160 is no multiple of 14
        (P14, P16, {}, ((518, 37), (592, 37))),
        (P14, P16, {"grids": "average"}, ((518, 37), (512, 32))),
        (P14, P16, {"teacher_image_size": 196}, ((196, 14), (224, 14))),
        (P16, P16, {}, ((224, 14), (224, 14))),
        (P16, P16, {"image_size": 64}, ((64, 4), (64, 4))),
        (P16, CNN, {"image_size": 64}, ((64, 4), (64, 2))),  # far: the finer tokens are averaged
        (CNN, P16, {"image_size": 64}, ((64, 2), (64, 4))),
        (PATCH8, P16, {"image_size": 64}, ((64, 8), (64, 4))),
        ("pit_ti_224", P16, {"image_size": 224}, ((224, 0), (224, 14))),
    ],
)
def test_sizes_are_chosen_where_grids_agree(teacher, student, sizes, expected):
    model = Models(teacher=teacher, student=student, **sizes)
    pair = open_pair(model)
    assert tuple((one.image_size[0], one.grid[0]) for one in pair) == expected
    again = open_pair(with_sizes(model, *pair))
    assert tuple((one.image_size[0], one.grid[0]) for one in again) == expected


def test_a_student_that_is_built_twice_has_the_first_weights_of_one_built_once():
    torch.manual_seed(0)
    student = open_pair(Models(teacher=P14, student=P16, teacher_image_size=196))[1]
    torch.manual_seed(0)
    open_pair(Models(teacher=P14, student=P16, teacher_image_size=196))
    torch.manual_seed(0)
    again = open_pair(Models(teacher=P14, student=P16, teacher_image_size=196))[1]
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_size_that_a_model_cannot_take_is_refused():
    with pytest.raises(ShapeError, match=r"Student.*not a multiple.*225"):
        open_pair(Models(teacher=P14, student=P16, image_size=225))
    with pytest.raises(ShapeError, match=r"Teacher.*not a multiple.*220"):
        open_pair(Models(teacher=P14, student=P16, image_size=224, teacher_image_size=220))
    with pytest.raises(ShapeError, match=r"Teacher.*not a multiple.*176"):
        model = Models(teacher=P14, student=P16, image_size=176, grids="average")
        open_pair(model)


def test_what_is_unequal_is_told():
    agree = open_pair(Models(teacher=P14, student=P16, image_size=224))
    assert told(*agree) == "Image sizes: teacher at 196 px, student at 224 px."
    averaged = open_pair(Models(teacher=P16, student=CNN, image_size=64))
    assert told(*averaged) == (
        "Image sizes: teacher at 64 px, student at 64 px; grids of 4x4 and 2x2 meet on the coarser "
        "one."
    )
