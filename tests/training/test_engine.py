"""One step: whatever the precision and however the batch is cut, it is that of a plain loop."""

import copy
import functools
import itertools
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters

import proteus
from conftest import vit
from proteus.training import Engine, NonFiniteLossError, World, checkpoint, fit
from proteus.training.engine import EngineState

CPU = World(torch.device("cpu"))
QUIET = {"device": "cpu", "progress": False}


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(8, 3, 32, 32, generator=generator) for _ in range(4)]


@pytest.fixture
def seen_only(teacher, student):
    """Without masks nothing in a step is random."""
    return proteus.Distiller(teacher, student, proteus.ProteusLoss(24, 36, patch=0))


def run(distiller, batches, **options):
    """Rows of some steps of a copy, and the engine."""
    engine = Engine(copy.deepcopy(distiller), CPU, lr=1e-3, **options)
    rows = []
    for step, batch in enumerate(batches):
        names, values = engine.step([batch], step, 1e-3)
        rows.append(dict(zip(names, values.tolist(), strict=True)))
    return rows, engine


def weights(engine):
    return {name: t.detach().clone() for name, t in engine.plain.state_dict().items()}


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize("clip_grad", [None, 0.5, 100.0])
def test_it_is_the_plain_loop_of_torch(seen_only, batches, clip_grad):
    rows, engine = run(seen_only, batches, clip_grad=clip_grad, undecayed=())
    model = copy.deepcopy(seen_only).train()
    parameters = list(model.trainable_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=1e-3,
    )
    for batch, row in zip(batches, rows, strict=True):
        losses = model(batch)
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip_grad or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        assert row["total"] == pytest.approx(losses.total.item(), rel=1e-6)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-6)
    for ours, theirs in zip(engine.plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


MASKS = {
    "the authors'": {},
    "blocks": {"strategy": "block"},
    "a range": {"ratio": (0.1, 0.7)},
    "blocks of a range, shuffled": {"strategy": "block", "ratio": (0.1, 0.7), "shuffle": True},
    "few": {"probability": 0.3},
}


@pytest.mark.parametrize("masks", MASKS)
def test_accumulated_parts_are_the_big_batch(teacher, student, batches, masks):
    generator = proteus.MaskGenerator(student.grid, **MASKS[masks])
    distiller = proteus.Distiller(teacher, student, masks=generator)
    (whole, engine), *others = (
        run(distiller, batches[:1], accumulate=parts) for parts in (1, 2, 4)
    )
    for rows, other in others:
        assert rows[0] == pytest.approx(whole[0], rel=1e-6)
        # After one step the first moment is a tenth of the gradient.
        for parameter, theirs in zip(other._parameters, engine._parameters, strict=True):
            gradient = engine.optimizer.state[theirs]["exp_avg"]
            torch.testing.assert_close(
                other.optimizer.state[parameter]["exp_avg"], gradient,
                rtol=0, atol=2e-6 * float(gradient.abs().max()) + 1e-8,
            )  # fmt: skip


def test_masks_are_drawn_once_a_step(distiller, batches, monkeypatch):
    draws, draw = [], proteus.MaskGenerator.draw
    monkeypatch.setattr(
        proteus.MaskGenerator, "draw", lambda *a, **k: draws.append(a) or draw(*a, **k)
    )
    run(distiller, batches[:2], accumulate=4)
    assert len(draws) == 2


def test_a_batch_that_cannot_be_divided_is_refused(distiller, batches):
    with pytest.raises(ValueError, match=r"accumulate: .*Got 8 images.*accumulate=3"):
        run(distiller, batches, accumulate=3)


def test_activation_checkpointing_changes_nothing_stochastic_depth_included(teacher, batches):
    student = proteus.Student(vit(24, drop_path_rate=0.5), image_size=32)
    distiller = proteus.Distiller(teacher, student)
    (plain, one), (frugal, other) = (
        run(distiller, batches, activation_checkpointing=on) for on in (False, True)
    )
    assert plain == frugal
    assert equal(weights(one), weights(other))
    assert other.plain.student.backbone.grad_checkpointing


def test_a_student_that_cannot_checkpoint_activations_is_named(teacher):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 24, 8, 8)

        def forward(self, images):
            tokens = self.conv(images).flatten(2).mT
            return proteus.Features(tokens.mean(1), tokens, (4, 4))

    with pytest.raises(ValueError, match=r"activation_checkpointing: .*Got 'Net'"):
        student = proteus.Student(Net(), image_size=32)
        loss = proteus.ProteusLoss(24, 36, patch=0)
        Engine(proteus.Distiller(teacher, student, loss), CPU, lr=1, activation_checkpointing=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_keeps_weights_in_full_precision(distiller, batches, precision):
    full, _ = run(distiller, batches[:1])
    rows, engine = run(distiller, batches[:1] * 20, precision=precision, ema=0.5)
    assert rows[0] != full[0]
    assert rows[0]["total"] == pytest.approx(full[0]["total"], rel=0.02)
    assert rows[-1]["total"] < rows[0]["total"] * 0.95
    assert {t.dtype for t in weights(engine).values() if t.is_floating_point()} == {torch.float32}
    assert {t.dtype for t in engine.ema.tensors.values()} == {torch.float32}


def overflow(distiller, steps, value=math.inf):
    """Make a gradient infinite in some steps; the loss stays finite."""
    calls = itertools.count()
    distiller.loss.token_head.linear.weight.register_hook(
        lambda gradient: gradient * value if next(calls) in steps else gradient
    )


def test_fp16_skips_a_step_whose_gradient_overflows_and_goes_on(distiller, batches):
    engine = Engine(distiller, CPU, lr=1e-3, precision="fp16", ema=0.5)
    overflow(distiller, {12})
    scales, norms, states = [], [], []
    for step in range(16):
        states.append(weights(engine))
        _, values = engine.step([batches[0]], step, 1e-3)
        scales.append(engine.scaler.get_scale())
        norms.append(values[-1].item())
        assert values[:-1].isfinite().all()
    states.append(weights(engine))
    finite = [math.isfinite(norm) for norm in norms]
    assert finite[10:] == [True, True, False, True, True, True]  # the first steps seek the scale
    assert scales[12] == scales[11] / 2 == scales[15]
    assert norms[11] == pytest.approx(norms[13], rel=0.5)  # unscaled
    moved = [not equal(a, b) for a, b in itertools.pairwise(states)]
    assert moved == finite
    assert all(t.isfinite().all() for t in states[-1].values())


def test_the_log_shows_a_skipped_step_without_a_norm(distiller, batches, tmp_path):
    overflow(distiller, {12})
    rows = fit(distiller, batches[:1], steps=14, precision="fp16", out=tmp_path, **QUIET)
    assert [row["grad_norm"] is None for row in rows[10:]] == [False, False, True, False]
    assert all(math.isfinite(row["total"]) for row in rows)
    assert '"grad_norm": null' in (tmp_path / "log.jsonl").read_text().splitlines()[12]


def test_fp16_stops_when_no_scale_helps(distiller, batches):
    overflow(distiller, range(1000))
    with pytest.raises(NonFiniteLossError, match=r"gradient is not finite at step 40\."):
        fit(distiller, batches[:1], steps=60, precision="fp16", **QUIET)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_nan_image_stops_the_run_in_any_precision(distiller, batches, precision):
    batches[2][1, 0, 3, 3] = math.nan
    with pytest.raises(NonFiniteLossError, match=r"loss is not finite at step 2\."):
        fit(distiller, batches, steps=4, precision=precision, **QUIET)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_gradient_with_a_finite_loss_stops_before_it_is_saved(
    distiller, batches, tmp_path, value
):
    overflow(distiller, {3}, value)  # the last step before a save: no loss shows it yet
    with pytest.raises(
        NonFiniteLossError, match=r"gradient is not finite at step 3\. .*step-00000002"
    ):
        fit(distiller, batches, steps=8, save_every=2, out=tmp_path, **QUIET)
    folders = list((tmp_path / "checkpoint").iterdir())
    assert [folder.name for folder in folders] == ["step-00000002"]
    saved = load_file(folders[0] / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_saved_state_makes_another_engine_the_same(distiller, batches, precision):
    options = {"precision": precision, "ema": 0.9, "accumulate": 2}
    _, engine = run(distiller, batches[:2], **options)
    twin = Engine(copy.deepcopy(distiller), CPU, lr=9.0, **options)
    twin.load_state(copy.deepcopy(engine.state()))
    for step in (2, 3):
        ours, theirs = (e.step([batches[step]], step, 1e-3)[1] for e in (twin, engine))
        assert torch.equal(ours, theirs)
    assert equal(weights(twin), weights(engine))
    assert equal(twin.ema.tensors, engine.ema.tensors)
    assert twin.scaler.state_dict() == engine.scaler.state_dict()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_looking_at_the_state_changes_nothing_not_even_before_the_first_step(
    distiller, batches, precision, tmp_path
):
    """fp16 skips the first steps, so that the optimizer has no moments yet."""
    looked, other = (
        Engine(copy.deepcopy(distiller), CPU, lr=1e-3, precision=precision) for _ in range(2)
    )
    for step in range(6):
        state = looked.state()
        checkpoint.save(tmp_path, step + 1, state.tensors, settings={}, facts=state.facts)
        resumed = Engine(copy.deepcopy(distiller), CPU, lr=1e-3, precision=precision)
        found = checkpoint.load(tmp_path)
        resumed.load_state(EngineState(found.tensors, found.facts))
        ours, theirs, again = (
            engine.step([batches[0]], step, 1e-3)[1] for engine in (looked, other, resumed)
        )
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, again)
        assert equal(weights(looked), weights(other))
        assert equal(weights(looked), weights(resumed))


def test_the_state_holds_student_and_heads_and_never_the_teacher(distiller, batches):
    _, engine = run(distiller, batches[:1], ema=0.9)
    state = engine.state()
    assert state.tensors.keys() == {"weights", "optimizer", "ema"}
    assert state.tensors["weights"].keys() == engine.plain.state_dict().keys()
    assert state.tensors["ema"].keys() == engine.plain.student.backbone.state_dict().keys()
    assert not any("teacher" in name for file in state.tensors.values() for name in file)
    moments = {name.rpartition("/")[2] for name in state.tensors["optimizer"]}
    assert moments == {"step", "exp_avg", "exp_avg_sq"}


def test_parameters_that_get_no_gradient_or_are_frozen_do_not_hinder_a_resume(
    teacher, batches, tmp_path
):
    model = vit(24)
    model.unused = torch.nn.Linear(3, 3)
    model.pos_embed.requires_grad_(False)
    distiller = proteus.Distiller(teacher, proteus.Student(model, image_size=32))
    _, engine = run(distiller, batches[:2])
    twin = Engine(copy.deepcopy(distiller), CPU, lr=9.0)
    twin.load_state(copy.deepcopy(engine.state()))
    ours, theirs = (e.step([batches[2]], 2, 1e-3)[1] for e in (twin, engine))
    assert torch.equal(ours, theirs)
    assert equal(weights(twin), weights(engine))


def test_tied_weights_stay_tied_after_a_resume(teacher, batches, tmp_path):
    model = vit(24)
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    distiller = proteus.Distiller(teacher, proteus.Student(model, image_size=32))
    _, engine = run(distiller, batches[:2])
    state = engine.state()
    checkpoint.save(tmp_path, 2, state.tensors, settings={}, facts=state.facts)
    found = checkpoint.load(tmp_path)
    twin = Engine(copy.deepcopy(distiller), CPU, lr=9.0)
    twin.load_state(EngineState(found.tensors, found.facts))
    ours, theirs = (e.step([batches[2]], 2, 1e-3)[1] for e in (twin, engine))
    assert torch.equal(ours, theirs)
    assert equal(weights(twin), weights(engine))
    blocks = twin.plain.student.backbone.blocks
    assert blocks[1].mlp.fc1.weight is blocks[0].mlp.fc1.weight


def test_a_state_of_another_model_is_refused(teacher, distiller, batches):
    _, engine = run(distiller, batches[:1])
    state = copy.deepcopy(engine.state())
    others = {
        r"Missing: .*blocks\.2.*left over: nothing": vit(24, depth=3),
        r"Missing: nothing; left over: .*blocks\.1": vit(24, depth=1),
        "size mismatch|shape": vit(24, mlp_ratio=2),
    }
    for match, model in others.items():
        other = proteus.Distiller(teacher, proteus.Student(model, image_size=32))
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=rf"(?s)another student or loss\. .*({match})"):
            Engine(other, CPU, lr=1e-3).load_state(state)
        if "Missing" in match:
            assert equal(other.state_dict(), before)
    state.tensors["optimizer"]["student.gone/exp_avg"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"lacks: \['student\.gone'\]"):
        Engine(copy.deepcopy(distiller), CPU, lr=1e-3).load_state(state)
    with pytest.raises(ValueError, match="ema: the checkpoint and the run differ"):
        Engine(copy.deepcopy(distiller), CPU, lr=1e-3, ema=0.9).load_state(state)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"precision": "half"}, "precision: unknown. Got 'half'"),
        ({"accumulate": 0}, "accumulate is out of range. Got 0"),
        ({"clip_grad": 0}, "clip_grad is out of range. Got 0"),
        ({"clip_grad": math.nan}, "clip_grad is out of range. Got nan"),
        ({"parallel": "dp"}, "parallel: unknown kind. Got 'dp'"),
        ({"precision": "fp16", "parallel": "fsdp"}, "fp16 with fsdp is not supported"),
        ({"ema": 1.0}, "ema is out of range. Got 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(distiller, options, match):
    with pytest.raises(ValueError, match=match):
        Engine(distiller, CPU, lr=1e-3, **options)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_step_is_one_graph_of_each_size(teacher, batches, monkeypatch):
    """Both views, the heads and the losses; nothing is built anew from step to step."""
    traced = functools.partialmethod(nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(nn.Module, "compile", traced)
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(2)
    distiller = proteus.Distiller(teacher, proteus.Student(vit(24), image_size=32))
    distiller.also_take(16)
    found = []
    for on in (True, False):
        engine = Engine(copy.deepcopy(distiller), CPU, lr=1e-3, compile=on)
        found.append([
            engine.step([batch], step, 1e-3, (16, 16) if step < 2 else None)[1].tolist()
            for step, batch in enumerate(batches)
        ])  # fmt: skip
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 2
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_it_is_the_same(distiller, batches):
    (eager, one), (compiled, other) = (run(distiller, batches, compile=on) for on in (False, True))
    for ours, theirs in zip(compiled, eager, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert weights(one).keys() == weights(other).keys()


@pytest.mark.parametrize("setting", ["warmup", "save_every", "wieght_decay"])
def test_a_setting_that_the_step_does_not_know_is_refused(setting: str) -> None:
    with pytest.raises(TypeError, match=f"Engine: unknown settings. Got \\['{setting}'\\]"):
        Engine(torch.nn.Linear(1, 1), CPU, **{setting: 1})
