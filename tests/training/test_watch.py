import json

import numpy as np
import pytest
import torch
from PIL import Image

import proteus
from conftest import vit
from proteus.data import center_resize, decode, open_source
from proteus.evaluation import compare_features, knn_predict
from proteus.logits import LinearHead, LogitDistiller
from proteus.training.watch import Watch, margin_of


def pictures(count=10, size=32):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def labels(count=10):
    return torch.arange(count) % 3


def test_agreement_is_that_of_all_images_at_once(distiller):
    images = pictures()
    values = Watch(images, batch_size=4)(distiller)
    distiller.eval()
    with torch.no_grad():
        student = distiller.loss.project(distiller.student(images))
        expected = compare_features(student, distiller.teacher(images))
    assert values == pytest.approx(expected, abs=1e-6)


def test_the_share_of_right_neighbours_is_the_k_nn_s(distiller):
    images, bank = pictures(), pictures(9)
    watch = Watch(images, labels(), (bank, labels(9)), k=3, batch_size=4)
    values = watch(distiller)
    distiller.eval()
    with torch.no_grad():
        for name, model in (("", distiller.student), ("teacher_", distiller.teacher)):
            guesses = knn_predict(model(bank).cls, labels(9), model(images).cls, k=3)
            expected = float((guesses == labels()).float().mean())
            assert values[f"{name}knn_top1"] == pytest.approx(expected)


def test_without_a_bank_even_images_vote_on_odd_ones(distiller):
    images = pictures(4)
    images[1], images[3] = images[0], images[2]
    assert Watch(images, torch.tensor([0, 0, 1, 1]), k=1)(distiller)["knn_top1"] == 1
    assert Watch(images, torch.tensor([0, 1, 1, 0]), k=1)(distiller)["knn_top1"] == 0


def test_it_changes_nothing_and_says_the_same_twice(teacher):
    student = proteus.Student(vit(24, proj_drop_rate=0.5, drop_path_rate=0.5), image_size=32)
    distiller = proteus.Distiller(teacher, student).train()
    student.backbone.norm.eval()  # a mode of its own must come back
    before = [module.training for module in distiller.modules()]
    weights = {name: value.clone() for name, value in distiller.state_dict().items()}
    watch = Watch(pictures(), labels(), k=2)
    random = torch.get_rng_state()
    first, second = watch(distiller), watch(distiller)
    assert first == second
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in distiller.modules()] == before
    assert all(torch.equal(weights[name], value) for name, value in distiller.state_dict().items())
    assert all(parameter.grad is None for parameter in distiller.parameters())


def test_modes_come_back_when_a_forward_fails(distiller):
    distiller.train()
    with pytest.raises(ValueError, match="24x24"):
        Watch(pictures(size=24))(distiller)
    assert distiller.training
    assert distiller.student.backbone.training


def test_the_teacher_runs_once_for_each_teacher(distiller, teacher, student):
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    watch = Watch(pictures(), labels(), k=2, batch_size=10)
    values = watch(distiller)
    with torch.no_grad():
        student.backbone.cls_token.add_(1)
    later = watch(distiller)
    assert len(calls) == 1
    assert values["cls_mse"] != later["cls_mse"]
    assert values["teacher_knn_top1"] == later["teacher_knn_top1"]
    other = proteus.Teacher(vit(36), image_size=32)
    assert watch(proteus.Distiller(other, student, distiller.loss))["cls_mse"] != later["cls_mse"]


def test_training_shows(distiller):
    images = pictures(8)
    watch = Watch(images)
    first = watch(distiller)
    optimizer = torch.optim.AdamW(distiller.trainable_parameters(), lr=1e-3)
    for _ in range(30):
        distiller(images).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    last = watch(distiller)
    assert last["cls_mse"] < first["cls_mse"]
    assert last["patch_mse"] < first["patch_mse"]
    assert last["patch_cosine"] > first["patch_cosine"]


@pytest.mark.parametrize(
    ("weights", "measured"),
    [
        ({"feature": 0, "patch": 0}, {"cls"}),
        ({"token": 0, "feature": 0}, {"patch"}),
        ({"feature": 0}, {"cls", "patch"}),
    ],
)
def test_only_what_the_loss_has_heads_for_is_compared(teacher, student, weights, measured):
    distiller = proteus.Distiller(teacher, student, proteus.ProteusLoss(24, 36, **weights))
    values = Watch(pictures())(distiller)
    assert {name.partition("_")[0] for name in values} == measured


def test_patches_of_other_grids_are_not_compared(student):
    teacher = proteus.Teacher(vit(36, patch=16), image_size=32)
    loss = proteus.ProteusLoss(24, 36, feature=0, patch=0)
    assert set(Watch(pictures())(proteus.Distiller(teacher, student, loss))) == {
        "cls_cosine",
        "cls_mse",
    }


def test_logit_distillation_has_its_neighbours_watched(teacher, student):
    distiller = LogitDistiller(teacher, student, LinearHead(36, 3), num_classes=3)
    values = Watch(pictures(), labels(), k=2)(distiller)
    assert set(values) == {"knn_top1", "teacher_knn_top1"}
    with pytest.raises(ValueError, match=r"nothing to measure.*LogitDistiller"):
        Watch(pictures())(distiller)


@pytest.fixture
def folder(tmp_path):
    for name, value in (("a", 40), ("b", 200), ("c", 120)):
        (tmp_path / name).mkdir()
        for n in range(6):
            pixels = np.random.default_rng(n).integers(0, 30, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels + np.uint8(value)).save(tmp_path / name / f"{n}.png")
    return tmp_path


def test_images_are_read_from_a_folder_evenly_and_centred(folder):
    watch = Watch.from_sources(folder, image_size=32, count=6)
    source = open_source(folder)
    for image, number in zip(watch.images, range(0, 18, 3), strict=True):
        expected = np.asarray(center_resize(decode(source.read(number)), 32))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert watch.labels is None


def test_labels_of_images_and_bank_have_one_numbering(folder, distiller):
    part = open_source(folder).select(range(6, 18), "b and c")
    watch = Watch.from_sources(part, bank=folder, labels=True, image_size=32, every=5, k=1)
    assert watch.labels.tolist() == [1] * 6 + [2] * 6
    assert len(watch.bank) == 18
    assert watch(distiller)["knn_top1"] == 1  # the images themselves are in the bank
    assert watch.every == 5


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([])


def test_a_source_without_labels_or_end_is_an_error(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="labels are asked for"):
        Watch.from_sources(tmp_path, labels=True, image_size=8)
    with pytest.raises(ValueError, match="the bank would be ignored"):
        Watch.from_sources(tmp_path, bank=tmp_path, image_size=8)
    with pytest.raises(ValueError, match="a stream has no images to come back to"):
        Watch.from_sources(Stream(), image_size=8)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((pictures().float(),), {}, "images have the wrong shape. Got torch.float32"),
        ((pictures()[0],), {}, r"Got torch.uint8 \(3, 32, 32\)"),
        ((pictures(), labels(4)), {}, "labels of the images do not fit"),
        ((pictures(), labels(), (pictures(3), labels(4))), {}, "labels of the bank do not fit"),
        ((pictures(), None, (pictures(), labels())), {}, "the bank would be ignored"),
        ((pictures(), labels()), {"k": 6}, "Got k=6 and 5 of them"),
        ((pictures(),), {"every": 0}, "every=0"),
    ],
)
def test_what_does_not_fit_is_an_error_at_once(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        Watch(*arguments, **options)


def test_shares_come_with_the_number_of_images_and_their_interval(distiller):
    halves, bank = Watch(pictures(9), labels(9), k=2), (pictures(6), labels(6))
    whole = Watch(pictures(9), labels(9), bank, k=2)
    assert (halves.scored, whole.scored, Watch(pictures()).scored) == (4, 9, 0)
    values = halves(distiller)
    margins = halves.margins(values)
    assert set(margins) == {"knn_images", "knn_top1_margin", "teacher_knn_top1_margin"}
    assert margins["knn_images"] == 4
    assert margins["knn_top1_margin"] == margin_of(values["knn_top1"], 4)
    assert Watch(pictures()).margins({"cls_mse": 1.0}) == {}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.516, 1.0])
@pytest.mark.parametrize("count", [1, 20, 128])
def test_the_interval_holds_what_chance_does(share, count):
    margin = margin_of(share, count)
    assert 0 < margin <= 0.5
    drawn = np.random.default_rng(0).binomial(count, share, 4000) / count
    if count == 128 and 0 < share < 1:
        assert np.mean(np.abs(drawn - share) <= margin) == pytest.approx(0.95, abs=0.02)


def test_a_run_logs_how_sure_its_watch_is(distiller, tmp_path):
    watch = Watch(pictures(8), labels(8), k=2, every=1)
    distiller.fit([pictures(4)], steps=1, device="cpu", out=tmp_path, watch=watch, progress=False)
    row = json.loads((tmp_path / "watch.jsonl").read_text().splitlines()[-1])
    assert row["knn_images"] == 4
    assert row["knn_top1_margin"] == margin_of(row["knn_top1"], 4)


def test_a_corrupt_image_is_skipped_with_its_label(folder, caplog):
    (folder / "a" / "1.png").write_bytes(b"no image")
    watch = Watch.from_sources(folder, labels=True, image_size=32, k=1)
    assert watch.labels.tolist() == [0] * 5 + [1] * 6 + [2] * 6
    assert "skipped a corrupt image: a/1.png" in caplog.text
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"no image can be read. Got 18 corrupt ones"):
        Watch.from_sources(folder, image_size=32)


def test_a_run_is_looked_at_before_its_first_step_and_after_its_last(distiller, tmp_path):
    watch = Watch(pictures(8), every=2)
    before = watch(distiller)
    distiller.fit([pictures(4)] * 3, steps=3, device="cpu", out=tmp_path, watch=watch,
                  progress=False)  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "watch.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [-1, 1, 2]
    assert {"step": -1, **before} == pytest.approx(rows[0])
    assert watch(distiller) == pytest.approx({k: v for k, v in rows[-1].items() if k != "step"})
