import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proteus.prepared import bytes_of_an_image
from proteus.prepared.codec import decode, encode


@given(st.integers(0, 10_000), st.floats(1e-6, 1e4))
def test_int8_loses_at_most_half_a_step_of_each_token(seed, size):
    values = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(seed)) * size
    stored = encode("x", values, "int8")
    assert stored["x"].dtype == torch.int8 and stored["x_scale"].shape == (3, 5, 1)
    apart = (decode("x", stored) - values).abs()
    assert (apart <= stored["x_scale"] * 0.5001).all()


def test_what_is_stored_in_float32_comes_back_as_it_is():
    values = torch.randn(2, 4)
    assert torch.equal(decode("x", encode("x", values, "fp32")), values)


def test_zeros_stay_zeros_and_no_token_is_fine():
    for dtype in ("fp32", "fp16", "int8"):
        assert not decode("x", encode("x", torch.zeros(2, 4), dtype)).any()
        assert decode("x", encode("x", torch.zeros(2, 0, 4), dtype)).shape == (2, 0, 4)


def test_what_a_kind_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"too large for fp16. Got values up to 7e\+04"):
        encode("x", torch.tensor([7e4]), "fp16")
    for dtype in ("fp32", "fp16", "int8"):
        with pytest.raises(ValueError, match="not finite"):
            encode("x", torch.tensor([float("nan")]), dtype)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("tokens", ["all", "cls"])
def test_the_size_is_that_of_what_is_stored(dtype, tokens):
    parts = {"cls": torch.randn(1, 6), "patches": torch.randn(1, 9, 4)}
    if tokens == "cls":
        del parts["patches"]
    stored = [t for name, values in parts.items() for t in encode(name, values, dtype).values()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored)
    assert bytes_of_an_image(6, 4, 9, tokens=tokens, dtype=dtype) == size + 16


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match=r"unknown tokens. Got 'patches'"):
        bytes_of_an_image(6, 4, 9, tokens="patches")
    with pytest.raises(ValueError, match=r"unknown dtype. Got 'int4'"):
        bytes_of_an_image(6, 4, 9, dtype="int4")
