"""Graphs of fewer bits: how near they are, what stays float, and what is refused."""

import shutil

import numpy as np
import pytest
import timm
import torch

import proteus
from proteus import exports
from proteus.exports import graph as graphs
from proteus.exports import quantized
from proteus.features import ShapeError

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's own, of each version of torch
onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def pictures(count, size, seed=0):
    """Soft shapes, uint8: noise alone would be one picture over and over to a model."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=rng)
    soft = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (soft.clamp(0, 1) * 255).byte()


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", depth=2, img_size=64, num_classes=0).eval()
    torch.nn.init.normal_(model.pos_embed)
    return model


@pytest.fixture(scope="module")
def cnn():
    """Depthwise convolutions and ReLU6, as EfficientNet-Lite has them, with spread-out channels."""
    torch.manual_seed(1)
    model = timm.create_model("test_efficientnet", num_classes=0, act_layer="relu6").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.normal_(module.bias)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 64, 64)}
    return model


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return {}, tmp_path_factory.mktemp("float32")


@pytest.fixture(autouse=True)
def _exported_once(stored, monkeypatch):
    """The float32 graph of each model is the same in all tests, and takes most of the time."""
    known, folder = stored

    def copy(model, path, *, normalize, **options):
        key = type(model).__name__, normalize
        if key not in known:
            known[key] = exports.to_onnx(
                model, folder / f"{len(known)}.onnx", normalize=normalize, **options
            )
        return shutil.copy(known[key], path)

    monkeypatch.setattr(quantized, "to_onnx", copy)


def run(path, images, optimise=True):
    options = runtime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type) for i in session.get_inputs()] == [("images", "tensor(float)")]
    outputs = [(o.name, o.type) for o in session.get_outputs()]
    assert outputs == [("cls", "tensor(float)"), ("patches", "tensor(float)")]
    return [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]


def cosine(one, other):
    return float(torch.nn.functional.cosine_similarity(one, other, dim=-1).mean())


@pytest.mark.parametrize(("dtype", "share"), [("fp16", 0.65), ("int8", 0.45)])
def test_a_vit_of_fewer_bits_is_smaller_and_near_the_student(vit, tmp_path, dtype, share):
    calibration = pictures(12, 64) if dtype == "int8" else None
    check = pictures(6, 64, seed=1)
    report = exports.quantize_onnx(vit, tmp_path / "m.onnx", check, calibration, dtype=dtype)
    assert report.size == report.path.stat().st_size < share * report.fp32_size
    assert (report.checked, report.calibrated) == (6, 12 if dtype == "int8" else 0)
    assert report.kept_float == ()
    teacher = proteus.Teacher(vit, image_size=64)
    expected = teacher(check)
    mean, std = (torch.tensor(s).view(1, 3, 1, 1) for s in (vit.pretrained_cfg["mean"],
                                                            vit.pretrained_cfg["std"]))  # fmt: skip
    got = run(report.path, (check / 255 - mean) / std)  # all in one batch
    assert cosine(got[0], expected.cls) == pytest.approx(report.cls, abs=1e-3)
    assert cosine(got[1], expected.patches) == pytest.approx(report.patches, abs=1e-3)
    assert min(report.cls, report.patches) >= 0.99
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.fixture(scope="module")
def written(vit, cnn, tmp_path_factory):
    """What quantises each model, its int8 graph, and the float32 one."""
    found = {}
    for name, model, size in (("vit", vit, 64), ("cnn", cnn, 64)):
        folder = tmp_path_factory.mktemp(name)
        plain = exports.to_onnx(model, folder / "fp32.onnx", normalize=True)
        images = [image[None].numpy() for image in pictures(12, size) / 255]
        maker = quantized.Quantizer(plain, folder, images)
        maker.write(folder / "int8.onnx")
        found[name] = maker, onnx.load(folder / "int8.onnx").graph, folder
    return found


def test_attention_norms_and_softmax_stay_float(written):
    maker, graph, _ = written["vit"]
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    products = {}
    for node in graph.node:
        quantised = {made_by.get(name) == "DequantizeLinear" for name in node.input[:2]}
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            products[node.name] = quantised
        elif node.op_type in ("LayerNormalization", "Softmax", "Erf"):
            assert quantised == {False}, node.name
    assert {name for name, found in products.items() if found == {True}} == {*maker.layers}
    rest = [found for name, found in products.items() if name not in maker.layers]
    assert rest == [{False}] * 2 * 2  # queries by keys and weights by values, two blocks


def test_weights_have_a_scale_a_channel_and_leave_a_bit_for_sums_in_16_bits(written):
    for name in ("vit", "cnn"):
        _, graph, _ = written[name]
        tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        weights = {n: t for n, t in tensors.items() if t.dtype == np.int8 and t.ndim > 1}
        assert weights
        for key, weight in weights.items():
            depthwise = weight.ndim == 4 and weight.shape[1] == 1
            assert np.abs(weight).max() <= (127 if depthwise else 64), key
            scale = tensors[key.replace("_quantized", "_scale")]
            assert scale.shape == (weight.shape[0 if weight.ndim == 4 else 1],)


def test_a_layer_that_stays_float_is_float_to_the_runtime_too(written):
    """Between two quantised ones, onnxruntime would quantise its weights itself, and worse."""
    maker, _, folder = written["cnn"]
    images = pictures(4, 64, seed=2) / 255
    graph = onnx.load(folder / "prepared.onnx").graph
    grouped = [node.name for node in graph.node if node.op_type == "Conv"
               and any(a.name == "group" and a.i > 1 for a in node.attribute)]  # fmt: skip
    assert grouped
    for kept in (grouped, [*maker.layers][:2], maker.layers):
        maker.write(folder / "part.onnx", keep_float=kept)
        for one, other in zip(
            run(folder / "part.onnx", images),
            run(folder / "part.onnx", images, optimise=False),
            strict=True,
        ):
            assert cosine(one, other) > 0.9995
    expected = run(folder / "fp32.onnx", images)
    torch.testing.assert_close(run(folder / "part.onnx", images), expected, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_layers_stay_float_until_the_agreement_is_reached(cnn, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(quantized, "AGREEMENT", 0.0)
    check, calibration = pictures(6, 64, seed=1), pictures(12, 64)
    words = (cnn, tmp_path / "m.onnx", check, calibration)
    throughout = exports.quantize_onnx(*words, say=said.append)
    assert throughout.kept_float == ()
    assert said == []
    lowest = min(throughout.cls, throughout.patches)
    monkeypatch.setattr(quantized, "AGREEMENT", lowest + (1 - lowest) / 4)
    monkeypatch.setattr(quantized, "_MARGIN", (1 - lowest) / 4)
    part = exports.quantize_onnx(*words, say=said.append)
    assert 0 < len(part.kept_float) <= part.layers // 2
    assert min(part.cls, part.patches) > lowest
    assert throughout.size < part.size < part.fp32_size
    assert f"Trying the {part.layers} layers" in said[0]
    assert f"{len(part.kept_float)} of {part.layers} layers" in str(part)


def test_what_is_too_far_from_the_student_never_gets_its_name(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(quantized, "AGREEMENT", 1.1)
    (tmp_path / "m.onnx").write_bytes(b"before")
    with pytest.raises(
        ValueError, match=r"fp16 is too far.*class tokens [01]\.\d{4}, patches.*1\.1"
    ):
        exports.quantize_onnx(vit, tmp_path / "m.onnx", pictures(2, 64), dtype="fp16")
    assert (tmp_path / "m.onnx").read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "int4"}, r"unknown dtype. Got 'int4'.*Did you mean int8"),
        ({"dtype": "fp16"}, "would be ignored"),
        ({"calibration": None}, "Got int8 without"),
        ({"calibration": torch.zeros(3, 3, 32, 32)}, r"calibration= has the wrong shape.*64, 64"),
        ({"check": torch.zeros(0, 3, 64, 64)}, r"check= has the wrong shape.*at least one"),
        ({"check": torch.full((1, 3, 64, 64), 2.0)}, r"check= has other values.*to 2;"),
    ],
)
def test_what_a_user_can_get_wrong(vit, tmp_path, given, message):
    words = {"check": pictures(2, 64), "calibration": pictures(2, 64), **given}
    with pytest.raises(ValueError, match=message) as caught:
        exports.quantize_onnx(vit, tmp_path / "m.onnx", **words)
    assert isinstance(caught.value, ShapeError) == ("wrong shape" in message)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(quantized, "to_onnx", exports.to_onnx)
    monkeypatch.setattr(graphs, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install onnx onnxscript onnxruntime"):
        exports.quantize_onnx(vit, tmp_path / "m.onnx", pictures(2, 64), dtype="fp16")
