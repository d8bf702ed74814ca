"""Chapter of lr_schedules: the learning-rate range test, and whether the rate that it names is any good."""

import math
from typing import Any

from pytorch_02_training_optimization.src.letters.rows import Letters, load_letters
from pytorch_02_training_optimization.src.schedules.letters import (
    Momentum,
    draw_batches,
    judge,
    start_weights,
    train,
    with_error,
)
from shared.lesson import Lesson
from shared.units import percent, significant

import torch

BATCH_SIZE = 64
LOW, HIGH = 1e-4, 3.0


def rising_rates(steps: int) -> torch.Tensor:
    """From LOW to HIGH, each rate the same factor above the one before: equal room for every power of ten."""
    return LOW * (HIGH / LOW) ** (torch.arange(steps) / (steps - 1))


def smoothed(losses: torch.Tensor, beta: float = 0.9) -> torch.Tensor:
    """The running mean of losses (steps, …), divided by 1 - beta^t as Adam does, so that its beginning counts in full."""
    mean, means = torch.zeros_like(losses[0]), []
    for t, loss in enumerate(losses, 1):
        mean = beta * mean + (1 - beta) * loss
        means.append(mean / (1 - beta**t))
    return torch.stack(means)


def range_test(letters: Letters, seed: int, steps: int, runs: int) -> torch.Tensor:
    """Losses (steps, runs) of short trainings whose rate rises all the time; what is no number counts as very high."""
    optimizer = Momentum(start_weights(seed, runs, 1, letters.x.device))
    batches = draw_batches(seed, steps, runs, len(letters.y), BATCH_SIZE)
    losses = train(optimizer, letters, batches, rising_rates(steps)[:, None].expand(-1, runs))
    return losses.nan_to_num(20, 20).clamp(max=20)


def rate_of_the_minimum(losses: torch.Tensor) -> torch.Tensor:
    """The mistake: there the loss has stopped falling, so the rate is already too high. (steps, runs) → (runs,)"""
    return rising_rates(len(losses))[smoothed(losses).argmin(dim=0)]


def rate_of_the_test(losses: torch.Tensor) -> torch.Tensor:
    """Right: a power of ten below the minimum, where the loss falls well and there is room above."""
    return rate_of_the_minimum(losses) / 10


def rate_of_the_steepest(losses: torch.Tensor) -> torch.Tensor:
    """Where the smoothed loss falls most from one step to the next; a fine idea on a loss without noise."""
    return rising_rates(len(losses))[smoothed(losses).diff(dim=0).argmin(dim=0)]


FACTORS = {"a tenth": 0.1, "the rate found": 1.0, "ten times": 10.0}


def show_range_test(lesson: Lesson) -> None:
    steps, runs = lesson.pick(full=120, quick=60), 8
    lesson.section(
        "The learning-rate range test",
        "Which peak rate? Instead of a training for each, one short training in which the rate rises from far too small to "
        f"far too large (Smith 2015): {LOW:g} to {HIGH:g} in {steps} steps. The loss stands still, falls, and goes up when "
        "the steps are too long. A good rate lies well before its minimum, here a factor of ten. Then the finding is tested: "
        "training at that rate, at a tenth and at ten times.",
    )
    device, seed = lesson.device, lesson.options.seed
    letters = load_letters(lesson.pick(full=9000, quick=4000), device)
    test = load_letters(lesson.pick(full=2000, quick=400), device, train=False)
    losses = range_test(letters, seed, steps, runs)
    lowest, found = rate_of_the_minimum(losses), rate_of_the_test(losses)
    lr, means = found[0].item(), smoothed(losses)
    rates = rising_rates(steps)
    shown = [round(i * (steps - 1) / 8) for i in range(9)]
    lesson.table([{"rate": significant(rates[i].item(), 2), "loss of the batch": losses[i, 0].item(),
                   "smoothed": means[i, 0].item()} for i in shown])  # fmt: skip
    lesson.check("the minimum is inside the range", LOW * 10 < lowest[0] < HIGH / 1.5,
                 f"at {significant(lowest[0].item(), 2)}, so the rate found is {significant(lr, 2)}")  # fmt: skip
    seeds, length = lesson.pick(full=6, quick=4), lesson.pick(full=300, quick=80)
    parameters = start_weights(seed + 1, seeds, len(FACTORS), device)
    tried = lr * torch.tensor(list(FACTORS.values())).repeat_interleave(seeds)
    train(Momentum(parameters), letters, draw_batches(seed + 1, length, seeds, len(letters.y), BATCH_SIZE),
          tried.expand(length, -1))  # fmt: skip
    reached, right = (x.view(-1, seeds) for x in judge(parameters, test))
    lesson.text(f"{length} steps at each of three constant rates, {seeds} seeds, standard error in brackets:")
    lesson.table(
        [{"rate": f"{name}, {significant(lr * factor, 2)}", "test loss": with_error(row),
          "right": percent(share.mean().item())}
         for (name, factor), row, share in zip(FACTORS.items(), reached, right, strict=True)]
    )  # fmt: skip
    for (name, factor), share in zip(FACTORS.items(), right, strict=True):
        lesson.record("accuracy", 100 * share.mean().item(), "%", rate=lr * factor, which=name)
    tenth, sane, tenfold = reached.mean(dim=1).tolist()
    lesson.check("a tenth of it is too slow", tenth > 1.05 * sane, f"loss {tenth:.2f} instead of {sane:.2f}")
    lesson.check("ten times, the minimum itself, is too high", not tenfold < 1.05 * sane,
                 f"loss {tenfold:.2f}" if math.isfinite(tenfold) else "it diverged")  # fmt: skip
    spread, steep = (float(x.max() / x.min()) for x in (found, rate_of_the_steepest(losses)))
    lesson.check("eight seeds find rates of one size", spread < 10, f"{significant(found.min().item(), 2)} to "
                 f"{significant(found.max().item(), 2)}, a factor of {spread:.1f}")  # fmt: skip
    lesson.figure("range_test", lambda axis: draw_range_test(axis, losses, means, lr))
    lesson.shows(
        f"{steps} steps found {significant(lr, 2)}, and training confirms that neither a tenth nor ten times is better. It is a "
        f"size and no more: eight seeds differ by a factor of {spread:.1f}. Taking the steepest point of the curve, as some "
        f"tools do, gives rates that are a factor of {steep:,.0f} apart here, because batches are noisier than the slope. Repeat "
        "the test when optimizer, batch size or network change."
    )


def draw_range_test(axis: Any, losses: torch.Tensor, means: torch.Tensor, lr: float) -> None:
    rates = rising_rates(len(losses))
    axis.plot(rates, losses[:, 0], ":", marker="", color="#a0a0a0", label="loss of the batch")
    axis.plot(rates, means[:, 1:], "-", marker="", color="#c8c8c8", linewidth=0.8)
    axis.plot(rates, means[:, 0], "-", marker="", label="smoothed (grey: seven other seeds)")
    top = 1.6 * means[0].max().item()
    for place, name in ((lr, "rate found"), (10 * lr, "ten times: minimum"), (lr / 10, "a tenth")):
        axis.axvline(place, color="black", linewidth=0.9, linestyle="--", marker="")
        axis.text(place * 1.06, 0.06, name, fontsize=9, rotation=90, va="bottom")
    axis.set(xscale="log", ylim=(0, top), xlabel="learning rate, rising at every step", ylabel="loss",
             title="A range test finds the size of the learning rate")  # fmt: skip
    axis.legend(fontsize=9, loc="upper left")
