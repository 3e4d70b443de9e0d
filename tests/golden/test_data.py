"""The authors' sampler (case 07) and training transform (case 08)."""

import json
from pathlib import Path

import pytest
import timm

from proteus.data import Repeated, official

FOLDER = Path(__file__).parent
SAMPLER = json.loads((FOLDER / "07_schedules/ra_sampler.json").read_text())
TRANSFORM = json.loads((FOLDER / "08_transforms/train_timm_1.0.31.json").read_text())


@pytest.mark.parametrize(
    "case", SAMPLER["cases"], ids=lambda c: f"{c['n']}-{c['replicas']}-{c['epoch']}"
)
def test_the_repeated_order_is_the_authors(case):
    order = Repeated(case["n"], repeats=SAMPLER["num_repeats"])
    for rank in range(case["replicas"]):
        options = {"batch_size": 8, "rank": rank, "world_size": case["replicas"]}
        ours = order.indices(case["epoch"], **options).tolist()
        theirs = case["indices_per_rank"][rank]
        if case["n"] < 256:
            # *Different:* theirs is empty for fewer than 256 images.
            assert theirs == []
            assert len(ours) == case["n"] // case["replicas"]
            assert ours == case["before_truncation_per_rank"][rank][: len(ours)]
            continue
        assert ours[: len(theirs)] == theirs
        assert len(ours) == case["len"]


def test_an_epoch_of_imagenet_has_the_authors_length():
    expected = SAMPLER["imagenet"]
    order = Repeated(expected["n"])
    assert order.length(batch_size=128) == expected["selected_total"]
    assert order.length(batch_size=128, world_size=4) == expected["per_rank_4"]
    assert expected["per_rank_4"] // 128 == expected["steps_per_epoch_4x128"]


@pytest.mark.skipif(timm.__version__ != TRANSFORM["timm"], reason="another timm writes other names")
def test_the_official_transform_is_timm_s_object_for_object():
    assert repr(official(224)) == TRANSFORM["train_pipeline_repr"]


def test_the_fields_of_every_object_are_the_authors():
    for ours, theirs in zip(official(224).transforms, TRANSFORM["train_pipeline"], strict=True):
        if "ops" not in theirs:
            continue
        assert ours.num_layers == theirs["num_layers"]
        for op, expected in zip(ours.ops, theirs["ops"], strict=True):
            assert (op.name, op.prob, op.magnitude, op.magnitude_std) == (
                expected["name"], expected["prob"], expected["magnitude"],
                expected["magnitude_std"],
            )  # fmt: skip
            hparams = {k: str(int(v) if k == "interpolation" else v) for k, v in op.hparams.items()}
            assert hparams == expected["hparams"]
