import subprocess
import sys

import numpy as np
import pytest
import timm
import torch

import proteus
from proteus import exports
from proteus.exports import graph

LOAD = """
import sys
sys.modules["proteus"] = sys.modules["timm"] = None
import torch
program = torch.export.load(sys.argv[1]).module()
torch.save(program(torch.load(sys.argv[2])), sys.argv[3])
"""


@pytest.fixture
def model(tmp_path):
    student = proteus.Student("demo-student", image_size=56)
    torch.nn.init.normal_(student.backbone.pos_embed)
    return proteus.load_pretrained(proteus.save_pretrained(student, tmp_path / "exported"))


def features(model, images):
    with torch.no_grad():
        tokens = model.forward_features(images)
    return tokens[:, 0], tokens[:, 1:]


def onnx(path, images):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["cls", "patches"]
    return [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]


@pytest.mark.filterwarnings("ignore")  # the exporter's own, different in each version of torch
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_onnx_runs_every_batch_size(model, tmp_path, batch):
    pytest.importorskip("onnxscript")
    path = exports.to_onnx(model, tmp_path / "m.onnx")
    images = torch.randn(batch, 3, 56, 56)
    for got, expected in zip(onnx(path, images), features(model, images), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["m.onnx"]


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_any_size_takes_normalised_or_plain_images(model, tmp_path):
    pytest.importorskip("onnxscript")
    path = exports.to_onnx(model, tmp_path / "m.onnx", dynamic_size=True, normalize=True)
    teacher = proteus.Teacher(model, image_size=56)
    plain = torch.rand(2, 3, 56, 56)
    got = onnx(path, plain)
    torch.testing.assert_close(got[0], teacher(plain).cls, rtol=0, atol=1e-4)
    assert onnx(path, torch.rand(1, 3, 72, 112))[1].shape == (1, 126, 128)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_torch_export_runs_without_timm_and_without_us(model, tmp_path):
    path = exports.to_torch_export(model, tmp_path / "m.pt2", dynamic_size=True)
    for size in ((56, 56), (80, 72)):
        images = torch.randn(3, 3, *size)
        torch.save(images, tmp_path / "in.pt")
        subprocess.run(
            [sys.executable, "-c", LOAD, str(path), str(tmp_path / "in.pt"), str(tmp_path / "o")],
            check=True,
        )
        cls, patches = torch.load(tmp_path / "o")
        if size == (56, 56):
            expected = features(model, images)
            torch.testing.assert_close(cls, expected[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(patches, expected[1], rtol=0, atol=1e-5)
        assert patches.shape == (3, size[0] * size[1] // 64, 128)


@pytest.mark.filterwarnings("ignore")
def test_a_cnn_is_exported_too(tmp_path):
    model = timm.create_model("resnet18", num_classes=0, pretrained=False).eval()
    path = exports.to_torch_export(model, tmp_path / "r.pt2")
    cls, patches = torch.export.load(path).module()(torch.rand(2, 3, 224, 224))
    assert (cls.shape, patches.shape) == ((2, 512), (2, 49, 512))


@pytest.mark.filterwarnings("ignore")
def test_a_graph_that_differs_never_gets_its_name(model, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "TOLERANCE", -1.0)
    (tmp_path / "m.pt2").write_bytes(b"before")
    with pytest.raises(ValueError, match="does not compute what the model does"):
        exports.to_torch_export(model, tmp_path / "m.pt2")
    assert (tmp_path / "m.pt2").read_bytes() == b"before"
    assert {p.name for p in tmp_path.iterdir()} == {"exported", "m.pt2"}


def test_a_missing_extra_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed.*pip install onnx onnxscript onnxruntime"):
        exports.to_onnx(model, tmp_path / "m.onnx")


def test_a_module_that_says_nothing_of_itself_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not say what it is"):
        exports.to_torch_export(torch.nn.Linear(2, 2), tmp_path / "m.pt2")


def test_numbers_agree_in_numpy_too(model):
    # The oracle of this file is the model itself; it must depend on its input.
    one, two = features(model, torch.zeros(1, 3, 56, 56)), features(model, torch.ones(1, 3, 56, 56))
    assert not np.allclose(one[0], two[0])


def test_a_half_precision_model_is_refused_with_the_way_out(model, tmp_path):
    with pytest.raises(ValueError, match=r"float32 on the CPU. Use model\.float\(\)\.cpu\(\)"):
        exports.to_torch_export(model.half(), tmp_path / "m.pt2")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("factor", [1, 1e-4])
def test_the_difference_is_relative_to_large_values(tmp_path, monkeypatch, factor):
    """A MobileNet's values are so large that their last digits differ by more than 1e-4."""
    model = timm.create_model("test_resnet", num_classes=0, pretrained=False).eval()
    with torch.no_grad():
        next(model.parameters()).mul_(1e4 * factor)
    real = torch.export.load

    def inexact(path):
        program = real(path).module()

        class Program:
            def module(self):
                return lambda images: [x + 5e-4 for x in program(images)]

        return Program()

    monkeypatch.setattr(torch.export, "load", inexact)
    if factor == 1:
        exports.to_torch_export(model, tmp_path / "m.pt2")
    else:
        with pytest.raises(ValueError, match="of the largest value"):
            exports.to_torch_export(model, tmp_path / "m.pt2")
