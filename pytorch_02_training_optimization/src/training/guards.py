"""What stands between a training and what can go wrong with it: signals, numbers that are none, memory that is full."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from shared import device as devices
from shared.units import bytes_text

import torch
from torch import nn


class Signals:
    """Remembers that the user (Ctrl-C) or the system (SIGTERM) wants an end; the loop asks between two steps.

    A second signal of the same kind ends the process at once, in the usual way.
    """

    def __init__(self) -> None:
        self.received = 0

    @contextmanager
    def caught(self) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def remember(number: int, frame: FrameType | None) -> None:
            self.received = number
            signal.signal(number, before[signal.Signals(number)])

        for number in before:
            signal.signal(number, remember)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Glance:
    """A number on its way from the GPU, read without a wait that costs anything.

    Begin it after the forward pass and read it after the backward pass has been queued: by then the number is here, or
    the GPU still has the whole backward pass to compute while this process waits.
    """

    def __init__(self, number: torch.Tensor) -> None:
        self._number, self._event = number.detach(), None
        if number.device.type == "cuda":
            self._number = torch.empty((), dtype=number.dtype, pin_memory=True)
            self._number.copy_(number.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> float:
        if self._event is not None:
            self._event.synchronize()
        return self._number.item()


@torch.no_grad()
def first_non_finite(model: nn.Module, images: torch.Tensor) -> str:
    """The first tensor with a NaN or an infinity, in the order in which a forward pass meets them; "" where none has."""

    def is_broken(x: object) -> bool:
        return isinstance(x, torch.Tensor) and x.is_floating_point() and not bool(torch.isfinite(x).all())

    if is_broken(images):
        return "the images"
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            if is_broken(tensor):
                return f"the {kind} {name}"
    found: list[str] = []
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: (
                found.append(f"the output of {name} ({type(module).__name__})") if is_broken(output) else None
            )
        )
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""


def is_out_of_memory(error: Exception) -> bool:
    """CUDA has an exception of its own; the CPU's allocator and MPS raise a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in str(error) or "DefaultCPUAllocator" in str(error))
    )


def memory_advice(error: Exception, device: torch.device, batch_size: int, pieces: int, processes: int) -> str:
    """One line for a training that does not fit: how much is in use, what was asked for, and what fits more likely."""
    words = " ".join(str(error).split())
    used, free = devices.memory(device).allocated_bytes, devices.memory(device).free_bytes
    asked = ""
    for before, after in (("Tried to allocate ", ". "), ("you tried to allocate ", " bytes")):
        if before in words:
            text = words.split(before, 1)[1].split(after, 1)[0]
            asked = bytes_text(int(text)) if text.isdigit() else text
    state = ", ".join(
        part
        for part in (
            f"asked for {asked}" if asked else "",
            f"{bytes_text(used)} allocated" if used is not None else "",
            f"{bytes_text(free)} free" if free is not None else "",
        )
        if part
    )
    # Twice the pieces halve the activations, by far the most of it, and the gradient stays the same.
    per_piece = batch_size // processes // pieces
    more = next((n for n in range(2 * pieces, batch_size + 1) if batch_size % (n * processes) == 0), None)
    same = f"--accumulate {more} computes the same batch of {batch_size} in smaller pieces" if more else ""
    smaller = f"--batch-size {max(1, batch_size // 2)} halves it" if per_piece > 1 else "a smaller --width may fit"
    return f"out of memory: {state}; {' and '.join(part for part in (same, smaller) if part)}"
