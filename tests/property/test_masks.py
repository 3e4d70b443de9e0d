"""A batch that is shared has the masks of the whole one, whatever the strategy and the sharing."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proteus import MaskGenerator

generators = st.builds(
    MaskGenerator,
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    ratio=st.sampled_from([0.3, 0.5, 1.0, (0.0, 0.6), (0.1, 0.9)]),
    probability=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    strategy=st.sampled_from(["random", "block"]),
    shuffle=st.booleans(),
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=60)
@given(generators, st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_the_parts_put_together_are_the_whole(masks, batch, parts, seed):
    whole = masks.draw(batch * parts, seeded(seed))
    together = torch.zeros_like(whole.hidden)
    for number in range(parts):
        part = masks.draw(batch, seeded(seed), part=(number, parts))
        together[number::parts] = part.hidden
        # The images that are said to have a mask are those, and each has its own.
        named = torch.zeros(batch, dtype=torch.bool)
        named[part.images] = True
        assert not part.hidden[~named].any()
        # Each part divides by the same number, so that the mean of the parts is the whole's.
        count = part.hidden.sum() if part.hidden_count is None else part.hidden_count
        assert count * parts == whole.hidden.sum()
    assert torch.equal(together, whole.hidden)
