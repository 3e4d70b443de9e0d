"""Numbers of a run to TensorBoard, W&B, MLflow or trackio, beside its `log.jsonl`."""

import contextlib
import contextvars
import importlib
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..files import write_whole
from ..words import install, nearest


class Tracker(Protocol):
    """Where numbers go. Anything with these two methods can be one."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Note named numbers of a step."""

    def close(self) -> None:
        """Write what is pending and end."""


def open_tracker(text: str, folder: str | Path, settings: Mapping[str, Any]) -> Tracker:
    """Make a tracker by name. It opens its run with the first number it is given.

    So a training run that refuses to start leaves no trace. One that is resumed in the same folder
    goes on in the same run of the tracker: what is needed for that is kept in `folder/trackers`.
    Steps that are done again after a run was killed are there once.

    Args:
        text: `tensorboard`, `wandb`, `mlflow` or `trackio`; but for the first also `NAME:PROJECT`
            (MLflow calls it an experiment; without one it is "proteus").
        folder: The run's folder; its name is the run's. TensorBoard's files go to
            `trackers/tensorboard`, W&B's own copy to `trackers/wandb`; without
            `MLFLOW_TRACKING_URI` MLflow keeps a database, `trackers/mlflow.db`. trackio keeps all
            projects in one place of its own (`TRACKIO_DIR`), where `trackio show` finds them.
        settings: JSON-able facts about the run, kept with it.

    Returns:
        The tracker; close it.

    Raises:
        ValueError: If the name is unknown, its package is not installed, or a project would be
            ignored.

    Examples:
        >>> open_tracker("tensorbord", ".", {})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: trackers: unknown tracker. Got 'tensorbord'; expected one of tensorboard, ...
    """
    name, separator, project = text.partition(":")
    if name not in _OPEN:
        raise ValueError(
            f"trackers: unknown tracker. Got {text!r}; expected one of {', '.join(_OPEN)}. "
            f"{nearest(name, _OPEN)}"
        )
    if separator and (not project or name == "tensorboard"):
        raise ValueError(
            f"trackers: the project does not fit. Got {text!r}; expected wandb:PROJECT, "
            f"mlflow:EXPERIMENT or trackio:PROJECT (TensorBoard has none)."
        )
    packages, module, opener = _OPEN[name]
    place = Path(folder).resolve() / "trackers"
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"trackers: {name} is not installed. Got {error}. {install(*packages)}"
        ) from error
    return _Later(lambda step: opener(project or "proteus", place, settings, step))


class _Later:
    """A tracker that is opened at its first step."""

    def __init__(self, opener: Callable[[int], Tracker]) -> None:
        self.opener: Callable[[int], Tracker] | None = opener
        self.tracker: Tracker | None = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self.opener is not None:
            opener, self.opener = self.opener, None  # once: a server that is away is slow to say so
            self.tracker = opener(step)
        if self.tracker is not None:
            self.tracker.log(values, step)

    def close(self) -> None:
        if self.tracker is not None:
            self.tracker.close()


class _TensorBoard:
    def __init__(self, project: str, place: Path, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Of a run that was killed, what came after its last checkpoint is done again.
        self.writer: Any = SummaryWriter(str(place / "tensorboard"), purge_step=step)
        text = json.dumps(settings, indent=2, default=str)
        self.writer.add_text("settings", "".join(f"    {line}\n" for line in text.splitlines()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    """W&B itself leaves out steps that it has already."""

    def __init__(self, project: str, place: Path, settings: Mapping[str, Any], step: int) -> None:
        import wandb

        place.mkdir(parents=True, exist_ok=True)
        known = place / "wandb.id"
        if not known.exists():
            write_whole(known, uuid.uuid4().hex)
        self.run: Any = wandb.init(
            project=project,
            name=place.parent.name,
            id=known.read_text(),
            resume="allow",
            dir=str(place),
            config=dict(settings),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class _MLflow:
    def __init__(self, project: str, place: Path, settings: Mapping[str, Any], step: int) -> None:
        from mlflow import MlflowClient

        place.mkdir(parents=True, exist_ok=True)
        server = os.environ.get("MLFLOW_TRACKING_URI")
        self.client: Any = MlflowClient(server or f"sqlite:///{place / 'mlflow.db'}")
        known = place / "mlflow.id"
        if not known.exists():
            found = self.client.get_experiment_by_name(project)
            files = None if server else (place / "mlflow").as_uri()
            experiment = (
                found.experiment_id if found else self.client.create_experiment(project, files)
            )
            run = self.client.create_run(experiment, run_name=place.parent.name)
            write_whole(known, run.info.run_id)
        self.run_id = known.read_text()
        self.client.update_run(self.run_id, status="RUNNING")
        self.client.log_dict(self.run_id, dict(settings), "settings.json")
        # Steps that are done again have the same numbers, and MLflow would keep both.
        self.done = {
            name: max(one.step for one in self.client.get_metric_history(self.run_id, name))
            for name in self.client.get_run(self.run_id).data.metrics
        }

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, step)
            for name, value in values.items()
            if step > self.done.get(name, -1)
        ]
        self.client.log_batch(self.run_id, metrics=metrics)

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


class _Trackio:
    """On this machine, unless the user's environment names a Space or a server."""

    def __init__(self, project: str, place: Path, settings: Mapping[str, Any], step: int) -> None:
        import trackio

        place.mkdir(parents=True, exist_ok=True)
        self.known = place / "trackio.json"
        # It tells runs apart by their names alone, and keeps both where a step is done again.
        self.name, self.done = f"{place.parent.name}-{uuid.uuid4().hex[:8]}", -1
        if self.known.exists():
            self.name, self.done = json.loads(self.known.read_text())
        # In a context of its own: it ends the run that is open in the same one, and several
        # students have one each.
        with contextlib.redirect_stdout(sys.stderr):  # it greets
            self.run: Any = contextvars.Context().run(
                trackio.init, project, self.name, resume="allow", config=dict(settings),
                embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step > self.done:
            self.run.log(dict(values), step=step)
            self.done = step
            write_whole(self.known, json.dumps([self.name, step]))

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.run.finish()


# Name -> (extra of the package, what is imported of it, how to open it).
_Opener = Callable[[str, Path, Mapping[str, Any], int], Tracker]
_OPEN: dict[str, tuple[tuple[str, ...], str, _Opener]] = {
    "tensorboard": (("tensorboard",), "torch.utils.tensorboard", _TensorBoard),
    "wandb": (("wandb",), "wandb", _WeightsAndBiases),
    "trackio": (("trackio",), "trackio", _Trackio),
    "mlflow": (("mlflow-skinny", "sqlalchemy", "alembic", "sqlparse"), "mlflow", _MLflow),
}
