"""Every protocol of the paper as a call: `from proteus import evaluate`.

Each takes any model that returns `Features`, or a plain timm model, and any dataset of
`(image, target)`, and returns a small frozen result with `.to_dict()`. The plain functions on
tensors beneath them are in `proteus.evaluation`.
"""

from .evaluation.agreement import AgreementResult, agreement
from .evaluation.dense.depth import DepthResult, depth
from .evaluation.dense.segmentation import SegmentationResult, segmentation
from .evaluation.extract import extract_features
from .evaluation.feature_set import FeatureSet
from .evaluation.knn import KnnResult, knn
from .evaluation.linear import LinearProbeResult, linear_probe
from .evaluation.logistic import LogisticResult, logistic_regression
from .evaluation.robustness import RobustnessResult, robustness

__all__ = [
    "AgreementResult",
    "DepthResult",
    "FeatureSet",
    "KnnResult",
    "LinearProbeResult",
    "LogisticResult",
    "RobustnessResult",
    "SegmentationResult",
    "agreement",
    "depth",
    "extract_features",
    "knn",
    "linear_probe",
    "logistic_regression",
    "robustness",
    "segmentation",
]
