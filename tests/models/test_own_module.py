"""Each sentence of "A module of your own" in docs/models.md."""

import pytest
import torch
from torch import nn

import proteus
from proteus.features import ShapeError


class Own(nn.Module):
    """Keeps what it was given; returns what the test asks for."""

    def __init__(self, make, **said):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.make, self.given = make, []
        vars(self).update(said)

    def forward(self, images):
        self.given.append((tuple(images.shape), images.dtype, self.training))
        self.last = images
        return self.make(self.embed(images))


def as_features(x):
    return proteus.Features(x.amax((2, 3)), x.flatten(2).mT, (x.shape[2], x.shape[3]))


def test_features_are_taken_as_they_are():
    own = Own(as_features)
    features = proteus.Teacher(own, image_size=(16, 24), normalize=False)(torch.rand(2, 3, 16, 24))
    map_ = own.embed(own.last)
    assert torch.equal(features.cls, map_.amax((2, 3)))
    assert features.grid == (4, 6)


def test_of_a_map_each_place_is_a_patch_and_the_average_the_vector():
    own = Own(lambda x: x)
    teacher = proteus.Teacher(own, image_size=(16, 24))
    features = teacher(torch.rand(2, 3, 16, 24))
    map_ = own.embed(own.last)
    assert torch.equal(features.patches[:, 6 * 1 + 2], map_[:, :, 1, 2])
    assert torch.equal(features.cls, map_.mean((2, 3)))
    assert teacher.objectives == ("token", "feature", "patch")


def test_a_vector_alone_has_no_patches_and_the_token_term():
    teacher = proteus.Teacher(Own(lambda x: x.mean((2, 3))), image_size=16)
    features = teacher(torch.rand(2, 3, 16, 16))
    assert (features.patches.shape, features.grid) == ((2, 0, 8), (0, 0))
    assert teacher.objectives == ("token",)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda x: x.flatten(2).mT, r"\(1, 16, 8\)"),
        (lambda x: (x, x), r"tuple of \(1, 8, 4, 4\), \(1, 8, 4, 4\)"),
        (lambda x: {"out": x}, "dict"),
        (lambda x: None, "NoneType"),
    ],
)
@pytest.mark.parametrize("build", [proteus.Teacher, proteus.Student])
def test_anything_else_is_refused_when_it_is_built(build, make, got):
    with pytest.raises(ShapeError, match=rf"Own: the output cannot be read.*{got}.*Features"):
        build(Own(make), image_size=16)


def test_forward_features_is_called_instead_of_forward():
    class WithHead(Own):
        def forward_features(self, images):
            return self.embed(images)

        def forward(self, images):
            raise AssertionError("forward was called")

    assert proteus.Teacher(WithHead(None), image_size=16).grid == (4, 4)


@pytest.mark.parametrize("images", [torch.rand(1, 3, 16, 16), torch.ones(1, 3, 16, 16).byte()])
def test_images_arrive_normalised_in_the_dtype_of_the_weights(images):
    own = Own(as_features).double()
    proteus.Teacher(own, image_size=16, normalize=((0.5, 0.4, 0.3), (0.1, 0.2, 0.4)))(images)
    pixels = images.double() / (255 if images.dtype == torch.uint8 else 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.1, 0.2, 0.4)))
    assert own.given[-1][1] == torch.float64
    torch.testing.assert_close(own.last, (pixels - mean) / std, rtol=0, atol=1e-5)


def test_statistics_and_size_are_imagenet_s_and_224_unless_the_module_says_them():
    silent = proteus.Teacher(Own(as_features))
    assert silent.image_size == (224, 224)
    assert silent.inputs.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    said = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 16, 32)}
    teacher = proteus.Teacher(Own(as_features, pretrained_cfg=said))
    assert teacher.image_size == (16, 32)
    assert teacher.inputs.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert teacher.inputs.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_it_is_tried_with_one_grey_image_and_left_in_its_mode():
    own = Own(as_features).train()
    student = proteus.Student(own, image_size=(16, 24))
    assert (own.training, own.embed.training) == (True, True)
    assert set(own.given) >= {((1, 3, 16, 24), torch.float32, False)}
    assert not [given for given in own.given if given[2]]
    assert student.embed_dim == 8


def test_a_size_that_it_cannot_take_is_refused():
    with pytest.raises(ShapeError, match=r"cannot take images of this size.*3x3"):
        proteus.Teacher(Own(as_features), image_size=3)


def test_a_teacher_is_the_module_itself_frozen_and_in_eval():
    own = Own(as_features).train()
    teacher = proteus.Teacher(own, image_size=16)
    assert teacher.backbone is own
    teacher.train()
    assert not own.training
    assert not any(weight.requires_grad for weight in own.parameters())
    assert teacher(torch.rand(1, 3, 16, 16)).cls.grad_fn is None


def test_a_student_is_the_module_itself_and_leaves_by_its_state_dict(tmp_path):
    own = Own(as_features)
    student = proteus.Student(own, image_size=16)
    assert student.backbone is own
    student(torch.rand(1, 3, 16, 16)).cls.sum().backward()
    assert own.embed.weight.grad is not None
    with pytest.raises(ValueError, match=r"safetensors\.torch\.save_model"):
        proteus.save_pretrained(student, tmp_path)
