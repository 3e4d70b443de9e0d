import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from proteus.training.ema import Ema


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def changed(model, step):
    """Move every weight, and the buffers too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model[:2](torch.randn(2, 3, 8, 8) + step)


def test_it_is_the_formula():
    model, decay = network(), 0.9
    average = Ema(model, decay)
    expected = {name: t.double() for name, t in model.state_dict().items()}
    for step in range(50):
        changed(model, step)
        average.update(model)
        for name, tensor in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    for name, tensor in average.tensors.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_it_is_timm_s_buffers_included():
    model = network()
    ours, theirs = Ema(model, 0.99), ModelEmaV3(model, decay=0.99)
    for step in range(20):
        changed(model, step)
        ours.update(model)
        theirs.update(model)
    for name, tensor in theirs.module.state_dict().items():
        torch.testing.assert_close(ours.tensors[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_counters_are_copied():
    model = network()
    average = Ema(model, 0.99)
    changed(model, 0)
    average.update(model)
    assert average.tensors["1.num_batches_tracked"] == model[1].num_batches_tracked == 1


def test_a_thousand_small_updates_are_rounded_as_the_authors_are():
    # Their formula drifts by 1e-5 and more from the exact average, and so must ours, in float32.
    model = nn.Linear(4, 4)
    average = Ema(model, 0.99996)
    theirs = {name: t.clone() for name, t in model.state_dict().items()}
    for _ in range(1000):
        with torch.no_grad():
            model.weight.add_(torch.randn(4, 4) * 1e-2)
        average.update(model)
        for name, tensor in model.state_dict().items():
            theirs[name] = theirs[name] * 0.99996 + (1 - 0.99996) * tensor
    for name, tensor in average.tensors.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)


def test_it_starts_as_a_copy_and_never_touches_the_model():
    model = network()
    before = copy.deepcopy(model.state_dict())
    average = Ema(model, 0.5)
    assert all(torch.equal(average.tensors[name], t) for name, t in before.items())
    average.tensors["0.weight"].zero_()
    average.update(model)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(t.requires_grad for t in average.tensors.values())


def test_what_was_saved_is_taken_over():
    one, other = Ema(network(), 0.9), Ema(network(), 0.9)
    other.load(one.tensors)
    assert all(torch.equal(other.tensors[name], t) for name, t in one.tensors.items())


@pytest.mark.parametrize("decay", [0, 1, -0.1, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"Ema: ema .*Got {decay}"):
        Ema(nn.Linear(1, 1), decay)


def test_what_does_not_move_stays_to_the_bit():
    model = network()
    average = Ema(model, 0.9, still=["0.weight", "1.running_mean"])
    before = {name: t.clone() for name, t in average.tensors.items()}
    changed(model, 1)
    average.update(model)
    same = {name for name, t in average.tensors.items() if torch.equal(t, before[name])}
    assert same == {"0.weight", "1.running_mean"}
