"""What each protocol of a suite does with one set."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from ...models.frozen import Extractor
from ..agreement import agreement
from ..cache import FeatureCache
from ..classifier import LinearClassifier
from ..dense.depth import depth
from ..dense.maps import DenseImages, open_depth, open_segmentation
from ..dense.segmentation import segmentation
from ..extract import extract_features
from ..feature_set import FeatureSet, default_workers, probe_resize
from ..knn import KS, score_knn
from ..linear import LinearProbeResult, fitting_blocks, score_linear
from ..logistic import score_logistic
from ..robustness import robustness
from ..sets.labelled import open_labelled
from ..sets.paper_sets import metric_of
from ..views import View, augmented_views
from .find_sets import EvaluationSet
from .mistakes import mistakes_of
from .presets import SuiteSettings

# The authors fine-tune a ViT-L (24 blocks) on ADE20K for longer.
_LARGE_BLOCKS, _LARGE_ITERATIONS = 24, 160_000


class Tools(NamedTuple):
    """What every protocol works with; see `SuiteRun`, which hands it on."""

    model: Extractor
    settings: SuiteSettings
    cache: FeatureCache
    teacher: Extractor | None
    batch_size: int
    workers: int | None
    progress: bool


class OpenSet:
    """A set while its protocols run: what they share is made once, and goes when it goes.

    Args:
        run: What is measured, and how.
        one: The set.
    """

    def __init__(self, tools: Tools, one: EvaluationSet) -> None:
        self.tools, self.one, self.settings = tools, one, tools.settings
        self._made: dict[Any, Any] = {}

    def measure(self, protocol: str) -> dict[str, Any]:
        """The numbers of a protocol of `SUITES`."""
        return {
            "knn": self._knn,
            "linear": self._linear,
            "finegrained": self._finegrained,
            "segmentation": self._segmentation,
            "depth": self._depth,
            "segmentation-finetune": lambda: self._segmentation(finetune=True),
            "depth-finetune": lambda: self._depth(finetune=True),
            "robustness": self._robustness,
            "agreement": self._agreement,
        }[protocol]()

    def stamp(self) -> str:
        """A hash of the images of all splits, and of their labels or maps."""
        return str(self._once("stamp", self._hash))

    def _hash(self) -> str:
        splits = ("train", "test", "val") if self.one.has_val else ("train", "test")
        classified = self.one.task == "classification"
        hash_of = self.tools.cache.data_hash if classified else DenseImages.stamp
        parts = [hash_of(self.split(name)) for name in splits]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def split(self, name: str) -> Any:
        """Images of one split, at most `limit`, with their labels or maps."""
        return self._once(name, lambda: self._read(name))

    def features(self, split: str, *, probe: bool) -> FeatureSet:
        """Features for k-NN and the linear probe, or for logistic regression."""
        size = self.settings.image_size
        found: FeatureSet = self._once(
            (split, probe),
            lambda: extract_features(
                self.tools.model, self.split(split), image_size=size,
                resize=probe_resize(size) if probe else size,
                blocks=max(fitting_blocks(self.tools.model)) if probe else 0,
                batch_size=self.tools.batch_size, workers=self.tools.workers,
                cache=self.tools.cache, progress=self.tools.progress,
            ),
        )  # fmt: skip
        return found

    def _once(self, name: Any, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _read(self, split: str) -> Any:
        one, limit = self.one, self.settings.limit
        data: Any
        if one.task == "segmentation":
            data = open_segmentation(one.source, split=split)
        elif one.task == "depth":
            data = open_depth(one.source, split=split)
        else:
            # A test folder that lacks a class must not shift the numbers of the others.
            known = split == "train" or one.root is not None
            classes = () if known else self.split("train").classes
            data = open_labelled(one.source, split=split, root=one.root, classes=classes)
        return data if limit is None else data.first(limit)

    def _knn(self) -> dict[str, Any]:
        train, test = (self.features(split, probe=True) for split in ("train", "test"))
        ks = KS if len(train) >= min(KS) else (1,)
        result = score_knn(train, test, ks=ks, device=self.tools.model.device)
        wrong = mistakes_of(result.predictions, test.labels, train.classes)
        return {**result.to_dict(), "mistakes": wrong}

    def _linear(self) -> dict[str, Any]:
        return self._probe().to_dict()

    def _probe(self) -> LinearProbeResult:
        """The linear probe; `robustness` takes the one that `linear` has trained."""
        settings = self.settings
        found: LinearProbeResult = self._once(
            "probe",
            lambda: score_linear(
                self.features("train", probe=True), self.features("test", probe=True),
                select=settings.select, iterations=settings.linear_iterations,
                batch_size=settings.linear_batch, seed=settings.seed,
                device=self.tools.model.device, progress=self.tools.progress,
                views=self._crops if settings.linear_augment else None,
            ),
        )  # fmt: skip
        return found

    def _crops(self, batches: Iterable[Tensor]) -> Iterator[View]:
        return augmented_views(
            self.tools.model, self.split("train"), (batch.tolist() for batch in batches),
            size=self.settings.image_size, blocks=max(fitting_blocks(self.tools.model)),
            seed=self.settings.seed, workers=self.tools.workers,
        )  # fmt: skip

    def _robustness(self) -> dict[str, Any]:
        probe, size = self._probe(), self.settings.image_size
        classifier = LinearClassifier(
            self.tools.model, probe.weight, probe.bias, image_size=size, resize=probe_resize(size),
            blocks=probe.head.blocks, avgpool=probe.head.avgpool,
        )  # fmt: skip
        result = robustness(
            classifier, self.split("test"), severities=self.settings.severities,
            batch_size=self.tools.batch_size, progress=self.tools.progress,
        )  # fmt: skip
        return {"protocol": "robustness", **result.to_dict()}

    def _finegrained(self) -> dict[str, Any]:
        train, test = (self.features(split, probe=False) for split in ("train", "test"))
        val = self.features("val", probe=False) if self.one.has_val else None
        metric = metric_of(self.one.name) if train.labels.ndim == 1 else "map_11"
        result = score_logistic(
            train, test, val=val, metric=metric, sweep=self.settings.sweep,
            device=self.tools.model.device,
        )  # fmt: skip
        return result.to_dict()

    def _segmentation(self, *, finetune: bool = False) -> dict[str, Any]:
        frozen = self.settings.segmentation_iterations
        longer = finetune and self.tools.model.num_layers >= _LARGE_BLOCKS
        result = segmentation(
            self.tools.model, self.split("train"), self.split("test"),
            mode="upernet" if finetune else "linear",
            **self._dense(finetune, max(frozen, _LARGE_ITERATIONS) if longer else frozen),
        )  # fmt: skip
        return {"protocol": "segmentation", **result.to_dict()}

    def _depth(self, *, finetune: bool = False) -> dict[str, Any]:
        result = depth(
            self.tools.model, self.split("train"), self.split("test"),
            mode="dpt" if finetune else self.settings.depth_head,
            **self._dense(finetune, self.settings.depth_iterations),
        )  # fmt: skip
        return {"protocol": "depth", **result.to_dict()}

    def _dense(self, finetune: bool, iterations: int) -> dict[str, Any]:
        """What segmentation and depth share; `iterations` are the paper's."""
        settings = self.settings
        if finetune and settings.finetune_iterations is not None:
            iterations = settings.finetune_iterations
        return {
            "finetune": finetune,
            "image_size": settings.dense_size or settings.image_size,
            "iterations": iterations,
            "augment": finetune or settings.dense_augment,
            "channels": settings.finetune_channels if finetune else None,
            "workers": default_workers(self.tools.workers, len(self.split("train"))),
            "seed": settings.seed,
            "progress": self.tools.progress,
        }

    def _agreement(self) -> dict[str, Any]:
        result = agreement(
            self.tools.model, self.tools.teacher, self.split("test"),
            image_size=self.settings.image_size, batch_size=self.tools.batch_size, layers=True,
        )  # fmt: skip
        return result.to_dict()
