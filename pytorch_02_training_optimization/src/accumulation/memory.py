"""What accumulation saves: the bytes that autograd keeps, counted while they are there; and what it costs in time."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable

from pytorch_02_training_optimization.src.accumulation.task import BATCH_SIZE, PARTS, make_model
from pytorch_02_training_optimization.src.letters.rows import CLASSES, PIXELS, load_letters
from shared.lesson import Lesson
from shared.timing import measure
from shared.traps import operations
from shared.units import bytes_text, seconds_text

import torch
import torch.nn.functional as F
from torch import nn

Loop = Callable[[nn.Module, torch.Tensor, torch.Tensor, int], None]


class _Kept:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Inside `with`, the bytes that autograd keeps for backward(): `now`, and at most (`peak`).

    A storage counts once, however many operations saved it, and those of `known` (weights, data) not at all: they are
    there anyway.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._holders: Counter[int] = Counter()
        super().__init__(self._pack, lambda kept: kept.tensor)

    def _pack(self, tensor: torch.Tensor) -> _Kept:
        kept, storage = _Kept(tensor.detach()), tensor.untyped_storage()  # a saved result would hold its own graph
        if storage.data_ptr() not in self._known:
            if not self._holders[storage.data_ptr()]:
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
            self._holders[storage.data_ptr()] += 1
            weakref.finalize(kept, self._drop, storage.data_ptr(), storage.nbytes())
        return kept

    def _drop(self, address: int, nbytes: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            self.now -= nbytes


def saved_at_most(loop: Loop, model: nn.Module, x: torch.Tensor, y: torch.Tensor, parts: int) -> int:
    saved = SavedBytes([*model.parameters(), x, y])
    with saved:
        loop(model, x, y, parts)
    return saved.peak


def expected_bytes(samples: int, width: int) -> int:
    """Two results of tanh and the log-probabilities of each sample, in float32; and once the divisor of the mean."""
    return 4 * (samples * (2 * width + CLASSES) + 1)


def backward_for_each_part(model: nn.Module, x: torch.Tensor, y: torch.Tensor, parts: int) -> None:
    """Right: backward() frees what a part has saved before the next one begins."""
    for some_x, some_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        (F.cross_entropy(model(some_x), some_y) / parts).backward()


def add_losses_first(model: nn.Module, x: torch.Tensor, y: torch.Tensor, parts: int) -> None:
    """The mistake: the same gradient, and every part waits in memory for the one backward() at the end."""
    total = torch.zeros((), device=x.device)
    for some_x, some_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        total = total + F.cross_entropy(model(some_x), some_y) / parts
    total.backward()


def show_memory(lesson: Lesson) -> None:
    device, seed = lesson.device, lesson.options.seed
    width = lesson.pick(full=1024, cpu=256, quick=64)
    lesson.section(
        "What it saves, and what it costs",
        "For its backward pass autograd keeps results of the forward pass, so many for each sample. They are what grows with "
        "the batch, and what accumulation divides: only one part is there at a time. Weights, gradients and the optimizer's "
        f"state stay. Hooks on every saved tensor count the bytes here, in a network {PIXELS}-{width}-{width}-{CLASSES}.",
    )
    letters = load_letters(1000).to(device)
    x, y = letters.x[:BATCH_SIZE], letters.y[:BATCH_SIZE]
    model = make_model(width, seed, device)
    counts = (1, 2, 4, 8, 16, 32, 64)
    budget_s = lesson.pick(full=0.2, quick=0.002)
    saved, times, calls = {}, {}, {}
    for parts in lesson.progress(counts, "parts", len(counts)):
        saved[parts] = saved_at_most(backward_for_each_part, model, x, y, parts)
        calls[parts] = len(operations(backward_for_each_part, model, x, y, parts))
        times[parts] = measure(lambda: backward_for_each_part(model, x, y, parts), device, budget_s=budget_s)
        lesson.record("kept for backward", saved[parts], "B", parts=parts)
        lesson.record("time of a sample", times[parts].median_s / BATCH_SIZE * 1e6, "µs", parts=parts)
    lesson.table(
        [{"parts": f"{parts} of {BATCH_SIZE // parts}", "kept at most": bytes_text(saved[parts]),
          "computed": bytes_text(expected_bytes(BATCH_SIZE // parts, width)), "operations": calls[parts],
          "time of a sample": seconds_text(times[parts].median_s / BATCH_SIZE),
          "of one batch": f"{times[parts].median_s / times[1].median_s:.1f}x"} for parts in counts]
    )  # fmt: skip
    lesson.check("counted is computed, to the byte", all(saved[parts] == expected_bytes(BATCH_SIZE // parts, width)
                                                         for parts in counts),
                 f"{saved[1]:,} for one of 64, {saved[8]:,} for 8 of 8")  # fmt: skip
    lesson.check("8 of 8 keep an eighth", PARTS * (saved[8] - 4) == saved[1] - 4,
                 "but for the 4 bytes of the mean's divisor, once in each part")  # fmt: skip
    lesson.check("each part launches everything again", calls[64] > 50 * calls[1],
                 f"{calls[64]:,} operations in 64 parts, {calls[1]} in one")  # fmt: skip
    model.zero_grad()
    backward_for_each_part(model, x, y, PARTS)
    right = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    late = saved_at_most(add_losses_first, model, x, y, PARTS)
    same = all(torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-6) for parameter, gradient
               in zip(model.parameters(), right, strict=True) if parameter.grad is not None)  # fmt: skip
    lesson.check("add the losses first, and nothing is saved", same and late == saved[1] + 4 * (PARTS - 1),
                 f"the same gradient, {late:,} bytes at most")  # fmt: skip
    slower = times[64].median_s / times[1].median_s
    lesson.shows(
        f"{bytes_text(saved[1])} became {bytes_text(saved[8])} in eight parts, for {times[8].median_s / times[1].median_s:.1f} "
        f"times the time of one batch; in {BATCH_SIZE} parts of one sample it is {slower:.1f} times. A part that keeps the "
        "device busy costs nothing extra, so take the largest that fits. memory_budget finds it for you."
    )
