import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from proteus.training import trackers
from proteus.training.trackers import open_tracker

ROWS = [({"total": 2.0, "lr": 0.1}, 0), ({"total": 1.5, "lr": 0.2}, 7), ({"total": 1.0}, 9)]
HISTORY = [(0, 2.0), (7, 1.5), (9, 1.0)]
SETTINGS = {"teacher": "dinov2_vitb14", "loss": {"patch": 1.0}}


def log_in_two_sittings(name, folder):
    """As a run that was killed at step 8 and went on from its checkpoint, at step 7."""
    for rows in (ROWS[:2], ROWS[1:]):
        tracker = open_tracker(name, folder, SETTINGS)
        for values, step in rows:
            tracker.log(values, step)
        tracker.close()


def test_tensorboard_has_every_number_and_the_settings(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_in_two_sittings("tensorboard", tmp_path / "first")
    events = EventAccumulator(str(tmp_path / "first" / "trackers" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("total")] == HISTORY
    assert len(events.Scalars("lr")) == 2
    (tag,) = events.Tags()["tensors"]
    text = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    assert json.loads(text) == SETTINGS


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own use of SQLAlchemy
def test_mlflow_goes_on_in_one_run_with_every_number(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log_in_two_sittings("mlflow:study", tmp_path / "first")
    place = tmp_path / "first" / "trackers"
    client = mlflow.MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("study")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "first"
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "total")
    assert [(m.step, m.value) for m in history] == HISTORY
    (settings,) = place.rglob("settings.json")
    assert json.loads(settings.read_text()) == SETTINGS


def test_wandb_goes_on_in_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_in_two_sittings("wandb:study", tmp_path / "first")
    place = tmp_path / "first" / "trackers"
    identity = (place / "wandb.id").read_text()
    files = list(place.rglob(f"*{identity}.wandb"))
    assert files
    content = b"".join(file.read_bytes() for file in files)
    assert b"dinov2_vitb14" in content
    assert b"study" in content


def kept_by_trackio(folder, project):
    (database,) = folder.glob(f"{project}*.db")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        query = "select run_name, step, metrics from metrics order by run_name, step"
        rows = connection.execute(query).fetchall()
        configs = connection.execute("select config from configs").fetchall()
    found = {}
    for name, step, metrics in rows:
        found.setdefault(name, []).append((step, json.loads(metrics)["total"]))
    return found, [json.loads(one) for (one,) in configs]


def test_trackio_goes_on_in_one_run_on_this_machine(tmp_path):
    """In a process of its own, because trackio reads its folder when it is imported."""
    pytest.importorskip("trackio")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import socket\n"
        "def refuse(self, address): raise AssertionError(address)\n"
        "socket.socket.connect = refuse\n"
        "from pathlib import Path; from test_trackers import log_in_two_sittings\n"
        "log_in_two_sittings('trackio:study', Path(sys.argv[2]))\n"
        "from test_trackers import *\n"
        "both = [open_tracker('trackio:pair', Path(sys.argv[2], n), SETTINGS) for n in 'ab']\n"
        "[tracker.log(*row) for row in ROWS for tracker in both]\n"
        "[tracker.close() for tracker in both]"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TRACKIO_")}
    environment = {**clean, "TRACKIO_DIR": str(tmp_path / "trackio")}
    for run in ("a/first", "b/first"):  # two runs whose folders have one name
        done = subprocess.run(
            [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / run)],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        assert done.stdout == ""
    found, configs = kept_by_trackio(tmp_path / "trackio", "study")
    assert list(found.values()) == [HISTORY, HISTORY]
    assert all(name.startswith("first-") for name in found)
    assert [config["teacher"] for config in configs] == ["dinov2_vitb14"] * 2
    found, _ = kept_by_trackio(tmp_path / "trackio", "pair")
    assert list(found.values()) == [HISTORY] * 4  # of two at the same time, twice


@pytest.mark.parametrize(("name", "packages"), [("tensorboard", "tensorboard"), ("wandb", "wandb"),
    ("mlflow", "mlflow-skinny sqlalchemy alembic sqlparse"), ("trackio", "trackio")])  # fmt: skip
def test_packages_that_are_missing_are_named_one_by_one(tmp_path, monkeypatch, name, packages):
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"pip install {packages}$"):
        open_tracker(name, tmp_path, {})


@pytest.mark.parametrize("text", ["tensorboard:x", "wandb:", "mlflow:", "trackio:", "", "comet"])
def test_what_no_tracker_is_called_is_an_error(tmp_path, text):
    with pytest.raises(ValueError, match="trackers: .*Got " + repr(text)):
        open_tracker(text, tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_trackers_are_imported_when_they_are_opened():
    names = "{'tensorboard', 'wandb', 'mlflow', 'trackio'}"
    code = f"import sys, proteus.training.trackers; print({names} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_run_that_never_starts_leaves_no_trace(tmp_path, name):
    pytest.importorskip(name)
    open_tracker(name, tmp_path / "first", SETTINGS).close()
    assert not list(tmp_path.iterdir())


def test_a_run_that_replaces_another_keeps_its_own_numbers(tmp_path, distiller):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for rate in (0.25, 0.5):
        tracker = open_tracker("tensorboard", tmp_path, {})  # before the folder is emptied
        distiller.fit(
            [torch.rand(2, 3, 32, 32)], steps=1, lr=rate, warmup=0, out=tmp_path, overwrite=True,
            trackers=[tracker], device="cpu", progress=False,
        )  # fmt: skip
    events = EventAccumulator(str(tmp_path / "trackers" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("lr")] == [(0, 0.5)]


def test_a_server_that_is_away_is_asked_once(tmp_path, monkeypatch):
    asked = []

    def fail(*arguments):
        asked.append(arguments)
        raise ConnectionError("nobody there")

    monkeypatch.setitem(trackers._OPEN, "tensorboard", ("log", "json", fail))
    tracker = open_tracker("tensorboard", tmp_path, SETTINGS)
    with pytest.raises(ConnectionError):
        tracker.log({"total": 1.0}, 0)
    tracker.log({"total": 1.0}, 1)
    tracker.close()
    assert len(asked) == 1
