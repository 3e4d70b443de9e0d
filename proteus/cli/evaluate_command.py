"""`proteus evaluate`."""

import argparse
import datetime
import logging
from pathlib import Path
from typing import Any

from .parser import Commands, add_command, add_json, check_whole, print_json, whole

_logger = logging.getLogger(__name__)
_SUITES = "knn,linear,finegrained,segmentation,depth"
_PRESETS = ("quick", "paper", "official", "dinov2")


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    evaluate = add_command(
        commands,
        "evaluate",
        "Measure a model by the paper's protocols: all sets, one command, tables and pictures.",
        "proteus evaluate runs/first --data ../shared/data --image-size 64 --out runs/eval\n"
        "  proteus evaluate dinov2_vits14 --suite finegrained --data flowers=SETS --out runs/a\n"
        "  torchrun --nproc-per-node 2 -m proteus evaluate runs/first --data IMAGES --out runs/b",
    )
    add = evaluate.add_argument
    add("model", help="a run or export folder, a released name, a teacher, a timm name, hf-hub:…")
    add(
        "--suite",
        default=_SUITES,
        help="some of knn,linear,finegrained,segmentation,depth,segmentation-finetune,"
        "depth-finetune,robustness,agreement (default: the first five, as far as there are sets "
        "for them)",
    )
    add("--data", required=True, nargs="+", help="folder of packs, FOLDER/NAME, or NAME=PATH")
    add("--out", type=Path, required=True, help="folder for results and pictures")
    pixels = "pixels (default: the model's own; paper: 224, and 518 or 512 for maps)"
    add("--image-size", type=whole, help=pixels)
    add("--checkpoint", type=Path, help="local .safetensors or .pth with the model's weights")
    add("--random-weights", action="store_true", help="no weights: for timing, and as a baseline")
    add("--teacher", help="for agreement: a published name, a timm name, a folder")
    length = evaluate.add_mutually_exclusive_group()
    length.add_argument(
        "--preset",
        choices=_PRESETS,
        default="quick",
        help="quick; as the paper's words say; as the authors' code does; the paper with DINOv2's "
        "12,500 steps of the linear probe (default quick; the others take hours to days)",
    )
    paper = {"action": "store_const", "dest": "preset", "const": "paper"}
    length.add_argument("--paper", **paper, help="--preset paper")  # type: ignore[arg-type]
    best = "head of the linear probe: best on test, as in the paper, or on held-out training images"
    add("--select", choices=["test", "holdout"], default="test", help=f"{best} (default test)")
    add("--sweep", choices=["paper", "official"], help="of logistic regression (default: paper)")
    add("--limit", type=whole, metavar="N", help="at most N images of each split")
    add("--cache", type=Path, help="folder for features (default: OUT/cache)")
    add("--batch-size", type=whole, default=64, help="images in a forward pass (default 64)")
    add("--workers", type=whole, help="processes that decode images (default: by set's size)")
    add("--seed", type=whole, default=0)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, … (default auto)")
    add_json(evaluate)
    evaluate.set_defaults(run=_run_evaluate)


def _run_evaluate(arguments: argparse.Namespace) -> None:
    check_whole(arguments, {"image_size": 1, "limit": 1, "batch_size": 1, "workers": 0, "seed": 0})
    from ..evaluation.suite.find_sets import find_sets
    from ..evaluation.suite.presets import preset
    from ..evaluation.suite.runner import SuiteRun, check_out, plan_jobs

    sets = find_sets(arguments.data)  # first of all: a wrong path must not cost a download
    suites = _suites(arguments.suite, {one.task for one in sets})
    plan_jobs(suites, sets, has_teacher=arguments.teacher is not None)
    check_out(arguments.out)

    import torch

    from ..evaluation.cache import FeatureCache
    from ..world import join, leave

    # A process may wait long for another that trains a head.
    world = join(arguments.device, patience=datetime.timedelta(days=1))
    device = world.device
    torch.manual_seed(arguments.seed)
    size, checkpoint = arguments.image_size, arguments.checkpoint
    model = _extractor(arguments.model, size, device, checkpoint, arguments.random_weights)
    sweep = {"sweep": arguments.sweep} if arguments.sweep else {}
    settings = preset(
        arguments.preset, model, size,
        limit=arguments.limit, select=arguments.select, seed=arguments.seed, **sweep,
    )  # fmt: skip
    teacher = arguments.teacher and _extractor(arguments.teacher, settings.image_size, device)
    run = SuiteRun(
        model=model,
        name=arguments.model,
        out=arguments.out,
        settings=settings,
        cache=FeatureCache(arguments.cache or arguments.out / "cache"),
        teacher=teacher,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        progress=True,
    )
    with world.as_one():
        run.run(suites, sets)
    try:
        if world.first:
            _show(run, sets, json=arguments.json)
    finally:
        leave()  # not after an error above: with a process missing, parting could wait for it


def _suites(text: str, tasks: set[Any]) -> list[str]:
    """What was asked for; of the default, what there are sets for."""
    from ..evaluation.suite.find_sets import task_of

    names = [name.strip() for name in text.split(",") if name.strip()]
    return [name for name in names if text != _SUITES or task_of(name) in tasks]


def _extractor(
    name: str, size: int | None, device: Any, checkpoint: Path | None = None, random: bool = False
) -> Any:
    """The model a user named, at the size asked for."""
    from ..hub.pretrained import PRETRAINED
    from ..hub.remote import load_pretrained
    from ..models.frozen import as_extractor
    from ..teacher import Teacher

    is_file = _is_folder(name) or name in PRETRAINED
    if is_file and (checkpoint is not None or random):
        raise ValueError(
            f"--checkpoint and --random-weights would be ignored. Got {name!r}, which brings its "
            f"own weights; leave them out."
        )
    if checkpoint is not None and random:
        raise ValueError(
            f"--random-weights would be ignored. Got --checkpoint {checkpoint}, too; leave one out."
        )
    try:
        model: Any
        if is_file:
            model = load_pretrained(name, image_size=size)
        else:
            model = Teacher(name, pretrained=not random, checkpoint=checkpoint, image_size=size)
        return as_extractor(model, image_size=size, device=device)
    except RuntimeError as error:
        if size is None:
            raise
        raise ValueError(
            f"--image-size: {name!r} cannot be brought to this size. Got {size} pixels, and: "
            f"{str(error).splitlines()[0]}."
        ) from error


def _is_folder(name: str) -> bool:
    """Whether a folder is meant: it holds a model, or nothing else has this name."""
    from ..hub.remote import model_folder
    from ..models.build import is_known
    from ..report.groups_of_runs import runs_in

    if name.startswith(("hf-hub:", "hf-transformers:", "local-dir:")):
        return False
    exists = bool(name) and Path(name).is_dir()
    if not exists and ("/" in name or not name or Path(name).exists()):
        raise ValueError(
            f"model: there is no such folder. Got {name!r}; expected a run or an export folder, or "
            f"a name. A repository on the Hugging Face Hub is hf-hub:OWNER/REPO, and a file of "
            f"weights goes with the name of its model: NAME --checkpoint FILE."
        )
    if exists and (names := runs_in(name)):
        raise ValueError(
            f"model: a folder of several runs. Got {name!r}, which holds {', '.join(names)}; "
            f"expected one of them, such as {str(Path(name) / names[0])!r}."
        )
    if not exists or not is_known(name):
        return exists
    found = model_folder(Path(name)) is not None
    _logger.warning(
        "model: %r is %s of this name, not %s.", name,
        *(("the folder", "the published model") if found
          else ("the published model", "the folder, which holds no model")),
    )  # fmt: skip
    return found


def _show(run: Any, sets: Any, *, json: bool) -> None:
    """Tables and pictures of all that `results.json` holds, earlier runs' too."""
    from dataclasses import asdict

    from ..evaluation.suite.gallery import suite_pictures
    from ..evaluation.suite.results_page import failures, result_tables, write_tables
    from ..report.page import text_table

    pictures = suite_pictures(run, sets, run.results)
    settings = asdict(run.settings)
    write_tables(run.out, run.name, run.results, settings=settings, pictures=pictures)
    if json:
        print_json({"model": run.name, "settings": settings, "results": run.results})
    else:
        for title, table in result_tables(run.name, run.results).items():
            print(f"\n{title}\n{text_table(table)}")
        print(f"\nResults: {run.out / 'results.md'}    Page: {run.out / 'report.html'}")
    failed = failures(run.results)
    if failed:
        raise ValueError("some protocols could not be run.\n" + "\n".join(failed))
