"""Counts the bytes that graphs keep for their backward."""

import weakref
from collections.abc import Iterable

import torch
from torch.autograd.graph import saved_tensors_hooks


class Kept:
    """One tensor that a graph keeps; it dies when the graph lets go of it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class KeptBytes(saved_tensors_hooks):
    """Inside `with KeptBytes() as kept:`, counts what operations keep for backward().

    A storage that several operations keep counts once, and those of `known`, such as the weights and the data that are
    there anyway, not at all. `now` is what is still kept, `ever` all that was.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__(self._pack, lambda kept: kept.tensor)
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._kept: list[tuple[weakref.ref[Kept], int, int]] = []
        self.ever = 0

    def __enter__(self) -> "KeptBytes":  # type: ignore[override]  # the hooks return nothing
        super().__enter__()
        return self

    def _pack(self, tensor: torch.Tensor) -> Kept:
        kept, address = Kept(tensor.detach()), tensor.untyped_storage().data_ptr()
        if address not in self._known:
            before = self._alive()
            self._kept.append((weakref.ref(kept), address, tensor.untyped_storage().nbytes()))
            if address not in before:
                self.ever += tensor.untyped_storage().nbytes()
        return kept

    def _alive(self) -> dict[int, int]:
        """Bytes by the address of each storage that some graph still keeps."""
        return {address: size for kept, address, size in self._kept if kept() is not None}

    @property
    def now(self) -> int:
        return sum(self._alive().values())
