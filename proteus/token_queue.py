"""A distance between class tokens that looks at how near they are to earlier ones."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distances import Distance, at_least_float32, check_distance
from .features import ShapeError
from .ranges import check_numbers
from .world import join_rows

TokenDistance = Distance | Literal["queue"]


class QueueKL(nn.Module):
    """KL divergence between how teacher and student are near to a queue of teacher tokens.

    Each image has two distributions: the softmax of its token's cosines, over the temperature, with
    the teacher's token of the image itself and with the teacher's tokens of earlier images. The
    student is to have the teacher's. It is a distance of the token term and no term of its own:
    it compares the same two tokens as the others do, through the same head, and needs of the step
    nothing else; what is new is a state, which is in buffers as that of a batch norm is.

    In training the teacher's tokens enter the queue after they were used, in place of the oldest,
    those of all processes in the order of their ranks. So all processes have one queue; all must
    call it together, with equally many images. Of several accumulated parts, a later one finds the
    tokens of the earlier ones. In eval the queue stays.

    Args:
        width: Dt.
        queue_size: Tokens kept, at least the images of a forward on all processes.
        temperature: Of both distributions, > 0.

    Attributes:
        queue: Tokens of length 1, [queue_size, Dt].
        filled: Tokens that came in so far, a scalar; the next takes row `filled % queue_size`.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> distance = QueueKL(4, queue_size=8)
        >>> teacher = torch.randn(2, 4)
        >>> float(distance(teacher, teacher).sum()), int(distance.filled)
        (0.0, 2)

    Source:
        SEED (Fang et al., ICLR 2021), `seed/builder.py`; CompRess (Koohpayegani et al., NeurIPS
        2020).
        *Same:* SEED's distributions: the image's own token and the queue, which holds the
        teacher's; CompRess's divergence (SEED's cross-entropy has the same gradient) and its one
        temperature for both (SEED: 0.01 for the teacher, 0.2 for the student).
        *Different:* the queue starts empty and not with noise; 4096 tokens and not 65,536; the
        student passes the token head, which has no norm behind it.
    """

    queue: Tensor
    filled: Tensor

    def __init__(self, width: int, queue_size: int = 4096, temperature: float = 0.07) -> None:
        super().__init__()
        check_numbers("QueueKL", {"queue_size": queue_size, "temperature": temperature})
        self.temperature = temperature
        self.register_buffer("queue", torch.zeros(queue_size, width))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Class tokens [B, Dt], [B, Dt] to a distance each, [B].

        Raises:
            ShapeError: If the shapes differ, or more images come at once than the queue holds.
        """
        if student.shape != teacher.shape or teacher.shape[-1] != self.queue.shape[1]:
            raise ShapeError(
                f"QueueKL: class tokens do not fit. Got {tuple(student.shape)} and "
                f"{tuple(teacher.shape)}; expected [images, {self.queue.shape[1]}] twice."
            )
        with torch.autocast(teacher.device.type, enabled=False):
            ours, theirs = (F.normalize(at_least_float32(x), dim=1) for x in (student, teacher))
            rows = self.queue.to(theirs).clone()  # which changes before the backward pass
            empty = torch.arange(len(rows), device=rows.device) >= self.filled
            found = []
            for tokens in (ours, theirs):
                own, past = (tokens * theirs).sum(1, keepdim=True), tokens @ rows.mT
                cosines = torch.cat([own, past], 1) / self.temperature
                nowhere = F.pad(empty, (1, 0))
                # Not -inf: zero times the difference of two of them is NaN.
                found.append(cosines.masked_fill(nowhere, -1e4).log_softmax(1))
        if self.training:
            self._enter(theirs.detach())
        return F.kl_div(found[0], found[1], reduction="none", log_target=True).sum(1)

    def _enter(self, tokens: Tensor) -> None:
        tokens = join_rows(tokens)
        if len(tokens) > len(self.queue):
            raise ShapeError(
                f"QueueKL: more images than the queue holds. Got {len(tokens)} at once; expected "
                f"at most {len(self.queue)}. Set queue_size higher."
            )
        places = (self.filled + torch.arange(len(tokens), device=tokens.device)) % len(self.queue)
        self.queue.index_copy_(0, places, tokens.to(self.queue))
        self.filled.add_(len(tokens))


def make_queue(name: TokenDistance | None, width: int, **settings: Any) -> QueueKL | None:
    """The queue, where the distance is one; the distance's name and settings are checked.

    Raises:
        ValueError: If the name is unknown, or settings would be ignored.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    check_numbers("ProteusLoss", given)
    if name == "queue":
        return QueueKL(width, **given)
    if given:
        raise ValueError(
            f"ProteusLoss: {' and '.join(given)} would be ignored. Got {given} with "
            f"token_distance={name!r}; they belong to token_distance='queue'."
        )
    if name is not None:
        check_distance(name)
    return None
