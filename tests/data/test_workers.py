"""Any loader whose processes may die, and end with what they serve."""

import multiprocessing
import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from proteus.data.workers import load
from proteus.evaluate import extract_features


class Deadly(Dataset):
    """Images, one of which ends the process that reads it."""

    def __init__(self, number=0, how=lambda: None):
        self.number, self.how = number, how

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == self.number and multiprocessing.parent_process() is not None:
            self.how()
        return torch.zeros(3, 16, 16, dtype=torch.uint8), 0


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("how", "words"), [(kill, "SIGKILL"), (lambda: os._exit(5), "exit status 5")]
)
def test_a_death_is_an_error_where_the_next_batch_is_asked_for(how, words):
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(ChildProcessError, match=rf"a worker process died\. Got {words}"):
        list(load(DataLoader(Deadly(11, how), 4, num_workers=2)))
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGCHLD) is before


def test_processes_end_with_the_iterator_though_a_traceback_holds_their_batches():
    batches = load(DataLoader(Deadly(), 4, num_workers=2))
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()


def test_errors_of_the_dataset_stay_what_they_are():
    def fail():
        raise OSError("no such disk")

    with pytest.raises(OSError, match="no such disk") as failed:
        list(load(DataLoader(Deadly(3, fail), 4, num_workers=1)))
    assert not isinstance(failed.value, ChildProcessError)


def test_evaluation_says_the_same():
    model = torch.nn.Conv2d(3, 6, 4, stride=4)
    with pytest.raises(ChildProcessError, match=r"died\. Got SIGKILL"):
        extract_features(model, Deadly(11, kill), image_size=16, batch_size=4, workers=2)
