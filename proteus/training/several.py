"""fit_all: several students from one teacher pass."""

from collections.abc import Iterable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..settings import Parallel
from .batches import Resumable
from .folder import Resume, refuse_run
from .loop import History, fit, train
from .objective import Objective, check_objective
from .run import plan_run

# What may differ among the runs; the rest is said once.
_OWN = (
    "lr", "weight_decay", "undecayed", "layer_decay", "frozen", "warmup", "first_scale",
    "first_share", "clip_grad", "ema", "watch", "trackers", "details",
)  # fmt: skip


def fit_all(
    distillers: Mapping[str, Objective],
    data: Iterable[Any] | Resumable,
    *,
    each: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    device: str | torch.device = "auto",
    resume: Resume = False,
    overwrite: bool = False,
    preview: Tensor | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, History]:
    """Train several students of one teacher on the same batches, each as `fit` would alone.

    The teacher sees each batch once, whatever the number of students; each has its own loss,
    optimizer, moving average, log, checkpoints and export, in an ordinary run's folder `out/NAME`.
    The numbers are those of separate runs, bit for bit on the CPU.

    Args:
        distillers: Name -> what to train, in place. All with the same `Teacher` object.
        data: See `fit`; of a batch each objective takes as many items as it needs.
        each: Name -> options of `fit` of that run alone: lr, weight_decay, undecayed, layer_decay,
            frozen, warmup, first_scale, first_share, clip_grad, ema, watch, trackers, details.
        out: Folder of the runs' folders. None = write nothing.
        device: See `fit`.
        resume: All go on from the newest step that all have saved: what one had saved beyond it,
            when they were killed in between, comes again.
        overwrite: Replace the runs of these names in `out`.
        preview: See `fit`.
        progress: Show one bar, with the total of each run.
        options: The other ones of `fit`, of all runs.

    Returns:
        Name -> one row per step, see `fit`.

    Raises:
        TypeError: If `fit` has no such option.
        ValueError: As `fit`; if there are no two runs, names that are no names of folders, several
            teachers, one student twice, or FSDP is asked for.
        NonFiniteLossError: If a loss of one run is; all end there, and the last checkpoints stay.
        RunStopped: After SIGTERM or Ctrl-C, when the checkpoints of all are written.

    Examples:
        >>> import proteus
        >>> teacher = proteus.Teacher("vit_tiny_patch16_224", pretrained=False, image_size=32)
        >>> models = {"ti": "vit_tiny_patch16_224", "cnn": "resnet10t"}
        >>> students = {n: proteus.Student(name, image_size=32) for n, name in models.items()}
        >>> token = proteus.ProteusLoss(students["cnn"].embed_dim, 192, feature=0, patch=0)
        >>> distillers = {
        ...     "ti": proteus.Distiller(teacher, students["ti"]),
        ...     "cnn": proteus.Distiller(teacher, students["cnn"], token),
        ... }
        >>> batches = [torch.rand(4, 3, 32, 32)]
        >>> rows = fit_all(distillers, batches, steps=2, device="cpu", progress=False)
        >>> {name: len(log) for name, log in rows.items()}
        {'ti': 2, 'cnn': 2}
    """
    each, folder = each or {}, None if out is None else Path(out)
    _check_options(distillers, each, options)
    _check_models(distillers)
    refuse_sharding(options.get("parallel"))
    if folder is not None:
        refuse_run(folder, distillers)
    plans = [
        plan_run(
            distiller, data, None if folder is None else folder / name, name=name,
            **options, **each.get(name, {}),
        )
        for name, distiller in distillers.items()
    ]  # fmt: skip
    rows = train(
        plans, data, folder, device=device, resume=resume, overwrite=overwrite, preview=preview,
        progress=progress,
    )  # fmt: skip
    return dict(zip(distillers, rows, strict=True))


def refuse_sharding(parallel: Parallel | None) -> None:
    """Refuse FSDP for several students.

    Raises:
        ValueError: If it is asked for.
    """
    if parallel == "fsdp":
        raise ValueError(
            "fit_all: the teacher of several students cannot be sharded, because FSDP would wrap "
            "it once for each. Got parallel='fsdp'; use 'ddp', or train one student at a time."
        )


def _check_options(
    distillers: Mapping[str, Objective], each: Mapping[str, Mapping[str, Any]], options: Any
) -> None:
    known = signature(fit).parameters.keys() - {"distiller", "data"}
    if unknown := options.keys() - known:
        raise TypeError(
            f"fit_all: unknown options. Got {sorted(unknown)}; expected those of fit: "
            f"{', '.join(sorted(known))}."
        )
    if unknown := each.keys() - distillers.keys():
        raise ValueError(
            f"fit_all: `each` names no run. Got {sorted(unknown)}; expected some of "
            f"{', '.join(distillers)}."
        )
    for name, own in each.items():
        if unknown := own.keys() - set(_OWN):
            raise TypeError(
                f"fit_all: no options of one run alone. Got {sorted(unknown)} for {name!r}; "
                f"expected some of {', '.join(_OWN)}. Give the others once, for all runs."
            )
        if twice := own.keys() & options.keys():
            raise ValueError(
                f"fit_all: an option is given twice. Got {', '.join(sorted(twice))} for all runs "
                f"and for {name!r}. Give it to each run that needs it."
            )


def _check_models(distillers: Mapping[str, Objective]) -> None:
    if len(distillers) < 2:
        raise ValueError(f"fit_all: several runs are needed. Got {[*distillers]}; use fit.")
    for distiller in distillers.values():
        check_objective(distiller)
    if len({tuple(map(id, one.teachers.values())) for one in distillers.values()}) > 1:
        raise ValueError(
            f"fit_all: the runs have several teachers. Got "
            f"{', '.join(f'{n}: {one.teacher!r}' for n, one in distillers.items())}; expected one "
            f"Teacher object in all of them. Build it once, and pass it to each Distiller."
        )
    students = [one.student for one in distillers.values()]
    if len({id(student) for student in students}) < len(students):
        raise ValueError(
            f"fit_all: a student would be trained by several runs. Got the same object in some of "
            f"{', '.join(distillers)}. Build one for each."
        )
