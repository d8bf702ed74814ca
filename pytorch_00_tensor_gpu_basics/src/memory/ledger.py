"""Exact accounts of memory on every device: which tensors are alive, who made them, what autograd keeps.

A GPU's allocator counts bytes; a CPU has nobody who does. So this lesson counts for itself, with two hooks that PyTorch
offers: one is called around every operation, the other around every tensor that autograd saves for the backward pass.
"""

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import dispatch
from shared.dispatch import Watcher, name_of, tensors_in

import torch

# Frames to look through, for the line that asked.
NOT_THE_LEARNERS = (str(Path(torch.__file__).parent), str(dispatch.__file__), __file__)


@dataclass(frozen=True)
class Holding:
    """One storage that is alive: its size, the operation that made it, and the line of code that asked for it."""

    size_bytes: int
    operation: str
    function: str
    line: int


@dataclass(frozen=True)
class Moment:
    """The state after one operation or one release; `allocated_bytes` is what the GPU's allocator said, on cuda."""

    live_bytes: int
    allocated_bytes: int | None


def storages_in(*values: object) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tensors_in(values)]


class Ledger(Watcher):
    """Counts the storages on `device` that are made inside a `with` block, for as long as they live, even after it.

    Several tensors can share a storage (views, detach): it counts once, when the first of them is made, and is written
    off when the last one is gone. What a kernel takes and returns within one operation is not seen. With `limit_bytes`,
    an operation that would exceed it raises torch.OutOfMemoryError, as a GPU of that size would; with `only_size`,
    storages of other sizes (in bytes) are passed over; with `keeps_history`, `history` has every change.
    """

    def __init__(self, device: torch.device, *, limit_bytes: int | None = None, only_size: int | None = None,
                 keeps_history: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.device, self.counted = device, device.type
        self.limit_bytes, self.only_size = limit_bytes, only_size
        self.live_bytes = self.peak_bytes = 0
        self.history: list[Moment] | None = [] if keeps_history else None
        self._held: dict[int, Holding] = {}

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        given = {storage._cdata for storage in storages_in(args, kwargs)}
        if operation is torch.ops.aten.lift_fresh.default:  # torch.tensor(…) hands over what it has made before
            given.clear()
        for storage in storages_in(result):
            is_known = storage._cdata in given or storage._cdata in self._held
            is_asked_for = self.only_size in (None, storage.nbytes()) and storage.device.type == self.counted
            if is_asked_for and not is_known:
                self._enter(storage, name_of(operation))
        self._note()

    def _enter(self, storage: torch.UntypedStorage, operation: str) -> None:
        size_bytes, key = storage.nbytes(), storage._cdata
        if self.limit_bytes is not None and self.live_bytes + size_bytes > self.limit_bytes:
            raise torch.OutOfMemoryError(
                f"out of memory: tried to allocate {size_bytes:,} bytes of {self.limit_bytes:,}, of which "
                f"{self.limit_bytes - self.live_bytes:,} are free."
            )
        frame = sys._getframe()
        while frame.f_back and frame.f_code.co_filename.startswith(NOT_THE_LEARNERS):
            frame = frame.f_back
        self._held[key] = Holding(size_bytes, operation, frame.f_code.co_name, frame.f_lineno)
        self.live_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        # A storage's Python object lives exactly as long as its memory.
        weakref.finalize(storage, self._write_off, key).atexit = False

    def _write_off(self, key: int) -> None:
        self.live_bytes -= self._held.pop(key).size_bytes
        self._note()

    def _note(self) -> None:
        if self.history is not None and (not self.history or self.history[-1].live_bytes != self.live_bytes):
            allocated = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else None
            self.history.append(Moment(self.live_bytes, allocated))

    def holdings(self) -> list[Holding]:
        """What is alive, the largest first."""
        return sorted(self._held.values(), key=lambda holding: -holding.size_bytes)


def bytes_kept_for_backward(forward: Callable[[], torch.Tensor], parameters: Iterable[torch.Tensor]) -> int:
    """What autograd keeps after `forward()` until the backward pass: distinct storages, the parameters' own apart."""
    own = {storage._cdata for storage in storages_in(list(parameters))}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())
