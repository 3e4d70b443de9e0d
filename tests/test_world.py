"""The processes of a run as seen from one of them; `e2e/test_distributed.py` starts real ones."""

import threading
import time

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
