"""The way in: every float batch is looked at, and the host waits for none but the first."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from proteus.features import IMAGENET
from proteus.models.read import ImageInput

GOOD = torch.rand(2, 3, 8, 8)
BAD = {
    "0-255": GOOD * 255,
    "normalised": (GOOD - 0.5) / 0.2,
    "NaN": torch.where(GOOD > 0.9, torch.nan, GOOD),
    "infinite": torch.where(GOOD > 0.9, torch.inf, GOOD),
    "half": (GOOD * 255).half(),
}


@pytest.fixture
def inputs():
    return ImageInput(IMAGENET, "Teacher")


@pytest.mark.parametrize("bad", BAD)
def test_the_first_batch_is_refused_at_once(inputs, bad):
    with pytest.raises(ValueError, match=r"Teacher: images are not in \[0, 1\]"):
        inputs(BAD[bad])


@pytest.mark.parametrize("first", [GOOD, torch.zeros_like(GOOD), (GOOD * 255).byte()])
@pytest.mark.parametrize("bad", BAD)
def test_a_later_batch_is_refused_when_it_is_read(inputs, first, bad):
    inputs(first)
    inputs(GOOD)
    assert inputs.outside() == 0
    if first.dtype == torch.uint8:
        inputs.check()
    inputs(BAD[bad])
    inputs(GOOD)  # does not hide it
    assert inputs.outside() == (bad != "NaN")  # that is the loss's to tell
    with pytest.raises(ValueError, match=r"not in \[0, 1\]. Got values from"):
        inputs.check()
    inputs.check()  # said once
    assert inputs.outside() == 0


def test_what_resizing_leaves_above_one_is_no_fault(inputs):
    inputs(torch.full((1, 3, 8, 8), 1.005))
    inputs(torch.full((1, 3, 8, 8), -0.005))
    inputs.check()


def test_normalised_images_are_not_judged_where_they_are_expected():
    plain = ImageInput(None, "Teacher")
    plain(BAD["normalised"])
    plain.check()


def test_it_is_in_no_state_and_goes_with_the_model(inputs):
    assert not inputs.state_dict()
    assert not list(inputs.parameters())
    inputs(GOOD)
    inputs(BAD["0-255"])
    assert copy.deepcopy(inputs).outside() == 1
    assert inputs.to("meta").seen.is_meta
    inputs(torch.empty(1, 3, 8, 8, device="meta"))


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
        return function(*args, **(kwargs or {}))


def test_the_host_waits_for_no_later_batch(distiller):
    images = torch.rand(4, 3, 32, 32)
    distiller(images)
    with Reads() as reads:
        distiller.teacher.inputs(images)
        distiller.student.inputs(images)
    assert reads.count == 0


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_it_compiles_into_one_graph_and_still_sees(inputs):
    torch._dynamo.reset()
    compiled = torch.compile(inputs, fullgraph=True, backend="aot_eager")
    expected = ImageInput(IMAGENET, "Teacher")(GOOD)
    assert torch.allclose(compiled(GOOD), expected)
    assert inputs.outside() == 0
    compiled(BAD["normalised"])
    assert inputs.outside() == 1


def test_own_loops_ask_for_it(distiller):
    distiller(torch.rand(4, 3, 32, 32))
    distiller.check_inputs()
    distiller(torch.rand(4, 3, 32, 32) * 255)
    with pytest.raises(ValueError, match=r"Teacher: images are not in \[0, 1\].*to 255"):
        distiller.check_inputs()
