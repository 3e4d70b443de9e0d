"""Numbers of the authors' evaluation code: logistic regression, linear probe."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from proteus.evaluation import (
    FeatureSet,
    Head,
    ProbeHeads,
    eleven_point_ap,
    holdout_split,
    penalties,
    probe_inputs,
    score_logistic,
)
from proteus.evaluation.linear_heads import head_grid
from proteus.evaluation.logistic_fit import fit_logistic, logistic_scores, standardise
from proteus.evaluation.metrics import eleven_point_map

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def fine():
    folder = HERE / "04_fine_grained"
    return json.loads((folder / "results.json").read_text()), load_file(
        folder / "features.safetensors"
    )


@pytest.fixture(scope="module")
def linear():
    folder = HERE / "05_linear_knn"
    return json.loads((folder / "results.json").read_text()), load_file(
        folder / "linear.safetensors"
    )


def feature_set(tensors, split):
    return FeatureSet(tensors[f"x_{split}"], tensors[f"x_{split}"], tensors[f"y_{split}"])


def test_the_constants_are_the_authors_to_the_last_bit(fine):
    values, steps = penalties("official")
    assert values.tolist() == fine[0]["C_values"]
    assert steps == 1000
    assert float(penalties("paper")[0][-1]) == pytest.approx(1e-3)


def test_the_held_out_fifth_is_the_authors(fine):
    for split in fine[0]["splits"]:
        train, val = holdout_split(split["n"])
        assert train.tolist() == split["train"]
        assert val.tolist() == split["val"]


def test_the_45_validation_scores_the_chosen_constant_and_the_test_scores_hold(fine):
    expected, tensors = fine
    run = expected["runs"]["ACC_float64"]
    train, val, test = (feature_set(tensors, split) for split in ("train", "val", "test"))
    result = score_logistic(train, test, val=val, sweep="official")
    one_sample = 100 / len(val) + 1e-9
    gaps = [abs(a - b) for a, b in zip(result.val_scores, run["val_scores"], strict=True)]
    assert max(gaps) <= one_sample
    # Only the largest constants, whose fits nobody lets converge, may differ at all.
    assert max(gaps[12:]) < 1e-9
    assert result.index == 30
    assert result.constant == pytest.approx(run["C_of_final_fit"], rel=1e-12)
    assert result.score == pytest.approx(run["test_score"], abs=1e-9)
    found = (test.cls @ result.weight.T.float() + result.bias).argmax(1)  # on raw features
    assert float((found == test.labels).double().mean()) * 100 == pytest.approx(result.score)


def test_several_labels_give_the_authors_map(fine):
    _, tensors = fine
    x = torch.cat([tensors["x_train"], tensors["x_val"]])
    y = torch.cat([tensors["voc.y_train"], tensors["voc.y_val"]])
    scale = standardise(x)
    weights, bias = fit_logistic(scale(x), y, penalties("official")[0][25:26], num_classes=20)
    scores = logistic_scores(scale(tensors["voc.x_test"]), weights[0], bias[0])
    assert eleven_point_map(scores, tensors["voc.y_test"]) == pytest.approx(88.716, abs=1e-3)


def test_eleven_points_are_not_the_average_precision(fine):
    example = fine[0]["voc_ap_example"]
    scores = torch.tensor(example["score"], dtype=torch.float64)
    found = eleven_point_ap(scores, torch.tensor(example["y_true"]))
    assert found == pytest.approx(100 * example["ap_11_point"], abs=1e-9)
    assert found != pytest.approx(100 * example["sklearn_average_precision"], abs=1)


def test_the_inputs_of_the_heads_are_the_authors(linear):
    _, tensors = linear
    blocks, patches = inputs(tensors)
    for count in (1, 4):
        for pool in (False, True):
            ours = probe_inputs(blocks, patches, count, pool)
            torch.testing.assert_close(
                ours, tensors[f"input.n{count}.avgpool{int(pool)}"], atol=1e-6, rtol=0
            )


def inputs(tensors):
    blocks = torch.stack([tensors[f"block{i}.cls"] for i in range(4)], 1)
    return blocks, tensors["block3.patches"].mean(1)


def test_24_steps_of_twelve_heads_are_the_authors(linear):
    expected, tensors = linear
    run = expected["training"]
    heads = ProbeHeads(
        head_grid(run["learning_rates"]), width=16, num_classes=5, iterations=24,
        scale=run["batch"] * run["world"] / 256,
    )  # fmt: skip

    def name(head):
        text = f"classifier_{head.blocks}_blocks_avgpool_{head.avgpool}_lr_{head.lr / 8:.5f}"
        return text.replace(".", "_")

    for head in heads.heads:
        weight, bias = heads.of(head)
        weight.copy_(tensors[f"init.{name(head)}.weight"])
        bias.copy_(tensors[f"init.{name(head)}.bias"])
    blocks, patches = inputs(tensors)
    for step, history in enumerate(run["history"]):
        torch.testing.assert_close(
            heads.rates(), torch.tensor(history["lr"], dtype=torch.float64), atol=1e-12, rtol=0
        )
        losses = heads.step(blocks, patches, tensors["labels"][step])
        expected_losses = torch.tensor([history["losses"][name(head)] for head in heads.heads])
        torch.testing.assert_close(losses, expected_losses, atol=1e-5, rtol=0)
    for head in heads.heads:
        weight, bias = heads.of(head)
        for ours, key in ((weight, "weight"), (bias, "bias")):
            theirs = tensors[f"final.{name(head)}.{key}"]
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("number", range(4))
def test_no_head_is_lost_to_a_rounded_name(linear, number):
    grid = linear[0]["grids"][number]
    heads = ProbeHeads(head_grid(), width=2, num_classes=2, iterations=1, scale=grid["scale"])
    assert len({Head(*head) for head in heads.heads}) == 52
    torch.testing.assert_close(
        heads.rates()[:13], torch.tensor(grid["scaled_lrs"], dtype=torch.float64)
    )
