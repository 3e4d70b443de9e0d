"""Several processes as one: joining them, wrapping the model, doing things once."""

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

Parallel = Literal["auto", "ddp", "fsdp"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    Attributes:
        device: Where it computes.
        rank: Its number, 0 … size - 1.
        size: How many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, mine: Result) -> list[Result]:
        """What each process has, in the order of their ranks; all must call it together."""
        everyone = [mine] * self.size
        if self.size > 1:
            dist.all_gather_object(everyone, mine)
        return everyone

    @torch.no_grad()
    def share(self, *modules: nn.Module) -> None:
        """Give everyone the first process's weights, in place."""
        for module in modules if self.size > 1 else ():
            for tensor in (*module.parameters(), *module.buffers()):
                copy = tensor.contiguous()
                dist.broadcast(copy, src=0)
                tensor.copy_(copy)

    def once(self, work: Callable[[], Result]) -> Result:
        """Do something on the first process; its result, or its error, is everyone's."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None]
        if self.first:
            try:
                outcome = [(work(), None)]
            except (ValueError, OSError, ArithmeticError) as error:
                outcome = [(None, error)]
        dist.broadcast_object_list(outcome, src=0)
        result, failure = outcome[0]
        if failure is not None:
            raise failure
        return result  # type: ignore[no-any-return]


def choose_device(device: str | torch.device) -> torch.device:
    """`auto` = the accelerator if there is one, else the CPU. Under torchrun, this process's own.

    Raises:
        ValueError: If this machine has no such device.

    Examples:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    count, best = {"cpu": 1}, torch.device("cpu")
    if torch.accelerator.is_available():
        best = torch.accelerator.current_accelerator() or best
        count[best.type] = torch.accelerator.device_count()
    try:
        chosen = best if device == "auto" else torch.device(device)
    except (RuntimeError, TypeError):  # torch knows no device by this name
        raise _no_device(device, count) from None
    if chosen.type != "cpu" and chosen.index is None and dist.is_torchelastic_launched():
        chosen = torch.device(chosen.type, dist.get_node_local_rank())
    if (chosen.index or 0) >= count.get(chosen.type, 0):
        raise _no_device(chosen, count)
    return chosen


def _no_device(device: str | torch.device, count: dict[str, int]) -> ValueError:
    names = [
        f"'{kind}'" if n == 1 else f"'{kind}:0' to '{kind}:{n - 1}'" for kind, n in count.items()
    ]
    return ValueError(
        f"device: this machine has none by this name. Got {str(device)!r}; expected 'auto', or "
        f"{', '.join(names)}."
    )


def join(device: str | torch.device = "auto") -> World:
    """The world of this process; under torchrun, joins the others if that was not done yet.

    Args:
        device: See `choose_device`.

    Returns:
        The world; of size 1 outside torchrun, unless a process group is there already.

    Examples:
        >>> join("cpu")
        World(device=device(type='cpu'), rank=0, size=1)
    """
    chosen = choose_device(device)
    if dist.is_available() and not dist.is_initialized() and dist.is_torchelastic_launched():
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        store, rank, size = next(rendezvous("env://"))
        # torchrun may keep its store when it starts the processes anew, with the addresses of the
        # dead ones in it: each start gets names of its own.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        own = PrefixStore(f"attempt-{attempt}", store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size)
    if not (dist.is_available() and dist.is_initialized()):
        return World(chosen)
    return World(chosen, dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Part from the others, so that the process can end without a complaint."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@runtime_checkable
class _HasBlocks(Protocol):
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
