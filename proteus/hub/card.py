"""The model card: what a stranger must know about the weights, for people and for machines."""

import contextlib
import json
import logging
import math
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..student import Student
from ..teacher import Teacher
from ..text import markdown_text, printable
from ..version import __version__

_PERMISSIVE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0")
# Licences that the Hub has a name for; others are `other` with a `license_name`.
_HUB = (*_PERMISSIVE, "cc-by-nc-4.0", "cc-by-sa-4.0", "cc-by-nc-sa-4.0", "openrail", "other")
_CITATION = """\
@inproceedings{zhang2025accessing,
  title = {Accessing Vision Foundation Models via ImageNet-1K},
  author = {Zhang, Yitian and Ma, Xu and Bai, Yue and Wang, Huan and Fu, Yun},
  booktitle = {International Conference on Learning Representations},
  year = {2025}
}"""


def versions() -> dict[str, str]:
    """Versions of what made the weights, and the commit where it runs from a checkout."""
    import timm

    found = {
        "proteus-distill": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
    checkout = Path(__file__).parents[2]
    if (checkout / ".git").exists():
        command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git: no commit
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            found["commit"] = run.stdout.strip()
    return found


def sizes_and_device(teacher: Teacher, student: Student, device: torch.device) -> dict[str, Any]:
    """How large the two models are and what they run on, for the page of a run."""
    threads = torch.get_num_threads()
    device_name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    if device.type == "cuda":
        device_name = torch.cuda.get_device_name(device)
    elif device.type != "cpu":
        device_name = device.type
    models = {
        role: {
            "name": model.name,
            "parameters": sum(p.numel() for p in model.backbone.parameters()),
        }
        for role, model in (("teacher", teacher), ("student", student))
    }
    return {"models": models, "device": device_name}


def model_card(student: Student, name: str, details: Mapping[str, Any]) -> str:
    """`README.md` for the Hub.

    Args:
        student: What is saved.
        name: Of the model, in the title and the model index.
        details: See `save_pretrained`. All of it is shown as it stands: nothing in it is markup.

    Raises:
        ValueError: If `scores` are not names with finite numbers.
    """
    _check_scores(details.get("scores"))
    name = printable(name)
    known = ("teacher", "data", "recipe", "scores", "license")
    facts = {"teacher": details.get("teacher"), "images": details.get("data")}
    facts |= {key: value for key, value in details.items() if key not in known}
    if student.layers is not None:
        facts["patches"] = (
            f"from layers {', '.join(map(str, student.layers))} (from 0 on), "
            f"{student.grid[0]}×{student.grid[1]}, width {student.patch_dim}; "
            f"proteus.Student('local-dir:FOLDER', layers={student.layers}) gives them"
        )
    lines = [
        f"- {markdown_text(f'{key}: {_inline(value)}')}"
        for key, value in facts.items()
        if value is not None
    ]
    count = sum(p.numel() for p in student.backbone.parameters())
    height, width = student.image_size
    mean, std = student.statistics
    parts = [
        f"---\n{_metadata(name, details)}\n---",
        f"# {markdown_text(name)}",
        f"{markdown_text(student.name)}: {count / 1e6:.2f} M parameters, {height}×{width} pixels, "
        f"{student.embed_dim}-dimensional features. Trained {_training(details.get('recipe'))} "
        f"with proteus-distill {__version__}.",
        "\n".join(lines),
        "## Use\n\n```python\nimport timm\n\n"
        'model = timm.create_model("hf-hub:OWNER/REPO", pretrained=True)  # or "local-dir:FOLDER"\n'
        "```\n\n"
        f"Images are RGB in [0, 1], normalised with mean {_numbers(mean)} and std {_numbers(std)}.",
        _scores(details.get("scores")),
        _recipe(details.get("recipe")),
        f"## Licence\n\n{_license(details)}",
        f"## Made with\n\n{_inline(versions())}",
        f"## Citation\n\n```bibtex\n{_CITATION}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def teacher_facts(*teachers: Teacher) -> dict[str, Any]:
    """What a card says about the teachers: their names, and licence and origin of their weights."""
    licenses, origins = (
        " + ".join(dict.fromkeys(text for text in texts if text))
        for texts in ([t.license for t in teachers], [t.origin for t in teachers])
    )
    facts: dict[str, Any] = {
        "teacher": " + ".join(t.name for t in teachers),
        "license": licenses or None,
    }
    layers = [list(t.layers) for t in teachers if t.layers is not None]
    if layers:
        facts["teacher_layers"] = layers[0] if len(teachers) == 1 else layers
    return facts | ({"teacher weights": origins} if origins else {})


def _metadata(name: str, details: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    options: dict[str, Any] = {}
    if license := details.get("license"):
        license = printable(str(license))
        known = license in _HUB
        options = {"license": license} if known else {"license": "other", "license_name": license}
    results = [
        EvalResult(
            task_type="image-feature-extraction",
            dataset_type=printable(score).split(" ", 1)[0].lower(),
            dataset_name=printable(score),
            metric_type="rmse" if "RMSE" in score else "miou" if "mIoU" in score else "accuracy",
            metric_value=float(value),
        )
        for score, value in (details.get("scores") or {}).items()
    ]
    if results:
        options |= {"model_name": name, "eval_results": results}
    data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["proteus", "distillation", "timm", "image-feature-extraction"],
        **options,
    )
    return str(data.to_yaml())


def _check_scores(scores: Any) -> None:
    pairs = scores.items() if isinstance(scores, Mapping) else [("scores", scores)]
    for name, value in pairs if scores else ():
        known = isinstance(value, int | float) and math.isfinite(value)
        if not (known and isinstance(name, str) and name.strip()):
            raise ValueError(
                f"model card: a score is a name with a number. Got {name!r}: {value!r}; expected "
                f"such as {{'ImageNet k-NN': 73.5}}."
            )


def _scores(scores: Mapping[str, float] | None) -> str:
    if not scores:
        return ""
    rows = "\n".join(f"| {markdown_text(name)} | {value} |" for name, value in scores.items())
    return f"## Scores\n\n| protocol | score |\n|---|---|\n{rows}"


def _training(recipe: Any) -> str:
    """What taught it, in words."""
    science = recipe.get("science") if isinstance(recipe, Mapping) else None
    logits = science.get("logits") if isinstance(science, Mapping) else None
    if not isinstance(logits, Mapping):
        return "without labels, by matching a teacher's features (Proteus, ICLR 2025),"
    if not logits["kl"]:
        return "on labels alone (supervised)"
    return f"by a teacher's class logits{' and labels' if logits['ce'] else ', without labels,'}"


def _recipe(recipe: Any) -> str:
    return (
        f"## Recipe\n\n```json\n{json.dumps(recipe, indent=2, default=str)}\n```" if recipe else ""
    )


def _license(details: Mapping[str, Any]) -> str:
    license, teacher = details.get("license"), details.get("teacher")
    if not license:
        return (
            "Not stated. The licences of the teacher and of the images apply to these weights as "
            "well; name them here before you publish."
        )
    if license not in _PERMISSIVE:
        logging.getLogger("proteus").warning(
            "model card: the teacher's licence is not permissive. Got %r for %s; its terms bind "
            "these weights too. Read it before you publish them.",
            license,
            printable(str(teacher or "the teacher")),
        )
    shown = markdown_text(str(license))
    return f"{shown}, from the teacher. The licence of the images applies as well."


def _numbers(values: Any) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_inline(v)}" for k, v in value.items())
    return str(value)
