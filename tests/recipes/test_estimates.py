"""Time, memory and the best batch."""

import pytest
import torch

import proteus
from proteus.recipes.accelerators import ACCELERATORS, AUTHORS, parse_machine
from proteus.recipes.counting import Count
from proteus.recipes.estimates import Batch, best_of, card_memory, saves
from proteus.settings import Machine
from proteus.training import fit


def test_the_largest_batch_that_fits_and_gains():
    batches = [Batch(8, 100, 1, True), Batch(16, 120, 2, True), Batch(32, 140, 4, False)]
    assert best_of(batches) == 16
    assert best_of([Batch(8, 100, 1, False)]) is None
    assert best_of([Batch(8, 100, 1, True), Batch(16, 104, 1, True)]) == 8


@pytest.mark.parametrize(("steps", "save_every"), [(4, 2), (5, 3), (12, 500), (10, 500), (3, 1)])
def test_checkpoints_are_as_many_as_a_run_makes(tmp_path, monkeypatch, steps, save_every):
    teacher = proteus.Teacher("vit_tiny_patch16_224", pretrained=False, image_size=32)
    objective = proteus.Distiller(teacher, proteus.Student("vit_tiny_patch16_224", image_size=32))
    made = []
    monkeypatch.setattr("proteus.training.checkpoint.save", lambda *args, **kw: made.append(args))
    fit(objective, [torch.rand(2, 3, 32, 32)], steps=steps, save_every=save_every,
        out=tmp_path / "run", progress=False, device="cpu")  # fmt: skip
    assert len(made) == saves(steps, Machine(save_every=save_every))


def test_a_card_holds_weights_gradients_moments_and_what_is_kept():
    counted = Count(1.0, 1.0, 1000.0, teacher_parameters=100, trained_parameters=10)
    assert card_memory(counted, half=False).at(3) == 400 + 160 + 3000
    assert card_memory(counted, half=True).at(3) == 400 + 160 + 1500


def test_the_authors_share_is_that_of_their_hours():
    assert AUTHORS.card in ACCELERATORS
    assert AUTHORS.of_peak == pytest.approx(53 / 312)


@pytest.mark.parametrize("text", ["H1000", "0xH100", "8x", "", "this", "8 H100"])
def test_an_unknown_machine_is_refused_with_the_known_ones(text):
    with pytest.raises(ValueError, match=r"plan: unknown machine.*expected `this`.*H100"):
        parse_machine(text)
