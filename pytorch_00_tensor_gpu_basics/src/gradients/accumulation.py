"""Gradients add up from one backward() to the next: a trap without zero_grad, a tool for large batches."""

from collections.abc import Sequence
from typing import Any

from pytorch_00_tensor_gpu_basics.src.gradients.kept import KeptBytes
from shared.lesson import Lesson
from shared.units import bytes_text, percent, significant

import torch

CPU = torch.device("cpu")
LR = 0.1


def line_data(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around y = 3 x - 1, x and y of shape (count, 1)."""
    x = torch.rand(count, 1, device=device) * 2 - 1
    return x, 3 * x - 1 + 0.1 * torch.randn(count, 1, device=device)


def squared_error(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """w holds slope and height of a line."""
    return ((w[0] * x + w[1] - y) ** 2).mean()


def train(x: torch.Tensor, y: torch.Tensor, steps: int, momentum: float = 0.0) -> list[float]:
    """Right: each step sees its own gradient. Returns the losses."""
    w = torch.zeros(2, device=x.device, requires_grad=True)
    optimizer, losses = torch.optim.SGD([w], lr=LR, momentum=momentum), []
    for _ in range(steps):
        loss = squared_error(x, y, w)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [loss.item() for loss in losses]


def train_and_forget_zero_grad(x: torch.Tensor, y: torch.Tensor, steps: int) -> list[float]:
    """The mistake: each step follows the sum of all gradients so far."""
    w = torch.zeros(2, device=x.device, requires_grad=True)
    optimizer, losses = torch.optim.SGD([w], lr=LR), []
    for _ in range(steps):
        loss = squared_error(x, y, w)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [loss.item() for loss in losses]


def gradient_in_parts(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Right: the gradient of the whole batch from micro-batches, each loss weighted by its share of the samples."""
    w = w.detach().requires_grad_()
    for part_x, part_y in zip(x.split(list(sizes)), y.split(list(sizes)), strict=True):
        (squared_error(part_x, part_y, w) * (len(part_x) / len(x))).backward()
    assert w.grad is not None
    return w.grad


def gradient_in_parts_unweighted(
    x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, sizes: Sequence[int]
) -> torch.Tensor:
    """The mistake: a mean of means, in which a sample of a small part counts for more than one of a large part."""
    w = w.detach().requires_grad_()
    for part_x, part_y in zip(x.split(list(sizes)), y.split(list(sizes)), strict=True):
        (squared_error(part_x, part_y, w) / len(sizes)).backward()
    assert w.grad is not None
    return w.grad


def show_accumulation(lesson: Lesson) -> None:
    lesson.section(
        "Gradients add up, and zero_grad",
        "backward() does not set .grad, it adds to it. That is right within one graph, where paths add, and it goes on "
        "across calls. So a training step must clear what the last one left. Here a line learns from 200 points around "
        "y = 3 x - 1, once as it should and once with zero_grad() forgotten.",
    )
    w = torch.tensor([1.0, 2.0], device=lesson.device, requires_grad=True)
    found = []
    for _ in range(3):
        (w**2).sum().backward()
        assert w.grad is not None
        found.append(w.grad[0].item())
    lesson.check("backward() adds to .grad", found == [2, 4, 6], f"three calls: {', '.join(f'{g:g}' for g in found)}")
    steps = 60
    x, y = line_data(200, lesson.device)
    right, forgotten = train(x, y, steps), train_and_forget_zero_grad(x, y, steps)
    shown = (0, 1, 2, 5, 10, 20, 30, 40, 50, steps - 1)
    lesson.table([{"step": step, "loss": right[step], "loss without zero_grad": forgotten[step]} for step in shown])
    lesson.check("with zero_grad the loss settles", max(right[-20:]) < 0.1, f"{right[-1]:.4f} after {steps} steps")
    late = max(forgotten[-20:])
    lesson.check("without it the loss swings and never settles", late > 10 * right[-1],
                 f"up to {late:.2f} in the last 20 steps, and no error")  # fmt: skip
    inertia = train(x, y, steps, momentum=1.0)
    apart = max(abs(a - b) for a, b in zip(inertia, forgotten, strict=True)) / max(forgotten)
    lesson.check(
        "it is the same as momentum 1: no friction at all", apart < 1e-4, f"at most {significant(apart, 2)} apart"
    )
    lesson.figure("forgotten_zero_grad", lambda axis: draw_losses(axis, right, forgotten))
    show_none_and_zero(lesson)
    show_micro_batches(lesson)
    lesson.shows(
        f"a forgotten zero_grad() turned a loss of {right[-1]:.3f} into swings up to {late:.1f} without a word (picture "
        "forgotten_zero_grad.png). The same addition, used on purpose, gives the gradient of a batch that does not fit: "
        "weigh each part, call backward() for each, then step once."
    )


def draw_losses(axis: Any, right: Sequence[float], forgotten: Sequence[float]) -> None:
    axis.plot(right, label="zero_grad() in every step", marker="")
    axis.plot(forgotten, label="zero_grad() forgotten", marker="")
    axis.set(xlabel="step", ylabel="loss, mean squared error", title="The same training, one line missing")
    axis.set_ylim(0, 1.3 * max(forgotten))
    axis.legend()


def show_none_and_zero(lesson: Lesson) -> None:
    lesson.text(
        "zero_grad() sets .grad to None, which frees its memory; zero_grad(set_to_none=False) fills it with zeros. For a "
        "weight that takes no part in the next loss that is a difference: an optimizer skips None, and moves a weight "
        "with gradient 0 as far as its momentum and weight decay say. One step in such a loss, from w = 1, after a first "
        "step with gradient 2:"
    )
    moved, table = {}, []
    for to_none in (True, False):
        w = torch.ones(1, device=lesson.device, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=LR, momentum=0.9)
        (w**2).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
        state, before = "None" if w.grad is None else str(w.grad.tolist()), w.item()
        optimizer.step()
        moved[to_none] = w.item() - before
        table.append({"zero_grad": "()" if to_none else "(set_to_none=False)", ".grad": state, "w before": before,
                      "w after": w.item()})  # fmt: skip
    lesson.table(table)
    lesson.check("None is skipped, a gradient of zeros still moves a weight", moved[True] == 0 and moved[False] < -0.1,
                 f"by {moved[True]:g} and by {moved[False]:.2f}, its momentum")  # fmt: skip


def show_micro_batches(lesson: Lesson) -> None:
    lesson.text(
        "Addition on purpose: where a batch of 96 samples does not fit, its micro-batches go one after another. The mean "
        "of a loss is over the part, so each is weighted by its share. In float64, against the gradient of the whole:"
    )
    x, y = (part.double().cpu() for part in line_data(96, CPU))
    w = torch.tensor([0.5, -0.3], dtype=torch.float64)
    whole = gradient_in_parts(x, y, w, [96])
    ways = {
        "4 equal parts": ([24] * 4, gradient_in_parts(x, y, w, [24] * 4)),
        "unequal parts": ([40, 40, 16], gradient_in_parts(x, y, w, [40, 40, 16])),
        "unequal, mean of means": ([40, 40, 16], gradient_in_parts_unweighted(x, y, w, [40, 40, 16])),
        "4 equal parts, unweighted": ([24] * 4, 4 * gradient_in_parts(x, y, w, [24] * 4)),
    }
    off = {way: ((gradient - whole).abs().max() / whole.abs().max()).item() for way, (_, gradient) in ways.items()}
    lesson.table(
        [{"micro-batches": way, "samples in each": " + ".join(map(str, sizes)), "off by": significant(off[way], 2)}
         for way, (sizes, _) in ways.items()]
    )  # fmt: skip
    lesson.check("weighted micro-batches give the gradient of the batch",
                 max(off["4 equal parts"], off["unequal parts"]) < 1e-12,
                 f"to {significant(off['unequal parts'], 2)}")  # fmt: skip
    lesson.check("a mean of unequal means does not", off["unequal, mean of means"] > 1e-6,
                 f"off by {percent(off['unequal, mean of means'])}")  # fmt: skip
    weights = w.clone().requires_grad_()
    with KeptBytes([weights, x, y]) as kept_whole:
        squared_error(x, y, weights).backward()
    with KeptBytes([weights, x, y]) as kept_part:
        squared_error(x[:24], y[:24], weights).backward()
    lesson.check("and a quarter of the batch keeps a quarter of the bytes", 4 * kept_part.ever == kept_whole.ever,
                 f"{bytes_text(kept_part.ever)} instead of {bytes_text(kept_whole.ever)}")  # fmt: skip
