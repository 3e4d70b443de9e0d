import copy
import json
from pathlib import Path

import pytest
import timm
import torch

import proteus
from conftest import vit
from proteus.features import ShapeError

FAMILIES = {
    "plain": lambda: vit(24),
    "registers": lambda: vit(24, reg_tokens=2, no_embed_class=True),
    "class-token-free": lambda: vit(24, class_token=False, global_pool="avg"),
    "dynamic size": lambda: vit(24, dynamic_img_size=True),
    "RoPE": lambda: __import__("timm").create_model(
        "vit_small_patch16_dinov3", img_size=64, depth=2, embed_dim=48, num_heads=2, num_classes=0
    ),
}
REAL = json.loads((Path(__file__).parent / "golden/01_loss/real_sizes.json").read_text())


@pytest.fixture(params=FAMILIES)
def hiding(request):
    """A student of each family with a visible mask token, and images for it."""
    size = 64 if request.param == "RoPE" else 32
    student = proteus.Student(FAMILIES[request.param](), image_size=size).eval()
    with torch.no_grad():
        student.mask_token.normal_()
    return student, torch.rand(2, 3, size, size)


def test_hidden_pixels_do_not_matter_and_visible_ones_do(hiding):
    student, images = hiding
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 5] = True  # row 1, column 1
    patch = images.shape[-1] // 4
    other = images.clone()
    other[:, :, patch : 2 * patch, patch : 2 * patch] = 0
    with torch.no_grad():
        assert torch.equal(student(images, hidden).patches, student(other, hidden).patches)
        assert not torch.equal(student(images).patches, student(other).patches)
        other[:, :, :patch, :patch] = 0
        assert not torch.equal(student(images, hidden).patches, student(other, hidden).patches)


def test_nothing_hidden_is_the_whole_image(hiding):
    student, images = hiding
    with torch.no_grad():
        nothing = student(images, torch.zeros(2, 16, dtype=torch.bool))
        assert torch.equal(nothing.patches, student(images).patches)


def test_everything_hidden_leaves_nothing_of_the_image(hiding):
    student, images = hiding
    everything = torch.ones(2, 16, dtype=torch.bool)
    with torch.no_grad():
        first, second = student(images, everything), student(images * 0, everything)
    assert torch.equal(first.patches, second.patches)


def test_the_mask_token_gets_a_gradient(hiding):
    student, images = hiding
    student(images, torch.rand(2, 16) < 0.5).patches.square().sum().backward()
    assert student.mask_token.grad.abs().sum() > 0


def test_the_backbone_stays_a_plain_model(hiding):
    student, images = hiding
    keys = set(student.backbone.state_dict())
    assert not any("mask_token" in key for key in keys)
    backbone = copy.deepcopy(student.backbone)
    with torch.no_grad():
        plain = backbone.forward_features(student.inputs(images))
        student(images, torch.ones(2, 16, dtype=torch.bool))
        assert torch.equal(backbone.forward_features(student.inputs(images)), plain)


def test_a_hidden_pass_that_fails_leaves_no_mask_behind(student, images):
    before = student(images).patches
    with pytest.raises(ShapeError):
        student(torch.rand(2, 4, 32, 32), torch.ones(2, 16, dtype=torch.bool))
    assert torch.equal(student(images).patches, before)


def test_hidden_of_the_wrong_shape_is_refused(student, images):
    with pytest.raises(ShapeError, match=r"\(4, 9\).*\(4, 16\)"):
        student(images, torch.zeros(4, 9, dtype=torch.bool))


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_the_paper_s_students_have_the_authors_sizes_and_start(size):
    student = proteus.Student(f"vit_{size}_patch14")
    facts = REAL[f"vit_{size}"]
    assert (
        sum(p.numel() for p in student.backbone.parameters()) + student.embed_dim
        == (facts["params"])
    )
    assert list(student.backbone.pos_embed.shape) == facts["pos_embed"]
    assert len(student.backbone.state_dict()) + 1 == facts["keys"]  # and the mask token
    block = student.backbone.blocks[0]
    assert block.ls1.gamma.eq(1).all()
    assert block.attn.qkv.bias is not None
    assert student.mask_token.eq(0).all()
    assert student.image_size == (224, 224)
    assert student.grid == (16, 16)


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("test_resnet", (64, 96), (2, 3)),
        ("mobilenetv3_small_050", 64, (2, 2)),
        ("test_convnext", 72, (2, 2)),
        ("swin_tiny_patch4_window7_224", 64, (2, 2)),
    ],
)
def test_pixels_are_hidden_where_patches_have_no_embedding(name, size, grid):
    student = proteus.Student(name, image_size=size).eval()
    assert (student.hides, student.grid, student.mask_token.shape) == ("pixels", grid, (1, 3))
    image = torch.rand(2, 3, *student.image_size)
    hidden = torch.zeros(2, *grid, dtype=torch.bool)
    hidden[0, 1, 0] = True
    other = image.clone()
    rows, columns = student.image_size[0] // grid[0], student.image_size[1] // grid[1]
    other[0, :, rows:, :columns] = torch.rand(3, student.image_size[0] - rows, columns)
    seen, changed = student(image, hidden), student(other, hidden.flatten(1))
    assert torch.equal(seen.patches, changed.patches)
    assert torch.equal(seen.cls, changed.cls)
    whole = student(image)
    assert not torch.equal(seen.cls[0], whole.cls[0])
    torch.testing.assert_close(seen.cls[1], whole.cls[1])
    assert not torch.equal(student(other).cls, whole.cls)


def test_the_colour_of_hidden_pixels_learns():
    student = proteus.Student("test_resnet", image_size=64)
    hidden = torch.eye(4, dtype=torch.bool)
    student(torch.rand(4, 3, 64, 64), hidden).cls.square().sum().backward()
    assert student.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize("grid", [(3, 2), (1, 4), (4, 4)])
def test_masks_on_a_coarser_grid_hide_all_that_they_touch(hiding, grid):
    student, image = hiding
    size = image.shape[-1]
    cells = torch.zeros(2, *grid, dtype=torch.bool)
    cells[:, 0, 1] = True
    other = image.clone()
    bottom, left, right = -(-size // grid[0]), size // grid[1], 2 * size // grid[1]
    other[..., :bottom, left:right] = torch.rand(2, 3, bottom, right - left)
    assert torch.equal(student(image, cells).patches, student(other, cells).patches)


def test_masks_that_are_finer_than_the_tokens_are_refused(hiding):
    student, images = hiding
    with pytest.raises(ShapeError, match=r"finer.*\(8, 8\) on a grid of \(4, 4\)"):
        student(images, torch.zeros(2, 8, 8, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"expected torch.bool .* \(2, 4\)"):
        student(images, torch.zeros(2, 2, 2))


def test_a_student_of_a_grid_has_the_size_for_it():
    student = proteus.Student("vit_tiny_patch16_224", grid=(5, 3))
    assert (student.image_size, student.grid) == ((80, 48), (5, 3))
    with pytest.raises(ValueError, match=r"say the same.*32 and \(2, 2\)"):
        proteus.Student("vit_tiny_patch16_224", image_size=32, grid=(2, 2))
    with pytest.raises(ShapeError, match=r"no size for a grid.*pit_ti_224.*\(0, 0\)"):
        proteus.Student("pit_ti_224", grid=(7, 7))


def test_a_backbone_s_own_mask_token_which_nothing_uses_is_frozen():
    model = vit(24)
    model.mask_token = torch.nn.Parameter(torch.ones(1, 24))
    student = proteus.Student(model, image_size=32)
    assert [n for n, p in student.named_parameters() if not p.requires_grad] == [
        "backbone.mask_token"
    ]


def test_a_trained_mask_token_is_kept():
    model = vit(24)
    model.mask_token = torch.full((1, 24), 3.0)
    assert proteus.Student(model, image_size=32).mask_token.eq(3).all()


@pytest.mark.parametrize(
    "arguments", [{}, {"num_classes": 10}, {"num_classes": 0, "global_pool": ""}]
)
def test_a_model_that_would_leave_as_another_is_refused_at_once(arguments):
    model = timm.create_model("test_resnet", **arguments)
    with pytest.raises(ValueError, match=r"could not leave. Got 'ResNet'.*num_classes=0"):
        proteus.Student(model, image_size=64)


def test_dinov3_leaves_with_its_class_token():
    model = timm.create_model(
        "vit_small_patch16_dinov3", img_size=64, depth=1, embed_dim=48, num_heads=2, num_classes=0
    )
    student = proteus.Student(model, image_size=64, normalize=False).eval()
    images = torch.rand(1, 3, 64, 64)
    assert student.arguments["global_pool"] == "token"
    assert torch.equal(student.backbone(images), student(images).cls)
    assert torch.equal(student(images).cls, model.forward_features(images)[:, 0])


def test_a_teacher_of_dinov3_is_left_as_it_is():
    model = timm.create_model("vit_small_patch16_dinov3", img_size=64, depth=1, num_classes=0)
    proteus.Teacher(model, image_size=64)
    assert model.global_pool == "avg"


class TestLearnFrom:
    def student(self, **options):
        return proteus.Student(vit(24, **options), image_size=32)

    def resting(self, student):
        return [name for name, p in student.named_parameters() if not p.requires_grad]

    def test_what_no_loss_uses_rests_and_learns_again_when_one_does(self):
        student = self.student(class_token=False, global_pool="map")
        student.learn_from(cls=False, patches=True, hidden=False)
        resting = self.resting(student)
        assert "mask_token" in resting
        assert all(name.startswith("backbone.attn_pool") for name in resting if "." in name)
        student.learn_from(cls=True, patches=False, hidden=True)
        assert self.resting(student) == []

    def test_what_the_user_froze_stays_frozen(self):
        student = self.student()
        student.backbone.pos_embed.requires_grad_(False)
        for hidden in (True, False, True):
            student.learn_from(cls=True, patches=True, hidden=hidden)
        assert self.resting(student) == ["backbone.pos_embed"]

    def test_nothing_is_left_behind(self):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.BatchNorm2d(8)).train()
        student = proteus.Student(model, image_size=32)
        before, state = torch.get_rng_state(), copy.deepcopy(student.state_dict())
        student.learn_from(cls=True, patches=True, hidden=False)
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(v, state[k]) for k, v in student.state_dict().items())
        assert model.training
        assert all(p.grad is None for p in student.parameters())

    def test_what_rests_is_told(self, caplog):
        student = self.student(class_token=False, global_pool="map")
        with caplog.at_level("INFO"):
            student.learn_from(cls=False, patches=True, hidden=False)
        assert "backbone.attn_pool.q.weight" in caplog.text

    def test_it_works_without_gradients_around_and_on_the_meta_device(self):
        student = self.student().to("meta")
        with torch.no_grad():
            student.learn_from(cls=True, patches=True, hidden=True)
        assert self.resting(student) == []


class TestFreeze:
    def test_the_frozen_do_not_learn_whatever_the_loss_is(self):
        student = proteus.Student(vit(24, class_token=False, global_pool="map"), image_size=32)
        student.learn_from(cls=False, patches=True, hidden=True)  # the pooling rests
        student.freeze(["patch_embed.*", "attn_pool.q.*", "mask_token"])
        student.learn_from(cls=True, patches=True, hidden=True)
        resting = {name for name, p in student.named_parameters() if not p.requires_grad}
        assert {name.removeprefix("backbone.") for name in resting} == student.frozen
        assert student.frozen == {
            "patch_embed.proj.weight", "patch_embed.proj.bias", "mask_token",
            "attn_pool.q.weight", "attn_pool.q.bias",
        }  # fmt: skip

    def test_more_can_be_frozen_later(self, student):
        student.freeze(["pos_embed"])
        student.freeze(["cls_token"])
        assert student.frozen == {"pos_embed", "cls_token"}

    def test_a_frozen_batch_norm_is_never_in_train_mode(self):
        student = proteus.Student("resnet18", image_size=32).train()
        student.freeze(["conv1.*", "bn1.*", "layer2.0.bn1.weight"])
        norms = student.backbone.bn1, student.backbone.layer2[0].bn1
        for _ in range(2):
            assert [norm.training for norm in norms] == [False, True]
            student.eval()
            student.train()

    @pytest.mark.parametrize(
        ("patterns", "match"),
        [
            (["patch_embed.*", "block.0.*"], r"Got 'block.0.\*'; expected .* Did you mean"),
            (["*"], r"frozen: nothing is left to learn. Got \['\*'\]"),
        ],
    )
    def test_patterns_that_mean_nothing_or_all_are_refused(self, student, patterns, match):
        with pytest.raises(ValueError, match=match):
            student.freeze(patterns)
        assert student.frozen == frozenset()
        assert all(p.requires_grad for p in student.parameters())
