"""Chapter of lr_schedules: how the learning rate goes with the batch size, and where that ends."""

import math
from collections.abc import Callable
from typing import Any

from pytorch_02_training_optimization.src.letters.rows import Letters, load_letters
from pytorch_02_training_optimization.src.schedules.letters import (
    Adam,
    Momentum,
    Parameters,
    draw_batches,
    judge,
    start_weights,
    train,
)
from shared.lesson import Lesson

import torch

SMALLEST = 16
RULES: dict[str, Callable[[float], float]] = {"same": lambda k: 1.0, "x sqrt(k)": math.sqrt, "x k": lambda k: k}
OPTIMIZERS: dict[str, tuple[Callable[[Parameters], Momentum | Adam], float]] = {
    "SGD": (lambda parameters: Momentum(parameters, momentum=0.0), 0.05),
    "Adam": (Adam, 0.002),
}


def train_with_batches_of(batch_size: int, make: Callable[[Parameters], Momentum | Adam], base: float, letters: Letters,
                          test: Letters, seed: int, seeds: int, seen: int) -> torch.Tensor:  # fmt: skip
    """Test losses (rules, seeds) after `seen` letters, `base` being the rate for batches of SMALLEST."""
    steps, k = seen // batch_size, batch_size / SMALLEST
    parameters = start_weights(seed, seeds, len(RULES), letters.x.device)
    rates = torch.tensor([base * rule(k) for rule in RULES.values()]).repeat_interleave(seeds)
    batches = draw_batches(seed + batch_size, steps, seeds, len(letters.y), batch_size)
    train(make(parameters), letters, batches, rates.expand(steps, -1))
    return judge(parameters, test)[0].view(-1, seeds)


def shown(loss: float) -> str:
    return f"{loss:.3f}" if loss < 100 else "diverged"


def show_batch_size(lesson: Lesson) -> None:
    sizes = lesson.pick(full=(16, 64, 256, 1024), quick=(16, 64, 1024))
    seen, seeds = lesson.pick(full=12_800, quick=3072), 4
    lesson.section(
        "A larger batch, a larger rate, and where that ends",
        "A batch k times as large means k times fewer steps in an epoch. For SGD, k small steps of lr add up to about one step "
        "of k x lr, so the linear rule (Goyal 2017) multiplies the rate by k; Adam's steps do not grow with the gradient, only "
        "its noise falls, by sqrt(k), and so does the rule (Malladi 2022). Both need steps short enough for the gradient "
        f"to stay the same along them. Loss on new letters after {seen:,} letters, {seeds} seeds:",
    )
    device, seed = lesson.device, lesson.options.seed
    letters = load_letters(lesson.pick(full=9000, quick=4000), device)
    test = load_letters(lesson.pick(full=2000, quick=400), device, train=False)
    reached, table = {}, []
    for name, (make, base) in OPTIMIZERS.items():
        for size in sizes:
            found = train_with_batches_of(size, make, base, letters, test, seed, seeds, seen).mean(dim=1).tolist()
            reached[name, size] = dict(zip(RULES, found, strict=True))
            table.append({"optimizer": name, "batch": size, "steps": seen // size, "k": size // SMALLEST, "base rate": base,
                          **{f"rate {rule}": shown(loss) for rule, loss in reached[name, size].items()}})  # fmt: skip
    lesson.table(table)
    start, near, far = sizes[0], sizes[1], sizes[-1]
    kept, same = reached["SGD", near]["x k"], reached["SGD", near]["same"]
    before = reached["SGD", start]["same"]
    lesson.check("SGD, k = 4: the linear rule keeps the result", abs(kept - before) < 0.5 * (same - before),
                 f"{before:.3f} becomes {kept:.3f}, with the old rate {same:.3f}")  # fmt: skip
    lesson.check("the old rate falls behind more and more", all(
                 reached[name, far]["same"] > reached[name, near]["same"] > reached[name, start]["same"] for name in OPTIMIZERS),
                 f"{reached['SGD', far]['same']:.2f} and {reached['Adam', far]['same']:.2f} at {far}")  # fmt: skip
    broken = [reached[name, far]["x k"] for name in OPTIMIZERS]
    lesson.check(f"k = {far // SMALLEST}: the linear rule breaks", not any(
                 reached[name, far]["x k"] < reached[name, far]["x sqrt(k)"] for name in OPTIMIZERS),
                 f"{shown(broken[0])} and {shown(broken[1])}; with sqrt(k) {reached['SGD', far]['x sqrt(k)']:.2f} and "
                 f"{reached['Adam', far]['x sqrt(k)']:.2f}")  # fmt: skip
    best = min(reached["SGD", far].values())
    lesson.check("and no rule saves so few steps", best > before + 0.1,
                 f"{best:.2f} at best, {before:.2f} with batches of {start}")  # fmt: skip
    lesson.figure("batch_size", lambda *axes: draw_batch_size(axes, reached, sizes), columns=2)
    lesson.shows(
        f"from {start} to {near} the linear rule gives {kept:.3f} after {before:.3f}, with a quarter of the steps; at {far} its "
        f"rate of {OPTIMIZERS['SGD'][1] * far / SMALLEST:g} is beyond what the loss surface bears. Between lies the critical "
        "batch size, beyond which more letters in a step tell little new. The rules are a first guess for the next range "
        "test, and a warm-up helps them to hold a little longer."
    )


def draw_batch_size(axes: Any, reached: dict[tuple[str, int], dict[str, float]], sizes: tuple[int, ...]) -> None:
    top = 1.15 * max(reached[name, sizes[-1]]["same"] for name in OPTIMIZERS)
    for axis, name in zip(axes, OPTIMIZERS, strict=True):
        for rule in RULES:
            axis.plot(sizes, [min(reached[name, size][rule], top) for size in sizes], label=f"rate {rule}")
        axis.set(xscale="log", xticks=sizes, xticklabels=[str(size) for size in sizes], ylim=(None, top * 1.02),
                 xlabel="batch size", ylabel="loss on new letters", title=f"{name}: as many letters, fewer steps")  # fmt: skip
        axis.minorticks_off()
        axis.legend(fontsize=9)
