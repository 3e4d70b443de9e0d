import copy

import pytest
import torch

import proteus
from conftest import vit
from proteus.features import ShapeError


def test_train_leaves_the_teacher_in_eval(distiller):
    distiller.train()
    assert distiller.student.training
    assert not any(module.training for module in distiller.teacher.modules())


def test_the_teacher_is_in_no_state_dict_parameter_or_submodule(distiller):
    own = {id(p) for p in distiller.teacher.parameters()}
    assert own
    assert own.isdisjoint(id(p) for p in distiller.parameters())
    assert own.isdisjoint(id(p) for p in distiller.trainable_parameters())
    assert not any("teacher" in key for key in distiller.state_dict())
    assert distiller.teacher not in list(distiller.modules())


def test_no_gradient_reaches_the_teacher(distiller, images):
    before = {k: v.clone() for k, v in distiller.teacher.state_dict().items()}
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.1)
    distiller(images).total.backward()
    optimizer.step()
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in distiller.teacher.state_dict().items())


def test_every_trainable_parameter_gets_a_gradient(distiller, images):
    distiller(images).total.backward()
    assert all(p.grad is not None for p in distiller.trainable_parameters())


def test_without_patch_term_too_every_trainable_parameter_gets_one(teacher, student, images):
    loss = proteus.ProteusLoss(24, 36, patch=0)
    distiller = proteus.Distiller(teacher, student, loss)
    losses = distiller(images)
    losses.total.backward()
    assert losses.patch == 0
    assert all(p.grad is not None for p in distiller.trainable_parameters())


def test_a_student_used_without_patch_term_before_trains_its_mask_token(teacher, student, images):
    proteus.Distiller(teacher, student, proteus.ProteusLoss(24, 36, patch=0))
    proteus.Distiller(teacher, student)(images).total.backward()
    assert student.mask_token.grad.abs().sum() > 0


def test_a_single_image_without_a_mask_gives_every_parameter_a_gradient_too(distiller, images):
    distiller(images[:1]).total.backward()  # or DDP would wait for the missing ones
    assert all(p.grad is not None for p in distiller.parameters())


def test_the_teacher_follows_the_distiller_s_dtype(distiller, images):
    distiller.double()
    assert next(distiller.teacher.parameters()).dtype == torch.float64
    assert distiller(images.double()).total.dtype == torch.float64


def test_a_copy_is_independent(distiller, images):
    twin = copy.deepcopy(distiller)
    hidden = torch.rand(4, 16) < 0.5
    expected = distiller(images, hidden).total.detach()
    with torch.no_grad():
        distiller.student.mask_token.add_(1.0)
        distiller.student.backbone.norm.weight.mul_(2.0)
    assert torch.equal(twin(images, hidden).total.detach(), expected)
    assert not torch.equal(distiller(images, hidden).total.detach(), expected)


def test_half_precision_autocast_gives_float32_losses(distiller, images):
    with torch.autocast("cpu", torch.bfloat16):
        losses = distiller(images)
    assert all(term.dtype == torch.float32 for term in losses)


def test_one_image_of_a_batch_with_nothing_hidden_gives_zero_patch_loss(distiller, images):
    losses = distiller(images[:1])
    assert losses.patch == 0
    losses.total.backward()


def test_different_image_sizes_say_what_to_write(student):
    teacher = proteus.Teacher(vit(36, size=64), image_size=64)
    with pytest.raises(ShapeError, match=r"image_size=\(32, 32\)"):
        proteus.Distiller(teacher, student)


def test_different_grids_say_what_to_do(student):
    teacher = proteus.Teacher(vit(36, patch=16), image_size=32)
    with pytest.raises(ShapeError, match=r"student 4x4 and teacher 2x2.*feature=0, patch=0"):
        proteus.Distiller(teacher, student)
    loss = proteus.ProteusLoss(24, 36, feature=0, patch=0)
    assert proteus.Distiller(teacher, student, loss)(torch.rand(2, 3, 32, 32)).token > 0


def test_a_student_that_cannot_have_patches_hidden_offers_patch_0(teacher):
    student = proteus.Student("resnet18", image_size=32)
    loss = proteus.ProteusLoss(512, 36, feature=0)
    with pytest.raises(ValueError, match="patch"):
        proteus.Distiller(teacher, student, loss)
    with pytest.raises(ValueError, match=r"resnet18.*patch=0"):
        student(torch.rand(1, 3, 32, 32), torch.zeros(1, 1, dtype=torch.bool))


def test_a_loss_for_other_widths_is_refused(teacher, student):
    with pytest.raises(ShapeError, match=r"expected ProteusLoss\(24, 36\)"):
        proteus.Distiller(teacher, student, proteus.ProteusLoss(24, 48))


def test_masks_that_would_be_ignored_are_refused(teacher, student):
    loss = proteus.ProteusLoss(24, 36, patch=0)
    with pytest.raises(ValueError, match="would be ignored"):
        proteus.Distiller(teacher, student, loss, proteus.MaskGenerator(4))
    with pytest.raises(ValueError, match="would be ignored"):
        proteus.Distiller(teacher, student, loss)(
            torch.rand(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool)
        )


def test_masks_for_another_grid_are_refused(teacher, student):
    with pytest.raises(ShapeError, match=r"\(5, 5\)"):
        proteus.Distiller(teacher, student, masks=proteus.MaskGenerator(5))


@pytest.mark.parametrize("hidden", [torch.zeros(4, 15).bool(), torch.zeros(3, 16).bool()])
def test_hidden_of_the_wrong_shape_says_which_is_right(distiller, images, hidden):
    with pytest.raises(ShapeError, match=r"expected torch.bool .* \(4, 16\)"):
        distiller(images, hidden)


def test_hidden_must_be_bool(distiller, images):
    with pytest.raises(ShapeError, match=r"torch\.float32"):
        distiller(images, torch.zeros(4, 16))


@pytest.mark.parametrize("strategy", ["random", "block"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_nothing_in_the_step_waits_for_the_device(teacher, student, images, strategy, shuffle):
    masks = proteus.MaskGenerator(student.grid, strategy=strategy, shuffle=shuffle)
    distiller = proteus.Distiller(teacher, student, masks=masks).to("meta")  # which has no answers
    distiller(images.to("meta")).total.backward()
    hidden = masks.masks(len(images))
    distiller(images.to("meta"), hidden).total.backward()


TERMS = {
    "token": {"feature": 0, "patch": 0},
    "feature": {"token": 0, "patch": 0},
    "patch": {"token": 0, "feature": 0},
    "all": {},
}
FAMILIES = {
    "class token": lambda: vit(24),
    "attention pooling": lambda: vit(24, class_token=False, global_pool="map"),
    "average": lambda: vit(24, class_token=False, global_pool="avg"),
    "registers": lambda: vit(24, reg_tokens=2),
}


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_the_terms_every_trainable_parameter_gets_a_gradient(
    family, terms, teacher, images
):
    student = proteus.Student(FAMILIES[family](), image_size=32)
    loss = proteus.ProteusLoss(24, 36, **TERMS[terms])
    distiller = proteus.Distiller(teacher, student, loss)
    distiller(images).total.backward()
    assert all(p.grad is not None for p in distiller.trainable_parameters())
    frozen = [name for name, p in student.named_parameters() if not p.requires_grad]
    assert len(frozen) < 20


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "levit_128s", "pit_ti_distilled_224"])
def test_families_with_layers_behind_the_pooling_train_them(name, images):
    student = proteus.Student(name)
    teacher = proteus.Teacher("test_resnet", pretrained=False, image_size=224)
    loss = proteus.ProteusLoss(student.embed_dim, teacher.embed_dim, feature=0, patch=0)
    distiller = proteus.Distiller(teacher, student, loss).train()
    distiller(torch.rand(2, 3, 224, 224)).total.backward()
    assert all(p.grad is not None for p in distiller.parameters())


@pytest.mark.parametrize("terms", ["feature", "patch", "all"])
def test_a_model_that_gives_a_vector_alone_has_no_patches_to_compare(terms):
    teacher = proteus.Teacher("pit_ti_224", pretrained=False)
    student = proteus.Student("pit_ti_224")
    loss = proteus.ProteusLoss(256, 256, **TERMS[terms])
    with pytest.raises(ValueError, match=r"no patches to compare.*pit_ti_224.*feature=0, patch=0"):
        proteus.Distiller(teacher, student, loss)
    assert proteus.Distiller(teacher, student)(torch.rand(1, 3, 224, 224)).feature == 0


class TwoWidths(torch.nn.Module):
    """A vector and patches of another width."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 10, 8, stride=8)

    def forward(self, images):
        maps = self.embed(images)
        return proteus.Features(
            maps.mean((2, 3))[:, :6], maps.flatten(2).mT, (maps.shape[2], maps.shape[3])
        )


def test_a_student_whose_patches_have_a_width_of_their_own(teacher, images):
    student = proteus.Student(TwoWidths(), image_size=32)
    assert (student.embed_dim, student.patch_dim) == (6, 10)
    distiller = proteus.Distiller(teacher, student, proteus.ProteusLoss((6, 10), 36, patch=0))
    distiller(images).total.backward()
    assert student.backbone.embed.weight.grad.abs().sum() > 0
    with pytest.raises(ShapeError, match=r"ProteusLoss\(\(6, 10\), 36\)"):
        proteus.Distiller(teacher, student, proteus.ProteusLoss(6, 36, patch=0))
