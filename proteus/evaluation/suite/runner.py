"""All protocols on all sets in one go: resumable, cached, and written down as it goes."""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import distributed

from ...files import parse_json, seal, unseal, write_whole
from ...models.frozen import Extractor
from ...report.page import check_page
from ...version import __version__
from ...words import nearest
from ...world import rank_and_world, together
from ..cache import FeatureCache
from .find_sets import EvaluationSet, task_of
from .presets import SuiteSettings
from .protocols import OpenSet, Tools

_logger = logging.getLogger(__name__)

SUITES = (
    "knn", "linear", "finegrained", "segmentation", "depth", "segmentation-finetune",
    "depth-finetune", "robustness", "agreement",
)  # fmt: skip


@dataclass
class SuiteRun:
    """A run of the suite in a folder: what is finished, and how to go on.

    Args:
        model: The model.
        name: What the user calls it.
        out: Folder of `results.json`.
        settings: How.
        cache: Where features are kept.
        teacher: For `agreement`.
        batch_size: Images in a forward pass.
        workers: Processes that decode images.
        progress: Show bars.
    """

    model: Extractor
    name: str
    out: Path
    settings: SuiteSettings
    cache: FeatureCache
    teacher: Extractor | None = None
    batch_size: int = 64
    workers: int | None = None
    progress: bool = False
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    _head: dict[str, Any] = field(default_factory=dict)
    _written: bytes = b""  # the file as this run left it
    _others: dict[str, Any] = field(default_factory=dict)  # by a run beside this one

    def run(
        self, suites: Sequence[str], sets: Sequence[EvaluationSet]
    ) -> dict[str, dict[str, Any]]:
        """Run what is not finished yet; `results.json` is written after each protocol.

        A set on which a protocol cannot be run (unreadable, one class, features that are not
        finite) gets the reason as its result, under `error`, and the others go on.

        Args:
            suites: Of `SUITES`.
            sets: Of `find_sets`.

        Returns:
            `PROTOCOL/SET` -> numbers, as JSON gives them back. `results` also has those of earlier
            runs in this folder, with the same model, settings and version.

        Raises:
            ValueError: If a protocol is unknown or fits none of the sets.
        """
        from tqdm import tqdm

        jobs = plan_jobs(suites, sets, has_teacher=self.teacher is not None)
        self._head = self._describe()
        self.results, self._others = self._stored(), {}
        chief = rank_and_world()[0] == 0
        bar = tqdm(jobs, unit="protocol", disable=None if self.progress and chief else True)
        opened = OpenSet(self.tools, jobs[0][1])
        for protocol, one in bar:
            if one != opened.one:  # one at a time: the features of all of them may not fit
                opened = OpenSet(self.tools, one)
            key = f"{protocol}/{one.name}"
            bar.set_description(key)
            begun = time.perf_counter()
            try:
                # It opens the set, which may fail, too; then in all processes.
                (stamp,) = together(map(self._stamp, [protocol], [opened]))
                self._forget_other_data(opened)
                if stamp and self.results.get(key, {}).get("stamp") == stamp:
                    continue
                found = {**opened.measure(protocol), "data": opened.stamp(), "stamp": stamp}
            except (ValueError, OSError) as error:
                found = {"error": str(error)}
            # Of a part of the images, published numbers are not comparable.
            found["subset"] = one.subset or self.settings.limit is not None
            found["seconds"] = round(time.perf_counter() - begun, 2)
            self.results[key] = _as_json(found)
            list(together(self._write() for _ in range(1)))
        # Also where nothing was left to do but to drop what is out of date.
        list(together(self._write() for _ in range(1)))
        return {key: self.results[key] for key in (f"{name}/{one.name}" for name, one in jobs)}

    @property
    def tools(self) -> Tools:
        """What protocols work with."""
        return Tools(
            self.model, self.settings, self.cache, self.teacher, self.batch_size, self.workers,
            self.progress,
        )  # fmt: skip

    def _stamp(self, protocol: str, opened: OpenSet) -> str:
        """A hash of everything that a result depends on; "" where that cannot be known."""
        data = opened.stamp()
        teachers = [self.teacher.fingerprint()] if self.teacher and protocol == "agreement" else []
        if None in (self._head["fingerprint"], *teachers):
            return ""
        parts = (self._head, teachers, protocol, data)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def _forget_other_data(self, opened: OpenSet) -> None:
        """Drop what was measured on other images of the same name: a row of a table is one set."""
        name, data = opened.one.name, opened.stamp()
        self.results = {
            key: found
            for key, found in self.results.items()
            if key.partition("/")[2] != name or found.get("data", data) == data
        }

    def _stored(self) -> dict[str, dict[str, Any]]:
        """Results of an earlier run of this model with these settings; the same for all processes.

        The file has one model and one set of settings at its head, so others' results go.
        """
        found: list[Any] = [{}]
        if rank_and_world()[0] == 0:
            page = self._read() or {}
            if page and not self._is_ours(page):
                _logger.warning(
                    "suite: the results in %s are replaced: they are of another model, other "
                    "settings or another version.", self._file,
                )  # fmt: skip
            elif page:
                # Without a stamp are failures, which are tried again.
                found = [{k: one for k, one in page["results"].items() if one.get("stamp")}]
        if rank_and_world()[1] > 1:
            distributed.broadcast_object_list(found)
        return dict(found[0])

    def _describe(self) -> dict[str, Any]:
        """What all results of the file share."""
        return _as_json(
            {
                "version": __version__,
                "fingerprint": self.model.fingerprint(),
                "settings": asdict(self.settings),
            }
        )

    @property
    def _file(self) -> Path:
        return self.out / "results.json"

    def _is_ours(self, page: dict[str, Any]) -> bool:
        return {key: page.get(key) for key in self._head} == self._head

    def _read(self) -> dict[str, Any] | None:
        """The page that is there, if it is whole; its damage is told, and what it held measured."""
        self._written = self._file.read_bytes() if self._file.is_file() else b""
        if not self._file.exists():
            return None
        try:
            return unseal(parse_json(self._written))
        except ValueError as error:
            _logger.warning(
                "suite: %s is damaged, and its results are measured again. Got: %s.",
                self._file, error,
            )  # fmt: skip
        return None

    def _write(self) -> Path:
        """Write the page; results that another run with the same head put there meanwhile stay."""
        if rank_and_world()[0]:
            return self._file
        self.out.mkdir(parents=True, exist_ok=True)
        if self._file.is_file() and self._file.read_bytes() != self._written:
            page = self._read()
            if page and not self._is_ours(page):
                raise ValueError(
                    f"suite: another evaluation writes here. Got {str(self._file)!r} with results "
                    f"of another model or other settings; expected a folder for each (--out)."
                )
            self._others |= page["results"] if page else {}
        results = {**self._others, **self.results}
        text = seal({"model": self.name, **self._head, "results": results})
        write_whole(self._file, text)
        self._written = text.encode()
        return self._file


def check_out(out: Path) -> None:
    """Make sure that an evaluation may write there: its page and pictures are named like a run's.

    Raises:
        ValueError: If it is a file, or holds a run or another page.
    """
    if (out / "log.jsonl").exists() or (out.exists() and not out.is_dir()):
        raise ValueError(
            f"suite: results cannot go there. Got {str(out)!r}, which is a file or holds a run, "
            f"whose page and pictures have the same names; expected a folder of its own (--out)."
        )
    check_page(out / "report.html", "Evaluation of")


def plan_jobs(
    suites: Sequence[str], sets: Sequence[EvaluationSet], *, has_teacher: bool
) -> list[tuple[str, EvaluationSet]]:
    """Which protocol runs on which set, set by set, so that features stay while they are needed.

    Raises:
        ValueError: If a protocol is unknown or fits none of the sets, or has no teacher.
    """
    unknown = [suite for suite in suites if suite not in SUITES]
    if unknown or not suites:
        raise ValueError(
            f"suite: unknown protocol. Got {', '.join(unknown) or 'none'!r}; expected some of "
            f"{', '.join(SUITES)}. {' '.join(nearest(one, SUITES) for one in unknown)}"
        )
    if "agreement" in suites and not has_teacher:
        raise ValueError("suite: agreement needs a teacher. Pass --teacher NAME.")
    for suite in suites:
        if not any(one.task == task_of(suite) for one in sets):
            got = ", ".join(f"{one.name} ({one.task})" for one in sets)
            raise ValueError(
                f"suite: no set for {suite}. Got {got}; expected at least one for "
                f"{task_of(suite)}. A pack of a folder of packs is FOLDER/NAME."
            )
    wanted = dict.fromkeys(suites)
    return [(suite, one) for one in sets for suite in wanted if one.task == task_of(suite)]


def _as_json(facts: dict[str, Any]) -> dict[str, Any]:
    """As they will be read: the same whether a result is new or from the file.

    A number that is not finite could not be measured: None.
    """
    return dict(json.loads(json.dumps(facts), parse_constant=lambda _: None))
