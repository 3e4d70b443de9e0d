import json
import shutil

import pytest
import torch
from PIL import Image

import proteus
from conftest import vit
from proteus.data import ImageLoader, open_source
from proteus.data.samples import Key
from proteus.files import seal, unseal
from proteus.prepared import PreparedTargets, prepare
from proteus.training import fit, fit_all
from proteus.training.checkpoint import CheckpointError

QUIET = {"device": "cpu", "progress": False}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    for number in range(10):
        pixels = torch.randint(0, 256, (40, 52, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.jpg")
    return open_source(folder)


def loader(source, **options):
    return ImageLoader(source, batch_size=4, image_size=32, workers=0, **options)


def make(teacher, source, folder, **options):
    return prepare(teacher, source, folder, workers=0, device="cpu", batch_size=3, **options)


def student():
    torch.manual_seed(4)
    return proteus.Student(vit(24), image_size=32)


def losses(teacher, data, **options):
    return fit(proteus.Distiller(teacher, student()), data, steps=7, **options, **QUIET)


@pytest.mark.parametrize("augment", ["crop", "fast", "official", "none"])
def test_a_run_is_the_live_one(teacher, source, tmp_path, augment):
    """Over three epochs of two views, so that both come again."""
    views = 1 if augment == "none" else 2
    targets = make(teacher, source, tmp_path / "t", views=views, dtype="fp32", augment=augment)
    data = loader(source, augment=augment)
    live = losses(teacher, loader(source, augment=augment, views=views))
    found = losses(teacher, data, targets=targets)
    for ours, theirs in zip(found, live, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert data.views is None  # the loader that was given stays what it was


@pytest.mark.parametrize(("dtype", "most"), [("fp16", 1e-3), ("int8", 2e-2)])
def test_what_storing_loses_is_measured(teacher, source, tmp_path, dtype, most):
    exact = make(teacher, source, tmp_path / "fp32", dtype="fp32")
    targets = make(teacher, source, tmp_path / dtype, dtype=dtype)
    assert exact.error == {"cls": 0.0, "patches": 0.0}
    keys, places = [Key(0, n, 0) for n in range(10)], range(10)
    for name, ours, theirs in zip(
        targets.parts,
        targets.ready(targets.stored(keys, places)),
        exact.ready(exact.stored(keys, places)),
        strict=True,
    ):  # fmt: skip
        apart = float((ours - theirs).norm() / theirs.norm())
        assert targets.error[name] == pytest.approx(apart, rel=1e-2)
        assert 0 < apart < most


def test_workers_read_the_rows_too(teacher, source, tmp_path):
    targets = make(teacher, source, tmp_path / "t", dtype="int8", views=2)
    both = [
        ImageLoader(source, batch_size=4, image_size=32, workers=workers, seed=8).beside(targets)
        for workers in (0, 2)
    ]
    for ours, theirs in zip(*(one.batches(1) for one in both), strict=False):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        if (seen := int(ours[0].sum())) and seen % 2 >= 0:
            break
    images, cls, patches = next(both[1].batches(5))
    expected = teacher(images)
    assert torch.allclose(cls, expected.cls, atol=0.05)
    assert torch.allclose(patches, expected.patches, atol=0.05)


def test_class_tokens_alone_go_with_the_token_term_alone(teacher, source, tmp_path):
    targets = make(teacher, source, tmp_path / "t", tokens="cls", dtype="fp32")
    loss = proteus.ProteusLoss(24, 36, feature=0, patch=0)
    one, other = (proteus.Distiller(teacher, student(), loss) for _ in range(2))
    state = {name: value.clone() for name, value in one.state_dict().items()}
    live = fit(one, loader(source, views=1), steps=3, **QUIET)
    other.load_state_dict(state)
    found = fit(other, loader(source), steps=3, targets=targets, **QUIET)
    assert [row["token"] for row in found] == pytest.approx([row["token"] for row in live])
    with pytest.raises(ValueError, match=r"class tokens alone. Got .* feature=1.0, patch=1.0"):
        losses(teacher, loader(source), targets=targets)


def test_parts_of_a_batch_get_their_own_rows(teacher, source, tmp_path):
    targets = make(teacher, source, tmp_path / "t", dtype="fp32")
    whole = losses(teacher, loader(source), targets=targets)
    parts = losses(teacher, loader(source), targets=targets, accumulate=2)
    for ours, theirs in zip(parts, whole, strict=True):
        assert ours["total"] == pytest.approx(theirs["total"], rel=1e-4)


def test_several_students_share_them(teacher, source, tmp_path):
    targets = make(teacher, source, tmp_path / "t", dtype="fp32")
    alone = losses(teacher, loader(source), targets=targets)
    several = {name: proteus.Distiller(teacher, student()) for name in ("a", "b")}
    found = fit_all(several, loader(source), steps=7, targets=targets, **QUIET)
    assert found["a"] == alone


def test_the_teacher_is_not_asked(teacher, source, tmp_path, monkeypatch):
    targets = make(teacher, source, tmp_path / "t")
    asked = []
    teacher.register_forward_hook(lambda module, args, found: asked.append(len(args[0])))
    assert len(losses(teacher, loader(source), targets=targets)) == 7
    assert asked == [8]  # a sample, before the first step


def test_images_that_changed_behind_their_names_are_told(teacher, source, tmp_path):
    targets = make(teacher, source, tmp_path / "t", dtype="int8")
    for path in (tmp_path / "images").iterdir():
        Image.new("RGB", (52, 40), "red").save(path)
    with pytest.raises(ValueError, match=r"not what the teacher says now. Got .* of \d.jpg"):
        losses(teacher, loader(source), targets=targets)


def test_what_is_missing_is_made_and_the_rest_stays(teacher, source, tmp_path, monkeypatch):
    monkeypatch.setattr("proteus.prepared.store._SHARD_BYTES", 7000)
    whole = make(teacher, source, tmp_path / "t", dtype="fp32", views=2)
    assert whole.settings.shards > 3
    first, last = whole.path(0), whole.path(whole.settings.shards - 1)
    stamp, content = first.stat().st_mtime_ns, last.read_bytes()
    (tmp_path / "t/prepared.json").unlink()
    last.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"not all made. Got"):
        PreparedTargets(tmp_path / "t")
    make(teacher, source, tmp_path / "t", dtype="fp32", views=2).check()
    assert last.read_bytes() == content and first.stat().st_mtime_ns == stamp


def test_parts_share_the_work(teacher, source, tmp_path, monkeypatch):
    monkeypatch.setattr("proteus.prepared.store._SHARD_BYTES", 7000)
    alone = make(teacher, source, tmp_path / "alone", dtype="fp32")
    assert make(teacher, source, tmp_path / "t", dtype="fp32", part=(1, 2)) is None
    with pytest.raises(ValueError, match=r"not all made. Got 2 of 5"):
        PreparedTargets(tmp_path / "t")
    found = make(teacher, source, tmp_path / "t", dtype="fp32", part=(0, 2))
    assert found.describe() == alone.describe()
    with pytest.raises(ValueError, match=r"no such part. Got \(2, 2\)"):
        make(teacher, source, tmp_path / "t", dtype="fp32", part=(2, 2))


def test_a_damaged_row_is_never_used(teacher, source, tmp_path):
    targets = make(teacher, source, tmp_path / "t", dtype="fp32")
    path = targets.path(0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"00000.safetensors is damaged. Delete it and run"):
        losses(teacher, loader(source), targets=PreparedTargets(tmp_path / "t"))
    with pytest.raises(ValueError, match="is not what was written"):
        PreparedTargets(tmp_path / "t").check()
    path.write_bytes(data[:-4])
    with pytest.raises(ValueError, match="is missing or cut off"):
        PreparedTargets(tmp_path / "t")


def test_another_folder_of_settings_is_refused_and_replaced_only_on_demand(
    teacher, source, tmp_path
):
    make(teacher, source, tmp_path / "t")
    with pytest.raises(ValueError, match=r"other settings: dtype was 'fp16', is 'int8'. Use"):
        make(teacher, source, tmp_path / "t", dtype="int8")
    found = make(teacher, source, tmp_path / "t", dtype="int8", overwrite=True)
    assert found.settings.dtype == "int8"
    found.check()


def test_a_disk_without_room_is_said_with_what_would_fit(teacher, source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=16_000, total=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError) as caught:
        make(teacher, source, tmp_path / "t", views=4, dtype="fp32")
    said = str(caught.value)
    assert "4 views of 10 images, all tokens in fp32: 0.1 MB; expected at most 0.0 MB" in said
    assert "What fits: cls tokens in fp16" in said and "all tokens in int8" in said


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"augment": "none"}, "augment was 'crop', is 'none'"),
        ({"image_size": 64}, "image_size was 32, is 64"),
        ({"scale": (0.5, 1.0)}, r"scale was \[0.08, 1.0\], is \[0.5, 1.0\]"),
        ({"views": 3}, "views was 2, is 3"),
        ({"repeats": 3}, "repeats or labels"),
    ],
)
def test_a_loader_of_other_settings_is_refused(teacher, source, tmp_path, change, match):
    targets = make(teacher, source, tmp_path / "t", views=2)
    options = {"batch_size": 4, "image_size": 32, "workers": 0, **change}
    with pytest.raises(ValueError, match=match):
        losses(teacher, ImageLoader(source, **options), targets=targets)


def test_other_images_another_teacher_and_plain_batches_are_refused(teacher, source, tmp_path):
    targets = make(teacher, source, tmp_path / "t")
    (tmp_path / "images/9.jpg").rename(tmp_path / "images/99.jpg")
    with pytest.raises(ValueError, match=r"images.digest was"):
        losses(teacher, loader(open_source(tmp_path / "images")), targets=targets)
    other = proteus.Teacher(vit(36), image_size=32)
    with pytest.raises(ValueError, match=r"teacher.digest was"):
        losses(other, loader(source), targets=targets)
    with pytest.raises(ValueError, match=r"which image is where in a batch. Got list"):
        losses(teacher, [torch.rand(4, 3, 32, 32)], targets=targets)


def test_several_teachers_are_asked_in_each_step(teacher, source, tmp_path):
    targets = make(teacher, source, tmp_path / "t")
    from proteus.teachers import MultiTeacherDistiller

    two = {"a": teacher, "b": proteus.Teacher(vit(36), image_size=32)}
    with pytest.raises(
        ValueError, match=r"asks its teachers in each step. Got targets with a Multi"
    ):
        fit(
            MultiTeacherDistiller(two, student()), loader(source), steps=1, targets=targets, **QUIET
        )


def test_a_run_goes_on_with_the_same_targets_only(teacher, source, tmp_path, monkeypatch):
    monkeypatch.setattr("proteus.training.loop.write_results", lambda *_: None)
    targets = make(teacher, source, tmp_path / "t", views=2)
    whole = losses(teacher, loader(source), targets=targets, out=tmp_path / "run", save_every=4)
    settings = json.loads(next((tmp_path / "run/checkpoint").glob("*/*.json")).read_text())
    assert "targets" in json.dumps(settings)
    again = losses(teacher, loader(source), targets=targets, out=tmp_path / "run", resume=True)
    assert again == whole
    with pytest.raises(CheckpointError, match="targets"):
        losses(teacher, loader(source), out=tmp_path / "run", resume=True)
    other = make(teacher, source, tmp_path / "other", dtype="int8", views=2)
    with pytest.raises(CheckpointError, match="targets"):
        losses(teacher, loader(source), targets=other, out=tmp_path / "run", resume=True)


def test_the_target_of_a_corrupt_image_is_that_of_the_neighbour_shown(teacher, source, tmp_path):
    for number in range(10, 40):
        shutil.copy(tmp_path / f"images/{number % 10}.jpg", tmp_path / f"images/{number}.jpg")
    (tmp_path / "images/13.jpg").write_bytes(b"no image")
    source = open_source(tmp_path / "images")
    targets = make(teacher, source, tmp_path / "t", dtype="fp32")
    for number, (images, cls, patches) in enumerate(loader(source).beside(targets)):
        expected = teacher(images)
        assert torch.allclose(cls, expected.cls, atol=1e-5), number
        assert torch.allclose(patches, expected.patches, atol=1e-5), number


def test_settings_of_another_version_are_refused(teacher, source, tmp_path):
    make(teacher, source, tmp_path / "t")
    found = unseal(json.loads((tmp_path / "t/prepared.json").read_text()))
    (tmp_path / "t/prepared.json").write_text(seal({**found, "version": 0}))
    with pytest.raises(ValueError, match="its format is 0; expected 1"):
        PreparedTargets(tmp_path / "t")
    (tmp_path / "t/prepared.json").write_text(json.dumps({**found, "views": 3}))
    with pytest.raises(ValueError, match="is not what was written: it holds no checksum"):
        PreparedTargets(tmp_path / "t")
    with pytest.raises(ValueError, match="no prepared targets"):
        PreparedTargets(tmp_path / "images")


def test_overwriting_replaces_targets_of_the_same_settings_and_no_other_file(
    teacher, source, tmp_path
):
    (tmp_path / "t/shards").mkdir(parents=True)
    own = tmp_path / "t/shards/my.tar"
    own.write_text("photos")
    first = make(teacher, source, tmp_path / "t")
    stamp = first.path(0).stat().st_mtime_ns
    again = make(teacher, source, tmp_path / "t", overwrite=True)
    assert again.path(0).stat().st_mtime_ns > stamp and own.read_text() == "photos"
    with pytest.raises(ValueError, match=r"parts would replace what others of them made"):
        make(teacher, source, tmp_path / "t", overwrite=True, part=(0, 2))
    (tmp_path / "t/settings.json").write_text("{}")
    with pytest.raises(ValueError, match=r"settings.json is not what was written: .*--overwrite"):
        make(teacher, source, tmp_path / "t")


def test_an_image_that_could_not_be_read_when_prepared_stops_a_run_when_it_can(
    teacher, source, tmp_path
):
    for number in range(10, 40):
        shutil.copy(tmp_path / f"images/{number % 10}.jpg", tmp_path / f"images/{number}.jpg")
    path = tmp_path / "images/13.jpg"
    whole = path.read_bytes()
    path.write_bytes(b"no image")
    source = open_source(tmp_path / "images")
    targets = make(teacher, source, tmp_path / "t")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"could be read when .* or the other way round"):
        list(loader(source).beside(targets))


def test_a_teacher_that_gives_a_vector_alone_has_class_tokens(source, tmp_path):
    model = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten())
    vector = proteus.Teacher(model, image_size=32)
    targets = make(vector, source, tmp_path / "t")
    assert targets.settings.tokens == "cls"
    token = proteus.ProteusLoss(24, 48, feature=0, patch=0)
    distiller = proteus.Distiller(vector, student(), token)
    assert len(fit(distiller, loader(source), steps=2, targets=targets, **QUIET)) == 2
