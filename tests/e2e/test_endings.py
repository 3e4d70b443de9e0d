"""Whatever goes wrong, and wherever: the process ends, and so do those that load its images.

One process imports everything and forks itself for each case; the copy goes on as a script would,
and leaves through the end of the script, with all that Python does there.
"""

import json
import subprocess
import sys

import pytest
from PIL import Image

SCRIPT = r'''
import json, os, signal, sys, threading, time
import torch
from torch.utils.data import DataLoader, Dataset
import proteus
from proteus.data import ImageLoader, open_source
from proteus.training import fit, RunStopped
import matplotlib.pyplot, timm, torch._dynamo, torch.distributed.checkpoint.state_dict

folder, names = sys.argv[1], sys.argv[2:]
torch.set_num_threads(1)
teacher = proteus.Teacher("demo-teacher")
distiller = proteus.Distiller(teacher, proteus.Student("demo-student", image_size=64))


class Foreign(Dataset):
    """Somebody's own images; one of them may hang, as a file system does."""

    def __init__(self, hangs=False):
        self.hangs = hangs

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if self.hangs and index >= 32:
            time.sleep(600)
        return torch.rand(3, 64, 64)


def images(workers, trouble=None):
    source = open_source(folder + "/images")
    read = source.read
    def troubled(index):
        if threading.current_thread() is threading.main_thread() and os.getpid() != main:
            trouble()
        return read(index)
    if trouble is not None:
        source.read = troubled
    return ImageLoader(source, batch_size=4, image_size=64, workers=workers)


def raising(step):
    if step == 2:
        raise KeyError("my own schedule")
    return 1e-3


def killing_one(step):
    import multiprocessing
    if step == 2:
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    return 1e-3


def die():
    os._exit(3)


def fail():
    raise KeyError("a bug in a decoder")


def interrupt_twice(step):
    for _ in range(2 if step == 2 else 0):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.2)  # at once, a launcher hands on what the terminal sent as well
    return 1e-3


def interrupt_all(step):
    if step == 2:
        os.killpg(0, signal.SIGINT)  # as a terminal does
    return 1e-3


def terminate_all(step):
    if step == 2:
        os.killpg(0, signal.SIGTERM)
    return 1e-3


def kill_self(step):
    if step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1e-3


def slow_loader(**more):
    return DataLoader(Foreign(), 4, num_workers=2, **more)


CASES = {
    "raises": lambda: (images(0), raising),
    "raises-1": lambda: (images(1), raising),
    "raises-2": lambda: (images(2), raising),
    "raises-foreign": lambda: (slow_loader(), raising),
    "raises-foreign-persistent": lambda: (slow_loader(persistent_workers=True), raising),
    "raises-foreign-hanging": lambda: (DataLoader(Foreign(True), 4, num_workers=2), raising),
    "raises-in-worker": lambda: (images(2, fail), 1e-3),
    "worker-dies": lambda: (images(2, die), 1e-3),
    "worker-is-killed": lambda: (images(2), killing_one),
    "exits": lambda: (images(2), lambda step: sys.exit(7) if step == 2 else 1e-3),
    "interrupted": lambda: (images(2), interrupt_all),
    "interrupted-twice": lambda: (images(2), interrupt_twice),
    "terminated": lambda: (images(2), terminate_all),
    "killed": lambda: (images(2), kill_self),
    "notebook": lambda: (images(2), raising),
}


def parent_of(names):
    """Fork for each name, all at once; in the copy, its name."""
    global main
    pids = {}
    for name in names:
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            main = os.getpid()
            error = os.open(f"{folder}/{name}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(error, 2)
            os.dup2(error, 1)
            return name
        pids[name] = pid
    for name, pid in pids.items():
        print(json.dumps([name, *wait(pid)]), flush=True)
    return None


def wait(pid):
    """Exit code, and whether any process of its group is left ten seconds later."""
    code, deadline = "hangs", time.monotonic() + 150
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.02)
    for _ in range(500):
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return code, False
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    return code, True


name = parent_of(names)
if name is not None:
    data, lr = CASES[name]()
    options = dict(steps=30, lr=lr, device="cpu", progress=False, out=f"{folder}/{name}")
    if name == "notebook":  # which keeps the last traceback, and goes on
        import multiprocessing
        try:
            distiller.fit(data, **options)
        except KeyError as error:
            sys.last_value = error
        print("left:", len(multiprocessing.active_children()))
    else:
        distiller.fit(data, **options)
'''

# Name -> exit code, and words of what is said.
RIGHT = {
    "raises": (1, "KeyError: 'my own schedule'"),
    "raises-1": (1, "KeyError: 'my own schedule'"),
    "raises-2": (1, "KeyError: 'my own schedule'"),
    "raises-foreign": (1, "KeyError: 'my own schedule'"),
    "raises-foreign-persistent": (1, "KeyError: 'my own schedule'"),
    "raises-foreign-hanging": (1, "KeyError: 'my own schedule'"),
    "raises-in-worker": (1, "KeyError: 'a bug in a decoder'"),
    "worker-dies": (1, "a worker process died while it was at"),
    "worker-is-killed": (1, "Got SIGKILL. It was probably killed for its memory"),
    "exits": (7, ""),
    "interrupted": (1, "RunStopped: Stopped by Ctrl-C after 3 of 30 steps: saved in"),
    "interrupted-twice": (-2, "KeyboardInterrupt"),
    "terminated": (1, "RunStopped: Stopped by SIGTERM after 3 of 30 steps: saved in"),
    "killed": (-9, ""),
    "notebook": (0, "left: 0"),
}


QUICK = ["raises-2", "raises-foreign-persistent", "worker-is-killed", "terminated", "notebook"]


def run_cases(folder, names):
    """Each case's exit code, whether a process of it was left, and what it said."""
    (folder / "images").mkdir()
    for n in range(16):
        Image.effect_noise((80, 60), 60).convert("RGB").save(folder / f"images/{n:02}.jpg")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), *names],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (*rest, (folder / f"{name}.err").read_text()) for name, *rest in rows}


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    return run_cases(tmp_path_factory.mktemp("endings"), QUICK)


@pytest.fixture(scope="module")
def more_endings(tmp_path_factory):
    return run_cases(tmp_path_factory.mktemp("more"), sorted(set(RIGHT) - set(QUICK)))


def check(name, code, left, said):
    expected, words = RIGHT[name]
    assert code == expected, said
    assert words in said
    assert not left


@pytest.mark.parametrize("name", QUICK)
def test_it_ends_and_leaves_no_process(endings, name):
    check(name, *endings[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(RIGHT) - set(QUICK)))
def test_it_ends_wherever_else_it_fails(more_endings, name):
    check(name, *more_endings[name])
