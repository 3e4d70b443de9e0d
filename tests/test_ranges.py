"""Every number among the settings, wrong in every way, wherever it is taken."""

import inspect
import math

import pytest
import torch
from PIL import Image

import proteus
from proteus.data import ImageLoader, ShardLoader, ShardSource, open_source
from proteus.data.datasets import StreamSource
from proteus.data.stream import StreamLoader
from proteus.demo import run_demo
from proteus.ranges import RANGES, check_numbers
from proteus.recipes import Recipe, with_settings
from proteus.training import Engine, EpochSchedule, World, fit

ALONE = World(torch.device("cpu"))
WRONG = [math.nan, math.inf, -math.inf, "3", [1], True, 1j, 10**400, torch.ones(())]
NEVER_NEGATIVE = sorted(set(RANGES) - {"seed"})
NEVER_ZERO = ["steps", "images", "epochs", "batch_size", "accumulate", "save_every", "keep", "ema"]
WHOLE = sorted(name for name, allowed in RANGES.items() if allowed.whole)


def cases():
    for name in RANGES:
        yield from ((name, value) for value in WRONG)
    yield from ((name, -1) for name in NEVER_NEGATIVE)
    yield from ((name, 0) for name in NEVER_ZERO)
    yield from ((name, 1.5) for name in WHOLE)
    yield from ((name, 1e30) for name in (*WHOLE, "epochs", "warmup", "ema"))


def test_each_number_is_refused_in_our_words():
    for name, value in cases():
        with pytest.raises(ValueError, match=rf"^me: {name} is out of range\. Got .*; expected"):
            check_numbers("me", {name: value})


@pytest.mark.parametrize(
    "values",
    [
        {"lr": 0.0, "weight_decay": 0, "warmup": 0, "seed": -3, "workers": 0},
        {"lr": 1e30, "epochs": 0.5, "ema": 0.99996, "warmup": 0.999, "seed": 2**63 - 1},
        {"steps": None, "epochs": None, "clip_grad": None, "ema": None, "workers": None},
        {"science.optimizer.lr": 3, "science.loss.token": None},
    ],
)
def test_what_makes_sense_is_taken(values):
    check_numbers("me", values)


def taken_by(function, **more):
    return sorted((set(inspect.signature(function).parameters) & set(RANGES)) | set(more))


@pytest.mark.parametrize("value", [math.nan, "3", 10**400], ids=["nan", "text", "huge"])
class TestWhereTheyAreTaken:
    def test_fit(self, distiller, tmp_path, value):
        for name in taken_by(fit):
            options = {"steps": 1} if name != "epochs" else {}
            with pytest.raises(ValueError, match=f"fit: {name} is out of range"):
                fit(distiller, [], out=tmp_path / "out", **options | {name: value})
        assert not list(tmp_path.iterdir())

    def test_engine(self, distiller, value):
        more = {"lr", "weight_decay", "accumulate", "clip_grad", "ema"}  # fields of its settings
        for name in taken_by(Engine, **dict.fromkeys(more)):
            with pytest.raises(ValueError, match=f"Engine: {name} is out of range"):
                Engine(distiller, ALONE, **{"lr": 1e-3} | {name: value})

    def test_schedule(self, value):
        for name in taken_by(EpochSchedule):
            options = {"peak": 1e-3, "epochs": 2, "steps_per_epoch": 3}
            with pytest.raises(ValueError, match=rf"EpochSchedule: {name} is out of range"):
                EpochSchedule(**options | {name: value})

    def test_images(self, tmp_path, value):
        Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
        source, stream = open_source(tmp_path), StreamSource(None, "images", "a stream")
        options = {"batch_size": 1, "image_size": 16}
        shards = ShardSource("shards", ["a.tar"])
        pairs = (ImageLoader, source), (StreamLoader, stream), (ShardLoader, shards)
        for loader, images in pairs:
            for name in taken_by(loader):
                with pytest.raises(ValueError, match=f"images: {name} is out of range"):
                    loader(images, **options | {name: value})

    def test_loss(self, value):
        for name in taken_by(proteus.ProteusLoss):
            with pytest.raises(ValueError, match=f"ProteusLoss: {name} is out of range"):
                proteus.ProteusLoss(8, 8, **{name: value})

    def test_recipe(self, value):
        for path in (
            "science.data.steps", "science.data.batch_size", "science.data.images", "science.seed",
            "science.model.image_size", "science.model.drop_path", "science.optimizer.lr",
            "science.optimizer.ema", "machine.workers", "machine.save_every", "machine.watch_every",
        ):  # fmt: skip
            with pytest.raises(ValueError, match=f"recipe: .*{path}"):
                with_settings(Recipe(), {path: value})

    def test_demo(self, tmp_path, value):
        for name in taken_by(run_demo):
            with pytest.raises(ValueError, match=f"demo: {name} is out of range"):
                run_demo(tmp_path / "out", **{name: value})
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "proxy", ["single:inf", "single:1.5", "single:-1", "single:nan", "sub-data:nan"]
)
def test_a_proxy_set_s_number_too(proxy):
    with pytest.raises(ValueError, match=f"unknown proxy set. Got .*{proxy}"):
        with_settings(Recipe(), {"science.data.proxy": proxy})


def test_too_many_epochs_for_the_images(distiller):
    with pytest.raises(ValueError, match=r"fit: 900000000000 epochs of 3 batches: steps is"):
        fit(distiller, [torch.rand(2, 3, 32, 32)] * 3, epochs=9 * 10**11)
