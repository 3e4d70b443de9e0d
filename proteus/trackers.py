"""Numbers of a run to TensorBoard, Weights & Biases or MLflow, beside its `log.jsonl`."""

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Where numbers go. Anything with these two methods can be one."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Note named numbers of a step."""

    def close(self) -> None:
        """Write what is pending and end."""


def open_tracker(text: str, folder: str | Path, settings: Mapping[str, Any]) -> Tracker:
    """Open a tracker by name.

    A run that is resumed in the same folder goes on in the same run of the tracker: what is needed
    for that is kept in `folder/trackers`.

    Args:
        text: `tensorboard`, `wandb` or `mlflow`; the last two also `NAME:PROJECT` (MLflow calls it
            an experiment; without one it is "proteus").
        folder: The run's folder; its name is the run's. TensorBoard's files go to
            `trackers/tensorboard`, W&B's own copy to `trackers/wandb`; without
            `MLFLOW_TRACKING_URI` MLflow keeps a database, `trackers/mlflow.db`.
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
            f"trackers: unknown tracker. Got {text!r}; expected one of {', '.join(_OPEN)}."
        )
    if separator and (not project or name == "tensorboard"):
        raise ValueError(
            f"trackers: the project does not fit. Got {text!r}; expected wandb:PROJECT or "
            f"mlflow:EXPERIMENT (TensorBoard has none)."
        )
    extra, opener = _OPEN[name]
    place = Path(folder).resolve() / "trackers"
    place.mkdir(parents=True, exist_ok=True)
    try:
        return opener(project or "proteus", place, settings)
    except ImportError as error:
        raise ValueError(
            f"trackers: {name} is not installed. Got {error}. "
            f"Run: pip install 'proteus-distill[{extra}]'"
        ) from error


class _TensorBoard:
    def __init__(self, project: str, place: Path, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(place / "tensorboard"))
        text = json.dumps(settings, indent=2, default=str)
        self.writer.add_text("settings", "".join(f"    {line}\n" for line in text.splitlines()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    def __init__(self, project: str, place: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        known = place / "wandb.id"
        if not known.exists():
            known.write_text(uuid.uuid4().hex)
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
    def __init__(self, project: str, place: Path, settings: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

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
            known.write_text(run.info.run_id)
        self.run_id = known.read_text()
        self.client.update_run(self.run_id, status="RUNNING")
        self.client.log_dict(self.run_id, dict(settings), "settings.json")

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


# Name -> (extra of the package, how to open it).
_OPEN: dict[str, tuple[str, Callable[[str, Path, Mapping[str, Any]], Tracker]]] = {
    "tensorboard": ("log", _TensorBoard),
    "wandb": ("wandb", _WeightsAndBiases),
    "mlflow": ("mlflow", _MLflow),
}
