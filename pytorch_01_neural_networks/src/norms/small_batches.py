"""Why BatchNorm fails with small batches: the noise of its statistics, then a training at each batch size."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_01_neural_networks.src.norms.letters import (
    CLASSES,
    MAP_SIZES,
    NORMS,
    WIDTHS,
    Letters,
    accuracy,
    make_network,
    predict,
    train,
)
from shared.lesson import Lesson
from shared.units import percent

import torch
import torch.nn.functional as F
from torch import nn

BATCH_SIZES = (2, 4, 8, 32)


def show_small_batches(lesson: Lesson, letters: Letters) -> None:
    show_noise(lesson, letters)
    show_training(lesson, letters)


# Noise


def noise_of_mean(n: int, draws: int, device: torch.device) -> float:
    """How much the mean of n numbers with standard deviation 1 scatters over `draws` batches, around the true 0."""
    return torch.randn(draws, n, device=device).mean(1).square().mean().sqrt().item()


def independent_positions(x: torch.Tensor) -> torch.Tensor:
    """For features (N, C, H, W): of how many independent numbers a mean over one sample's positions is worth, by channel.

    The variance of all numbers, divided by that of the samples' means: H x W if positions had nothing to do with each
    other, 1 if all positions of a sample were equal.
    """
    return x.var((0, 2, 3)) / x.mean((2, 3)).var(0)


def show_noise(lesson: Lesson, letters: Letters) -> None:
    lesson.section(
        "The noise of a small batch",
        "A batch is a sample of the data, and its mean an estimate. From n independent numbers it scatters by sigma / "
        "sqrt(n) around the true mean, and BatchNorm adds that error to all of them: every value carries the luck of "
        "its batch. Measured with sigma = 1:",
    )
    draws = lesson.pick(full=20_000, quick=5_000)
    table, worst = [], 0.0
    for n in (2, 4, 16, 64, 256):
        found, expected = noise_of_mean(n, draws, lesson.device), 1 / math.sqrt(n)
        # The root of a mean of `draws` squares of normal numbers has a relative standard error of 1 / sqrt(2 draws).
        errors = abs(found / expected - 1) * math.sqrt(2 * draws)
        worst = max(worst, errors)
        table.append(
            {
                "numbers in the mean": n,
                "1 / sqrt(n)": expected,
                "measured": found,
                "standard errors apart": f"{errors:.1f}",
            }
        )
    lesson.table(table)
    lesson.check(
        "the mean of n numbers scatters by sigma / sqrt(n)",
        worst < 5,
        f"within {worst:.1f} standard errors, {draws:,} batches",
    )
    features = nn.Conv2d(3, WIDTHS[0], 5, 4, padding=2, device=lesson.device)(letters.x).detach()
    positions = features[0, 0].numel()
    worth = independent_positions(features)
    shuffled = independent_positions(torch.randn_like(features))
    lesson.text(
        "A convolution has positions too, and they count. But neighbours resemble each other, so they do not count in "
        f"full. For the first convolution of the network below, {len(letters.x)} letters, {positions} positions each:"
    )
    lesson.table([{"positions": name, "each sample is worth": f"{of.median():.1f} independent numbers", "of": positions}
                  for name, of in (("of letters", worth), ("of pure noise", shuffled))])  # fmt: skip
    lesson.check("positions of a picture are worth less than their number", worth.median() < positions / 2,
                 f"{worth.median():.1f} of {positions}, the median of {len(worth)} channels")  # fmt: skip
    lesson.shows(
        f"with 2 samples the mean of such a channel is as noisy as one over {2 * worth.median():.0f} independent numbers, "
        f"that is by {1 / math.sqrt(2 * worth.median()):.2f} sigma, and not by the {1 / math.sqrt(2 * positions):.2f} that "
        f"{2 * positions} positions promise. To halve the noise you need four times the batch."
    )


# Training


@dataclass(frozen=True)
class LastNorm:
    """What the last normalisation of a new network gives out, and how the gradient that it gets is spread."""

    median_size: float  # the median |output|
    share_of_six: float  # of the gradient that goes into it, in the six of 64 channels that get most


def look_at_last_norm(norm: str, x: torch.Tensor, y: torch.Tensor) -> LastNorm:
    model = make_network(norm, x.device)
    last = max(i for i, layer in enumerate(model) if isinstance(layer, nn.Conv2d))
    features = model[: last + 1](x)
    output = model[last + 1](features)
    (slopes,) = torch.autograd.grad(F.cross_entropy(model[last + 2 :](output), y), features)
    by_channel = slopes.abs().sum((0, 2, 3)).sort(descending=True).values
    return LastNorm(output.abs().median().item(), (by_channel[:6].sum() / by_channel.sum()).item())


def show_training(lesson: Lesson, letters: Letters) -> None:
    epochs, runs = lesson.pick(full=3, quick=1), lesson.pick(full=2, quick=1)
    lesson.section(
        "Small batches: BatchNorm against GroupNorm",
        "The same small network learns A, B and C from scratch, with BatchNorm, with GroupNorm (8 groups) and with "
        f"nothing, at four batch sizes. Each run sees the same number of samples ({epochs} x {len(letters.x)}), and lr is "
        "proportional to the batch size, so all go equally far. The maps shrink from layer to layer, and with them what "
        "a mean of BatchNorm is taken over:",
    )
    lesson.table([{"batch size": size, **{f"layer {depth}, {side} x {side}": f"{size * side**2:,} numbers"
                                          for depth, side in enumerate(MAP_SIZES, 1)}} for size in BATCH_SIZES])  # fmt: skip
    runs_of = {norm: runs if norm != "none" else 1 for norm in NORMS}  # that one learns nothing, in any run
    jobs = [(norm, size, run) for norm in NORMS for size in BATCH_SIZES for run in range(runs_of[norm])]
    right: dict[tuple[str, int], list[float]] = {}
    for norm, size, _ in lesson.progress(jobs, "training"):
        model = make_network(norm, lesson.device)
        train(model, letters.x, letters.y, batch_size=size, epochs=epochs)
        right.setdefault((norm, size), []).append(accuracy(predict(model, letters.x_test), letters.y_test))
    for (norm, size), shares in right.items():
        lesson.record("right", statistics.mean(shares), "share", norm=norm, batch_size=size, runs=runs_of[norm])
    lesson.text(
        f"Right on {len(letters.x_test)} unseen letters{'' if runs == 1 else ', in each run'}; guessing gives 33 %:"
    )
    lesson.table(
        [
            {"batch size": size, **{norm: ", ".join(map(percent, right[norm, size])) for norm in NORMS}}
            for size in BATCH_SIZES
        ]
    )
    mean = {pair: statistics.mean(shares) for pair, shares in right.items()}
    seen = {size: look_at_last_norm("BatchNorm", letters.x[:size], letters.y[:size]) for size in (2, 32)}
    lesson.text("Why: look at the last BatchNorm of a new network, whose maps have one position.")
    lesson.check("with 2 samples it gives out hardly anything but 1 and -1", seen[2].median_size > 0.97,
                 f"median size {seen[2].median_size:.4f}; with 32 samples {seen[32].median_size:.2f}")  # fmt: skip
    lesson.check("the gradient goes to channels where the two nearly tie",
                 seen[2].share_of_six > 0.7 > 0.4 > seen[32].share_of_six,
                 f"6 of 64 get {percent(seen[2].share_of_six)}; with 32 samples {percent(seen[32].share_of_six)}")  # fmt: skip
    if not lesson.quick:  # a quick run is too short to learn anything
        lead = mean["GroupNorm", 2] - mean["BatchNorm", 2]
        lesson.check("batch size 2: GroupNorm is far ahead of BatchNorm", lead > 0.05,
                     f"{percent(mean['GroupNorm', 2])} and {percent(mean['BatchNorm', 2])}")  # fmt: skip
        gain = mean["BatchNorm", 32] - mean["BatchNorm", 2]
        lesson.check("batch size 32: BatchNorm learns", gain > 0.05, percent(mean["BatchNorm", 32]))
    lesson.figure("small_batches", lambda axis: draw_training(axis, mean))
    lesson.shows(
        f"from batch size 32 to 2 BatchNorm goes from {percent(mean['BatchNorm', 32])} to {percent(mean['BatchNorm', 2])}, "
        f"GroupNorm from {percent(mean['GroupNorm', 32])} to {percent(mean['GroupNorm', 2])}. The last layer, with one "
        "position, turns two samples into 1 and -1, and its gradient is about the few channels that hardly differ. On "
        "ImageNet, where the last maps are 7 x 7, the fall is softer: Wu & He (2018) report an error 10.6 points lower with "
        f"GroupNorm at batch size 2. Without any normalisation ({percent(mean['none', 32])}) the signal fades in PyTorch's "
        "default initialisation; initialization_study shows the other cure."
    )


def draw_training(axis: Any, mean: Mapping[tuple[str, int], float]) -> None:
    sizes: Sequence[int] = BATCH_SIZES
    for norm in NORMS:
        axis.plot(
            sizes, [100 * mean[norm, size] for size in sizes], label=norm if norm != "none" else "no normalisation"
        )
    axis.axhline(100 / CLASSES, color="black", linewidth=1, linestyle=":", marker="")
    axis.annotate("guessing", (sizes[-1], 100 / CLASSES), (0, -13), textcoords="offset points", ha="right", fontsize=9)
    axis.set(xscale="log", xlabel="batch size", ylabel="right on unseen letters (%)", ylim=(0, 100),
             title="The same samples in smaller batches")  # fmt: skip
    axis.set_xticks(sizes, map(str, sizes))
    axis.minorticks_off()
    axis.legend(loc="upper left")
