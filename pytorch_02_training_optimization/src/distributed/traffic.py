"""What ranks send each other: every collective that passes through PyTorch's dispatcher, with its bytes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.dispatch import Watcher, name_of, tensors_in

NAMES = {
    "c10d.allreduce_.default": "all-reduce",
    "c10d.broadcast_.default": "broadcast",
    "c10d._allgather_base_.default": "all-gather",
    "c10d._reduce_scatter_base_.default": "reduce-scatter",
    "c10d.send.default": "send",
}
WHOLE = {"all-gather": 0, "reduce-scatter": 1}  # which argument is the whole tensor; the other is one rank's part


@dataclass(frozen=True)
class Call:
    """One collective: `size_bytes` is that of the whole tensor, of which an all-gather gives each rank a part."""

    name: str
    size_bytes: int


class Traffic(Watcher):
    """Inside a `with` block, keeps the collectives of this rank in `calls`, in order; DDP's and FSDP's among them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        if name := NAMES.get(name_of(operation)):
            whole = tensors_in(args[WHOLE.get(name, 0)])
            self.calls.append(Call(name, sum(x.nbytes for x in whole)))

    def counts(self) -> dict[str, int]:
        return dict(Counter(call.name for call in self.calls))


def sent_bytes(calls: Sequence[Call], world_size: int) -> float:
    """What one rank sends for these collectives when each goes around a ring.

    A ring all-reduce is a reduce-scatter and an all-gather, of (n - 1) / n of the tensor each.
    """
    share = (world_size - 1) / world_size
    rounds = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}
    return sum(rounds[call.name] * share * call.size_bytes for call in calls if call.name in rounds)
