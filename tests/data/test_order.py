import itertools

import pytest
import torch

from proteus.data import Repeated, Shuffled


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_an_epoch_without_overlap(world_size):
    order = Shuffled(100, seed=3)
    parts = [
        order.indices(2, batch_size=24 // world_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len(torch.cat(parts).unique()) == 96
    # The global batch is the same whatever the number of processes.
    batches = torch.stack(parts, 1)
    assert torch.equal(batches.flatten(), order.indices(2, batch_size=24))


def test_epochs_and_seeds_differ_and_repeat_themselves():
    for order in (Shuffled, Repeated):
        draws = [
            tuple(order(300, seed).indices(epoch, batch_size=8).tolist())
            for seed, epoch in itertools.product((0, 1), (0, 1))
        ]
        assert len(set(draws)) == 4
        assert draws[3] == tuple(order(300, 1).indices(1, batch_size=8).tolist())


@pytest.mark.parametrize("count", [5, 255, 256, 700])
def test_repeated_images_stand_together_and_an_epoch_is_as_long_as_the_set(count):
    indices = Repeated(count).indices(0, batch_size=1).tolist()
    assert len(indices) == (count // 256 * 256 or count)
    runs = [len(list(group)) for _, group in itertools.groupby(indices)]
    assert set(runs[:-1]) <= {3}


def test_lengths_are_what_comes():
    for order in (Shuffled(103), Repeated(103), Shuffled(700), Repeated(700, repeats=2)):
        for world_size in (1, 2, 4):
            options = {"batch_size": 5, "world_size": world_size}
            assert len(order.indices(1, **options)) == order.length(**options)
