"""What the numbers of a run say, in plain sentences: pure, and never more than they hold."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["finding", "advice", "warning", "unknown"]
Columns: TypeAlias = Mapping[str, Sequence[float]]

_MOVED = 0.02  # of the way left to a cosine of 1: less, over a tenth of a run, is standing still
_FELL = 0.1  # of the same: more below the best look is worth a warning
_WINDOW = 0.25  # of the run at most lie between the looks that tell whether agreement still rises
_LEAST_ROWS = 10  # of a tenth of the log, for its mean to be compared
_SURE = 2.0  # standard errors
_WAITING = 0.2  # share of the time that is worth a word
_NOTHING = 1e-6  # of the images right: no measure for another model
_LARGEST = 1e38  # no float32 is larger: what is, is damage, and sums of it overflow
# How a name ends -> the values it can have; others are damage, and not judged.
_BOUNDS = (
    ("_top1", (0.0, 1.0)), ("_margin", (0.0, 1.0)), ("_cosine", (-1.001, 1.001)),
    ("_images", (1.0, _LARGEST)), ("", (-_LARGEST, _LARGEST)),
)  # fmt: skip


class Sentence(NamedTuple):
    """One sentence of a verdict, and what it is.

    Attributes:
        text: Plain words.
        kind: `finding` (measured), `advice`, `warning` (something is wrong) or `unknown` (what
            was not measured).
    """

    text: str
    kind: Kind


@dataclass(frozen=True)
class Verdict:
    """Sentences, the most important first.

    Examples:
        >>> verdict = judge({"step": [0.0], "total": [2.0]}, steps=1)
        >>> print(verdict.lines[0])
        The training loss was logged once: 2.
    """

    sentences: tuple[Sentence, ...]

    @property
    def lines(self) -> list[str]:
        """The sentences, as they are printed."""
        return [sentence.text for sentence in self.sentences]

    def __str__(self) -> str:
        return " ".join(self.lines)


def judge(
    log: Columns,
    watch: Columns | None = None,
    *,
    untrained: Mapping[str, float] | None = None,
    steps: int | None = None,
    data_wait: float | None = None,
) -> Verdict:
    """Say what a run came to.

    Args:
        log: Columns of `log.jsonl` (`proteus.report.curves.read_columns(...).values`): `step` and
            `total`; NaN where a row has no number.
        watch: Columns of `watch.jsonl`, likewise: `step` and any of `cls_cosine`, `patch_cosine`,
            `knn_top1`, `teacher_knn_top1`, `knn_images` and the shares' `NAME_margin`.
        untrained: What a look at the student before its first step gave, by the same names.
        steps: Steps that were asked for; None = not known.
        data_wait: Share of the time that training waited for images, 0 … 1.

    Returns:
        Findings first, then advice and warnings, at last what is not known.

    Examples:
        >>> looks = {"step": [99.0], "knn_top1": [0.357], "teacher_knn_top1": [0.371]}
        >>> verdict = judge({"step": [99.0], "total": [0.5]}, looks, untrained={"knn_top1": 0.123})
        >>> print(verdict.lines[0])
        The student reaches 96 % of the teacher's k-NN (untrained: 33 %): 35.7 % against 37.1 %.
    """
    rows = _finite(log, "total")
    done = int(max((step for step in log.get("step", ()) if abs(step) < _LARGEST), default=-1)) + 1
    if not done:
        return Verdict((Sentence("No step has been logged yet: nothing to judge.", "unknown"),))
    finished = steps is None or done >= steps
    found: list[Sentence] = []
    if not finished:
        found.append(Sentence(f"The run is at step {done:,} of {steps:,}.", "warning"))
    looks = watch or {}
    found += _neighbours(looks, untrained or {})
    agreement = [*_agreement(looks, done, finished=finished)]
    found += agreement or _losses(rows, finished=finished)
    found += _troubles(log, looks, data_wait)
    found += _unknown(looks, untrained or {})
    return Verdict(tuple(found))


def _finite(columns: Columns, name: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have both, and a value that the measure can have."""
    pairs = zip(columns.get("step", ()), columns.get(name, ()), strict=False)
    low, high = next((bounds for end, bounds in _BOUNDS if name.endswith(end)), _BOUNDS[-1][1])
    return [(s, v) for s, v in pairs if abs(s) < _LARGEST and low <= v <= high]


def _last(columns: Columns, name: str) -> float | None:
    found = _finite(columns, name)
    return found[-1][1] if found else None


def _neighbours(looks: Columns, untrained: Mapping[str, float]) -> Iterable[Sentence]:
    """The student's k-NN beside the teacher's, as far as so many images can tell them apart."""
    student, teacher = _last(looks, "knn_top1"), _last(looks, "teacher_knn_top1")
    if student is None:
        return
    before = untrained.get("knn_top1")
    if teacher is None or teacher < _NOTHING:
        yield Sentence(f"The student's k-NN top-1 is {_percent(student)}.", "finding")
        return
    start = "" if before is None else f" (untrained: {100 * before / teacher:.0f} %)"
    verb = "reaches" if student > 0 else "has"
    yield Sentence(
        f"The student {verb} {student / teacher * 100:.0f} % of the teacher's k-NN{start}: "
        f"{_percent(student)} against {_percent(teacher)}.",
        "finding",
    )
    images = _last(looks, "knn_images")
    mine, theirs = _last(looks, "knn_top1_margin"), _last(looks, "teacher_knn_top1_margin")
    if images is None or mine is None or theirs is None:
        return
    unsure = math.hypot(mine, theirs)
    if before is not None and student - before <= math.hypot(mine, mine):
        yield Sentence(
            f"By k-NN it is no better than before training, as far as {images:,.0f} images tell.",
            "warning",
        )
    elif abs(student - teacher) <= unsure:
        yield Sentence(
            f"{images:,.0f} images cannot tell the two apart (± {100 * unsure:.1f} points).",
            "finding",
        )


def _agreement(looks: Columns, done: int, *, finished: bool) -> Iterable[Sentence]:
    """Cosines on held-out images, and whether they still rise."""
    values = _finite(looks, "cls_cosine") or _finite(looks, "patch_cosine")
    if not values:
        return
    named = [
        f"{what} {cosine:.3f}"
        for what, cosine in (
            ("of class tokens", _last(looks, "cls_cosine")),
            ("of patches", _last(looks, "patch_cosine")),
        )
        if cosine is not None
    ]
    subject = f"Agreement with the teacher (cosine {', '.join(named)}; 1 = equal)"
    end, last = values[-1]
    earlier = [pair for pair in values if pair[0] + 1 <= 0.9 * (end + 1)]
    if not earlier or (end - earlier[-1][0]) / done > _WINDOW:
        yield Sentence(f"{subject} was looked at too rarely to tell whether it rises.", "finding")
        return
    since = earlier[-1][0]
    over = f"the last {_part((end - since) / (end + 1))} of the run"
    # Against the best before, not the look before: one low look makes no rise.
    before = max(value for _, value in earlier)
    change, moved = last - before, max(_MOVED * (1 - before), 1e-3)
    best_step, best = max(values, key=lambda pair: pair[1])
    if change > moved:
        more = "train longer" if finished else "it is not at its end"
        yield Sentence(f"{subject} still rose over {over}, by {change:.3f}: {more}.", "advice")
    elif last < best - _FELL * (1 - best):
        yield Sentence(
            f"{subject} is {best - last:.3f} below its best, {best:.3f} at step {best_step:,.0f}.",
            "warning",
        )
    else:
        yield Sentence(f"{subject} no longer rose over {over} ({change:+.3f}).", "finding")


def _part(share: float) -> str:
    return "tenth" if abs(share - 0.1) < 0.02 else f"{share * 100:.0f} %"


def _losses(rows: Sequence[tuple[float, float]], *, finished: bool) -> Iterable[Sentence]:
    """The training loss, where nothing better is known."""
    values = [value for _, value in rows]
    if not values:
        return
    if len(values) == 1:
        yield Sentence(f"The training loss was logged once: {values[0]:.4g}.", "finding")
        return
    first, last = values[0], values[-1]
    verb = "fell" if last < first else "rose" if last > first else "stayed"
    subject = f"The training loss {verb} from {first:.4g} to {last:.4g}"
    tenth = len(values) // 10
    if tenth < _LEAST_ROWS:
        yield Sentence(f"{subject}; too few steps to tell whether it still falls.", "finding")
        return
    late, before = values[-tenth:], values[-2 * tenth : -tenth]
    change = math.fsum(late) / tenth - math.fsum(before) / tenth
    error = math.sqrt((_variance(late) + _variance(before)) / tenth)
    size = abs(math.fsum(before) / tenth) or 1.0
    if change < -_SURE * error and -change > 0.01 * size:
        more = ": train longer" if finished else ""
        yield Sentence(
            f"{subject}, and still by {-100 * change / size:.0f} % over the last tenth of the "
            f"run{more}.",
            "advice",
        )
    elif change > _SURE * error and change > 0.01 * size:
        yield Sentence(
            f"{subject}, and rose by {100 * change / size:.0f} % over the last tenth of the run.",
            "warning",
        )
    else:
        yield Sentence(f"{subject}; over the last tenth of the run it stood still.", "finding")


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)


def _troubles(log: Columns, looks: Columns, data_wait: float | None) -> Iterable[Sentence]:
    lost = sum(not abs(value) < _LARGEST for value in log.get("total", ()))
    if lost:
        yield Sentence(f"The loss of {lost:,} steps is missing or not finite.", "warning")
    if data_wait is not None and data_wait > _WAITING:
        yield Sentence(
            f"It waited for images {data_wait * 100:.0f} % of the time: more --workers, or smaller "
            f"images on disk, would make it faster.",
            "advice",
        )


def _unknown(looks: Columns, untrained: Mapping[str, float]) -> Iterable[Sentence]:
    agrees = any(_finite(looks, name) for name in ("cls_cosine", "patch_cosine"))
    votes = bool(_finite(looks, "knn_top1"))
    if not agrees and not votes:
        yield Sentence(
            "How close the student is to its teacher on images it did not train on was not "
            "measured: give some with --watch.",
            "unknown",
        )
    elif not votes:
        yield Sentence("No k-NN was measured: --watch-labels needs images with classes.", "unknown")
    elif "knn_top1" not in untrained:
        yield Sentence("The untrained student was not measured.", "unknown")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
