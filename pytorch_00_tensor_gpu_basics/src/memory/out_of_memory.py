"""Out of memory: what the message says, what the exception itself keeps alive, and how to go on with a smaller batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pytorch_00_tensor_gpu_basics.src.memory.kept_for_backward import make_batch, make_mlp, predict_kept_bytes
from pytorch_00_tensor_gpu_basics.src.memory.ledger import Ledger
from shared.lesson import Lesson
from shared.units import bytes_text

import torch
import torch.nn.functional as F
from torch import nn

IMPOSSIBLE = 2**50  # bytes, 1 PiB: refused at once everywhere, before any memory is touched
ON_A_GPU = 1024, 8192  # width and batch: each activation is larger than any hole that earlier tensors have left
WORDS = {
    "Tried to allocate": "the segment that was asked for: your tensor, rounded up by the allocator",
    "total capacity": "what the GPU has; a part of it is always taken by CUDA itself",
    "is free": "what nobody has reserved; other programs may have the rest",
    "allowed": "the limit of this process, where one was set",
    "is allocated by PyTorch": "blocks with a tensor in them: your part",
    "reserved by PyTorch but unallocated": "holes between your tensors; if this is large, it is fragmentation",
}


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA raises torch.OutOfMemoryError, the CPU and MPS a plain RuntimeError that says so."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory"))


@contextmanager
def memory_limit(device: torch.device, budget_bytes: int) -> Iterator[None]:
    """Within the block this process may take `budget_bytes` more on `device`; then torch.OutOfMemoryError is raised.

    On cuda by the allocator itself, which counts segments, elsewhere by this lesson's own count of tensors.
    """
    if device.type != "cuda":
        with Ledger(device, limit_bytes=budget_bytes):
            yield
        return
    torch.cuda.empty_cache()
    before = torch.cuda.get_per_process_memory_fraction()
    total = torch.cuda.get_device_properties(device).total_memory
    allowed = torch.cuda.memory_reserved(device) + budget_bytes
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before)


def release_cache(device: torch.device) -> None:
    """Gives whole free segments back; where the batch has become smaller, the old sizes are of no more use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def retry_inside_except(attempt: Callable[[int], None], batch_size: int) -> int:
    """The mistake: inside `except` the error is alive, its traceback too, and with it all that the attempt had made."""
    try:
        attempt(batch_size)
    except RuntimeError as error:
        if not is_out_of_memory(error) or batch_size == 1:
            raise
        return retry_inside_except(attempt, batch_size // 2)
    return batch_size


def largest_part_that_fits(attempt: Callable[[int], None], batch_size: int, device: torch.device) -> list[int]:
    """Halves the batch until `attempt(part)` runs; returns what was tried, the last of which ran.

    Any other error passes through, and so does an out-of-memory error with a single sample.
    """
    tried = [batch_size]
    while True:
        try:
            attempt(tried[-1])
            return tried
        except RuntimeError as error:
            if not is_out_of_memory(error) or tried[-1] == 1:
                raise
        # Here the error is gone, and its traceback, and the frames in it: their tensors are free.
        release_cache(device)
        tried.append(tried[-1] // 2)


def accumulate(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], part: int) -> None:
    """The gradients of the mean loss over the batch, computed `part` samples at a time."""
    x, targets = batch
    for some_x, some_targets in zip(x.split(part), targets.split(part), strict=True):
        loss = F.cross_entropy(model(some_x), some_targets, reduction="sum") / len(x)
        loss.backward()


def refusal(function: Callable[[], object]) -> str:
    """What the error says, without the advice and the C++ stack that may follow; "" where there is none."""
    try:
        function()
    except RuntimeError as error:
        text = " ".join(str(error).split())
        return text.partition(" If reserved but")[0].partition(" Exception raised from")[0]
    return ""


def show_the_message(lesson: Lesson) -> None:
    device = lesson.device
    with Ledger(device) as ledger:
        kept = torch.ones(1000, device=device)
        if device.type == "cuda":
            with memory_limit(device, 64 * 2**20):
                message = refusal(lambda: torch.empty(2**30, dtype=torch.uint8, device=device))
        else:
            message = refusal(lambda: torch.empty(IMPOSSIBLE, dtype=torch.uint8, device=device))
    lesson.items({f"on {device.type}": message})
    asked = "1 GiB with 64 MiB allowed" if device.type == "cuda" else "1 PiB"
    lesson.check("a request too large is an error, not a crash", message != "", asked)
    lesson.check("nothing was lost: what was alive still is", ledger.live_bytes == kept.nbytes and kept.sum() == 1000,
                 f"{ledger.live_bytes:,} bytes")  # fmt: skip
    lesson.text("On CUDA the message has six parts, which tell what to do:")
    lesson.items(WORDS)
    if "Tried to allocate" in message:
        said = [words for words in WORDS if words in message]
        lesson.check("the message has all six", len(said) == len(WORDS), f"{len(said)} of {len(WORDS)} found above")


def show_out_of_memory(lesson: Lesson) -> None:
    device = lesson.device
    lesson.section(
        "Out of memory, and on",
        "An out-of-memory error is an exception like any other: the program can catch it, free something and go on. "
        "Two things have to be known for that: what the message says, and that the exception itself holds the memory.",
    )
    show_the_message(lesson)
    width, batch_size = lesson.pick(full=(256, 2048), quick=(64, 256)) if device.type == "cpu" else ON_A_GPU
    depth = 4
    sizes = (width,) * (depth + 1) + (10,)
    model, batch = (
        make_mlp(sizes, "nn.ReLU()", torch.float32, device),
        make_batch(sizes, batch_size, torch.float32, device),
    )
    parameters = list(model.parameters())
    parameter_bytes = sum(parameter.nbytes for parameter in parameters)

    def gradients(part: int) -> list[torch.Tensor]:
        model.zero_grad()
        accumulate(model, batch, part)
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    def attempt(part: int) -> None:
        gradients(part)

    full = [gradient.clone() for gradient in gradients(batch_size)]
    model.zero_grad()
    need = predict_kept_bytes(sizes, batch_size, "nn.ReLU()", torch.float32)
    # Gradients and the temporaries of one layer come on top of what is kept; a quarter of that must fit, all must not.
    budget = need // 2 + 2 * parameter_bytes
    held_inside, held_after = held_by_the_error(attempt, batch_size, budget, device)
    lesson.text(
        f"Now a training step that keeps {bytes_text(need)} for backward runs under a limit of {bytes_text(budget)}. "
        "It fails on the way, and the tensors that it has made by then hang on the frames of its functions; the frames "
        "hang on the traceback, and the traceback on the exception."
    )
    lesson.check(
        "inside `except` the failed attempt still holds memory", held_inside > need / 8, bytes_text(held_inside)
    )
    lesson.check(
        "after the block it is free", held_after == 0, f"{held_after} bytes, without gc.collect() or empty_cache()"
    )
    with memory_limit(device, budget):
        tried = largest_part_that_fits(attempt, batch_size, device)
    lesson.record("part that fits", tried[-1], "samples", budget_bytes=budget)
    lesson.check("halving finds a part that fits", len(tried) > 1, " → ".join(map(str, tried)))
    found = found_inside(attempt, batch_size, budget, device)
    lesson.check("retrying inside `except` finds a smaller one, or none", found < tried[-1],
                 f"{found or 'none'}; earlier attempts hold the room")  # fmt: skip
    error = max((a - b).abs().max().item() for a, b in zip(gradients(tried[-1]), full, strict=True))
    scale = max(gradient.abs().max().item() for gradient in full)
    lesson.check("accumulated parts give the gradient of the whole batch", error < 1e-4 * scale,
                 f"largest difference {error:.1e} of {scale:.1e}")  # fmt: skip
    lesson.shows(
        f"{batch_size // tried[-1]} parts of {tried[-1]} do the work of one batch of {batch_size}, with the same "
        "gradient, because each loss is a sum divided by the size of the whole batch. (BatchNorm would see smaller "
        "batches; LayerNorm does not mind.) Leave the except block first, then empty the cache, then try again; in a "
        "notebook the last traceback lives on in sys.last_traceback, until the next error or a restart."
    )


def held_by_the_error(attempt: Callable[[int], None], batch_size: int, budget: int, device: torch.device
                      ) -> tuple[int, int]:  # fmt: skip
    """Bytes alive inside the except block, and after it."""
    inside = 0
    with Ledger(device) as ledger:
        try:
            with memory_limit(device, budget):
                attempt(batch_size)
        except RuntimeError:
            inside = ledger.live_bytes
    return inside, ledger.live_bytes


def found_inside(attempt: Callable[[int], None], batch_size: int, budget: int, device: torch.device) -> int:
    """What `retry_inside_except` ends with; 0 where even one sample no longer fits."""
    try:
        with memory_limit(device, budget):
            return retry_inside_except(attempt, batch_size)
    except RuntimeError:
        return 0
