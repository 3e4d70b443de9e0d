"""Sixteen steps under the official preset against the authors' loop, written out plainly."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_loss import FOLDER, HEADS, LAYERS, build

from proteus import MaskGenerator
from proteus.masking import Hidden
from proteus.recipes import recipe
from proteus.training import Engine, EpochSchedule, World, fit

SCHEDULES = Path(__file__).parent / "07_schedules"
RATES = json.loads((SCHEDULES / "lr_timm_1.0.31.json").read_text())["schedules"]
GROUPS = json.loads((SCHEDULES / "weight_decay_groups.json").read_text())["dinov2"]
STEPS = 16


class Fixed(MaskGenerator):
    """The same masks in every step, which the tests must know."""

    def __init__(self, grid, hidden):
        super().__init__(grid)
        self.fixed = hidden

    def draw(self, batch_size, generator=None, device=None, part=(0, 1)):
        return Hidden(self.fixed, self.fixed.any(1).nonzero().squeeze(1))


@pytest.fixture(scope="module")
def case():
    images = load_file(FOLDER / "dinov2_images_56.safetensors")["images"]
    hidden = load_file(FOLDER / "dinov2_official.safetensors")["masks"].bool()
    batches = [images.roll(n, 0) * (1 + 0.05 * n) for n in range(STEPS)]
    return batches, hidden


@pytest.fixture
def distiller(case):
    model = build()
    model.masks = Fixed(model.student.grid, case[1])
    return model


def official_name(name):
    """Our name of a parameter -> theirs."""
    if not name.startswith("loss."):
        return name.replace("student.mask_token", "student.backbone.mask_token")
    _, head, layer, leaf = name.split(".")
    heads, layers = ({v: k for k, v in table.items()} for table in (HEADS, LAYERS))
    return f"{heads[head]}.{layers[layer]}.{leaf}"


def authors_step(model, optimizer, images, hidden):
    """Two full views, the losses as in models_proteus_dinov2.py, one update."""
    student, loss, target = model.student, model.loss, model.teacher(images)
    nothing = torch.zeros_like(hidden)
    seen, masked = student(images, nothing), student(images, hidden)
    token = loss.token_head(seen.cls)
    token_loss = F.mse_loss(token, target.cls)
    everything = torch.cat([token[:, None], loss.feature_head(seen.patches)], 1)
    fea_loss = F.mse_loss(everything, torch.cat([target.cls[:, None], target.patches], 1))
    patch_loss = F.mse_loss(loss.patch_head(masked.patches[hidden]), target.patches[hidden])
    total = token_loss + fea_loss + patch_loss
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return [total.item(), token_loss.item(), fea_loss.item(), patch_loss.item()]


def authors_run(model, batches, hidden, rates):
    named = {official_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    expected = [name for group in GROUPS["groups"] for name in group["names"]]
    blocks = {name.replace("blocks.0.", "blocks.1.") for name in expected}
    assert set(named) == set(expected) | blocks  # the golden model has one block, this one two
    groups = []
    for group in GROUPS["groups"]:
        names = {*group["names"], *(n.replace("blocks.0.", "blocks.1.") for n in group["names"])}
        groups.append({"params": [named[n] for n in names], "weight_decay": group["weight_decay"]})
    optimizer = torch.optim.AdamW(groups, **{**GROUPS["defaults"], "lr": rates[0]})
    average, losses = copy.deepcopy(model.student.backbone), []
    for images, rate in zip(batches, rates, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses.append(authors_step(model, optimizer, images, hidden))
        with torch.no_grad():
            for old, new in zip(
                average.state_dict().values(),
                model.student.backbone.state_dict().values(),
                strict=True,
            ):
                old.copy_(old * 0.99996 + (1 - 0.99996) * new)
    return losses, average


@pytest.mark.parametrize("rates", RATES, ids=lambda rates: f"batch {rates['total_batch']}")
def test_the_official_schedule_is_the_authors_in_every_epoch(rates):
    schedule = EpochSchedule(rates["peak_lr"], 300, steps_per_epoch=7, update="epoch_late")
    for epoch, rate in enumerate(rates["lr_used_in_epoch"]):
        assert schedule(epoch * 7) == schedule(epoch * 7 + 6)
        assert schedule(epoch * 7) == pytest.approx(rate, rel=1e-12)
    for epoch, rate in enumerate(rates["scheduler_function_of_t"]):
        assert schedule.at(epoch) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("name", ["s14-dinov2-b14", "l14-dinov2-g14"])
def test_the_official_peaks_are_the_authors(name):
    science = recipe(name, "official").science
    peaks = {rates["total_batch"]: rates["peak_lr"] for rates in RATES}
    assert science.optimizer.lr == peaks[science.data.batch_size]


def test_sixteen_official_steps_are_the_authors(case, distiller, tmp_path):
    batches, hidden = case
    science = recipe("s14-dinov2-b14", "official").science.optimizer
    schedule = EpochSchedule(science.lr, 300, steps_per_epoch=1, update="epoch_late")
    reference = copy.deepcopy(distiller)
    rows = fit(
        distiller, batches, steps=STEPS, lr=schedule, weight_decay=science.weight_decay,
        undecayed=science.undecayed, ema=science.ema, device="cpu", progress=False,
    )  # fmt: skip
    rates = RATES[1]["lr_used_in_epoch"][:STEPS]
    assert [row["lr"] for row in rows] == pytest.approx(rates, rel=1e-12)
    expected, _ = authors_run(reference, batches, hidden, rates)
    for row, losses in zip(rows, expected, strict=True):
        ours = [row[name] for name in ("total", "token", "feature", "patch")]
        assert ours == pytest.approx(losses, rel=2e-6)
    for (name, ours), theirs in zip(
        distiller.named_parameters(), reference.parameters(), strict=True
    ):
        # A key's bias has no effect: its gradient is rounding, which AdamW scales up to the rate.
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_average_is_the_authors(case, distiller):
    batches, hidden = case
    reference = copy.deepcopy(distiller)
    engine = Engine(distiller, World(torch.device("cpu")), lr=1e-3, undecayed=(), ema=0.99996)
    for step, images in enumerate(batches):
        engine.step((images,), step, 1e-3)
    _, average = authors_run(reference, batches, hidden, [1e-3] * STEPS)
    for name, theirs in average.state_dict().items():
        torch.testing.assert_close(engine.ema.tensors[name], theirs, rtol=0, atol=1e-6)
