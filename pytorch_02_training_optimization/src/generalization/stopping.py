"""Early stopping: when to stop, and which weights to keep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.generalization.stack import Bench
from shared.lesson import Lesson

import torch


@dataclass(frozen=True)
class Stop:
    """Places in a curve: where the loss was lowest so far, and where the training ended."""

    best: int
    end: int


def stop_early(losses: Sequence[float], patience: int) -> Stop:
    """Ends after more than `patience` measurements in a row without a new lowest loss; a NaN is never the lowest."""
    best, lowest = 0, math.inf
    for place, loss in enumerate(losses):
        if loss < lowest:
            best, lowest = place, loss
        elif place - best > patience:
            return Stop(best, place)
    return Stop(best, len(losses) - 1)


def keep_the_last(stop: Stop) -> int:
    """The mistake: the training ends, and the weights that are there are saved: those after the patience ran out."""
    return stop.end


def keep_the_best(stop: Stop) -> int:
    """Right: a copy of the weights is made at each new lowest loss, and put back at the end."""
    return stop.best


def noisy_curves(count: int, noise: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A validation loss that falls and rises, (60,), and `count` measurements of it (count, 60) with errors."""
    step = torch.arange(60.0)
    truth = 1 + 1.5 * torch.exp(-step / 8) + 0.012 * step
    return truth, truth + noise * torch.randn(count, 60, generator=generator)


PATIENCES = (0, 1, 2, 5, 10, 20)


def show_patience(lesson: Lesson) -> None:
    lesson.section(
        "Patience",
        "Early stopping asks after each measurement: is this the lowest validation loss so far? A measured loss is off by "
        "chance, so a single one that is no lower says little. Patience is how many of them you bear in a row. Here a curve "
        "that we know, falling and then rising, is measured 1,000 times with errors of 0.05.",
    )
    truth, measured = noisy_curves(1000, 0.05, torch.Generator().manual_seed(lesson.options.seed))
    lowest = truth.min().item()
    loss = {}
    table = []
    for patience in PATIENCES:
        stops = [stop_early(curve, patience) for curve in measured.tolist()]
        kept = {name: torch.stack([truth[keep(stop)] for stop in stops]).mean().item()
                for name, keep in (("best", keep_the_best), ("last", keep_the_last))}  # fmt: skip
        ends = torch.tensor([stop.end for stop in stops], dtype=torch.float32)
        loss[patience] = kept
        table.append({"patience": patience, "ends at": ends.mean().item(), "true loss, best kept": f"{kept['best']:.3f}",
                      "last kept": f"{kept['last']:.3f}", "lowest": f"{lowest:.3f}"})  # fmt: skip
        lesson.record("true loss", kept["best"], "nats", patience=patience)
    lesson.table(table)
    lesson.check("patience 0 stops on noise", loss[0]["best"] > loss[10]["best"] + 0.05,
                 f"{loss[0]['best'] - lowest:.2f} above the lowest; patience 10: {loss[10]['best'] - lowest:.2f}")  # fmt: skip
    lesson.check("the last weights pay for the patience", loss[20]["last"] > loss[20]["best"] + 0.05,
                 f"patience 20: {loss[20]['last']:.2f}, the best {loss[20]['best']:.2f}")  # fmt: skip
    lesson.shows(
        f"impatience costs {loss[0]['best'] - lowest:.2f} and saves time; patience costs time only, if you restore the best "
        f"weights, and {loss[20]['last'] - loss[20]['best']:.2f} if you forget to. Choose it longer than the noise lasts, "
        "and smooth the curve or enlarge the validation set before you tune it."
    )


def show_stopping(lesson: Lesson, letters: Bench, clouds: Bench) -> None:
    lesson.section(
        "Which curve decides?",
        "The lowest validation loss and the highest validation accuracy need not lie at the same step. The loss asks for "
        "honest probabilities, and a network that is sure of its mistakes pays for them; the accuracy asks for the answer "
        "only. `train` of this project stops by the loss; here is what hangs on it.",
    )
    table, found = [], {}
    for bench in (letters, clouds):
        curve = bench.run().curve
        network = torch.arange(bench.seeds)
        losses, rights, tests, test_losses = (
            torch.stack([getattr(getattr(point, part), kind) for point in curve])
            for part, kind in (
                ("validation", "loss"),
                ("validation", "accuracy"),
                ("test", "accuracy"),
                ("test", "loss"),
            )
        )
        end = torch.full((bench.seeds,), len(curve) - 1)
        for name, place in (
            ("lowest loss", losses.argmin(0)),
            ("highest accuracy", rights.argmax(0)),
            ("the end", end),
        ):
            accuracy, loss = tests[place, network], test_losses[place, network]
            found[bench.task.name, name] = accuracy.mean().item(), loss.mean().item()
            steps = torch.tensor([point.step for point in curve])[place].float()
            error = (accuracy.std() / math.sqrt(bench.seeds)).item()
            table.append({"task": bench.task.name, "stopped at": name, "step": round(steps.mean().item()),
                          "test (%)": f"{100 * accuracy.mean().item():.1f} ({100 * error:.1f})",
                          "test loss": loss.mean().item()})  # fmt: skip
            lesson.record("test accuracy", 100 * accuracy.mean().item(), "%", task=bench.task.name, stopped=name)
    lesson.table(table)
    for task in ("letters", "clouds"):
        by_loss, at_end = found[task, "lowest loss"], found[task, "the end"]
        lesson.check(f"{task}: the loss has risen since its lowest point", at_end[1] > by_loss[1] + 0.1,
                     f"{by_loss[1]:.2f}, at the end {at_end[1]:.2f}")  # fmt: skip
    curves = {bench.task.name: bench.run().curve for bench in (letters, clouds)}
    lesson.figure("stopping", lambda *axes: draw_stopping(axes, curves), columns=2)
    gained = {task: 100 * (found[task, "lowest loss"][0] - found[task, "the end"][0]) for task in ("letters", "clouds")}
    lesson.shows(
        f"stopping at the lowest loss changes the test accuracy by {gained['letters']:+.1f} points on the letters and "
        f"{gained['clouds']:+.1f} on the clouds. On the letters accuracy hardly falls while the loss rises to "
        f"{found['letters', 'the end'][1]:.2f}, where guessing costs {math.log(10):.2f}: more answers are right, and the wrong "
        "ones are given with more certainty. Stop by what you will use: the accuracy for answers, the loss for probabilities."
    )


def draw_stopping(axes: Any, curves: Any) -> None:
    for axis, (task, curve) in zip(axes, curves.items(), strict=True):
        steps = [point.step for point in curve]
        axis.plot(steps, [point.validation.loss.mean() for point in curve], label="validation loss (nats)", marker="")
        right = axis.twinx()
        right.plot(steps, [100 * point.validation.accuracy.mean() for point in curve], color="#c2410c", linestyle="--",
                   marker="", label="validation accuracy (%)")  # fmt: skip
        right.grid(False)
        right.spines["right"].set_visible(True)
        axis.set(xlabel="step", ylabel="loss (nats)", title=task)
        right.set_ylabel("accuracy (%)")
        lines = [*axis.get_lines(), *right.get_lines()]
        axis.legend(lines, [str(line.get_label()) for line in lines], fontsize=9, loc="lower right")
