"""What PyTorch does in a call, seen rather than assumed: each operation with its shapes and the bytes that it moves."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.dispatch import Watcher, name_of, tensors_in

import torch


@dataclass(frozen=True)
class Operation:
    """One operation that reached the device. A view reads and writes nothing; memory that it made is in `new_bytes`."""

    name: str  # such as "mul.Tensor"
    shapes: tuple[tuple[int, ...], ...]  # of the tensors that it read
    read_bytes: int
    written_bytes: int
    new_bytes: int

    @property
    def flops(self) -> int:
        """2mkn for a matrix product, 0 for anything else; dot, mv and bmm are products with a 1 or a batch."""
        name = self.name.partition(".")[0]
        if name not in ("dot", "mv", "mm", "bmm", "addmm", "addmv", "baddbmm"):
            return 0
        a, b = self.shapes[-2:]  # the add… forms have a bias in front
        columns = b[-1] if name.endswith("mm") else 1
        return 2 * math.prod(a) * columns


class _Observer(Watcher):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        destinations = tensors_in(kwargs.get("out"))
        inputs = tensors_in(args, {name: value for name, value in kwargs.items() if name != "out"})
        outputs = tensors_in(result)
        places = {x.untyped_storage().data_ptr() for x in inputs + destinations}
        fresh = [x for x in outputs if x.untyped_storage().data_ptr() not in places]
        writes = bool(fresh) or operation._schema.is_mutable
        self.operations.append(
            Operation(
                name_of(operation),
                tuple(tuple(x.shape) for x in inputs),
                sum(map(_bytes, inputs)) if writes else 0,
                sum(map(_bytes, outputs)) if writes else 0,
                sum(map(_bytes, fresh)),
            )
        )


def _bytes(x: torch.Tensor) -> int:
    """A stretched tensor has fewer numbers than its shape says, a slice fewer than its storage."""
    return min(x.nbytes, x.untyped_storage().nbytes())


def observe(function: Callable[[], object]) -> list[Operation]:
    """The operations that `function()` sends to the device, in order."""
    observer = _Observer()
    with observer:
        function()
    return observer.operations


def flops_seen(operations: Iterable[Operation]) -> int:
    """The operations of all matrix products among them."""
    return sum(operation.flops for operation in operations)


def moved_bytes(operations: Iterable[Operation]) -> int:
    """All that they read and wrote."""
    return sum(operation.read_bytes + operation.written_bytes for operation in operations)


def new_bytes(operations: Iterable[Operation]) -> int:
    """All memory that they asked for, also what was given back in between."""
    return sum(operation.new_bytes for operation in operations)
