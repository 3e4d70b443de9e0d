"""What a step computes and keeps, counted on the real modules without computing anything."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from ..distiller import Distiller
from ..logits import LogitDistiller
from ..losses import ProteusLoss

_IMAGES = 8  # of a batch: a whole number of them is masked, at the usual shares


class Count(NamedTuple):
    """Of one step, for each image of its batch.

    Attributes:
        flops: Of teacher, student, heads, forward and backward; a multiply-add is two.
        teacher_flops: The teacher's share of it.
        kept_bytes: What the step keeps for its backward pass, in fp32.
        teacher_parameters: Numbers in the frozen models.
        trained_parameters: Numbers that the optimizer moves.
    """

    flops: float
    teacher_flops: float
    kept_bytes: float
    teacher_parameters: int
    trained_parameters: int


def count(objective: Distiller | LogitDistiller) -> Count:
    """Count the operations of a step, of any objective of a recipe.

    The objective is copied onto torch's `meta` device, where tensors have shapes and no numbers,
    and goes through one step there: what is counted is what the modules do, CNNs too, the masked
    view for as many images as the masks hide patches from. Matrix products, convolutions and
    attention count; what is done number by number (norms, activations) does not, nor do maps of the
    targets and a queue of tokens, which look at numbers and take little beside the models.

    Examples:
        >>> import proteus
        >>> teacher = proteus.Teacher("vit_tiny_patch16_224", pretrained=False, image_size=32)
        >>> student = proteus.Student("vit_tiny_patch16_224", image_size=32)
        >>> found = count(proteus.Distiller(teacher, student))
        >>> round(found.flops / found.teacher_flops, 1)  # once, and 3 times for 1.5 views
        5.5
    """
    light = _with_plain_targets(on_meta(objective))
    size = light.image_size
    images = torch.zeros(_IMAGES, 3, *size, dtype=torch.uint8, device="meta")
    labels = [torch.zeros(_IMAGES, dtype=torch.long, device="meta")] * (light.num_inputs - 1)
    masks = light.draw(_IMAGES, torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as teaching:
        for teacher in light.teachers.values():
            teacher(teacher.fit(images))
    kept: dict[int, int] = {}
    own = {p.untyped_storage()._cdata for p in light.parameters()}
    alive: list[Tensor] = []  # or an address would be given twice

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()._cdata
        if place not in own:
            kept[place] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    convolutions = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=convolutions) as counter, hooks:
        light(images, *labels, *([] if masks is None else [masks])).total.backward()
    return Count(
        counter.get_total_flops() / _IMAGES,
        teaching.get_total_flops() / _IMAGES,
        sum(kept.values()) / _IMAGES,
        sum(_numbers(teacher) for teacher in light.teachers.values()),
        sum(p.numel() for p in objective.trainable_parameters()),
    )


def _convolution_backward(
    grad: list[int], images: list[int], weight: list[int], *others: Any, **options: Any
) -> int:
    """As many as forward for each gradient: torch's own count forgets the groups of the weight's.

    For depthwise convolutions that is hundreds of times too much.
    """
    transposed, wanted = others[4], others[7]
    once = conv_flop_count(images, weight, grad, transposed=transposed)
    return int(once * sum(wanted[:2]))


def on_meta(objective: Distiller | LogitDistiller) -> Distiller | LogitDistiller:
    """A copy without numbers, in train mode; the objective stays as it is."""
    # The memo has what a tensor becomes: the models may be too large for two of them.
    memo = {id(tensor): _empty(tensor) for tensor in _tensors(objective)}
    return copy.deepcopy(objective, memo).to("meta").train()


def _with_plain_targets(light: Distiller | LogitDistiller) -> Distiller | LogitDistiller:
    """In place: the targets as they are. A turned target of the student's width is a linear map."""
    loss = light.heads
    if isinstance(light, Distiller) and loss is not None and (loss.maps or loss.queue):
        light.loss = ProteusLoss(
            loss.student_dim, loss.teacher_dim,
            token=loss.token, feature=loss.feature, patch=loss.patch, distance=loss.distance,
            head="linear" if loss.targets == "angle" else loss.head,
        ).to("meta")  # fmt: skip
    return light


def _tensors(objective: Distiller | LogitDistiller) -> list[Tensor]:
    models: list[nn.Module] = [objective, *objective.teachers.values()]
    return [tensor for m in models for tensor in (*m.parameters(), *m.buffers())]


def _empty(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def _numbers(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
