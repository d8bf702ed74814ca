"""Chapters of experiment_tracking: what smoothing does to a curve, and what its horizontal axis may hide."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_02_training_optimization.src.tracking.task import Config, Task, train
from shared.lesson import Lesson
from shared.units import significant

import torch
import torch.nn.functional as F

WEIGHT = 0.9  # of TensorBoard's slider


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """TensorBoard's smoothing: a moving average that forgets by `weight`, divided by what it has seen so far.

    The source is TensorBoard's line chart (vz_line_chart2, resmoothDataset): non-finite values pass by, and a
    constant curve stays what it is.
    """
    average, seen, smoothed = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            average = weight * average + (1 - weight) * value
            seen = weight * seen + (1 - weight)  # the same average of ones: 1 - weight ** n
            smoothed.append(average / seen)
        else:
            smoothed.append(value)
    return smoothed


def smooth_from_zero(values: Sequence[float], weight: float) -> list[float]:
    """The mistake: without the division, every curve seems to begin at 0."""
    average, smoothed = 0.0, []
    for value in values:
        average = weight * average + (1 - weight) * value
        smoothed.append(average)
    return smoothed


def weighted_mean(values: torch.Tensor, weight: float) -> torch.Tensor:
    """The same as a definition: the mean of all values so far, each weighted by `weight` for every step of its age."""
    ages = torch.arange(len(values))
    weights = torch.tril(weight ** (ages[:, None] - ages).clamp_min(0).double())
    return weights @ values / weights.sum(dim=1)


def correlation(x: torch.Tensor) -> float:
    """Between neighbours: 0 for noise, near 1 for a curve that seems to go somewhere."""
    x = x - x.mean()
    return ((x[1:] * x[:-1]).sum() / x.square().sum()).item()


def show_smoothing(lesson: Lesson) -> None:
    lesson.section(
        "Smoothing: what it shows, hides and invents",
        "The slider beside TensorBoard's curves is a moving average: each new point counts 1 - weight, and all that came "
        f"before it weight. Most people leave it where it is. Four curves, smoothed with {WEIGHT}: a constant, a spike, a "
        "drop and noise around zero, which has nothing to tell.",
    )
    generator = torch.Generator().manual_seed(lesson.options.seed)
    noise = torch.randn(4000, generator=generator, dtype=torch.float64)
    own = torch.tensor(smooth(noise[:300].tolist(), WEIGHT), dtype=torch.float64)
    off = (own - weighted_mean(noise[:300], WEIGHT)).abs().max().item()
    lesson.check("the formula is a mean weighted by age", off < 1e-12, f"{off:.0e} apart over 300 points")
    constant, from_zero = smooth([2.0] * 50, WEIGHT), smooth_from_zero([2.0] * 50, WEIGHT)
    lesson.check("a constant stays what it is", max(abs(value - 2) for value in constant) < 1e-12, "2 at all 50 points")
    lesson.check("without the division it begins near 0", abs(from_zero[0] - 2 * (1 - WEIGHT)) < 1e-12,
                 f"{from_zero[0]:.1f}, then {from_zero[9]:.2f} at point 10")  # fmt: skip
    spike = [0.0] * 200 + [1.0] + [0.0] * 99
    smoothed_spike = smooth(spike, WEIGHT)
    lesson.check("a spike keeps a tenth of its height", abs(max(smoothed_spike) - (1 - WEIGHT)) < 1e-6,
                 f"{max(smoothed_spike):.3f} of 1")  # fmt: skip
    drop = [1.0] * 200 + [0.0] * 100
    late = next(index for index, value in enumerate(smooth(drop, WEIGHT)[200:], 1) if value < 0.5)
    lesson.check("a drop is half seen some points too late", late == math.ceil(math.log(0.5) / math.log(WEIGHT)),
                 f"{late} points")  # fmt: skip
    smoothed = torch.tensor(smooth(noise.tolist(), WEIGHT), dtype=torch.float64)
    before, after = correlation(noise), correlation(smoothed[100:])
    lesson.check("noise becomes a curve with ups and downs", abs(before) < 0.1 and after > 0.8,
                 f"neighbours agree by {before:.2f} before, {after:.2f} after")  # fmt: skip
    ratio = (smoothed[100:].std() / noise.std()).item()
    expected = math.sqrt((1 - WEIGHT) / (1 + WEIGHT))
    lesson.check(
        "and shrinks to sqrt((1 - w) / (1 + w))", abs(ratio / expected - 1) < 0.3, f"{ratio:.3f}; {expected:.3f}"
    )
    sick = smooth([1.0, math.nan, 1.0, math.inf, 1.0], WEIGHT)
    lesson.check("NaN and infinity pass by", math.isnan(sick[1]) and sick[4] == 1.0, "the points after them are whole")
    often = [value for value in drop for _ in range(4)]
    four = next(index for index, value in enumerate(smooth(often, WEIGHT)[800:], 1) if value < 0.5)
    lesson.check(
        "it counts points, not steps",
        four == late,
        f"logged 4 times as often, late by {four / 4:.1f} steps, not {late}",
    )
    lesson.figure("smoothing", lambda axis: draw_smoothing(axis, noise[:300]))
    lesson.shows(
        f"with {WEIGHT} a curve remembers about {1 / (1 - WEIGHT):.0f} points. The hills of smoothed noise are as wide as that "
        f"and mean nothing. Smooth to see a slope, never to say which of two runs ends lower: then average the last "
        f"{round(1 / (1 - WEIGHT))} raw points, with their spread, and compare runs logged equally often."
    )


def draw_smoothing(axis: Any, noise: torch.Tensor) -> None:
    signal = torch.where(torch.arange(300) < 200, 6.0, 2.0)
    curve = (signal + noise).tolist()
    curve[100] = 14.0
    axis.plot(curve, color="#b0b0b0", linewidth=0.8, linestyle="-", marker="", label="logged: a drop, a spike, noise")
    axis.plot(smooth(curve, WEIGHT), linestyle="-", marker="", linewidth=2, label=f"smoothed with {WEIGHT}")
    axis.plot(smooth(curve, 0.99), linestyle="--", marker="", linewidth=2, label="smoothed with 0.99")
    axis.plot(smooth_from_zero(curve, 0.99), linestyle=":", marker="", linewidth=2, label="0.99, begun at zero")
    axis.set(xlabel="point", ylabel="loss", title="Smoothing is late, and hides a spike", ylim=(0, 15))
    axis.legend(fontsize=9)


# The horizontal axis


def mean_of_batch_means(losses: torch.Tensor, batch_size: int) -> float:
    """The mistake: a last batch of one sample counts as much as a full one."""
    return torch.stack([part.mean() for part in losses.split(batch_size)]).mean().item()


def mean_over_samples(losses: torch.Tensor, batch_size: int) -> float:
    """Each batch's mean counts as often as it has samples."""
    total = torch.stack([part.mean() * len(part) for part in losses.split(batch_size)]).sum()
    return (total / len(losses)).item()


class Curve:
    """A tracker that keeps the validation loss by step."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if "validation/loss" in values:
            self.points.append((step, values["validation/loss"]))

    def close(self) -> None:
        pass


def show_axes(lesson: Lesson, task: Task) -> None:
    lesson.section(
        "What is on the horizontal axis",
        "TensorBoard knows one whole number for each point and calls it step. A step of 16 letters is not a step of 128, and "
        "an epoch's mean is not the mean of its batches. Two runs with the same settings and different batch sizes, looked at by "
        "steps and by letters seen:",
    )
    small, large = 16, 128
    interval = lesson.pick(full=10, cpu=5, quick=1)  # steps of the large batches from point to point
    curves: dict[int, list[tuple[int, float]]] = {}
    for batch_size in (small, large):
        curve, often = Curve(), interval if batch_size == large else 5 * interval  # both at the large one's last step
        config = Config(lr=0.003, batch_size=batch_size, steps=25 * interval * large // batch_size, validate_every=often,
                        seed=lesson.options.seed)  # fmt: skip
        train(config, task, curve)
        curves[batch_size] = curve.points
    last = curves[large][-1]
    by_step = last[0], dict(curves[small])[last[0]]
    by_letters = curves[small][-1]
    lesson.table(
        [
            {"asked at": f"step {last[0]}", f"batches of {small}": by_step[1], f"batches of {large}": last[1],
             "letters seen": f"{by_step[0] * small:,} and {last[0] * large:,}"},
            {"asked at": f"letter {last[0] * large:,}", f"batches of {small}": by_letters[1],
             f"batches of {large}": last[1], "letters seen": f"{by_letters[0] * small:,} and {last[0] * large:,}"},
        ]
    )  # fmt: skip
    lesson.check("equal steps are not equal work", last[0] * large > 7 * by_step[0] * small,
                 f"{last[0] * large / (by_step[0] * small):.1f} times as many letters")  # fmt: skip
    lesson.check("by letters the small batches are ahead", by_letters[1] < last[1] - 0.02,
                 f"{by_letters[1]:.2f} against {last[1]:.2f}")  # fmt: skip
    gap = abs(by_step[1] - last[1])
    lesson.check("by steps the two are closer together", gap < last[1] - by_letters[1], f"{gap:.2f} apart")
    generator = torch.Generator().manual_seed(lesson.options.seed)
    logits = torch.randn(1001, 10, generator=generator)
    labels = torch.randint(10, (1001,), generator=generator)
    logits[-1, labels[-1]] -= 20  # the last sample is a hard one, and its batch has no other
    losses = F.cross_entropy(logits, labels, reduction="none")
    wrong, right, full = mean_of_batch_means(losses, 100), mean_over_samples(losses, 100), losses.mean().item()
    lesson.check(
        "batch means weighted by size give the mean", abs(right - full) < 1e-4, f"{right:.4f} over 1,001 samples"
    )
    weight = 1001 / 11
    lesson.check("their plain mean counts one sample for 91", wrong - full > 0.5,
                 f"{wrong:.2f} instead of {full:.2f}: 1,001 / 11 = {weight:.0f} times")  # fmt: skip
    lesson.figure("axes", lambda *axes: draw_axes(axes, curves), columns=2)
    lesson.shows(
        f"by steps the two runs are {significant(gap)} apart, by letters {significant(last[1] - by_letters[1])}: which is "
        "better was decided by the axis. Give global_step what you pay for (samples, tokens), the same in all runs "
        "that you compare, and log an epoch's mean as the sum over samples divided by their number."
    )


def draw_axes(axes: Sequence[Any], curves: Mapping[int, Sequence[tuple[int, float]]]) -> None:
    for axis, is_scaled in zip(axes, (False, True), strict=True):
        for batch_size, points in curves.items():
            x = [step * (batch_size / 1000 if is_scaled else 1) for step, _ in points]
            axis.plot(x, [value for _, value in points], label=f"batches of {batch_size}")
        axis.set(
            xlabel="letters seen (thousands)" if is_scaled else "step", title="by letters" if is_scaled else "by steps"
        )
        axis.legend(fontsize=9)
    axes[0].set(ylabel="validation loss")
    axes[0].set_xlim(0, 1.3 * curves[max(curves)][-1][0])
