"""Measure any model that returns `Features`, one protocol a file.

The protocols on models and datasets are in `proteus.evaluate`; here are also the plain functions on
tensors beneath them, for features of your own.
"""

from ..models.frozen import Extractor as Extractor
from ..models.frozen import as_extractor as as_extractor
from .agreement import compare_features as compare_features
from .agreement import linear_cka as linear_cka
from .cache import FeatureCache as FeatureCache
from .classifier import Classifier as Classifier
from .corruptions import CORRUPTIONS as CORRUPTIONS
from .corruptions import corrupt as corrupt
from .dense.decoders import build_decoder as build_decoder
from .dense.depth_scores import depth_scores as depth_scores
from .dense.depth_scores import metres as metres
from .dense.depth_scores import silog_loss as silog_loss
from .dense.layers_of import choose_layers as choose_layers
from .dense.maps import open_depth as open_depth
from .dense.maps import open_segmentation as open_segmentation
from .dense.seg_scores import add_areas as add_areas
from .dense.seg_scores import reduce_zero_label as reduce_zero_label
from .dense.seg_scores import segmentation_areas as segmentation_areas
from .dense.seg_scores import segmentation_scores as segmentation_scores
from .dense.sliding import slide as slide
from .dense.sliding import window_positions as window_positions
from .extract import extract_features as extract_features
from .feature_set import FeatureSet as FeatureSet
from .imagenet_sets import imagenet_c as imagenet_c
from .imagenet_sets import imagenet_variant as imagenet_variant
from .imagenet_sets import mean_corruption_error as mean_corruption_error
from .knn import knn_predict as knn_predict
from .knn import knn_votes as knn_votes
from .knn import score_knn as score_knn
from .linear import score_linear as score_linear
from .linear_heads import Head as Head
from .linear_heads import ProbeHeads as ProbeHeads
from .linear_heads import probe_inputs as probe_inputs
from .logistic import score_logistic as score_logistic
from .logistic_fit import fit_logistic as fit_logistic
from .logistic_fit import holdout_split as holdout_split
from .logistic_fit import penalties as penalties
from .logistic_fit import standardise as standardise
from .metrics import accuracy as accuracy
from .metrics import eleven_point_ap as eleven_point_ap
from .metrics import eleven_point_map as eleven_point_map
from .metrics import mean_class_accuracy as mean_class_accuracy
from .metrics import topk_accuracy as topk_accuracy
from .sets.labelled import LabelledImages as LabelledImages
from .sets.labelled import open_labelled as open_labelled
from .sets.packs import read_packs as read_packs
from .sets.paper_sets import NAMED_SETS as NAMED_SETS

__all__ = [
    "CORRUPTIONS",
    "NAMED_SETS",
    "Classifier",
    "Extractor",
    "FeatureCache",
    "FeatureSet",
    "Head",
    "LabelledImages",
    "ProbeHeads",
    "accuracy",
    "add_areas",
    "as_extractor",
    "build_decoder",
    "choose_layers",
    "compare_features",
    "corrupt",
    "depth_scores",
    "eleven_point_ap",
    "eleven_point_map",
    "extract_features",
    "fit_logistic",
    "holdout_split",
    "imagenet_c",
    "imagenet_variant",
    "knn_predict",
    "knn_votes",
    "linear_cka",
    "mean_class_accuracy",
    "mean_corruption_error",
    "metres",
    "open_depth",
    "open_labelled",
    "open_segmentation",
    "penalties",
    "probe_inputs",
    "read_packs",
    "reduce_zero_label",
    "score_knn",
    "score_linear",
    "score_logistic",
    "segmentation_areas",
    "segmentation_scores",
    "silog_loss",
    "slide",
    "standardise",
    "topk_accuracy",
    "window_positions",
]
