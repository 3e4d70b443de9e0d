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


def by_hand(distiller, images, hidden):
    """Each model's own images, tokens and masks on the coarser grid, written plainly."""
    teacher, student, loss = distiller.teacher, distiller.student, distiller.loss
    rows, columns = distiller.grid

    def own(model):
        if images.shape[-2:] == model.image_size:
            return images
        return torch.nn.functional.interpolate(
            images, model.image_size, mode="bilinear", antialias=True
        )

    def coarse(features):
        maps = features.patches.mT.unflatten(2, features.grid)
        maps = torch.nn.functional.adaptive_avg_pool2d(maps, (rows, columns))
        return maps.flatten(2).mT

    with torch.no_grad():
        target = teacher(own(teacher))
    seen, unseen = student(own(student)), student(own(student), hidden.view(-1, rows, columns))
    token = (loss.token_head(seen.cls) - target.cls).square()
    rest = (loss.feature_head(coarse(seen)) - coarse(target)).square()
    feature = torch.cat([token[:, None], rest], dim=1).mean()
    patch = (loss.patch_head(coarse(unseen)) - coarse(target)).square()[hidden].mean()
    return token.mean(), feature, patch


PAIRS = {  # teacher's patch and image, student's, the images': height, width
    "grids agree, sizes do not": ((14, 196, 140), (16, 224, 160), (224, 160), (14, 10)),
    "a finer teacher": ((4, 32, 32), (8, 32, 32), (32, 32), (4, 4)),
    "a finer student": ((16, 64, 32), (8, 64, 32), (64, 32), (4, 2)),
    "larger images than either": ((8, 32, 32), (8, 32, 32), (80, 80), (4, 4)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_any_two_patch_sizes_meet(pair):
    (teachers, *tall), (students, *wide), size, grid = PAIRS[pair]
    torch.manual_seed(0)
    teacher = proteus.Teacher(vit(36, size=tuple(tall), patch=teachers), image_size=tuple(tall))
    student = proteus.Student(vit(24, size=tuple(wide), patch=students), image_size=tuple(wide))
    distiller = proteus.Distiller(teacher, student).double()
    torch.nn.init.normal_(student.mask_token)
    assert distiller.grid == distiller.masks.grid == grid
    images = torch.rand(4, 3, *size, dtype=torch.float64)
    hidden = distiller.masks.masks(4)
    losses = distiller(images, hidden)
    expected = by_hand(distiller, images, hidden)
    torch.testing.assert_close(tuple(losses[1:]), expected)
    losses.total.backward()
    assert all(p.grad is not None for p in distiller.trainable_parameters())


def test_a_border_between_patches_is_shared_by_area(student):
    teacher = proteus.Teacher(vit(36, size=48), image_size=48)  # 6x6 beside 4x4
    distiller = proteus.Distiller(teacher, student)
    assert (distiller.image_size, distiller.grid) == ((48, 48), (4, 4))
    losses = distiller(torch.rand(2, 3, 48, 48))
    assert all(torch.isfinite(term) and term > 0 for term in losses)


def test_uint8_images_are_resized_as_floats(student):
    distiller = proteus.Distiller(
        proteus.Teacher(vit(36, size=48, patch=12), image_size=48), student
    )
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    hidden = torch.eye(2, 16, dtype=torch.bool)
    torch.testing.assert_close(distiller(images, hidden), distiller(images / 255, hidden))


@pytest.mark.parametrize("size", [(24, 24), (32, 64), (16, 64)])
def test_images_that_do_not_fit_are_refused(distiller, size):
    with pytest.raises(ShapeError, match=r"do not fit the model.*32x32.*larger one of the same"):
        distiller(torch.rand(2, 3, *size))


def test_models_of_two_forms_are_refused(student):
    teacher = proteus.Teacher(vit(36, size=(32, 64)), image_size=(32, 64))
    with pytest.raises(ShapeError, match=r"Distiller: images do not fit.*image_size=\(32, 64\)"):
        proteus.Distiller(teacher, student)


def test_class_tokens_alone_meet_on_no_grid(student):
    teacher = proteus.Teacher(vit(36, patch=16), image_size=32)
    loss = proteus.ProteusLoss(24, 36, feature=0, patch=0)
    assert proteus.Distiller(teacher, student, loss)(torch.rand(2, 3, 32, 32)).token > 0


def test_a_cnn_learns_all_terms(teacher):
    student = proteus.Student("test_resnet", image_size=64)
    distiller = proteus.Distiller(teacher, student)
    losses = distiller(torch.rand(2, 3, 64, 64), torch.eye(2, 4, dtype=torch.bool))
    losses.total.backward()
    assert all(term > 0 for term in losses)
    assert all(p.grad is not None for p in distiller.parameters())


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
    assert all(p.grad is not None for p in distiller.student.backbone.parameters())


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


@pytest.mark.parametrize(
    ("student", "size"),
    [(vit(24), 16), ("test_resnet", 64), ("test_vit", 64), ("vit_small_patch16_dinov3", 32)],
    ids=["vit", "cnn", "timm vit", "rope"],
)
def test_a_step_of_a_smaller_size_teaches_the_same_weights(student, size):
    student = proteus.Student(student, image_size=2 * size)
    distiller = proteus.Distiller(
        proteus.Teacher(vit(36, size=4 * size, patch=size), image_size=4 * size), student
    )
    images = torch.rand(4, 3, 4 * size, 4 * size)
    own, keys = student.grid, student.backbone.state_dict().keys()
    before = distiller(images, generator=torch.Generator().manual_seed(0))
    distiller.also_take((size, size))
    views = distiller.see(images, image_size=(size, size))
    assert views.student.patches.shape[1] < own[0] * own[1]
    small = distiller(images, image_size=(size, size))
    small.total.backward()
    assert all(p.grad is not None for p in distiller.trainable_parameters())
    assert student.grid == own and student.backbone.state_dict().keys() == keys
    after = distiller(images, generator=torch.Generator().manual_seed(0))
    assert not isinstance(student.backbone, type(vit())) or after == before


def test_a_smaller_size_hides_patches_of_its_own_grid(distiller):
    distiller.also_take(16)
    masks = distiller.draw(4, image_size=(16, 16))
    assert masks.hidden.shape == (4, 4)
    torch.manual_seed(1)
    whole = distiller.see(torch.rand(4, 3, 32, 32), masks, image_size=(16, 16))
    assert whole.student.grid == (2, 2) and whole.masked.patches.shape == (2, 4, 24)


def test_a_smaller_size_is_what_the_model_makes_of_smaller_images(teacher):
    """A CNN has no positions: the step is that of a student built for the smaller size."""
    torch.manual_seed(3)
    own = proteus.Student("test_resnet", image_size=64)
    small = proteus.Student(copy.deepcopy(own.backbone), image_size=32)
    images = torch.rand(2, 3, 64, 64)
    distiller = proteus.Distiller(teacher, own).eval()
    distiller.also_take(32)
    found = distiller.see(images, image_size=(32, 32)).student
    plain = small.eval()(small.fit(images))
    assert torch.equal(found.cls, plain.cls) and found.grid == plain.grid


@pytest.mark.parametrize("size", [32, 64, (16, 32)])
def test_a_size_that_is_not_smaller_or_of_another_form_is_refused(distiller, size):
    with pytest.raises(ShapeError, match=r"smaller size|do not fit"):
        distiller.also_take(size)


def test_a_size_that_the_model_cannot_take_is_refused(distiller):
    with pytest.raises(ShapeError, match=r"cannot take images of this size. Got 15x15"):
        distiller.also_take(15)
