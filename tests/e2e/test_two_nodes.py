"""Two nodes of torchrun that meet on loopback, with shards that are streamed."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_distributed import SCRIPT, assert_same_weights, environment, log_of, weights_of
from training_jobs import run_job

from proteus.training import World

pytestmark = pytest.mark.slow


def write_shards(folder, count=6, images=5):
    """Shards of noise, as JPEG."""
    folder.mkdir()
    for shard in range(count):
        with tarfile.open(folder / f"s-{shard:03}.tar", "w") as archive:
            for n in range(images):
                pixels = np.random.default_rng(100 * shard + n).integers(0, 256, (8, 8, 3), "uint8")
                data = io.BytesIO()
                Image.fromarray(pixels).resize((40, 36)).save(data, "JPEG")
                member = tarfile.TarInfo(f"{n}.jpg")
                member.size = data.tell()
                archive.addfile(member, io.BytesIO(data.getvalue()))
    return f"wds/{folder}"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def node(folder, port, *, host, jobs, restarts=0):
    """One of two nodes; the one with `host` holds the rendezvous."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
        "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test",
        f"--rdzv-conf=is_host={int(host)},join_timeout=120", f"--max-restarts={restarts}",
        "--local-addr=127.0.0.1", str(SCRIPT), str(folder / "jobs.json"),
    ]  # fmt: skip
    # Without it torch's agent does not tell a node that came later where the others meet.
    alone = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(
        command,
        env=environment() | alone,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(*nodes, seconds=200):
    """What each node wrote to stderr; all are ended, whatever happens."""
    try:
        return [process.communicate(timeout=seconds)[1] for process in nodes]
    finally:
        for process in nodes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes_of(process):
    """The processes that an agent has started."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in listed.split()]


@pytest.fixture
def job(tmp_path):
    options = {"lr": 3e-3, "save_every": 2, "clip_grad": 1.0, "resume": "auto"}
    data = write_shards(tmp_path / "shards")
    return {
        "name": "run",
        "folder": data,
        "out": str(tmp_path / "run"),
        "options": options,
        "uncaught": True,
    }


def test_two_nodes_train_as_one_process_does(tmp_path, job):
    port = free_port()
    nodes = [node(tmp_path, port, host=host, jobs=[job]) for host in (True, False)]
    said = finish(*nodes)
    assert [process.returncode for process in nodes] == [0, 0], said
    alone = run_job(job | {"out": str(tmp_path / "alone")}, World(torch.device("cpu")))
    theirs = [row["total"] for row in log_of(tmp_path / "run")]
    assert theirs == pytest.approx([row["total"] for row in alone["rows"]], rel=1e-5)
    assert_same_weights(weights_of(tmp_path / "run"), weights_of(tmp_path / "alone"))


def test_a_node_that_dies_may_come_back_and_the_run_goes_on(tmp_path, job):
    port, out = free_port(), tmp_path / "run"
    job["options"] |= {"steps": 200, "save_every": 10}
    first = node(tmp_path, port, host=True, jobs=[job], restarts=3)
    second = node(tmp_path, port, host=False, jobs=[job], restarts=3)
    wait_for((out / "checkpoint/step-00000010/state.json").exists)
    # The whole node: its agent, and what that started in sessions of their own.
    for pid in (*processes_of(second), second.pid):
        os.kill(pid, signal.SIGKILL)
    second.communicate()
    third = node(tmp_path, port, host=False, jobs=[job], restarts=3)
    said = finish(first, third)
    assert [first.returncode, third.returncode] == [0, 0], said
    assert "Another process failed first, and gave no reason" in said[0]
    assert [row["step"] for row in log_of(out)] == list(range(200))
    alone = run_job(job | {"out": str(tmp_path / "alone")}, World(torch.device("cpu")))
    ours, whole = ([row["total"] for row in rows] for rows in (log_of(out), alone["rows"]))
    assert ours == pytest.approx(whole, rel=2e-3)
