"""The model of the step, shared or sharded among the processes."""

import warnings
from collections.abc import Iterable
from typing import Protocol, get_args, runtime_checkable

import torch.distributed as dist
from torch import Tensor, nn

from ..settings import Parallel
from ..traits import Trait
from ..world import World


@runtime_checkable
class _HasBlocks(Trait, Protocol):
    """Transformers of timm and of DINOv2: blocks that are called one after the other."""

    blocks: Iterable[nn.Module]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a model; empty where it has none by that name."""
    return list(model.blocks) if isinstance(model, _HasBlocks) else []


def wrap(model: nn.Module, parts: Iterable[nn.Module], world: World, kind: Parallel) -> nn.Module:
    """The module to call in the step.

    Args:
        model: A `Distiller`, on its device.
        parts: Modules to shard one by one under FSDP, inner ones first; the teacher among them,
            which is no submodule.
        world: The processes.
        kind: `auto` is DDP where there are several processes.

    Raises:
        ValueError: If FSDP is asked for without processes to share with.
    """
    if kind not in get_args(Parallel):
        raise ValueError(
            f"parallel: unknown kind. Got {kind!r}; expected {', '.join(get_args(Parallel))}."
        )
    if kind == "fsdp":
        return _shard(model, parts, world)
    if world.size == 1:
        return model
    # gloo and NCCL both; buffers of batch norm follow the first process, as is usual.
    return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


def _shard(model: nn.Module, parts: Iterable[nn.Module], world: World) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized():
        raise ValueError(
            "parallel: 'fsdp' needs a process group. Got a single plain process; start the run "
            "with torchrun, or use 'auto'."
        )
    # `Features` are views of the tokens. The warning is about writing into such views, which
    # nothing in the step does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in parts:
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all processes; another one as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_like(tensor: Tensor, example: Tensor) -> Tensor:
    """A whole tensor, sharded as the example is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(example, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(example.device), example.device_mesh, list(example.placements)
    )
