"""The processes that torchrun has started for one training, or this one alone: the same calls for both."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from shared.errors import CannotRun

import torch
import torch.distributed as dist
from torch import nn

PATIENCE = timedelta(minutes=10)  # for a process that saves, compiles or validates, while the others wait


@dataclass(frozen=True)
class Team:
    """This process is number `rank` of `size`."""

    rank: int = 0
    size: int = 1
    message_device: str = "cpu"  # where a message to the others has to lie

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """The mean of what each process has; NaN for all where one has NaN, so that all stop together."""
        return self.total(x) / self.size if self.size > 1 else x

    def total(self, x: torch.Tensor) -> torch.Tensor:
        if self.size == 1:
            return x
        x = x.clone()
        dist.all_reduce(x)
        return x

    def any(self, flag: bool) -> bool:
        """Whether one of them says yes. All have to ask."""
        return flag if self.size == 1 else bool(self.total(torch.tensor(float(flag), device=self.message_device)))

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in order of rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def agree(self, choose: Callable[[], Any]) -> Any:
        """What rank 0 chooses, for all; where it cannot, the others end with it."""
        if self.size == 1:
            return choose()
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = choose()
            except CannotRun as error:
                answer[1] = error
        dist.broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1] if self.rank == 0 else SystemExit(2)
        return answer[0]


@contextmanager
def join_team(device: torch.device) -> Iterator[Team]:
    """Meets the other processes, NCCL between GPUs and gloo between CPUs; leaves them in the end."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 and "RANK" not in os.environ:
        yield Team()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE, **own_store())
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), device.type)
    finally:
        dist.destroy_process_group()


def own_store() -> dict[str, Any]:
    """Where the processes of this start of torchrun meet: under names that no start before has used.

    torchrun's store outlives a restart, with the addresses of processes that are dead; who is quicker than its partner
    would connect to those and wait for ever (PyTorch issues 135712 and 167288).
    """
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if life is None or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=PATIENCE)
    named = dist.PrefixStore(f"life-{life}", store)
    return {"store": named, "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}


def use_own_gpu() -> None:
    """Each process of a machine takes the GPU of its local rank. Raises CannotRun where there are fewer."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise CannotRun(
                f"process {local} has no GPU of its own, this machine has {torch.cuda.device_count()}; start fewer "
                "with --nproc-per-node, or use --device cpu"
            )
        torch.cuda.set_device(local)


def spread(model: nn.Module, strategy: str, team: Team, device: torch.device) -> nn.Module:
    """The model as the team trains it: itself, a copy in each process (DDP), or a piece in each (FSDP)."""
    if team.size == 1:
        return model
    if strategy == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (team.size,))
        for block in model.blocks:  # gathered for its own turn, then dropped again
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    # Buffers: each process keeps its own until they are needed, see Training.share_buffers.
    device_ids = [torch.cuda.current_device()] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)


def own_part(x: torch.Tensor) -> torch.Tensor:
    """What of a tensor lies in this process: all of it, but with fsdp."""
    return x.to_local() if hasattr(x, "to_local") else x


def gathered(x: torch.Tensor) -> torch.Tensor:
    """A tensor in main memory; one that fsdp has divided is put together, by all processes at once."""
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().cpu()


def copy_whole(target: torch.Tensor, source: torch.Tensor) -> None:
    """Write a whole tensor into one that fsdp may have divided."""
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
    target.copy_(source)


@contextmanager
def summing_only(model: nn.Module, is_last: bool) -> Iterator[None]:
    """For all pieces of a batch but the last, gradients add up in each process and are not exchanged yet."""
    if isinstance(model, nn.parallel.DistributedDataParallel) and not is_last:
        with model.no_sync():
            yield
        return
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(is_last)
    yield
