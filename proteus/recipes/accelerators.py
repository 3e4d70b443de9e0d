"""Published numbers of accelerators, and which share of them a run was seen to use."""

import re
from typing import NamedTuple

from ..words import nearest


class Accelerator(NamedTuple):
    """One card, as its maker's data sheet describes it.

    Attributes:
        half: Peak of dense products in bf16 and fp16 with fp32 sums, FLOP/s.
        single: Peak in fp32 outside the tensor cores, FLOP/s.
        memory: Bytes.
    """

    half: float
    single: float
    memory: float


def _card(half: float, single: float, gigabytes: float) -> Accelerator:
    return Accelerator(half * 1e12, single * 1e12, gigabytes * 1e9)


ACCELERATORS = {
    "A100": _card(312, 19.5, 80),
    "A100-40GB": _card(312, 19.5, 40),
    "H100": _card(989, 67, 80),
    "H100-PCIe": _card(756, 51, 80),
    "H200": _card(989, 67, 141),
    "A10": _card(125, 31.2, 24),
    "A40": _card(149.7, 37.4, 48),
    "A6000": _card(154.8, 38.7, 48),
    "L4": _card(121, 30.3, 24),
    "L40S": _card(362, 91.6, 48),
    "RTX3090": _card(71, 35.6, 24),
    "RTX4090": _card(165.2, 82.6, 24),
    "MI300X": _card(1307, 163.4, 192),
}


class Share(NamedTuple):
    """Which part of the peak of some card real runs were busy with.

    Attributes:
        of_peak: FLOP counted over seconds, over the card's peak.
        card: Where.
        source: Which runs, and who says so.
    """

    of_peak: float
    card: str
    source: str


# 300 epochs of ViT-S from DINOv2-B took the authors 30 h on 8 A100 (A.8): 53 TFLOP/s each.
AUTHORS_RATE = 53e12
AUTHORS = Share(
    AUTHORS_RATE / ACCELERATORS["A100"].half,
    "A100",
    "the paper's 30 h on 8 A100 for ViT-S from DINOv2-B, fp16, loading included (A.8)",
)
# From benchmarks/utilisation.py; tests/test_benchmarks.py holds it against the runs.
OURS = Share(
    0.0269,
    "H100",
    "59 runs of docs/pairs.md: bf16, small students at 64 to 256 px, 8 at once on one card, "
    "evaluation included",
)


def parse_machine(text: str) -> tuple[int, str]:
    """How many of which accelerator.

    Raises:
        ValueError: If it is unknown.

    Examples:
        >>> parse_machine("8xH100"), parse_machine("rtx4090")
        ((8, 'H100'), (1, 'RTX4090'))
    """
    found = re.fullmatch(r"(?:(\d{1,6})\s*x\s*)?(\S+)", text.strip(), re.IGNORECASE)
    names = {name.lower(): name for name in ACCELERATORS}
    count, name = (int(found[1] or 1), found[2].lower()) if found else (0, "")
    if name not in names or count < 1:
        raise ValueError(
            f"plan: unknown machine. Got {text!r}; expected `this`, or a number of "
            f"{', '.join(ACCELERATORS)}, such as 8xH100. {nearest(text, ACCELERATORS)}"
        )
    return count, names[name]
