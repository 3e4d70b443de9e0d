"""All protocols on all sets in one go: resumable, cached, and written down as it goes."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import distributed

from .agreement import agreement
from .cache import FeatureCache
from .classifier import LinearClassifier
from .datasets import LabelledImages, open_labelled
from .dense_data import DenseImages, open_depth, open_segmentation
from .depth import depth
from .extraction import extract_features
from .extractor import Extractor
from .features import FeatureSet, probe_resize
from .knn import score_knn
from .linear_probe import LinearProbeResult, fitting_blocks, score_linear
from .logistic import score_logistic
from .named_sets import metric_of
from .neighbours import KS
from .processes import rank_and_world, together
from .robustness import robustness
from .segmentation import segmentation
from .suite_sets import EvaluationSet, Task

SUITES = ("knn", "linear", "finegrained", "segmentation", "depth", "robustness", "agreement")
_TASKS: dict[str, Task] = {"segmentation": "segmentation", "depth": "depth"}


@dataclass(frozen=True)
class SuiteSettings:
    """How long and how each protocol runs; `quick` fits small sets on two cores, `paper` is A.1.

    Attributes:
        image_size: Pixels, of all protocols.
        limit: At most this many images of each split; None = all.
        linear_iterations: Steps of the linear probe, on features of the centre.
        linear_batch: Images in such a step.
        select: `test` = the best head on the test set, as the paper; or `holdout`.
        sweep: Of the logistic regression.
        segmentation_iterations: Steps of the linear head.
        depth_iterations: Steps of the depth head.
        depth_head: `linear`, or `dpt` as in the paper.
        severities: Of the corruptions, of twelve kinds.
        seed: Of everything random.
    """

    image_size: int
    limit: int | None = None
    linear_iterations: int = 500
    linear_batch: int = 256
    select: Literal["test", "holdout"] = "test"
    sweep: Literal["paper", "official"] = "paper"
    segmentation_iterations: int = 500
    depth_iterations: int = 300
    depth_head: Literal["linear", "dpt"] = "linear"
    severities: tuple[int, ...] = (3,)
    seed: int = 0

    def as_paper(self) -> "SuiteSettings":
        """The paper's lengths and heads; augmentation excepted, see `linear_probe`."""
        return replace(
            self,
            linear_iterations=12_500,
            linear_batch=512,
            segmentation_iterations=60_000,
            depth_iterations=25_000,
            depth_head="dpt",
            severities=(1, 2, 3, 4, 5),
        )


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
    _sets: dict[tuple[str, ...], FeatureSet] = field(default_factory=dict)
    _probes: dict[str, LinearProbeResult] = field(default_factory=dict)

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
            `PROTOCOL/SET` -> numbers.

        Raises:
            ValueError: If a protocol is unknown or fits none of the sets.
        """
        from tqdm import tqdm

        jobs = self._plan(suites, sets)
        self.results = self._stored()
        chief = rank_and_world()[0] == 0
        bar = tqdm(jobs, unit="protocol", disable=None if self.progress and chief else True)
        for protocol, one in bar:
            key = f"{protocol}/{one.name}"
            bar.set_description(key)
            stamp, begun = "", time.perf_counter()
            try:
                # It opens the set, which may fail, too; then in all processes.
                (stamp,) = together(self._stamp(*job) for job in [(protocol, one)])
                if self.results.get(key, {}).get("stamp") == stamp:
                    continue
                found = self._protocol(protocol)(one)
            except (ValueError, OSError) as error:
                found = {"error": str(error)}
            seconds = round(time.perf_counter() - begun, 2)
            done = {} if "error" in found else {"stamp": stamp}
            self.results[key] = {**found, "subset": one.subset, "seconds": seconds, **done}
            self._write()
        wanted = [f"{protocol}/{one.name}" for protocol, one in jobs]
        return {key: self.results[key] for key in wanted}

    def _plan(
        self, suites: Sequence[str], sets: Sequence[EvaluationSet]
    ) -> list[tuple[str, EvaluationSet]]:
        unknown = [suite for suite in suites if suite not in SUITES]
        if unknown or not suites:
            raise ValueError(
                f"suite: unknown protocol. Got {', '.join(unknown)!r}; expected some of "
                f"{', '.join(SUITES)}."
            )
        if "agreement" in suites and self.teacher is None:
            raise ValueError("suite: agreement needs a teacher. Pass --teacher NAME.")
        jobs = []
        for suite in suites:
            task = _TASKS.get(suite, "classification")
            fitting = [one for one in sets if one.task == task]
            if not fitting:
                raise ValueError(
                    f"suite: no set for {suite}. Got {', '.join(one.name for one in sets)}; "
                    f"expected at least one for {task}."
                )
            jobs += [(suite, one) for one in fitting]
        # Set by set, so that features are in memory while they are needed.
        order = {one.name: n for n, one in enumerate(sets)}
        return sorted(jobs, key=lambda job: (order[job[1].name], suites.index(job[0])))

    def _protocol(self, name: str) -> Callable[[EvaluationSet], dict[str, Any]]:
        return {
            "knn": self._knn,
            "linear": self._linear,
            "finegrained": self._finegrained,
            "segmentation": self._segmentation,
            "depth": self._depth,
            "robustness": self._robustness,
            "agreement": self._agreement,
        }[name]

    def _knn(self, one: EvaluationSet) -> dict[str, Any]:
        train, test = (self.features(one, split, probe=True) for split in ("train", "test"))
        ks = KS if len(train) >= min(KS) else (1,)
        return score_knn(train, test, ks=ks, device=self.model.device).to_dict()

    def _linear(self, one: EvaluationSet) -> dict[str, Any]:
        return self._probe(one).to_dict()

    def _probe(self, one: EvaluationSet) -> LinearProbeResult:
        """The linear probe of a set; `robustness` takes the one that `linear` has trained."""
        if one.name not in self._probes:
            settings = self.settings
            self._probes = {}  # one set at a time, as with features
            self._probes[one.name] = score_linear(
                self.features(one, "train", probe=True),
                self.features(one, "test", probe=True),
                select=settings.select,
                iterations=settings.linear_iterations,
                batch_size=settings.linear_batch,
                seed=settings.seed,
                device=self.model.device,
                progress=self.progress,
            )
        return self._probes[one.name]

    def _robustness(self, one: EvaluationSet) -> dict[str, Any]:
        probe, size = self._probe(one), self.settings.image_size
        classifier = LinearClassifier(
            self.model, probe.weight, probe.bias, image_size=size, resize=probe_resize(size),
            blocks=probe.head.blocks, avgpool=probe.head.avgpool,
        )  # fmt: skip
        result = robustness(
            classifier, self.images(one, "test"), severities=self.settings.severities,
            batch_size=self.batch_size, progress=self.progress,
        )  # fmt: skip
        return {"protocol": "robustness", **result.to_dict()}

    def _finegrained(self, one: EvaluationSet) -> dict[str, Any]:
        train, test = (self.features(one, split, probe=False) for split in ("train", "test"))
        val = self.features(one, "val", probe=False) if one.has_val else None
        metric = metric_of(one.name) if train.labels.ndim == 1 else "map_11"
        result = score_logistic(
            train, test, val=val, metric=metric, sweep=self.settings.sweep,
            device=self.model.device,
        )  # fmt: skip
        return result.to_dict()

    def _segmentation(self, one: EvaluationSet) -> dict[str, Any]:
        train, test = (self._maps(one, split) for split in ("train", "test"))
        result = segmentation(
            self.model, train, test, mode="linear", image_size=self.settings.image_size,
            iterations=self.settings.segmentation_iterations, seed=self.settings.seed,
            progress=self.progress,
        )  # fmt: skip
        return {"protocol": "segmentation", **result.to_dict()}

    def _depth(self, one: EvaluationSet) -> dict[str, Any]:
        train, test = (self._maps(one, split) for split in ("train", "test"))
        result = depth(
            self.model, train, test, mode=self.settings.depth_head,
            image_size=self.settings.image_size, iterations=self.settings.depth_iterations,
            seed=self.settings.seed, progress=self.progress,
        )  # fmt: skip
        return {"protocol": "depth", **result.to_dict()}

    def _agreement(self, one: EvaluationSet) -> dict[str, Any]:
        result = agreement(
            self.model, self.teacher, self.images(one, "test"),
            image_size=self.settings.image_size, batch_size=self.batch_size, layers=True,
        )  # fmt: skip
        return result.to_dict()

    def features(self, one: EvaluationSet, split: str, *, probe: bool) -> FeatureSet:
        """Features for k-NN and the linear probe, or for logistic regression."""
        key = (one.name, split, str(probe))
        if key not in self._sets:
            # One set at a time: the features of all of them may not fit.
            self._sets = {k: v for k, v in self._sets.items() if k[0] == one.name}
            size = self.settings.image_size
            self._sets[key] = extract_features(
                self.model, self.images(one, split), image_size=size,
                resize=probe_resize(size) if probe else size,
                blocks=max(fitting_blocks(self.model)) if probe else 0,
                batch_size=self.batch_size, workers=self.workers, cache=self.cache,
                progress=self.progress,
            )  # fmt: skip
        return self._sets[key]

    def images(self, one: EvaluationSet, split: str) -> LabelledImages:
        """Images of one split, at most `limit`."""
        classes: Sequence[str] = ()
        if split != "train" and one.root is None:
            classes = open_labelled(one.source, split="train").classes
        data = open_labelled(one.source, split=split, root=one.root, classes=classes)
        return data if self.settings.limit is None else data.first(self.settings.limit)

    def _maps(self, one: EvaluationSet, split: str) -> Any:
        reader = open_segmentation if one.task == "segmentation" else open_depth
        data: DenseImages = reader(one.source, split=split)
        return data if self.settings.limit is None else data.first(self.settings.limit)

    def _stamp(self, protocol: str, one: EvaluationSet) -> str:
        """A hash of everything that a result depends on."""
        splits = ("train", "test", "val") if one.has_val else ("train", "test")
        data = [
            self.cache.data_hash(self.images(one, split))
            if one.task == "classification"
            else self._maps(one, split).stamp()
            for split in splits
        ]
        compared = self.teacher if protocol == "agreement" else None
        teacher = compared.fingerprint() if compared else None
        parts = (self.model.fingerprint(), teacher, protocol, asdict(self.settings), data)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def _stored(self) -> dict[str, dict[str, Any]]:
        """Results of an earlier run of this model with these settings; the same for all processes.

        The file has one model and one set of settings at its head, so others' results go.
        """
        found: list[Any] = [{}]
        file = self.out / "results.json"
        if rank_and_world()[0] == 0 and file.is_file():
            try:
                page = json.loads(file.read_text(encoding="utf-8"))
                if {key: page[key] for key in ("fingerprint", "settings")} == self._head():
                    found = [page["results"]]
            except (ValueError, KeyError, TypeError):
                found = [{}]  # cut off while it was written by another program
        if rank_and_world()[1] > 1:
            distributed.broadcast_object_list(found)
        return dict(found[0])

    def _head(self) -> dict[str, Any]:
        """What all results of the file share, as JSON gives it back."""
        head = {"fingerprint": self.model.fingerprint(), "settings": asdict(self.settings)}
        return dict(json.loads(json.dumps(head)))

    def _write(self) -> None:
        if rank_and_world()[0]:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        page = {"model": self.name, **self._head(), "results": self.results}
        part = self.out / "results.json.part"
        part.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
        part.replace(self.out / "results.json")
