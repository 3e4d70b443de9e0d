import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import huggingface_hub
import pytest
import timm
import torch
from hub_server import Hub
from safetensors.torch import load_file, save_file

import proteus
from proteus.files import sha256_of
from proteus.hub import pretrained
from proteus.hub import remote as hub
from proteus.hub.remote import download, upload

OWNER = "me/student"


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Hub()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: None)
    yield server
    server.close()


@pytest.fixture
def student():
    return proteus.Student("demo-student", image_size=64).eval()


@pytest.fixture
def exported(student, tmp_path):
    return proteus.save_pretrained(student, tmp_path / "exported")


def same(model, student):
    own, other = model.state_dict(), student.backbone.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[k], other[k]) for k in own)


def test_push_then_load_gives_the_same_weights(server, student):
    url = proteus.push_to_hub(student, OWNER, private=True, details={"teacher": "a big one"})
    assert url.startswith(f"{server.endpoint}/{OWNER}/commit/")
    commit, files = server.repos[OWNER][0]
    assert url.endswith(commit)
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert files["README.md"].startswith(b"---") and b"# student" in files["README.md"]
    assert server.private[OWNER]
    assert same(proteus.load_pretrained(OWNER), student)


def test_timm_loads_the_repository_without_us(server, student, tmp_path):
    proteus.push_to_hub(student, OWNER)
    images = torch.randn(2, 3, 64, 64)
    torch.save(images, tmp_path / "images.pt")
    code = """
import sys
sys.modules["proteus"] = None
import timm, torch
model = timm.create_model("hf-hub:me/student", pretrained=True).eval()
torch.save(model.forward_features(torch.load(sys.argv[1])).detach(), sys.argv[2])
"""
    environment = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home")}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "images.pt"), str(tmp_path / "out.pt")],
        env=environment,
        check=True,
    )
    with torch.no_grad():
        ours = student.backbone.forward_features(images)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), ours, rtol=0, atol=1e-6)


def test_a_second_push_is_a_second_commit_and_old_revisions_stay(server, student):
    proteus.push_to_hub(student, OWNER)
    other = proteus.Student("demo-student", image_size=64)
    proteus.push_to_hub(other, OWNER)
    first = server.repos[OWNER][0][0]
    assert same(proteus.load_pretrained(OWNER), other)
    assert same(proteus.load_pretrained(OWNER, revision=first), student)


def test_a_cached_commit_costs_no_request(server, exported, student):
    commit = server.add_folder(OWNER, exported)
    proteus.load_pretrained(OWNER, revision=commit)
    server.requests.clear()
    assert same(proteus.load_pretrained(OWNER, revision=commit), student)
    assert server.requests == []


def test_the_cache_serves_without_a_connection(server, exported, student):
    server.add_folder(OWNER, exported)
    with pytest.raises(ValueError, match=r"not in the cache.*local_files_only"):
        proteus.load_pretrained(OWNER, local_files_only=True)
    proteus.load_pretrained(OWNER)
    server.close()
    assert same(proteus.load_pretrained(OWNER, local_files_only=True), student)


def test_a_cache_of_one_s_own(server, exported, tmp_path):
    server.add_folder(OWNER, exported)
    proteus.load_pretrained(OWNER, cache_dir=tmp_path / "mine")
    assert list((tmp_path / "mine").rglob("model.safetensors"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("me/nothing", None, r"no repository 'me/nothing'.*log in"),
        ("me/gated", None, r"'me/gated' is gated: accept its terms"),
        (OWNER, "v9", r"'me/student' has no revision 'v9'"),
        ("me/empty", None, r"'me/empty' holds no model.*config\.json"),
        ("me/a b", None, r"'me/a b' is no repository name"),
    ],
)
def test_what_the_hub_refuses_is_said_plainly(server, exported, repo, revision, message):
    server.add_folder(OWNER, exported)
    server.commit("me/empty", {"README.md": b"nothing here"})
    server.gated.add("me/gated")
    with pytest.raises(ValueError, match=message):
        proteus.load_pretrained(repo, revision=revision)


@pytest.mark.parametrize("status", [401, 403])
def test_who_may_not_write_is_told_to_log_in_at_once(server, exported, status, caplog):
    server.refuse = status
    with pytest.raises(ValueError, match=rf"login may not.*hf auth login.*Got .*{status}"):
        upload(exported, OWNER)
    assert "trying again" not in caplog.text


def test_a_busy_hub_is_asked_again(server, exported, student, caplog):
    server.add_folder(OWNER, exported)
    server.busy = 2
    assert same(proteus.load_pretrained(OWNER), student)
    server.busy = 3
    upload(exported, "me/second")
    assert "me/second" in server.repos


def test_a_hub_that_stays_busy_is_an_error(server, exported):
    server.add_folder(OWNER, exported)
    server.busy = 10**6
    with pytest.raises(ValueError, match=r"could not be reached.*429|could not be reached"):
        proteus.load_pretrained(OWNER)


def test_a_connection_that_breaks_off_leaves_nothing_half_written(server, exported, student):
    server.add_folder(OWNER, exported)
    server.cut = 1
    assert same(proteus.load_pretrained(OWNER), student)


def test_a_file_that_is_cut_every_time_is_an_error_and_the_next_call_works(
    server, exported, student, tmp_path
):
    server.add_folder(OWNER, exported)
    server.cut = 10**6
    with pytest.raises(ValueError, match=r"could not be reached|holds no model"):
        proteus.load_pretrained(OWNER)
    assert not list((tmp_path / "cache").rglob("snapshots/*/model.safetensors"))
    server.cut = 0
    assert same(proteus.load_pretrained(OWNER), student)


@pytest.fixture
def released(server, exported, monkeypatch):
    """`proteus-vit-ti14` as if it were published."""
    commit = server.add_folder("proteus-distill/proteus-vit-ti14", exported)
    entry = replace(
        pretrained.PRETRAINED["proteus-vit-ti14"],
        revision=commit,
        sha256=sha256_of(exported / "model.safetensors"),
    )
    monkeypatch.setattr(hub, "PRETRAINED", {**pretrained.PRETRAINED, entry.name: entry})
    return entry


def test_a_released_name_is_pinned_and_verified(server, released, student):
    server.commit(released.repo, {"model.safetensors": b"of a later commit"})
    assert same(proteus.load_pretrained("proteus-vit-ti14"), student)
    server.requests.clear()
    proteus.load_pretrained("proteus-vit-ti14", local_files_only=True)
    assert server.requests == []


def test_a_wrong_sha256_is_an_error_and_leaves_the_cache_clean(server, released, monkeypatch):
    wrong = replace(released, sha256="0" * 64)
    monkeypatch.setattr(hub, "PRETRAINED", {released.name: wrong})
    with pytest.raises(ValueError, match=r"damaged and was removed.*sha256"):
        proteus.load_pretrained(released.name)
    monkeypatch.setattr(hub, "PRETRAINED", {released.name: released})
    proteus.load_pretrained(released.name)  # downloaded again


def test_a_name_that_is_not_published_says_how_to_make_it():
    with pytest.raises(ValueError, match=r"not published yet.*proteus convert FILE"):
        proteus.load_pretrained("proteus-vit-l14")


def test_only_an_export_folder_is_pushed(server, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        upload(tmp_path, OWNER)
    assert not server.requests


def test_a_revision_of_a_folder_would_be_ignored(exported):
    with pytest.raises(ValueError, match=r"revision= would be ignored"):
        proteus.load_pretrained(exported, revision="main")


def test_download_gives_the_folder(server, exported):
    commit = server.add_folder(OWNER, exported)
    folder = download(OWNER)
    assert folder.name == commit
    assert (folder / "model.safetensors").read_bytes() == (
        exported / "model.safetensors"
    ).read_bytes()


def test_load_pretrained_gives_a_plain_model_in_eval(tmp_path):
    student = proteus.Student("vit_tiny_patch14", image_size=56)
    folder = proteus.save_pretrained(student, tmp_path)
    model = proteus.load_pretrained(folder)
    assert type(model) is timm.models.vision_transformer.VisionTransformer
    assert not model.training
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_load_pretrained_resamples_by_dinov2_s_rule(tmp_path):
    student = proteus.Student("vit_tiny_patch14", image_size=56)
    model = proteus.load_pretrained(proteus.save_pretrained(student, tmp_path), image_size=70)
    expected = proteus.weights.positions.resample_positions(
        student.backbone.pos_embed, (5, 5), prefix=1, rule="dinov2"
    )
    assert torch.equal(model.pos_embed, expected)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"]["architecture"] = "vit_tiny_patch16_224"  # of timm's rule
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(proteus.load_pretrained(tmp_path, image_size=70).pos_embed, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("proteus-vit-x14", "unknown model"),
        ("./nowhere", "unknown model"),
    ],
)
def test_what_cannot_be_loaded_is_said(name, message):
    with pytest.raises(ValueError, match=rf"{message}.*"):
        proteus.load_pretrained(name)


@pytest.mark.parametrize("name", ["runs/first", "./runs/first", "a/b/c", "/a/b", "~/first"])
def test_a_mistyped_folder_is_looked_for_on_no_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(hub, "download", lambda *words: pytest.fail("asked"))
    with pytest.raises(ValueError, match=rf"no such folder. Got '{name}'.*hf-hub:owner/repo"):
        proteus.load_pretrained(name)


def test_a_repository_may_be_named_beside_a_folder_of_its_owner(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    asked = []
    monkeypatch.setattr(hub, "download", lambda repo, *words: asked.append(repo) or exported)
    for name in ("hf-hub:me/student", "you/student"):
        proteus.load_pretrained(name)
    assert asked == ["me/student", "you/student"]


def test_a_folder_with_a_released_name_is_taken_where_it_holds_a_model(
    exported, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "proteus-vit-s14"
    folder.mkdir()
    with pytest.raises(ValueError, match="is not published yet"):
        proteus.load_pretrained(folder.name)
    assert "its folder has none" in caplog.text
    caplog.clear()
    shutil.copytree(exported, folder / "export")
    assert proteus.load_pretrained(folder.name).num_classes == 0
    assert "is the folder, not the released model" in caplog.text


def test_a_folder_that_is_no_export_points_to_the_right_one(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json.*RUN/export"):
        proteus.load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "hf-hub:me/other"},
        {"architecture": "vit_of_nobody"},
        {"model_args": {"checkpoint_path": "evil.pth"}},
        {"model_args": {"cache_dir": "elsewhere"}},
    ],
)
def test_a_description_cannot_make_timm_read_other_files(exported, change, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *words, **options: pytest.fail("built"))
    config = exported / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(ValueError, match=r"config\.json describes no timm model"):
        proteus.load_pretrained(exported)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"architecture": 3}',
        "{",
        '{"architecture": "vit_tiny_patch16_224", "model_args": [1]}',
    ],
)
def test_a_config_of_another_form_is_refused(exported, text):
    (exported / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json (describes no timm model|is not JSON)"):
        proteus.load_pretrained(exported)


def test_a_student_can_be_a_teacher(tmp_path):
    student = proteus.Student("demo-student", image_size=64).eval()
    folder = proteus.save_pretrained(student, tmp_path)
    teacher = proteus.Teacher(f"local-dir:{folder}")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images).cls, student(images).cls)


def test_offline_mode_is_not_waited_for(tmp_path):
    # The client reads the variable when it is imported.
    code = """
import proteus
try:
    proteus.load_pretrained("me/student")
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "in 1 attempts" in done.stdout or "not in the cache" in done.stdout
    assert "trying again" not in done.stderr


def _describe_oddly(server, exported, changes):
    config = json.loads((exported / "config.json").read_text())
    config["pretrained_cfg"] |= changes
    (exported / "config.json").write_text(json.dumps(config))
    server.add_folder(OWNER, exported)


@pytest.mark.parametrize("changes", [{"mean": ["a"] * 3}, {"std": [0, 1, 1]}, {"std": 7}])
def test_a_repository_s_odd_description_is_refused(server, exported, changes):
    _describe_oddly(server, exported, changes)
    with pytest.raises(ValueError, match=f"config.json: {next(iter(changes))} is wrong"):
        proteus.load_pretrained(OWNER)
    with pytest.raises(
        ValueError, match=f"Teacher: hf-hub:{OWNER}: {next(iter(changes))} is wrong"
    ):
        proteus.Teacher(f"hf-hub:{OWNER}")


def test_a_repository_s_nan_is_refused(server, exported):
    weights = load_file(exported / "model.safetensors")
    save_file(
        {**weights, "norm.bias": torch.full((128,), torch.nan)}, exported / "model.safetensors"
    )
    server.add_folder(OWNER, exported)
    with pytest.raises(ValueError, match=r"NaN.*norm\.bias.*model\.safetensors"):
        proteus.load_pretrained(OWNER)
    for build in (proteus.Teacher, proteus.Student):
        with pytest.raises(ValueError, match=rf"hf-hub:{OWNER}: .*NaN.*norm\.bias"):
            build(f"hf-hub:{OWNER}")
