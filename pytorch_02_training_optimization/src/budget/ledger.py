"""The account of a training's memory: every tensor by kind, from its first moment to its last, on any device.

A GPU's allocator knows how much is taken and not what for; a CPU has nobody who knows. So this lesson counts the tensors
themselves, as each operation makes them (memory_profiling of project 00 holds such a count against the allocator's).
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from shared.dispatch import Watcher, tensors_in

import torch
from torch.autograd.graph import saved_tensors_hooks

KINDS = ("parameters", "optimizer", "gradients", "activations", "batch", "temporary")


@dataclass(eq=False)
class Holding:
    """One storage. `kind` is "temporary" until somebody who knows better says so; `died` is None while it lives."""

    size_bytes: int
    born: int
    kind: str = "temporary"
    died: int | None = None


class Ledger(Watcher):
    """Counts the storages that are made on `device` inside a `with` block, as long as they live.

    Moments are counted from 0; each birth and each death is one. With `limit_bytes`, an operation whose result would
    not fit raises torch.OutOfMemoryError in the words of CUDA's. What a kernel takes and returns within one operation
    is not seen, and neither is how an allocator rounds.
    """

    def __init__(self, device: torch.device, *, limit_bytes: int | None = None) -> None:
        super().__init__()
        self.device, self.limit_bytes = device, limit_bytes
        self.live_bytes = self.peak_bytes = self.moment = self.peak_moment = 0
        self.holdings: list[Holding] = []
        self._alive: dict[int, Holding] = {}
        self._counted = ""

    def __enter__(self) -> Self:
        super().__enter__()
        torch.empty(0, device=self.device)  # shows `saw` by which name operations know the device
        return self

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        made = [x.untyped_storage() for x in ([result] if isinstance(result, torch.Tensor) else tensors_in(result))]
        if not self._counted:
            self._counted = made[0].device.type
        unknown = [x for x in made if x._cdata not in self._alive and x.device.type == self._counted]
        if not unknown:
            return
        given = {x.untyped_storage()._cdata for x in tensors_in(args, kwargs)}
        if operation is torch.ops.aten.lift_fresh.default:  # torch.tensor(…) hands over what nobody has seen yet
            given.clear()
        for storage in unknown:
            if storage._cdata not in given and storage._cdata not in self._alive:
                self._enter(storage)

    def _enter(self, storage: torch.UntypedStorage) -> None:
        size_bytes, key = storage.nbytes(), storage._cdata
        if self.limit_bytes is not None and self.live_bytes + size_bytes > self.limit_bytes:
            raise torch.OutOfMemoryError(
                f"Budget out of memory. Tried to allocate {cuda_size(size_bytes)}. The budget has a total capacity of "
                f"{cuda_size(self.limit_bytes)} of which {cuda_size(self.limit_bytes - self.live_bytes)} is free. Of the "
                f"allocated memory {cuda_size(self.live_bytes)} is allocated by PyTorch, and 0 bytes is reserved by "
                "PyTorch but unallocated."
            )
        self._alive[key] = holding = Holding(size_bytes, self.moment)
        self.holdings.append(holding)
        self.live_bytes += size_bytes
        if self.live_bytes >= self.peak_bytes:  # of equal ones the last, when everything is there
            self.peak_bytes, self.peak_moment = self.live_bytes, self.moment
        self.moment += 1
        weakref.finalize(storage, self._leave, key).atexit = False  # its Python object lives as long as its memory

    def _leave(self, key: int) -> None:
        holding = self._alive.pop(key)
        holding.died = self.moment
        self.live_bytes -= holding.size_bytes
        self.moment += 1

    def label(self, kind: str, tensors: Iterable[torch.Tensor | None]) -> None:
        """Says of what kind these tensors are; those that were made outside are nobody's business here."""
        for x in tensors:
            if x is not None and (holding := self._alive.get(x.untyped_storage()._cdata)):
                holding.kind = kind

    def label_saved(self) -> saved_tensors_hooks:
        """Inside this block, what autograd saves and nobody has labelled yet is an activation."""

        def pack(x: torch.Tensor) -> torch.Tensor:
            holding = self._alive.get(x.untyped_storage()._cdata)
            if holding and holding.kind == "temporary":
                holding.kind = "activations"
            return x

        return saved_tensors_hooks(pack, lambda x: x)

    def restart_peak(self) -> None:
        """From here on, `peak_bytes` is the most since now."""
        self.peak_bytes, self.peak_moment = self.live_bytes, self.moment

    def by_kind(self, moment: int) -> dict[str, int]:
        """Bytes alive right after that moment."""
        sums = dict.fromkeys(KINDS, 0)
        for holding in self.holdings:
            if holding.born <= moment and (holding.died is None or holding.died > moment):
                sums[holding.kind] += holding.size_bytes
        return sums

    def series(self, start: int, stop: int) -> dict[str, list[int]]:
        """Bytes alive by kind after each of the moments from `start` up to `stop`."""
        changes = {kind: [0] * (stop - start + 1) for kind in KINDS}
        for holding in self.holdings:
            died = stop if holding.died is None else min(holding.died, stop)
            if died > start and holding.born < stop:
                changes[holding.kind][max(holding.born, start) - start] += holding.size_bytes
                changes[holding.kind][died - start] -= holding.size_bytes
        lines: dict[str, list[int]] = {}
        for kind, steps in changes.items():
            total = 0
            lines[kind] = [total := total + step for step in steps[:-1]]
        return lines


def cuda_size(count: int) -> str:
    """Bytes in the form in which CUDA's messages have them: 1536 as "1.50 KiB"."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


class SavedBytes(saved_tensors_hooks):
    """Inside the block: how many bytes autograd saves for backward. A storage counts once, `but_not` these."""

    def __init__(self, but_not: Iterable[torch.Tensor]) -> None:
        self._others = {x.untyped_storage()._cdata for x in but_not}
        self._seen: dict[int, torch.UntypedStorage] = {}
        super().__init__(self._keep, lambda x: x)

    def _keep(self, x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in self._others:
            self._seen[storage._cdata] = storage
        return x

    @property
    def size_bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._seen.values())
