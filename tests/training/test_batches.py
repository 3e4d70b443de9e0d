"""Batches of any data, from any step on: what shuffles and augments by itself comes back too."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
)

from proteus.training import World, fit
from proteus.training.batches import batches, check_data

QUIET = {"device": "cpu", "progress": False}


class Augmented(Dataset):
    """Every image shows its number, and what each global generator said."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        image = torch.full((3, 32, 32), index / 10)
        image[0, 0, 0] = random.random()
        image[0, 0, 1] = float(np.random.rand())
        image[0, 0, 2] = torch.rand(())
        return image


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.rand(3, 32, 32)


def listed(data, start, stop, seed=3):
    return [images for (images,) in batches(data, start, stop, inputs=1, seed=seed)]


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)
    )


LOADERS = {
    "this process": {},
    "two workers": {"num_workers": 2},
    "two workers that stay": {"num_workers": 2, "persistent_workers": True},
}


@pytest.mark.parametrize("workers", LOADERS)
def test_a_user_s_loader_goes_on_exactly_in_the_second_pass_too(workers):
    def loader():
        return DataLoader(Augmented(), batch_size=4, shuffle=True, **LOADERS[workers])

    whole = listed(loader(), 0, 8)
    random.seed(), np.random.seed(), torch.seed()  # another process knows nothing of the first
    assert equal(listed(loader(), 2, 8), whole[2:])
    assert equal(listed(loader(), 5, 8), whole[5:])
    orders = [[image[1, 0, 0].item() for batch in p for image in batch] for p in
              (whole[:3], whole[3:6])]  # fmt: skip
    assert sorted(orders[0]) == sorted(orders[1]) == pytest.approx([n / 10 for n in range(10)])
    assert orders[0] != orders[1]
    draws = torch.cat(whole)[:, 0, 0, :3]
    assert all(len(column.unique()) == len(column) for column in draws.T)


def test_a_stream_without_length_goes_on_exactly():
    def loader():
        return DataLoader(Endless(), batch_size=2)

    assert equal(listed(loader(), 3, 6), listed(loader(), 0, 6)[3:])


def test_another_seed_is_another_order():
    loader = DataLoader(Augmented(), batch_size=4, shuffle=True)
    assert not equal(listed(loader, 0, 3, seed=1), listed(loader, 0, 3, seed=2))


def test_what_the_step_draws_does_not_reach_the_data():
    loader = DataLoader(Augmented(), batch_size=4, shuffle=True)
    expected, got = listed(loader, 0, 6), []
    for (images,) in batches(loader, 0, 6, inputs=1, seed=3):
        random.random(), np.random.rand(7), torch.rand(5)
        got.append(images)
    assert equal(got, expected)


def test_a_distributed_sampler_shuffles_every_pass_anew():
    def loader(rank):
        sampler = DistributedSampler(Augmented(), num_replicas=2, rank=rank, shuffle=True)
        return DataLoader(Augmented(), batch_size=5, sampler=sampler)

    shares = [listed(loader(rank), 0, 2) for rank in (0, 1)]
    numbers = [[batch[:, 1, 0, 0].tolist() for batch in share] for share in shares]
    for number in (0, 1):  # each pass holds every image once, among both processes
        both = numbers[0][number] + numbers[1][number]
        assert sorted(both) == pytest.approx([n / 10 for n in range(10)])
    assert numbers[0][0] != numbers[0][1]


def test_data_that_can_start_anywhere_are_asked_for_the_rest_only():
    class Counting:
        def __init__(self):
            self.started = []

        def batches(self, start):
            self.started.append(start)
            return (torch.full((1,), n) for n in itertools.count(start))

    data = Counting()
    assert [int(batch) for batch in listed(data, 5, 8)] == [5, 6, 7]
    assert data.started == [5]


def test_what_else_a_batch_holds_is_left_out():
    data = [(torch.zeros(1), "name", 3)]
    assert [len(batch) for batch in batches(data, 0, 2, inputs=1, seed=0)] == [1, 1]
    pairs = [(torch.zeros(1), torch.ones(1), "name")]
    assert [len(batch) for batch in batches(pairs, 0, 1, inputs=2, seed=0)] == [2]
    with pytest.raises(ValueError, match=r"batches of images and labels\. Got Tensor, str"):
        next(batches(data, 0, 1, inputs=2, seed=0))


@pytest.mark.parametrize("workers", ["this process", "two workers"])
def test_a_run_on_a_user_s_loader_resumes_bit_for_bit(distiller, tmp_path, workers, monkeypatch):
    class DiesError(Exception):
        pass

    monkeypatch.setattr("proteus.training.loop.write_results", lambda *_: None)

    def loader():
        return DataLoader(Augmented(), batch_size=4, shuffle=True, **LOADERS[workers])

    def dies(step):
        if step == 5:
            raise DiesError
        return 1e-3

    def lives(step):
        return 1e-3

    runs = [copy.deepcopy(distiller) for _ in range(3)]
    options = {"steps": 7, "save_every": 2, **QUIET}
    expected = runs[0].fit(loader(), lr=lives, **options)
    with pytest.raises(DiesError):
        fit(runs[1], loader(), lr=dies, out=tmp_path, **options)
    rows = fit(runs[2], loader(), lr=lives, out=tmp_path, resume=True, **options)
    assert rows == expected
    for ours, theirs in zip(runs[2].parameters(), runs[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_loader_that_shows_all_processes_the_same_images_is_refused():
    second = World(torch.device("cpu"), rank=1, size=2)
    images = TensorDataset(torch.rand(8, 3, 4, 4))
    for plain in (DataLoader(images, batch_size=2), DataLoader(images, batch_size=2, shuffle=True)):
        check_data(plain, World(torch.device("cpu")), 1, 1)
        with pytest.raises(ValueError, match=r"all 2 processes.*DistributedSampler"):
            check_data(plain, second, 1, 1)
    sampler = DistributedSampler(images, num_replicas=2, rank=1)
    check_data(DataLoader(images, batch_size=2, sampler=sampler), second, 1, 1)


def test_a_last_batch_that_cannot_be_divided_is_refused_before_the_first(distiller):
    images = TensorDataset(torch.rand(7, 3, 32, 32))
    options = {"accumulate": 2, "device": "cpu", "progress": False}
    with pytest.raises(ValueError, match=r"Got 3 images and accumulate=2.*drop_last=True"):
        distiller.fit(DataLoader(images, batch_size=4), steps=2, **options)
    assert len(distiller.fit(DataLoader(images, batch_size=4), steps=1, **options)) == 1
    whole = DataLoader(images, batch_size=4, drop_last=True)
    assert len(distiller.fit(whole, steps=2, **options)) == 2
