"""Every run of the paper, constructed and run for two steps with shrunken models."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import proteus
from proteus.features import IMAGENET
from proteus.hub.pretrained import PRETRAINED
from proteus.models import build as backbone
from proteus.paper import PAPER
from proteus.recipes import RUNS, build, cost, recipe, run, with_settings
from proteus.training import parameter_groups

PRESETS = ("paper", "official")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of four images."""
    folder = tmp_path_factory.mktemp("images")
    for n in range(8):
        (folder / f"set/class{n % 2}").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"set/class{n % 2}/{n}.png")
    Image.fromarray(pixels).resize((300, 260)).save(folder / "large.jpg")
    return folder


@pytest.fixture
def tiny(monkeypatch):
    """The paper's models under their own names, two blocks deep and random."""
    import sys

    pair_module = sys.modules["proteus.recipes.pair"]
    for table, width in (("TEACHERS", 24), ("STUDENTS", 12)):
        entries = {}
        for name, entry in getattr(backbone, table).items():
            small = {"embed_dim": width, "depth": 2, "num_heads": 3}
            entries[name] = replace(entry, arguments={**entry.arguments, **small})
        monkeypatch.setattr(backbone, table, entries)
    random_teacher = functools.partial(proteus.Teacher, pretrained=False)
    monkeypatch.setattr(pair_module, "Teacher", random_teacher)


def small(found, images, tmp_path):
    """The same run at 28 pixels on eight images for two steps."""
    paths, proxy = [str(images / "set")], found.science.data.proxy
    if proxy.startswith("single"):
        paths, proxy = [str(images / "large.jpg")], "single:8"
    if proxy.startswith("sub-"):
        proxy = proxy.partition(":")[0] + ":0.5"
    settings = {
        "science.model.image_size": 32 if "deit" in found.science.model.student else 28,
        "science.data.paths": paths,
        "science.data.proxy": proxy,
        "science.data.batch_size": 4,
        "science.data.epochs": None,
        "science.data.images": None,
        "science.data.steps": 2,
        "machine.device": "cpu",
        "machine.workers": 0,
    }
    if found.science.logits is not None:
        settings["science.logits.num_classes"] = 2
    if found.science.logits is not None and found.science.logits.kl:
        head, tensors = tmp_path / "head.pth", {"weight": torch.randn(2, 48)}
        if "deit" in found.science.model.teacher:
            tensors = {"norm.bias": torch.zeros(384), "head.weight": torch.randn(2, 384)}
        bias = "head.bias" if "head.weight" in tensors else "bias"
        torch.save({**tensors, bias: torch.zeros(2)}, head)
        settings["science.logits.classifier"] = str(head)
    return with_settings(found, settings)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", RUNS)
def test_it_constructs_and_takes_two_steps(name, preset, images, tmp_path, tiny):
    found = recipe(name, preset)
    assert (found.name, found.preset) == (name, preset)
    assert found.about
    assert cost(found).steps > 0
    rows = run(small(found, images, tmp_path), progress=False)
    assert len(rows) == 2
    terms = {k for k, v in rows[0].items() if k not in ("step", "total", "lr", "grad_norm") and v}
    loss, logits = found.science.loss, found.science.logits
    if logits is not None:
        assert terms == {term for term in ("kl", "ce") if vars(logits)[term]}
    else:
        given = {"token": loss.token, "feature": loss.feature, "patch": loss.patch}
        assert terms == {term for term, weight in given.items() if weight != 0}


def test_the_four_students_of_dinov2_have_teachers_one_size_up():
    pairs = [
        (found.science.model.student, found.science.model.teacher)
        for found in map(recipe, list(RUNS)[:4])
    ]
    assert pairs == [
        ("vit_tiny_patch14", "dinov2_vits14"), ("vit_small_patch14", "dinov2_vitb14"),
        ("vit_base_patch14", "dinov2_vitl14"), ("vit_large_patch14", "dinov2_vitg14"),
    ]  # fmt: skip


def test_the_presets_differ_where_the_words_and_the_code_do():
    paper, official = (recipe("s14-dinov2-b14", preset).science for preset in PRESETS)
    assert (paper.masks.strategy, official.masks.strategy) == ("block", "random")
    assert (paper.model.drop_path, official.model.drop_path) == (0.1, 0.0)
    assert (paper.data.batch_size, official.data.batch_size) == (1024, 512)
    assert (paper.optimizer.lr, official.optimizer.lr) == (1e-3, 5e-4)
    assert (paper.optimizer.schedule, official.optimizer.schedule) == ("deit", "official")
    assert (paper.optimizer.undecayed, official.optimizer.undecayed) == (None, ())
    assert official.optimizer.precision == "fp16"
    assert official.optimizer.ema == 0.99996
    for preset in PRESETS:
        large = recipe("l14-dinov2-g14", preset).science
        assert (large.data.batch_size, large.optimizer.lr) == (256, 2.5e-4)


def test_the_official_run_of_clip_feeds_it_imagenet_s_statistics(images, tmp_path, tiny):
    found = small(recipe("b14-clip-l14", "official"), images, tmp_path)
    distiller = build(found)
    for model in (distiller.teacher, distiller.student):
        assert model.inputs.mean.flatten().tolist() == pytest.approx(IMAGENET[0])
    own = build(small(recipe("b14-clip-l14", "paper"), images, tmp_path))
    assert own.teacher.inputs.mean.flatten().tolist() != pytest.approx(IMAGENET[0], abs=1e-3)
    undecayed = found.science.optimizer.undecayed
    spared = {id(p) for p in parameter_groups(distiller, 0.05, undecayed)[1]["params"]}
    assert id(distiller.student.backbone.cls_token) in spared
    assert id(distiller.student.backbone.pos_embed) not in spared


def test_an_inheriting_student_starts_from_its_teacher(images, tmp_path, tiny):
    found = small(recipe("table13-s14-inherit"), images, tmp_path)
    distiller = build(found)
    ours, theirs = (
        model.backbone.blocks[0].norm1.weight for model in (distiller.student, distiller.teacher)
    )
    assert torch.equal(ours, theirs[::2])


INHERITANCE = {  # arch and inherits, teaches -> ImageNet: Tables 11 and 12, row by row
    ("11", False, False): 71.9, ("11", True, False): 73.5,
    ("11", False, True): 73.7, ("11", True, True): 74.8,
    ("12", False, False): 75.4, ("12", True, False): 75.8,
    ("12", False, True): 77.5, ("12", True, True): 77.2,
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("table", "inherits", "teaches"), INHERITANCE)
def test_every_row_of_tables_11_and_12_is_supervised(table, inherits, teaches, preset):
    chosen = [
        found
        for found in (recipe(name, preset) for name in RUNS if name.startswith(f"table{table}-"))
        if (found.science.model.init == "select") == inherits
        and found.science.logits is not None
        and bool(found.science.logits.kl) == teaches
    ]
    assert len(chosen) == 1
    science, logits = chosen[0].science, chosen[0].science.logits
    assert list(chosen[0].scores.values()) == [INHERITANCE[table, inherits, teaches]]
    assert science.data.epochs == 300
    assert logits.ce == (0.5 if teaches else 1.0)
    assert bool(logits.classifier) == teaches == logits.hard
    pair = {
        "11": ("deit_small_patch16_224.fb_in1k", "deit_tiny_patch16_224"),
        "12": ("dinov2_vits14", "vit_tiny_patch14"),
    }
    assert (science.model.teacher, science.model.student) == pair[table]
    assert ("labels alone" in chosen[0].about) != teaches


def test_a_supervised_run_never_runs_its_teacher_and_may_inherit(images, tmp_path, tiny):
    found = small(recipe("table12-ti14-labels-inherit"), images, tmp_path)
    distiller = build(found)
    ours, theirs = (
        model.backbone.blocks[0].norm1.weight for model in (distiller.student, distiller.teacher)
    )
    assert torch.equal(ours, theirs[::2])
    distiller.teacher.forward = None  # a call would be a TypeError
    labels = torch.tensor([0, 1])
    losses = distiller(torch.rand(2, 3, 28, 28), labels)
    logits = distiller.head(distiller.student(torch.rand(2, 3, 28, 28)).cls)
    assert logits.shape == (2, 2)
    assert losses.total == losses.ce > 0 == losses.kl


def test_the_numbers_of_a_run_are_those_of_its_released_student_and_of_the_tables():
    runs = {
        "ti14-dinov2-s14": "proteus-vit-ti14", "s14-dinov2-b14": "proteus-vit-s14",
        "b14-dinov2-l14": "proteus-vit-b14", "l14-dinov2-g14": "proteus-vit-l14",
        "b14-synclr-l14": "proteus-vit-b14-synclr", "b14-clip-l14": "proteus-vit-b14-clip",
    }  # fmt: skip
    columns = {
        "ImageNet-1K linear probe": "ImageNet",
        "Fine-grained, mean of 12 sets, logistic regression": "Average",
        "ADE20K UperNet mIoU": "ADE20K fine-tune",
        "NYU-Depth V2 RMSE": "NYUd fine-tune",
    }
    assert set(runs.values()) == set(PRETRAINED) <= set(PAPER)
    for run_name, student in runs.items():
        scores = recipe(run_name).scores
        assert scores == PRETRAINED[student].scores
        row = {columns[protocol]: value for protocol, value in scores.items()}
        assert row == {k: v for k, v in PAPER[student].items() if k in columns.values()
                       and k in row}  # fmt: skip
        known = [column for column in columns.values() if column in PAPER[student]]
        assert sorted(known) == sorted(row)


SCORES = {  # ImageNet, fine-grained, ADE20K, as the tables and figures of the paper have them
    "table1-hard-kl-ce": (82.8, 78.7), "table1-soft-kl-ce": (80.3, 71.5),
    "table1-hard-kl": (81.7, 79.7), "table1-soft-kl": (82.3, 80.5), "table1-hint": (81.7, 85.3),
    "table2-token": (81.7, 85.3, 44.0), "table2-feature": (79.2, 83.3, 47.0),
    "table2-token-feature": (81.7, 86.1, 47.4), "table2-token-feature-patch": (81.8, 85.8, 50.0),
    "table10-imagenet": (81.8, 85.8), "table10-merge": (81.8, 86.7),
    "table10-single": (63.7, 68.7), "table13-s14-inherit": (81.5, 85.3),
    "table15-clip-merge": (87.8,), "table18-from-g14": (80.6,), "table18-from-l14": (82.2,),
    "table18-from-b14": (85.8,), "table20-linear-gelu": (81.8, 84.9),
    "table20-gelu-linear": (81.5, 85.3), "table20-ln-linear": (81.7, 85.3),
    "fig6-classes-50": (81.3, 85.15), "fig6-classes-20": (80.0, 84.8),
    "fig7-data-50": (81.9, 85.6), "fig7-data-20": (81.6, 84.9),
}  # fmt: skip


@pytest.mark.parametrize(("name", "scores"), SCORES.items())
def test_a_row_has_the_paper_s_numbers_and_length(name, scores):
    found = recipe(name)
    assert tuple(found.scores.values()) == scores
    data = found.science.data
    proxies = name.startswith(("table10", "table15", "fig"))
    assert (data.epochs, data.images) == ((None, 375_000 * 1024) if proxies else (300, None))
    assert data.batch_size == 1024


def test_the_costs_are_the_paper_s_within_a_few_percent():
    # official-code's count for S <- B: 59.9 G with all images through the masked view, 50.7 without
    assert cost(recipe("s14-dinov2-b14")).gmac == pytest.approx(50.7, rel=0.01)
    assert cost(recipe("l14-dinov2-g14")).gmac == pytest.approx(664, rel=0.01)
    assert cost(recipe("ti14-dinov2-s14")).gmac == pytest.approx(13.8, rel=0.01)
    # Labels alone: three forward passes of DeiT-Ti/16, whose own table says 1.26 G.
    assert cost(recipe("table11-ti16-labels")).gmac == pytest.approx(3 * 1.26, rel=0.01)
    assert cost(with_settings(recipe("s14-dinov2-b14"), ["science.model.teacher=x"])) is None


def test_masks_that_the_teacher_has_no_use_for_are_refused(images, tmp_path, tiny):
    found = small(recipe("s14-dinov2-b14"), images, tmp_path)
    clip = with_settings(found, ["science.model.teacher=clip_vitl14"])
    with pytest.raises(ValueError, match=r"science\.masks would be ignored.*clip_vitl14"):
        build(clip)
    assert build(with_settings(clip, ["science.masks={}"])).masks is None


def test_a_proxy_set_of_a_stream_is_refused(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("proteus.recipes.open_images.open_source", lambda paths: iter(()))
    base = recipe("fig7-data-20")
    science = replace(base.science, data=replace(base.science.data, paths=("hfids/some",)))
    with pytest.raises(ValueError, match=r"proxy set cannot be made of a stream.*'hfids/some'"):
        run(replace(base, science=science))
