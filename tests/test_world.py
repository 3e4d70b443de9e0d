"""The processes of a run as seen from one of them; `e2e/test_distributed.py` starts real ones."""

import datetime
import threading
import time

import pytest
import torch

from proteus import world


class SlowStore:
    """A store that is still answering when the work is done."""

    def __init__(self):
        self.asked, self.answered = threading.Event(), threading.Event()

    def check(self, keys):
        self.asked.set()
        time.sleep(0.2)
        self.answered.set()
        return False


def test_nothing_asks_the_store_once_the_work_is_done(monkeypatch):
    # Python that ends while a thread is inside torch's store dies of SIGABRT.
    store = SlowStore()
    monkeypatch.setattr(world._Board, "store", store)
    with world.World(torch.device("cpu"), 0, 2).as_one():
        assert store.asked.wait(10)
    assert store.answered.is_set()


def test_each_start_has_a_name_of_its_own_whatever_the_dead_ones_left():
    store, names = torch.distributed.HashStore(), []

    def start(rank):
        names.append(world._agree_on_name(store, rank, 3))

    store.set("process-1", "dead")
    store.set("start-for-dead", "long ago")
    for _ in range(2):  # the second finds what the first left
        threads = [threading.Thread(target=start, args=(rank,)) for rank in (2, 0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert len(set(names[:3])) == len(set(names[3:])) == 1
    assert len(set(names)) == 2
    assert "long ago" not in names


def test_processes_that_do_not_come_are_named():
    store = torch.distributed.HashStore()
    store.set_timeout(datetime.timedelta(seconds=0.1))
    store.set("process-2", "dead")
    with pytest.raises(torch.distributed.DistStoreError, match=r"processes \[1, 2\] of 3 did not"):
        world._agree_on_name(store, 0, 3)
