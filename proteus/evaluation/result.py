"""What a protocol returns: a small frozen result, and its numbers for JSON."""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar


@dataclass(frozen=True)
class Result:
    """What a protocol has measured; fields that are not compared are no numbers."""

    protocol: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """The numbers, ready for JSON; None stands for NaN."""
        kept = {field.name: vars(self)[field.name] for field in fields(self) if field.compare}
        numbers = {n: plain(v) if isinstance(v, float) else v for n, v in kept.items()}
        return {"protocol": self.protocol, **numbers} if self.protocol else numbers


def plain(value: float) -> float | None:
    """A number for JSON, which has neither NaN nor infinity."""
    return value if math.isfinite(value) else None
