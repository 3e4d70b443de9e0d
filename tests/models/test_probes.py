"""Hidden means unseen, whatever the model is called; and what a gradient reaches."""

import pytest
import timm
import torch
from torch import nn

import proteus
from conftest import vit
from proteus.models.probes import equal, reached


class Stem(nn.Module):
    """A patch embedding with something before or behind it."""

    def __init__(self, embed, before=None, behind=None):
        super().__init__()
        self.embed, self.before, self.behind = embed, before, behind
        self.img_size, self.patch_size = embed.img_size, embed.patch_size
        self.grid_size, self.num_patches = embed.grid_size, embed.num_patches

    def dynamic_feat_size(self, size):
        return self.embed.dynamic_feat_size(size)

    def forward(self, images):
        tokens = self.embed(images if self.before is None else self.before(images))
        return tokens if self.behind is None else self.behind(tokens)


class Neighbours(nn.Module):
    """Adds a share of the patch to the left."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, tokens):
        return tokens + self.scale * tokens.roll(1, dims=1)


def smooth(images):
    return nn.functional.avg_pool2d(images, 3, 1, 1)


def with_stem(**parts):
    model = vit(24)
    model.patch_embed = Stem(model.patch_embed, **parts)
    return model


LEAKS = {
    "a convolution over the edges of patches": {"before": smooth},
    "the mean of the image": {"before": lambda x: x - x.mean((2, 3), keepdim=True)},
    "a norm over the whole image": {"before": nn.InstanceNorm2d(3)},
    "hard swish, which may swallow a NaN": {
        "before": nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Hardswish())
    },
    "the neighbour's token": {"behind": Neighbours(0.5)},
    "the neighbour's token, with a scale that is still 0": {"behind": Neighbours(0.0)},
    "the neighbour's token, with a tiny scale": {"behind": Neighbours(1e-5)},
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_stem_that_sees_hidden_pixels_is_noticed(leak):
    student = proteus.Student(with_stem(**LEAKS[leak]), image_size=32)
    assert student.hides == "pixels"
    hidden = torch.zeros(1, 16, dtype=torch.bool)
    hidden[0, 5] = True  # row 1, column 1
    image = torch.rand(1, 3, 32, 32)
    other = image.clone()
    other[..., 8:16, 8:16] = torch.rand(1, 3, 8, 8)
    student.eval()
    assert torch.equal(student(image, hidden).patches, student(other, hidden).patches)


def test_a_stem_that_keeps_to_its_patch_is_allowed():
    per_patch = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(24, 24), nn.Dropout(0.5))
    student = proteus.Student(with_stem(before=torch.sigmoid, behind=per_patch), image_size=32)
    assert student.hides == "tokens"
    assert per_patch[0].num_batches_tracked == 0
    assert per_patch[2].training


def test_a_model_that_takes_the_pixels_from_elsewhere_is_noticed():
    class Around(type(vit())):
        def forward_features(self, x):
            tokens = super().forward_features(x)
            return tokens + nn.functional.avg_pool2d(x, 8).mean((1, 2, 3))[:, None, None]

    model = Around(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=0)
    assert proteus.Student(model, image_size=32).hides == "pixels"


def test_a_model_that_hides_nothing_is_noticed():
    class Deaf(type(vit())):
        def forward_features(self, x):
            return super().forward_features(x) * 0 + 1

    model = Deaf(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=0)
    assert proteus.Student(model, image_size=32).hides == "pixels"


@pytest.mark.parametrize(
    ("name", "size"), [("vit_tiny_r_s16_p8_224", 64), ("vitamin_small_224", 64)]
)
def test_from_timm_s_hybrid_stems_pixels_are_hidden(name, size):
    assert proteus.Student(name, image_size=size).hides == "pixels"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [(32, 32), (48, 24), (8, 8), (8, 24)])
def test_whole_patches_are_hidden_at_any_size_and_precision(dtype, size):
    student = proteus.Student(vit(24, size=size).to(dtype), image_size=size)
    assert student.hides == "tokens"
    assert student.mask_token.dtype == dtype


def test_a_student_on_the_meta_device_is_believed():
    with torch.device("meta"):
        model = vit(24)
    student = proteus.Student(model, image_size=32)
    assert student.mask_token.is_meta


@pytest.mark.parametrize(
    ("name", "more"), [("cait_xxs24_224", {}), ("convit_tiny", {"local_up_to_layer": 1})]
)
def test_other_families_hide_as_a_vit_does(name, more):
    model = timm.create_model(name, num_classes=0, img_size=64, depth=2, **more)
    student = proteus.Student(model, image_size=64).eval()
    images, hidden = torch.rand(1, 3, 64, 64), torch.zeros(1, 16, dtype=torch.bool)
    hidden[0, 6] = True
    other = images.clone()
    other[..., 16:32, 32:48] = 0
    with torch.no_grad():
        seen, unseen = student(images, hidden), student(other, hidden)
    assert torch.equal(seen.patches, unseen.patches)
    assert torch.equal(seen.cls, unseen.cls)


def test_equal_means_shape_and_value():
    one = torch.tensor([1.0, torch.nan, 1e4])
    assert equal(one, one + 1e-4)
    assert not equal(one, one + 1)
    assert not equal(one, one[:2])


def test_a_gradient_reaches_what_is_in_the_graph_and_nothing_else():
    used, idle = nn.Linear(2, 2), nn.Linear(2, 2)
    output = used(torch.ones(1, 2)) + idle(torch.ones(1, 2)).detach()
    assert reached([output]) == {id(p) for p in used.parameters()}
    assert reached([torch.ones(1)]) == set()
