"""Two trainings, bit by bit: one hash for all weights, and a count of what differs. And the switches, put back after use."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from shared.generators import restore_rng_state, rng_state

import numpy as np
import torch
from torch import nn

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """All numbers of all tensors in one row, on the CPU."""
    return torch.cat([tensor.detach().flatten().cpu() for tensor in tensors])


def weights_of(model: nn.Module) -> torch.Tensor:
    return flat(model.parameters())


def digest(x: torch.Tensor) -> str:
    """SHA-256 of the bytes of `x` in hexadecimal digits; shape and dtype do not count."""
    return hashlib.sha256(x.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Difference:
    """What differs between two rows of floating-point numbers of one type."""

    numbers: int  # compared
    different: int  # numbers that differ in any bit
    bits: int  # bits that differ, over all numbers
    largest: float
    relative: float  # the distance of the two rows, over the length of the first

    @property
    def share(self) -> float:
        return self.different / self.numbers


def difference(a: torch.Tensor, b: torch.Tensor) -> Difference:
    """Compares two rows of float32 or float64 numbers of the same length, by their bits and by their values.

    Raises ValueError where length or dtype differ, since then bits have no partner.
    """
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        raise ValueError(f"{tuple(a.shape)} of {a.dtype} cannot be compared with {tuple(b.shape)} of {b.dtype}")
    words = np.uint32 if a.dtype == torch.float32 else np.uint64
    flipped = np.bitwise_count(a.numpy().view(words) ^ b.numpy().view(words))
    apart = a.double() - b.double()
    return Difference(a.numel(), int((flipped > 0).sum()), int(flipped.sum()), apart.abs().max().item(),
                      (apart.norm() / a.double().norm()).item())  # fmt: skip


@contextmanager
def algorithms(*, deterministic: bool, warn_only: bool = False) -> Iterator[None]:
    """Inside, PyTorch may use deterministic algorithms only, or any; afterwards it is as before."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, PyTorch divides work on the CPU among `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def switches_restored(device: torch.device) -> Iterator[None]:
    """Puts back what is global and this lesson touches: generators, threads, algorithms, and cuBLAS's workspace.

    cuBLAS reads the variable at the first product of a process, so it is set here, before any.
    """
    state, workspace = rng_state(device), os.environ.get(WORKSPACE)
    memory: Any = torch.utils.deterministic
    fills, benchmark = memory.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    os.environ.setdefault(WORKSPACE, ":4096:8")
    try:
        with threads(torch.get_num_threads()), algorithms(deterministic=False):
            yield
    finally:
        memory.fill_uninitialized_memory = fills
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            del os.environ[WORKSPACE]
        restore_rng_state(state)
