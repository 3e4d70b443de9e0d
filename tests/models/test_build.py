import time
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import proteus
from conftest import vit
from proteus import Features
from proteus.features import ShapeError
from proteus.models.frozen import as_extractor
from proteus.models.names import STUDENTS, TEACHERS

NAMES = {  # timm name -> (options, image size, grid, has class token after the final norm)
    "vit_tiny_patch16_224": ({}, 64, (4, 4)),
    "vit_small_patch16_dinov3": ({"depth": 2}, 64, (4, 4)),
    "vit_small_patch14_reg4_dinov2": ({"depth": 2}, 56, (4, 4)),
    "vit_medium_patch16_reg4_gap_256": ({"depth": 2}, 64, (4, 4)),
    "vit_base_patch16_siglip_224": ({"depth": 2}, 64, (4, 4)),
    "beit_base_patch16_224": ({"depth": 2}, 64, (4, 4)),
    "deit_tiny_distilled_patch16_224": ({"depth": 2}, 64, (4, 4)),
    "eva02_tiny_patch14_224": ({"depth": 2}, 56, (4, 4)),
    "swin_tiny_patch4_window7_224": ({}, 224, (7, 7)),
}
MAPS = {"resnet18": 512, "convnext_atto": 320, "efficientnet_b0": 1280}


def create(name):
    options, size, _ = NAMES[name]
    return timm.create_model(name, num_classes=0, img_size=size, **options).eval()


@pytest.mark.parametrize("name", NAMES)
def test_every_family_gives_as_many_patches_as_its_grid(name):
    _, size, grid = NAMES[name]
    teacher = proteus.Teacher(create(name), image_size=size)
    features = teacher(torch.rand(2, 3, size, size))
    assert features.grid == teacher.grid == grid
    assert features.patches.shape == (2, grid[0] * grid[1], teacher.embed_dim)
    assert features.cls.shape == (2, teacher.embed_dim)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224"]
)
def test_cls_is_what_the_plain_model_returns(name):
    model, images = create(name), torch.randn(2, 3, NAMES[name][1], NAMES[name][1])
    teacher = proteus.Teacher(model, image_size=NAMES[name][1], normalize=False)
    torch.testing.assert_close(teacher(images).cls, model(images))


def test_dinov3_s_class_token_is_used_although_timm_pools():
    model, images = create("vit_small_patch16_dinov3"), torch.randn(1, 3, 64, 64)
    tokens = model.forward_features(images)
    features = proteus.Teacher(model, image_size=64, normalize=False)(images)
    assert torch.equal(features.cls, tokens[:, 0])
    assert torch.equal(features.patches, tokens[:, 5:])  # class token and four registers dropped


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_medium_patch16_reg4_gap_256"])
def test_models_that_pool_give_their_pooled_vector_and_normed_patches(name):
    model, size = create(name), NAMES[name][1]
    images = torch.randn(1, 3, size, size)
    features = proteus.Teacher(model, image_size=size, normalize=False)(images)
    torch.testing.assert_close(features.cls, model(images))
    tokens = model.forward_features(images)[:, model.num_prefix_tokens :]
    torch.testing.assert_close(features.patches, model.fc_norm(tokens))


@pytest.mark.parametrize("name", MAPS)
def test_convolutional_models_give_their_map_row_by_row(name):
    model = timm.create_model(name, num_classes=0).eval()
    teacher = proteus.Teacher(model, image_size=(64, 96), normalize=False)
    images = torch.randn(1, 3, 64, 96)
    features, wanted = teacher(images), model.forward_features(images)
    assert features.grid == teacher.grid == (2, 3)
    assert torch.equal(features.patches[0, 4], wanted[0, :, 1, 1])
    assert features.cls.shape == (1, MAPS[name])


def test_swin_s_channels_last_map_is_understood():
    model = create("swin_tiny_patch4_window7_224")
    images = torch.randn(1, 3, 224, 224)
    features = proteus.Teacher(model, image_size=224, normalize=False)(images)
    assert torch.equal(features.patches[0, 8], model.forward_features(images)[0, 1, 1])


def test_models_with_dynamic_size_take_other_sizes():
    teacher = proteus.Teacher(vit(24, dynamic_img_size=True), image_size=32)
    assert teacher(torch.rand(1, 3, 40, 64)).grid == (5, 8)


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make, self.weight = make, nn.Parameter(torch.ones(1))

    def forward(self, images):
        return self.make(images)


def test_any_module_that_returns_features_a_map_or_a_vector_is_a_teacher():
    b = torch.rand(2, 3, 32, 32)
    own = Features(torch.zeros(2, 5), torch.zeros(2, 6, 5), (2, 3))
    teacher = proteus.Teacher(Returns(lambda x: own), image_size=32)
    assert teacher(b) is own
    teacher = proteus.Teacher(Returns(lambda x: x.new_ones(len(x), 7, 2, 3)), image_size=32)
    assert (teacher.embed_dim, teacher.grid) == (7, (2, 3))
    teacher = proteus.Teacher(Returns(lambda x: x.new_ones(len(x), 7)), image_size=32)
    assert (teacher.embed_dim, teacher.grid) == (7, (0, 0))


def test_dinov2_s_own_classes_are_understood():
    class Hub(Returns):
        def forward_features(self, images):
            n = len(images)
            return {
                "x_norm_clstoken": torch.zeros(n, 5),
                "x_norm_patchtokens": torch.zeros(n, 8, 5),
            }

    teacher = proteus.Teacher(Hub(None), image_size=(16, 32))
    assert teacher.grid == (2, 4)


def test_an_output_that_is_ambiguous_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"Returns: .*\(1, 17, 8\).*Wrap.*proteus\.Features"):
        proteus.Teacher(Returns(lambda x: x.new_zeros(len(x), 17, 8)), image_size=32)


class TestImages:
    def test_uint8_and_float_give_the_same(self, teacher):
        images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        torch.testing.assert_close(teacher(images), teacher(images.float() / 255))

    def test_each_model_normalises_with_its_own_statistics(self):
        clip = timm.get_pretrained_cfg("vit_base_patch16_clip_quickgelu_224.openai")
        teacher = proteus.Teacher(
            "vit_base_patch16_clip_quickgelu_224", pretrained=False, image_size=32
        )
        assert teacher.inputs.mean.flatten().tolist() == pytest.approx(list(clip.mean))
        image = torch.tensor(clip.mean).view(1, 3, 1, 1).expand(1, 3, 32, 32)
        assert teacher.inputs(image).abs().max() < 1e-6

    def test_own_statistics_and_none(self):
        teacher = proteus.Teacher(vit(), image_size=32, normalize=([0.5] * 3, [0.25] * 3))
        assert teacher.inputs(torch.ones(1, 3, 32, 32)).eq(2).all()
        teacher = proteus.Teacher(vit(), image_size=32, normalize=False)
        assert teacher.inputs(torch.full((1, 3, 32, 32), -2.0)).eq(-2).all()

    @pytest.mark.parametrize("value", [-2.1, 255.0, 1.5, float("nan")])
    def test_float_images_outside_0_1_are_refused_with_their_range(self, teacher, value):
        images = torch.rand(2, 3, 32, 32)
        images[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match=r"not in \[0, 1\].*Drop Normalize"):
            teacher(images)

    def test_only_the_first_batch_is_looked_at(self, teacher):
        teacher(torch.rand(1, 3, 32, 32))
        teacher(torch.rand(1, 3, 32, 32) * 3)

    def test_a_wrong_shape_or_dtype_is_shown(self, teacher):
        with pytest.raises(ShapeError, match=r"\(2, 4, 32, 32\)"):
            teacher(torch.rand(2, 4, 32, 32))
        with pytest.raises(ValueError, match=r"torch\.int64"):
            teacher(torch.zeros(1, 3, 32, 32, dtype=torch.int64))
        raw = proteus.Teacher(vit(), image_size=32, normalize=False)
        with pytest.raises(ValueError, match="uint8"):
            raw(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_probing_leaves_no_trace():
    module = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Dropout()).train()
    module[2].eval()
    before = torch.get_rng_state()
    student = proteus.Student(module, image_size=32)
    assert torch.equal(torch.get_rng_state(), before)
    assert int(module[1].num_batches_tracked) == 0
    assert [m.training for m in student.backbone] == [True, True, False]


def test_checkpoint_with_a_module_is_refused():
    with pytest.raises(ValueError, match="VisionTransformer"):
        proteus.Teacher(vit(), checkpoint="w.pth", image_size=32)


@pytest.mark.parametrize("name", [n for n in TEACHERS if n != "demo-teacher"])
def test_every_published_name_is_a_model_timm_has_weights_for(name):
    entry = TEACHERS[name]
    assert timm.is_model(entry.architecture.partition(".")[0])
    if entry.published and not entry.package:
        assert entry.architecture in timm.list_models(pretrained=True) or (
            timm.get_pretrained_cfg(entry.architecture).has_weights
        )


@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_name_is_an_architecture(name):
    assert timm.is_model(STUDENTS[name].architecture)


def test_weights_that_cannot_be_reached_name_the_file_at_once():
    # Nobody listens on the address of the suite's Hub here.
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"of timm/vit_small.*checkpoint='FILE'.*--teacher-check"):
        proteus.Teacher("dinov2_vits14")
    with pytest.raises(ValueError, match=r"copy config.json and .* and pass 'local-dir:FOLDER'"):
        proteus.Student("resnet18", pretrained=True)  # which takes no checkpoint=
    assert time.monotonic() - begun < 10


class TestImageSize:
    @pytest.mark.parametrize("build", [proteus.Teacher, proteus.Student, as_extractor])
    def test_images_of_another_size_are_told_the_model_s_own(self, build):
        model = build(vit(class_token=False, global_pool="avg"), image_size=32)
        if build is as_extractor:
            model.model.set_input_size = None  # as of a model that cannot be resized
            model._model_for = lambda images: model.model
        with pytest.raises(ShapeError, match=r"48x48.*32x32") as caught:
            model(torch.rand(1, 3, 48, 48))
        assert "image_size" in str(caught.value)
        assert model(torch.rand(1, 3, 32, 32)).cls.shape == (1, 24)  # and nothing is left behind

    def test_hidden_patches_of_another_size_are_no_other_error(self, student):
        with pytest.raises(ShapeError, match=r"48x48.*32x32"):
            student(torch.rand(1, 3, 48, 48), torch.ones(1, 16, dtype=torch.bool))

    @pytest.mark.parametrize(
        ("name", "size", "near"),
        [
            ("halonet26t", (192, 288), "256x256"),
            ("maxvit_rmlp_pico_rw_256", 96, "256x256"),
            ("coatnet_pico_rw_224", 96, "224x224"),
            ("mixer_s32_224", 96, ""),
        ],
    )
    @pytest.mark.parametrize("build", [proteus.Teacher, proteus.Student, as_extractor])
    def test_windows_that_do_not_fit_are_a_plain_error(self, build, name, size, near):
        model = timm.create_model(name, num_classes=0)
        with pytest.raises(ShapeError, match=r"(Teacher|Student|evaluation): .*size") as caught:
            build(model, image_size=size)
        assert near in str(caught.value)

    def test_a_model_of_other_images_says_so_at_construction(self):
        grey = timm.create_model("resnet18", num_classes=0, in_chans=1)
        with pytest.raises(ValueError, match=r"grey RGB image.*224x224.*RuntimeError"):
            proteus.Teacher(grey)

    def test_a_module_that_fails_for_another_reason_raises_its_own_error(self):
        def once(images, calls=[]):  # noqa: B006 - on purpose: it counts its calls
            calls.append(images)
            if len(calls) > 1:
                raise RuntimeError("a bug")
            return images.mean((2, 3))

        teacher = proteus.Teacher(Returns(once), image_size=32)
        with pytest.raises(RuntimeError, match="a bug"):
            teacher(torch.rand(1, 3, 32, 32))

    @pytest.mark.parametrize("build", [proteus.Teacher, proteus.Student, as_extractor])
    def test_a_module_keeps_its_size_and_its_weights(self, build):
        model = timm.create_model("vit_small_patch8_224", num_classes=0, img_size=48, depth=1)
        before = model.pos_embed
        kept = build(model)
        assert kept.image_size == (48, 48)
        assert build is as_extractor or kept.backbone is model
        other = build(model, image_size=64)
        assert other.image_size == (64, 64)
        assert model.pos_embed is before
        assert model.patch_embed.img_size == (48, 48)
        assert model(torch.rand(1, 3, 48, 48)).shape == (1, 384)

    def test_a_student_of_a_name_or_a_nameless_module_is_224(self):
        assert proteus.Student("vit_tiny_patch16_384").image_size == (224, 224)
        assert proteus.Student(nn.Conv2d(3, 8, 32, 32)).image_size == (224, 224)
        assert proteus.Student(timm.create_model("efficientnet_b1", num_classes=0)).image_size == (
            240,
            240,
        )

    @pytest.mark.parametrize("model", [5, None, Path("folder"), ["vit"]], ids=repr)
    def test_what_is_no_model_is_refused(self, model):
        with pytest.raises(ValueError, match="not a model"):
            proteus.Teacher(model)


def test_a_folder_by_its_bare_path_is_recognised(tmp_path):
    with pytest.raises(ValueError, match=f"Did you mean 'local-dir:{tmp_path}'"):
        proteus.Teacher(str(tmp_path))


def test_printing_is_one_line(teacher, student, distiller):
    assert not any("\n" in repr(model) for model in (teacher, student, distiller))
    assert repr(teacher) == "Teacher('VisionTransformer', embed_dim=36, grid=(4, 4))"
    assert repr(teacher) in repr(distiller)
    assert repr(student) in repr(distiller)
    assert "Linear" in repr(student.backbone)


@pytest.mark.parametrize(
    "size", [0, -32, True, 32.5, "32", (32,), (32, 32.9), (32, 0), (1, 2, 3), (None, 3)], ids=repr
)
@pytest.mark.parametrize("build", [proteus.Teacher, proteus.Student, as_extractor])
def test_a_size_that_is_none_is_refused(build, size):
    with pytest.raises(ValueError, match="image_size: wrong value"):
        build(nn.Conv2d(3, 8, 4, 4), image_size=size)
