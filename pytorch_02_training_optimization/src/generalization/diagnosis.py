"""From two curves to a diagnosis, on evidence, and five trainings to try it on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytorch_02_training_optimization.src.generalization.stack import Recipe, Run, train
from pytorch_02_training_optimization.src.generalization.tasks import Sizes, Task, draw_clouds
from shared.lesson import Lesson

import torch


@dataclass(frozen=True)
class Diagnosis:
    name: str
    evidence: str
    advice: str


def wobble(curve: torch.Tensor) -> float:
    """How far a point of the curve strays by chance: its distance from the middle of its two neighbours.

    If each point is off by s, that distance has the spread s x sqrt(3/2); a straight line contributes nothing. The
    median of the second half is taken, since a curve bends at its beginning.
    """
    middle = (curve[:-2] + curve[2:]) / 2
    distance = (curve[1:-1] - middle)[len(middle) // 2 :].abs()
    return distance.median().item() / 0.6745 / math.sqrt(1.5)  # 0.6745: the median of |normal|


def diagnose(train_curve: Sequence[float], val_curve: Sequence[float], wanted: float) -> Diagnosis:
    """What two curves of losses say, measured at the same regular steps, at least eight of them.

    `wanted` is the training loss that would content you; what can be had you know from a larger model, from a published
    one, or from the task itself.
    Raises ValueError for curves that are too short or differ in length.
    """
    trained, validated = (torch.as_tensor(curve, dtype=torch.float64) for curve in (train_curve, val_curve))
    if trained.shape != validated.shape or len(trained) < 8:
        raise ValueError(f"two curves of one length, at least 8 points; these have {len(trained)} and {len(validated)}")
    if not (trained.isfinite() & validated.isfinite()).all():
        return Diagnosis("diverged", "a loss is not finite", "a lower learning rate; look for the first NaN")
    best = int(validated.argmin())
    end, lowest = validated[-3:].mean().item(), validated[max(0, best - 1) : best + 2].mean().item()
    margin = max(
        3 * wobble(validated), 0.05 + 0.05 * lowest
    )  # in nats; a share alone would be strict with small losses
    gap = end - trained[-3:].mean().item()
    fallen = validated[-len(validated) // 4 - 1].item() - end
    if end > lowest + margin and gap > margin:
        evidence = f"validation rose from {lowest:.2f} to {end:.2f} while training fell"
        return Diagnosis("overfitting", evidence, "more data, augmentation, decay; or stop at the lowest point")
    if fallen > margin:
        evidence = f"validation still fell by {fallen:.2f} in the last quarter"
        return Diagnosis("stopped too soon", evidence, "train on, or raise the learning rate")
    if gap > max(margin, 0.1 + 0.3 * end):
        return Diagnosis("overfitting", f"a gap of {gap:.2f} to validation", "more data, augmentation, decay")
    if trained[-3:].mean() > wanted + margin:
        evidence = f"training ends at {trained[-3:].mean():.2f}, wanted {wanted:.2f}, and the gap is {gap:.2f}"
        return Diagnosis("underfitting", evidence, "a larger model, better features, less regularisation")
    return Diagnosis("a good fit", f"wanted {wanted:.2f} reached, gap {gap:.2f}", "open the test set, once")


def mean_curves(run: Run) -> tuple[list[float], list[float]]:
    """The losses of training and validation, mean over the seeds."""
    return ([point.train.loss.mean().item() for point in run.curve],
            [point.validation.loss.mean().item() for point in run.curve])  # fmt: skip


def show_diagnosis(lesson: Lesson, wrong_labels: Task) -> None:
    lesson.section(
        "Two curves and a diagnosis",
        "Before you cure, diagnose. Two losses tell: that of the samples the network learns from, and that of samples it "
        "never sees. A network that underfits fails on both; one that overfits does well on the first only. `diagnose` asks "
        "in a fixed order: is every number finite, does validation rise, does it still fall, how wide is the gap, and does "
        "training reach what is possible? It is tried on five trainings whose disease we made ourselves.",
    )
    steps = lesson.pick(full=240, quick=120)
    many = lesson.pick(full=8000, quick=6000)
    seeds = lesson.pick(full=4, quick=2)
    clean = draw_clouds(Sizes(many, 1000, 1000), lesson.options.seed, lesson.device, wrong=0)
    best = clean.limit_loss or 0.0
    good = Recipe(steps=steps, count=many, width=32, lr=0.05, decay=0.05)
    patients = {
        "a weight decay of 3": ("underfitting", clean, replace(good, decay=3.0)),
        "ended while it learns": ("stopped too soon", clean, replace(good, lr=0.24 / steps)),
        "200 samples, 30 % wrong": ("overfitting", wrong_labels, replace(good, count=200, width=64, decay=0.0)),
        "a learning rate of 10,000": ("diverged", clean, replace(good, lr=1e4)),
        "many samples, right labels": ("a good fit", clean, good),
    }
    table = []
    found: dict[str, Diagnosis] = {}
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for name, (_, task, recipe) in patients.items():
        run = train(task, recipe, seeds, lesson.options.seed, range(steps // 24, steps, steps // 24))
        curves[name] = mean_curves(run)
        found[name] = diagnose(*curves[name], wanted=best + 0.1)
        losses = [f"{value:.2f}" for value in (curves[name][0][-1], min(curves[name][1]), curves[name][1][-1])]
        table.append({"what we did": name, "training": losses[0], "validation, lowest": losses[1], "at the end": losses[2],
                      "diagnosis": found[name].name})  # fmt: skip
        lesson.record("training loss", curves[name][0][-1] if math.isfinite(curves[name][0][-1]) else -1.0, "nats",
                      patient=name, diagnosis=found[name].name)  # fmt: skip
    lesson.table(table)
    for name, (disease, _, _) in patients.items():
        lesson.check(f"{disease}: {name}", found[name].name == disease, found[name].evidence)
    lesson.figure("diagnosis", lambda *axes: draw_curves(axes, curves, found, best), columns=2, rows=2)
    lesson.shows(
        f"the best rule for these clouds has a loss of {best:.2f}, and `wanted` is 0.1 above it. "
        f"Validation alone does not tell the diseases apart: it ends at "
        f"{curves['a weight decay of 3'][1][-1]:.2f} for the one that underfits and at "
        f"{curves['200 samples, 30 % wrong'][1][-1]:.2f} for the one that overfits, and their cures are opposite. The "
        f"training loss decides: {curves['a weight decay of 3'][0][-1]:.2f} and "
        f"{curves['200 samples, 30 % wrong'][0][-1]:.2f}."
    )


def draw_curves(
    axes: Sequence[Any], curves: dict[str, tuple[list[float], list[float]]], found: dict[str, Diagnosis], best: float
) -> None:
    shown = [name for name in curves if found[name].name != "diverged"]
    for axis, name in zip(axes, shown, strict=True):
        for curve, label in zip(curves[name], ("training", "validation"), strict=True):
            axis.plot(range(1, len(curve) + 1), curve, label=label, markersize=3)
        axis.axhline(best, color="black", linewidth=0.8)
        axis.text(len(curves[name][0]), best, "best possible, right labels", fontsize=8, ha="right", va="top")
        axis.set(xlabel="measurement", ylabel="loss (nats)", title=f"{found[name].name}: {name}", ylim=(0, 4))
        axis.title.set_fontsize(10)
        axis.legend(fontsize=9, loc="upper right")
