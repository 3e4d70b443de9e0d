import pytest
import torch

import proteus
from conftest import vit
from proteus.distiller import Distiller
from proteus.features import ShapeError
from proteus.losses import ProteusLoss
from proteus.masking import MaskGenerator
from proteus.teachers import MultiTeacherDistiller
from proteus.training import fit


@pytest.fixture
def teachers(teacher):
    return {"near": teacher, "far": proteus.Teacher(vit(48, size=64, patch=16), image_size=64)}


def losses(teachers, **more):
    return {name: ProteusLoss(24, model.embed_dim, **more) for name, model in teachers.items()}


def test_each_teacher_s_terms_are_those_of_a_distiller_of_its_own(teachers, student):
    own = losses(teachers)
    together = MultiTeacherDistiller(teachers, student, own, weights={"near": 1, "far": 0.25})
    images = torch.rand(4, 3, 64, 64)
    hidden = together.masks.masks(4)
    found = together(images, hidden)
    total = 0.0
    for name, teacher in teachers.items():
        alone = Distiller(teacher, student, own[name])(images, hidden)
        for term in ("token", "feature", "patch"):
            torch.testing.assert_close(found._asdict()[f"{name}_{term}"], alone._asdict()[term])
        total = total + together.weights[name] * alone.total
    torch.testing.assert_close(found.total, total)


def test_all_meet_on_the_coarsest_grid(teachers, student):
    coarse = {**teachers, "cnn": proteus.Teacher("test_resnet", pretrained=False, image_size=64)}
    distiller = MultiTeacherDistiller(coarse, student)
    assert (distiller.image_size, distiller.grid) == ((64, 64), (2, 2))
    losses = distiller(torch.rand(4, 3, 64, 64))
    losses.total.backward()
    assert all(p.grad is not None for p in distiller.trainable_parameters())
    assert len(losses) == 10


def test_a_teacher_of_vectors_or_words_has_its_token_alone(teacher, student):
    pit = proteus.Teacher("pit_ti_224", pretrained=False)
    small = proteus.Student(vit(24, size=224, patch=32), image_size=224)
    both = {"pit": pit, "vit": proteus.Teacher(vit(36, size=224, patch=32), image_size=224)}
    distiller = MultiTeacherDistiller(both, small)
    names = distiller(torch.rand(1, 3, 224, 224))._fields
    assert names == ("total", "pit_token", "vit_token", "vit_feature", "vit_patch")
    assert distiller.grid == (7, 7)
    teacher.objectives = ("token",)
    other = proteus.Teacher(vit(36), image_size=32)
    distiller = MultiTeacherDistiller({"clip": teacher, "dino": other}, student)
    fields = distiller(torch.rand(2, 3, 32, 32))._fields
    assert fields == ("total", "clip_token", "dino_token", "dino_feature", "dino_patch")


def test_the_largest_loss_is_never_dropped_and_the_others_are_at_times(teachers, student):
    distiller = MultiTeacherDistiller(teachers, student, losses(teachers), drop=0.5).train()
    images, generator = torch.rand(2, 3, 64, 64), torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(20):
        found = distiller(images, generator=generator)._asdict()
        each = [sum(found[f"{n}_{t}"] for t in ("token", "feature", "patch")) for n in teachers]
        assert found["total"] > max(each) - 1e-5
        seen.add(bool(found["total"] > max(each) + 1e-5))
    assert seen == {True, False}
    whole = distiller.eval()(images, generator=generator)
    torch.testing.assert_close(whole.total, sum(whole[1:]))


def test_no_teacher_is_trained_or_saved_and_all_follow(teachers, student):
    distiller = MultiTeacherDistiller(teachers, student).double().train()
    assert not any("backbone" in key and "student" not in key for key in distiller.state_dict())
    for teacher in teachers.values():
        assert next(teacher.parameters()).dtype == torch.float64
        assert not teacher.training
    assert distiller(torch.rand(2, 3, 64, 64).double()).total.dtype == torch.float64


def test_nothing_in_the_step_waits_for_the_device(teachers, student):
    distiller = MultiTeacherDistiller(teachers, student, drop=0.3).to("meta").train()
    distiller(torch.rand(2, 3, 64, 64, device="meta")).total.backward()


def test_a_run_logs_resumes_and_exports(teachers, tmp_path):
    torch.manual_seed(0)
    student = proteus.Student("test_vit", image_size=64)
    distiller = MultiTeacherDistiller(teachers, student, drop=0.2)
    data = [torch.rand(4, 3, 64, 64)]
    fit(distiller, data, steps=2, out=tmp_path, device="cpu", progress=False, save_every=1)
    with pytest.raises(ValueError, match=r"teacher_digest was"):
        other = {**teachers, "far": proteus.Teacher(vit(48, size=64, patch=16), image_size=64)}
        fit(MultiTeacherDistiller(other, student, drop=0.2), data, steps=2, out=tmp_path,
            device="cpu", progress=False, save_every=1, resume=True)  # fmt: skip
    rows = fit(distiller, data, steps=2, out=tmp_path, device="cpu", progress=False, resume=True,
               save_every=1)  # fmt: skip
    assert {"near_token", "far_patch", "total"} <= rows[-1].keys()
    assert (tmp_path / "export" / "model.safetensors").is_file()
    assert (tmp_path / "pca.png").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teachers": 1}, "one teacher is a Distiller's"),
        ({"losses": {}}, r"losses do not belong.*\[\].*far.*near"),
        ({"weights": {"near": 1}}, "weights do not belong"),
        ({"weights": {"near": 1, "far": -1}}, r"far\.weight is out of range.*-1"),
        ({"drop": 1}, r"drop is out of range.*\[0, 1\)"),
        ({"masks": MaskGenerator(3)}, r"masks do not fit.*\(3, 3\).*\(4, 4\)"),
        ({"names": {"near": "a b"}}, "identifiers"),
        ({"names": {"near": "keys"}}, "no method of a dictionary"),
    ],
)
def test_what_does_not_fit_is_refused(teachers, student, change, message):
    more = dict(change)
    if more.pop("teachers", None):
        teachers = {"near": teachers["near"]}
    names = more.pop("names", {})
    teachers = {names.get(name, name): model for name, model in teachers.items()}
    with pytest.raises(ValueError, match=message):
        MultiTeacherDistiller(teachers, student, **more)


def test_a_loss_of_other_widths_is_refused(teachers, student):
    wrong = {"near": ProteusLoss(24, 36), "far": ProteusLoss(24, 36)}
    with pytest.raises(
        ShapeError, match=r"MultiTeacherDistiller, far.*expected ProteusLoss\(24, 48"
    ):
        MultiTeacherDistiller(teachers, student, wrong)
