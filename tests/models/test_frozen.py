import copy

import pytest
import timm
import torch
from torch import nn

import proteus
from conftest import vit
from proteus import Features
from proteus.evaluation import as_extractor
from proteus.features import IMAGENET


def images(size=32, count=2):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def test_a_student_a_teacher_and_the_plain_model_give_the_same_features():
    model, batch = vit().eval(), images()
    student = proteus.Student(copy.deepcopy(model), image_size=32)
    teacher = proteus.Teacher(copy.deepcopy(model), image_size=32)
    expected = teacher(batch)
    for one in (student, teacher, as_extractor(student)):
        found = as_extractor(one)(batch)
        torch.testing.assert_close(found, expected)
        assert not found.cls.requires_grad
    # A module that does not say how its images were normalised gets ImageNet's statistics.
    assert as_extractor(model).inputs.mean.flatten().tolist() == pytest.approx(IMAGENET[0])


def test_the_users_model_keeps_its_mode_its_positions_and_its_device():
    student = proteus.Student(vit(drop_rate=0.9), image_size=32).train()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    extractor = as_extractor(student, image_size=48)
    first, second = extractor(images(64)), extractor(images(64))
    assert first.grid == (8, 8)
    assert student.training
    assert student.backbone.training
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    batch = images(48)
    torch.testing.assert_close(extractor(batch), extractor(batch))
    assert second.cls.shape == (2, 24)
    assert extractor.train().training is False


def test_another_size_is_fitted_once_by_the_rule_of_the_family():
    model = timm.create_model("vit_small_patch14_dinov2", depth=1, num_classes=0, img_size=70)
    nn.init.normal_(model.pos_embed)
    batch = images(56)
    teacher = proteus.Teacher(copy.deepcopy(model), image_size=56)
    extractor = as_extractor(model)
    torch.testing.assert_close(extractor(batch), teacher(batch))
    fitted = extractor._resized[56, 56]
    extractor(batch)
    assert extractor._resized == {(56, 56): fitted}
    assert fitted.blocks[0].attn.qkv.weight is extractor.model.blocks[0].attn.qkv.weight


def test_a_size_that_is_no_multiple_of_the_patch_is_an_error():
    with pytest.raises(ValueError, match=r"33x33 with patches of 8x8"):
        as_extractor(vit(), image_size=33)
    with pytest.raises(ValueError, match=r"40x36"):
        as_extractor(vit())(torch.zeros(1, 3, 40, 36))


@pytest.mark.parametrize(
    "name",
    ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "vit_base_patch16_siglip_224",
     "eva02_tiny_patch14_224", "deit_tiny_distilled_patch16_224", "vit_medium_patch16_gap_240",
     "vit_small_patch16_dinov3", "vit_pe_core_tiny_patch16_384", "mobilenetv3_small_050"],
)  # fmt: skip
def test_the_last_normed_layer_is_what_a_call_returns(name):
    options = {"depth": 2} if name.startswith(("vit", "eva", "deit")) else {}
    model = timm.create_model(name, num_classes=0, **options).eval()
    extractor = as_extractor(model)
    batch = images(extractor.image_size[0], 1)
    whole, layers = extractor(batch), extractor.layers(batch, 2)
    torch.testing.assert_close(layers[-1], whole, atol=1e-5, rtol=1e-4)
    assert layers[0].patches.shape[1] == layers[0].grid[0] * layers[0].grid[1]


def test_inner_layers_are_timms_in_block_order_with_the_norm_or_without():
    model = vit(depth=4).eval()
    extractor = as_extractor(model)
    batch = images()
    ready = extractor.inputs(batch)
    with torch.no_grad():
        raw = model.get_intermediate_layers(ready, n=[1, 3], return_prefix_tokens=True)
        normed = model.get_intermediate_layers(ready, n=2, norm=True, return_prefix_tokens=True)
    for found, (patches, prefix) in zip(
        [*extractor.layers(batch, [3, 1], norm=False), *extractor.layers(batch, 2)],
        [*raw, *normed],
        strict=True,
    ):
        torch.testing.assert_close(found.patches, patches)
        torch.testing.assert_close(found.cls, prefix[:, 0])
    assert extractor.num_layers == 4


@pytest.mark.parametrize("which", [5, [4], [-1], [1, 1], []])
def test_layers_that_are_not_there_are_an_error(which):
    with pytest.raises(ValueError, match="0 … 3"):
        as_extractor(vit(depth=4)).layers(images(), which)


def test_a_model_that_tells_no_layers_has_its_output_only():
    extractor = as_extractor(nn.Conv2d(3, 8, 4, stride=4), image_size=32)
    assert extractor.num_layers == 1
    batch = images()
    torch.testing.assert_close(extractor.layers(batch, 1)[0], extractor(batch))
    with pytest.raises(ValueError, match="inner layers"):
        extractor.layers(batch, 1, norm=False)


def test_a_callable_gets_the_images_as_they_are():
    class Mean:
        embed_dim = 3

        def __call__(self, batch):
            return Features(batch.float().mean((2, 3)), batch.new_zeros(len(batch), 0, 3), (0, 0))

    extractor = as_extractor(Mean(), image_size=32)
    assert extractor(torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)).cls.tolist() == [[255] * 3]
    assert extractor.fingerprint() is None
    assert extractor.patch_size == (0, 0)
    with pytest.raises(ValueError, match="would be ignored"):
        as_extractor(Mean(), normalize=False)
    with pytest.raises(ValueError, match=r"not a model. Got str"):
        as_extractor("dinov2_vits14")


def test_the_fingerprint_tells_weights_architecture_and_statistics_apart():
    model = vit()
    same = as_extractor(copy.deepcopy(model)).fingerprint()
    assert as_extractor(model).fingerprint() == same
    other_heads = copy.deepcopy(model)
    attention = other_heads.blocks[0].attn
    attention.num_heads, attention.head_dim = 6, 4  # the same tensors, another function
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.blocks[1].mlp.fc1.bias[0] += 1
    gelu = copy.deepcopy(model)
    gelu.blocks[0].mlp.act = nn.ReLU()
    found = {as_extractor(one).fingerprint() for one in (other_heads, changed, gelu)}
    found.add(as_extractor(model, normalize=((0.5,) * 3, (0.5,) * 3)).fingerprint())
    assert len(found | {same}) == 5


def test_the_fingerprint_sees_functions_and_buffers_that_are_not_saved():
    class Shifted(nn.Module):
        def __init__(self, shift, function):
            super().__init__()
            self.register_buffer("shift", torch.tensor(shift), persistent=False)
            self.function, self.embed = function, nn.Conv2d(3, 4, 4, 4)
            nn.init.ones_(self.embed.weight), nn.init.zeros_(self.embed.bias)

        def forward(self, images):
            return self.function(self.embed(images - self.shift))

    models = [Shifted(0.1, torch.relu), Shifted(0.9, torch.relu), Shifted(0.1, torch.tanh)]
    assert len({as_extractor(model).fingerprint() for model in [*models, *models]}) == 3


def test_a_trainable_copy_trains_and_leaves_the_original_alone():
    extractor = as_extractor(vit())
    ours = extractor.trainable_copy().train()
    ours(images()).cls.square().sum().backward()
    assert all(p.grad is not None for p in [ours.model.blocks[0].attn.qkv.weight])
    assert extractor.model.blocks[0].attn.qkv.weight.grad is None
    assert not extractor(images()).cls.requires_grad


def test_a_fingerprint_sees_state_that_is_no_tensor():
    class Scaled(torch.nn.Conv2d):
        scale = [1]  # noqa: RUF012  # a list, which is no plain fact of the module

        def get_extra_state(self):
            return {"scale": self.scale}

    model = Scaled(3, 4, 4, stride=4)
    first = as_extractor(model, image_size=8).fingerprint()
    assert as_extractor(model, image_size=8).fingerprint() == first
    model.scale = [2]
    assert as_extractor(model, image_size=8).fingerprint() != first
