import pytest
import torch

from proteus.training import choose_device


@pytest.mark.parametrize(
    "device", ["", "quantum", "cuda:99", "cuda:-1", "meta", "cpu:3", "cpu ", "xla", None, 99]
)
def test_a_device_that_is_not_there_is_named_with_those_that_are(device):
    with pytest.raises(ValueError, match=r"device: .*Got .*expected 'auto', or 'cpu'"):
        choose_device(device)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="of machines without an accelerator")
@pytest.mark.parametrize("device", ["cuda", "mps", "xpu", "cuda:0"])
def test_without_an_accelerator_none_can_be_asked_for(device):
    with pytest.raises(ValueError, match=f"Got '{device}'"):
        choose_device(device)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
