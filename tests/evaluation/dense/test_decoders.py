import sys

import pytest
import timm
import torch
from torch import nn

import proteus
from conftest import vit
from proteus.evaluation.dense.decoders import HEADS, Pyramid, build_decoder
from proteus.evaluation.dense.layers_of import choose_layers, read_dense
from proteus.features import Features
from proteus.models.frozen import as_extractor


@pytest.fixture
def layers():
    return [Features(torch.randn(2, 16), torch.randn(2, 24, 16), (4, 6)) for _ in range(4)]


@pytest.fixture
def stages():
    grids = [(8, 16), (4, 8), (2, 4), (1, 2)]
    return [
        Features(torch.randn(2, d), torch.randn(2, h * w, d), (h, w))
        for d, (h, w) in zip((8, 12, 16, 24), grids, strict=True)
    ]


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 8, 12, 24, 32, 40])
def test_four_layers_are_chosen_in_order_and_end_with_the_last(depth):
    chosen = choose_layers(depth)
    assert len(chosen) == 4 and chosen[-1] == depth - 1
    assert list(chosen) == sorted(chosen) and chosen[0] >= 0
    assert len(set(chosen)) == min(depth, 4)


def test_dense_features_are_the_blocks_own_outputs_without_the_norm():
    model = vit(depth=4).eval()
    model.norm.weight.data.fill_(3.0)
    extractor = as_extractor(proteus.Student(model, image_size=32), image_size=32, normalize=False)
    images = torch.randn(2, 3, 32, 32)
    features = read_dense(extractor, images)
    outputs = []
    hooks = [b.register_forward_hook(lambda m, i, o: outputs.append(o)) for b in model.blocks]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    for ours, theirs in zip(features, outputs, strict=True):
        assert torch.allclose(ours.patches, theirs[:, 1:], atol=1e-5)
        assert torch.allclose(ours.cls, theirs[:, 0], atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_makes_a_map_and_learns_from_it(head, layers):
    decoder = build_decoder(head, layers, 5, channels=None if "linear" in head else 16)
    output = decoder(layers)
    factor = {"linear": 1, "norm_linear": 1, "upernet": 4, "dpt": 8}[head]
    assert output.shape == (2, 5, 4 * factor, 6 * factor)
    loss = output.square().mean()
    if (auxiliary := decoder.auxiliary(layers)) is not None:
        assert auxiliary.shape == (2, 5, 4, 6)
        loss = loss + auxiliary.square().mean()
    loss.backward()
    silent = [n for n, p in decoder.named_parameters() if p.grad is None]
    assert silent == []
    assert decoder.last().out_channels == 5


@pytest.mark.parametrize("head", HEADS)
def test_stages_of_a_cnn_are_taken_as_they_are(head, stages):
    decoder = build_decoder(head, stages, 3, channels=None if "linear" in head else 8)
    height = 8 * (2 if head == "dpt" else 1)
    assert decoder(stages).shape == (2, 3, height, 2 * height)


@pytest.mark.parametrize("head", HEADS)
def test_a_grid_of_one_patch_is_enough(head):
    layers = [Features(torch.randn(2, 8), torch.randn(2, 1, 8), (1, 1)) for _ in range(4)]
    decoder = build_decoder(head, layers, 3, channels=None if "linear" in head else 8)
    assert decoder(layers).shape[:2] == (2, 3)


def test_the_linear_head_is_one_convolution_without_a_norm(layers):
    decoder = build_decoder("linear", layers, 5)
    assert {n: tuple(p.shape) for n, p in decoder.named_parameters()} == {
        "head.weight": (5, 64, 1, 1),
        "head.bias": (5,),
    }
    assert float(decoder.head.weight.detach().std()) == pytest.approx(0.01, rel=0.2)


def test_with_a_norm_the_scale_of_the_features_does_not_matter(layers):
    decoder = build_decoder("norm_linear", layers, 5)
    larger = [layer._replace(patches=7 + 100 * layer.patches) for layer in layers]
    assert torch.allclose(decoder(layers), decoder(larger), atol=1e-4)


def test_a_layer_that_is_chosen_twice_is_seen_once_by_the_linear_head():
    extractor = as_extractor(proteus.Student(vit(depth=2), image_size=32), image_size=32)
    features = read_dense(extractor, torch.rand(1, 3, 32, 32))
    assert len(features) == 4
    assert build_decoder("linear", features, 2).head.in_channels == 2 * 24


def test_the_pyramid_has_four_scales():
    maps = Pyramid(8)([torch.randn(2, 8, 6, 6)] * 4)
    assert [m.shape[-1] for m in maps] == [24, 12, 6, 3]


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_other_families_can_be_decoded(name):
    model = timm.create_model(name, num_classes=0)
    extractor = as_extractor(model)
    size = 224 if "swin" in name else 64
    features = read_dense(extractor, torch.rand(1, 3, size, size))
    strides = [size // feature.grid[0] for feature in features]
    assert strides == [4, 8, 16, 32]
    assert build_decoder("linear", features, 2)(features).shape == (1, 2, size // 4, size // 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_any_precision_give_float32(dtype):
    extractor = as_extractor(proteus.Student(vit(depth=2), image_size=32).to(dtype), image_size=32)
    features = read_dense(extractor, torch.rand(2, 3, 30, 33))  # filled up to 32 x 40
    assert {f.patches.dtype for f in features} == {f.cls.dtype for f in features} == {torch.float32}
    assert features[0].grid == (4, 5)
    assert build_decoder("linear", features, 2).head.in_channels == 2 * 24
    for decoder in (build_decoder(head, features, 2) for head in HEADS):
        assert decoder(features).shape[:2] == (2, 2)


def test_bytes_and_floats_are_read_alike():
    extractor = as_extractor(proteus.Student(vit(), image_size=32), image_size=32)
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    ours, theirs = read_dense(extractor, pixels), read_dense(extractor, pixels / 255)
    assert torch.equal(ours[0].patches, theirs[0].patches)


def test_a_module_that_tells_no_layers_gives_its_output():
    extractor = as_extractor(nn.Conv2d(3, 8, 4, stride=4), image_size=32)
    features = read_dense(extractor, torch.rand(1, 3, 32, 32))
    assert build_decoder("linear", features, 2).head.in_channels == 8


def test_what_cannot_be_built_is_an_error(layers, monkeypatch):
    with pytest.raises(ValueError, match=r"no such head. Got 'fcn'"):
        build_decoder("fcn", layers, 2)
    with pytest.raises(ValueError, match=r"channels= would be ignored. Got 8"):
        build_decoder("linear", layers, 2, channels=8)
    vectors = [Features(torch.zeros(2, 4), torch.zeros(2, 0, 4), (0, 0))] * 4
    with pytest.raises(ValueError, match="no patches, only a vector"):
        build_decoder("linear", vectors, 2)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers.*pip install transformers"):
        build_decoder("dpt", layers, 2)
