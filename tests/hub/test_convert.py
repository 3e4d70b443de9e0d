"""The authors' six files to six repositories, with small stand-ins for the six students."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import timm
import torch
from hub_server import Hub
from oracles import openai_names

import proteus
from proteus.cli import main
from proteus.hub import convert as converter
from proteus.hub import pretrained
from proteus.hub import remote as hub
from proteus.weights import from_proteus

TOOL = Path(__file__).parents[2] / "tools" / "release.py"
SPEC = importlib.util.spec_from_file_location("release", TOOL)
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)
DEPTH = 1


@pytest.fixture(autouse=True)
def shrunken(monkeypatch):
    """The table with one block and a twelfth of the width a student; 64 is one head."""
    widths = {192: 64, 384: 128, 768: 192, 1024: 256}
    table = MappingProxyType(
        {
            name: replace(entry, width=widths[entry.width], depth=DEPTH)
            for name, entry in pretrained.PRETRAINED.items()
        }
    )
    for module in (release, converter, hub, pretrained):
        monkeypatch.setattr(module, "PRETRAINED", table)
    return table


def student_of(entry):
    architecture, options = "vit_small_patch14_dinov2", {}
    if entry.family == "clip":
        architecture, options = "vit_base_patch16_clip_quickgelu_224", {"patch_size": 14}
    elif entry.family == "synclr":
        options = {"init_values": 0.0}
    model = timm.create_model(
        architecture,
        img_size=56,
        num_classes=0,
        embed_dim=entry.width,
        depth=DEPTH,
        num_heads=entry.width // 64,
        **options,
    )
    for value in model.state_dict().values():
        value.copy_(0.1 * torch.randn_like(value))
    return model


def authors_file(entry):
    tensors = {**student_of(entry).state_dict(), "mask_token": torch.randn(1, entry.width)}
    if entry.family == "clip":
        tensors = openai_names(tensors)
    return {"model": {f"student.backbone.{k}": v for k, v in tensors.items()}}


@pytest.fixture
def files(tmp_path, shrunken):
    folder = tmp_path / "authors"
    folder.mkdir()
    for number, entry in enumerate(shrunken.values()):
        torch.save(authors_file(entry), folder / f"download-{number}.pth")
    return folder


@pytest.fixture
def server(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    server = Hub()
    yield server
    server.close()


def test_six_files_become_six_repositories_in_one_command(files, server, shrunken, capsys):
    release.main(["--from", str(files), "--to", "me"])
    printed = capsys.readouterr().out
    for number, (name, entry) in enumerate(shrunken.items()):
        commit, content = server.repos[f"me/{name}"][-1]
        assert f'{name}: revision="{commit}", sha256="' in printed
        original = from_proteus(files / f"download-{number}.pth")
        model = proteus.load_pretrained(f"me/{name}")
        own, theirs = model.state_dict(), original.state_dict()
        assert own.keys() == theirs.keys()
        assert all(torch.equal(own[k], theirs[k]) for k in own)
        # The authors trained all of them with ImageNet's statistics.
        assert model.pretrained_cfg["mean"][0] == pytest.approx(0.485)
        card = content["README.md"].decode()
        assert "license: mit" in card
        assert entry.teacher in card
        assert str(entry.scores["ImageNet-1K linear probe"]) in card
        assert "model-index" in card


def test_a_dry_run_uploads_nothing(files, server, capsys):
    release.main(["--from", str(files), "--to", "me", "--dry-run"])
    assert server.requests == []
    assert len(list((files / "release").iterdir())) == 6
    assert "Dry run" in capsys.readouterr().out


def test_one_alone(files, server):
    items = release.release(files, "me", only=["proteus-vit-s14"])
    assert [item.repo for item in items] == ["me/proteus-vit-s14"]
    assert set(server.repos) == {"me/proteus-vit-s14"}


def test_nothing_is_uploaded_when_a_file_is_wrong(files, server):
    (files / "download-0.pth").unlink()
    with pytest.raises(ValueError, match=r"1 students are missing.*proteus-vit-ti14.*--only"):
        release.release(files, "me")
    (files / "download-0.pth").write_bytes((files / "download-1.pth").read_bytes())
    with pytest.raises(ValueError, match=r"two files hold proteus-vit-s14.*download-0"):
        release.release(files, "me")
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, depth=2)
    torch.save(model.state_dict(), files / "download-0.pth")
    with pytest.raises(ValueError, match=r"download-0\.pth is none of the paper's students"):
        release.release(files, "me")
    with pytest.raises(ValueError, match=r"unknown student.*'s14'"):
        release.release(files, "me", only=["s14"])
    with pytest.raises(ValueError, match="no such folder"):
        release.release(files / "nowhere", "me")
    assert server.requests == []


def test_convert_names_the_student_and_states_its_scores(files, tmp_path, capsys):
    file = files / "download-1.pth"
    assert main(["convert", str(file), "--out", str(tmp_path / "out")]) == 0
    assert "is proteus-vit-s14" in capsys.readouterr().out
    model = proteus.load_pretrained(tmp_path / "out", image_size=70)
    assert model.patch_embed.img_size == (70, 70)
    assert "81.8" in (tmp_path / "out/README.md").read_text()


def test_the_paper_s_scores_are_not_those_of_the_ema(files, tmp_path):
    content = torch.load(files / "download-1.pth")
    bare = {k.removeprefix("student.backbone."): v for k, v in content["model"].items()}
    torch.save({**content, "model_ema": bare}, tmp_path / "training.pth")
    converter.convert(tmp_path / "training.pth", tmp_path / "out", weights="ema")
    assert "81.8" not in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--family", "beit"], "unknown family.*'beit'"),
        (["--family", "dinov2", "--weights", "ema"], "--weights would be ignored"),
        (["--family", "openai-clip"], "from_openai_clip: the file is of another family"),
    ],
)
def test_a_wrong_convert_is_one_plain_error(files, tmp_path, words, message, capsys):
    code = main(["convert", str(files / "download-0.pth"), "--out", str(tmp_path / "o"), *words])
    assert code == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert not (tmp_path / "o").exists()


def test_convert_never_replaces_its_own_input(files, tmp_path):
    converter.convert(files / "download-0.pth", tmp_path / "out")
    before = (tmp_path / "out/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="would replace the input"):
        converter.convert(tmp_path / "out/model.safetensors", tmp_path / "out", family="dinov2")
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
