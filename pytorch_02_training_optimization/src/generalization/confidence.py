"""Calibration: how sure a network is, against how often it is right."""

import math
from collections.abc import Mapping
from typing import Any

from pytorch_02_training_optimization.src.generalization.stack import Bench, logits_of
from pytorch_02_training_optimization.src.generalization.tasks import Samples
from shared.lesson import Lesson

import torch
import torch.nn.functional as F

BINS = 15


def calibration_bins(confidence: torch.Tensor, right: torch.Tensor, bins: int = BINS) -> torch.Tensor:
    """(bins, 3): how many samples, their mean confidence and their accuracy, by confidence from 0 to 1; both (N,)."""
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bin m holds ((m - 1) / bins, m / bins]
    sums = torch.zeros(bins, 3, dtype=torch.float64)
    values = torch.stack([torch.ones_like(confidence), confidence, right.to(confidence.dtype)], dim=1).double()
    sums.index_add_(0, place, values)
    sums[:, 1:] /= sums[:, :1].clamp(min=1)
    return sums


def calibration_error(confidence: torch.Tensor, right: torch.Tensor, bins: int = BINS) -> float:
    """ECE: the mean distance of confidence and accuracy, bin by bin (Guo et al. 2017, equation 3)."""
    table = calibration_bins(confidence, right, bins)
    return float((table[:, 0] * (table[:, 1] - table[:, 2]).abs()).sum() / table[:, 0].sum())


def chance_floor(confidence: torch.Tensor, generator: torch.Generator, rounds: int = 20) -> float:
    """The ECE that a perfectly calibrated network with these confidences shows on so many samples, by chance alone."""
    lots = [torch.rand(confidence.shape, generator=generator) < confidence for _ in range(rounds)]
    return sum(calibration_error(confidence, lot) for lot in lots) / rounds


@torch.no_grad()
def logits_on(parameters: list[torch.Tensor], samples: Samples) -> torch.Tensor:
    """(S, N, 10) on the CPU."""
    return logits_of(parameters, samples.x.expand(len(parameters[0]), -1, -1)).cpu()


def fit_temperature(logits: torch.Tensor, y: torch.Tensor) -> float:
    """The number by which logits (N, 10) are divided for the lowest loss, to 2 %; fitted on the validation set."""
    candidates = [1.02**power for power in range(-60, 180)]
    return min(candidates, key=lambda temperature: F.cross_entropy(logits / temperature, y).item())


def show_confidence(lesson: Lesson, bench: Bench) -> None:
    lesson.section(
        "How sure, and how often right",
        "A network that is 90 % sure should be right 9 times in 10. The expected calibration error (ECE) sorts the test "
        "letters by confidence and measures how far confidence is from accuracy. With few samples it is never 0, so the "
        "floor stands beside it: what chance alone would show. Temperature is one number, fitted on the validation set, by "
        "which all logits are divided.",
    )
    cures: Mapping[str, dict[str, Any]] = {
        "nothing": {}, "label smoothing 0.1": {"smoothing": 0.1}, "mixup": {"mixes": True},
        "weight decay 0.2": {"decay": 0.2}, "dropout 0.4": {"dropout": 0.4}}  # fmt: skip
    y, validation = bench.task.test.y.cpu(), bench.task.validation
    logits = {name: logits_on(bench.run(**cure).parameters, bench.task.test) for name, cure in cures.items()}
    held_out = logits_on(bench.run().parameters, validation)
    subset = slice(0, 1000)  # a grid over all of them would take longer and find the same
    temperatures = torch.tensor([fit_temperature(one[subset], validation.y.cpu()[subset]) for one in held_out])
    logits["temperature"] = logits["nothing"] / temperatures.view(-1, 1, 1)
    generator = torch.Generator().manual_seed(lesson.options.seed)
    table: list[dict[str, object]] = []
    errors, curves = {}, {}
    for name, z in logits.items():
        confidence, answers = z.softmax(dim=-1).max(dim=-1)
        right = answers == y
        errors[name] = sum(calibration_error(*pair) for pair in zip(confidence, right, strict=True)) / bench.seeds
        curves[name] = calibration_bins(confidence.flatten(), right.flatten())
        table.append({"cure": name, "right (%)": 100 * right.float().mean().item(),
                      "sure (%)": 100 * confidence.mean().item(), "ECE (points)": 100 * errors[name],
                      "floor": 100 * chance_floor(confidence[0], generator),
                      "test loss": F.cross_entropy(z.flatten(0, 1), y.repeat(bench.seeds)).item()})  # fmt: skip
        lesson.record("ECE", 100 * errors[name], "points", cure=name)
    lesson.table(table)
    lesson.check("without a cure it is far too sure", errors["nothing"] > 0.15,
                 f"{table[0]['sure (%)']:.0f} % sure, {table[0]['right (%)']:.0f} % right")  # fmt: skip
    lesson.check("label smoothing makes it humbler", errors["label smoothing 0.1"] < errors["nothing"],
                 f"ECE {100 * errors['nothing']:.1f} to {100 * errors['label smoothing 0.1']:.1f} points")  # fmt: skip
    lesson.check("the temperature does more than label smoothing", errors["temperature"] < errors["label smoothing 0.1"],
                 f"{100 * errors['temperature']:.1f} points, T = {temperatures.mean():.1f}")  # fmt: skip
    same = bool((logits["temperature"].argmax(-1) == logits["nothing"].argmax(-1)).all())
    lesson.check("and changes no answer", same, f"{logits['nothing'][..., 0].numel():,} answers compared")
    plain_loss = F.cross_entropy(logits["nothing"].flatten(0, 1), y.repeat(bench.seeds)).item()
    lesson.check("by its loss the plain network is worse than guessing", plain_loss > math.log(10),
                 f"{plain_loss:.2f}; guessing has {math.log(10):.2f}")  # fmt: skip
    shown = {name: curves[name] for name in ("nothing", "label smoothing 0.1", "temperature")}
    lesson.figure("calibration", lambda axis: draw_calibration(axis, shown))
    rights = {name: 100 * (z.argmax(dim=-1) == y).float().mean().item() for name, z in logits.items()}
    cost = rights["label smoothing 0.1"] - rights["nothing"]
    lesson.shows(
        f"label smoothing takes {100 * (errors['nothing'] - errors['label smoothing 0.1']):.0f} points off the ECE and "
        f"changes the accuracy by {cost:+.1f}. The temperature takes {100 * (errors['nothing'] - errors['temperature']):.0f} "
        f"off, after training, and costs nothing. Who uses the answers may take the plain network, with {rights['nothing']:.0f} "
        "% right; who uses its probabilities, to refuse or to weigh a risk, would do better to guess, until they are "
        "divided by the temperature."
    )


def draw_calibration(axis: Any, curves: Mapping[str, torch.Tensor]) -> None:
    axis.plot([0, 100], [0, 100], color="black", linewidth=0.8, linestyle="-", marker="", label="as sure as right")
    for name, table in curves.items():
        filled = table[table[:, 0] >= 20]  # fewer are noise
        axis.plot(100 * filled[:, 1], 100 * filled[:, 2], label=name)
    axis.set(xlabel="confidence (%)", ylabel="right (%)", xlim=(0, 100), ylim=(0, 100),
             title="How sure, and how often right")  # fmt: skip
    axis.legend(fontsize=9)
