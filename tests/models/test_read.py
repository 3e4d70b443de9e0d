"""Every form in which models give their features, and where each patch stands in it."""

import pytest
import timm
import torch
from torch import nn

import proteus
from proteus.models.read import _grid_of, evaluating, reader_for

PLAIN = {  # timm names whose features are rows of tokens, made small: arguments and size
    "cait_xxs24_224": ({"depth": 1, "img_size": 64}, 64),
    "convit_tiny": ({"depth": 2, "local_up_to_layer": 1, "img_size": 64}, 64),
    "mixer_s32_224": ({}, 224),
    "xcit_nano_12_p8_224": ({"depth": 1, "img_size": 64}, 64),
    "hiera_tiny_224": ({"embed_dim": 24, "stages": (1, 1, 1, 1), "img_size": (128, 128)}, 128),
    "tnt_s_patch16_224": ({"depth": 1, "img_size": 64}, 64),
    "naflexvit_base_patch16_gap": ({"depth": 1, "embed_dim": 48, "num_heads": 2}, 64),
}  # fmt: skip


def build(name):
    arguments, size = PLAIN[name]
    return timm.create_model(name, num_classes=0, **arguments).eval(), size


@pytest.mark.parametrize("name", PLAIN)
def test_plain_tokens_are_read_with_the_family_s_own_vector(name):
    model, size = build(name)
    teacher = proteus.Teacher(model, image_size=size, normalize=False)
    images = torch.randn(2, 3, size, size)
    features = teacher(images)
    assert torch.equal(features.cls, model(images))
    assert features.grid[0] == features.grid[1] > 1
    assert features.patches.shape == (2, features.grid[0] ** 2, teacher.embed_dim)


@pytest.mark.parametrize("name", [n for n in PLAIN if n != "mixer_s32_224"])  # which mixes
@pytest.mark.parametrize("place", [(0, -1), (-1, 0)])
def test_a_change_in_a_corner_is_seen_in_that_corner_s_patch(name, place):
    model, size = build(name)
    read, images = reader_for(model), torch.rand(4, 3, size, size)
    with torch.no_grad():
        before = read(model, images)
        step = size // before.grid[0]
        row, column = (0 if side == 0 else size - step for side in place)
        images[..., row : row + step, column : column + step] += 2
        change = (read(model, images).patches - before.patches).norm(dim=-1).mean(0)
    change = change.view(before.grid)
    assert change[place] > 0.8 * change.max()  # XCiT's patches overlap


def test_the_rows_of_one_image_are_a_grid_of_its_own_form():
    assert _grid_of(49, (224, 224)) == (7, 7)
    assert _grid_of(40, (40, 64)) == (5, 8)
    assert _grid_of(20, (224, 288)) == (4, 5)  # LeViT rounds up
    assert _grid_of(1, (64, 64)) == (1, 1)
    for count, size in ((6, (64, 64)), (2, (224, 224)), (197, (224, 224)), (0, (64, 64))):
        assert _grid_of(count, size) is None


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "pit_ti_distilled_224", "coat_tiny"])
def test_models_without_one_row_of_patches_give_their_vector_alone(name):
    model = timm.create_model(name, num_classes=0).eval()
    teacher = proteus.Teacher(model, normalize=False)
    images = torch.randn(1, 3, *teacher.image_size)
    features = teacher(images)
    assert torch.equal(features.cls, model(images))
    assert features.patches.shape == (1, 0, teacher.embed_dim)
    assert (teacher.grid, teacher.objectives) == ((0, 0), ("token",))


HEADS = {
    "mobilenetv3_small_050": 1024,
    "ghostnet_050": 1280,
    "test_mambaout": 256,
    "lcnet_035": 1280,
}


@pytest.mark.parametrize("name", HEADS)
def test_where_a_head_widens_the_vector_each_patch_goes_through_it_alone(name):
    model = timm.create_model(name, num_classes=0).eval()
    teacher = proteus.Teacher(model, image_size=(64, 96), normalize=False)
    images = torch.randn(1, 3, 64, 96)
    features, map_ = teacher(images), model.forward_features(images)
    assert features.cls.shape == (1, HEADS[name])
    assert torch.equal(features.cls, model(images))
    one = map_[:, 1:2, 1:2] if name == "test_mambaout" else map_[:, :, 1:2, 1:2]
    wanted = model.forward_head(one, pre_logits=True)[0]
    torch.testing.assert_close(features.patches[0, 4], wanted)


def test_patches_leave_no_trace_in_the_statistics_of_whole_images():
    model = timm.create_model("mobilenetv4_conv_small_050", num_classes=0)
    twin = timm.create_model("mobilenetv4_conv_small_050", num_classes=0)
    twin.load_state_dict(model.state_dict())
    images = torch.randn(4, 3, 64, 64)
    reader_for(model)(model.train(), images)
    twin.train()(images)
    assert model.norm_head.training
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value)


class Timm(nn.Module):
    """What looks like a model of timm, with features of the test's choice."""

    num_features, num_prefix_tokens, global_pool = 8, 1, "token"

    def __init__(self, make, head=None):
        super().__init__()
        self.make, self.head, self.num_prefix_tokens = make, head, 1
        self.weight = nn.Parameter(torch.ones(1))
        self.pretrained_cfg = {"architecture": "odd_small", "input_size": (3, 32, 32)}

    def forward_features(self, images):
        return self.make(len(images))

    def forward_head(self, features, pre_logits=False):
        if self.head is None:
            raise NotImplementedError("no head")
        return self.head(features)


@pytest.mark.parametrize(
    ("make", "head", "message"),
    [
        (lambda n: torch.zeros(n, 17, 8), None, r"odd_small.*\(1, 17, 8\).*no vector.*no head"),
        (lambda n: torch.zeros(n, 18, 8), lambda x: x[:, 0], r"\(1, 18, 8\).*17 patches"),
        (lambda n: torch.zeros(n, 17, 8), lambda x: x[:, 0, :4], r"another width, \(1, 4\)"),
        (lambda n: torch.zeros(n, 5, 6, 7), lambda x: x[:, 0, 0], r"without the width 8"),
        (lambda n: torch.zeros(n, 2, 3, 4, 8), lambda x: x[:, 0, 0, 0], "neither tokens nor a map"),
        (lambda n: [torch.zeros(n, 5, 8)], lambda x: x, r"list of \(1, 5, 8\)"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_model_s_name_and_what_it_gave(make, head, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        proteus.Teacher(Timm(make, head), image_size=32)
    with pytest.raises(ValueError, match=r"odd_small.*Choose another model"):
        proteus.Teacher(Timm(make, head), image_size=32)


def test_pooling_that_is_switched_off_leaves_the_class_token_or_the_mean():
    vit = timm.create_model("test_vit", num_classes=0, global_pool="").eval()
    resnet = timm.create_model("test_resnet", num_classes=0, global_pool="").eval()
    images = torch.randn(1, 3, 160, 160)
    features = proteus.Teacher(vit, image_size=160, normalize=False)(images)
    assert torch.equal(features.cls, vit.forward_features(images)[:, 0])
    features = proteus.Teacher(resnet, image_size=160, normalize=False)(images)
    assert torch.equal(features.cls, features.patches.mean(1))


def test_what_a_model_remembers_in_eval_is_not_what_its_weights_were():
    model = timm.create_model("levit_128s", num_classes=0)
    images = torch.randn(1, 3, 224, 224)
    with evaluating(model), torch.no_grad():
        model(images)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("attention_biases"):
                parameter.normal_(std=10)
    with evaluating(model), torch.no_grad():
        seen = model(images)
    fresh = timm.create_model("levit_128s", num_classes=0).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(seen, fresh(images))
