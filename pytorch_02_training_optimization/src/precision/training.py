"""One network, one task, seven ways to spend bits on it."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.precision.scaling import BATCH_SIZE, DIVISOR, OwnGradScaler, tiny_loss
from pytorch_02_training_optimization.src.precision.task import (
    LR,
    Letters,
    accuracy,
    load_letters,
    make_mlp,
)
from pytorch_02_training_optimization.src.precision.weights import Write, write_rounded, write_stochastically
from shared.lesson import Lesson
from shared.units import percent

import torch
from torch import nn


@dataclass(frozen=True)
class Way:
    """The type of the weights, what autocast narrows to, whether the loss is scaled, and how a weight is stored."""

    weights: torch.dtype
    autocast: torch.dtype | None = None
    scaled: bool = False
    write: Write = write_rounded


WAYS = {
    "float32": Way(torch.float32),
    "bfloat16 autocast": Way(torch.float32, torch.bfloat16),
    "float16 autocast, GradScaler": Way(torch.float32, torch.float16, scaled=True),
    "float16 autocast, no scaler": Way(torch.float32, torch.float16),
    "all bfloat16": Way(torch.bfloat16),
    "all bfloat16, stochastic": Way(torch.bfloat16, write=write_stochastically),
    "all float16, no scaler": Way(torch.float16),
}
SOUND = ("bfloat16 autocast", "float16 autocast, GradScaler", "all bfloat16, stochastic")


class Descent:
    """Gradient descent that computes in float32 and lets a `Way` store the weights."""

    def __init__(self, model: nn.Module, write: Write) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "lr": 0.0}]
        self.write = write

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                self.write(weight, weight.float() - group["lr"] * weight.grad.float())


@dataclass(frozen=True)
class Run:
    losses: list[float]  # per letter
    accuracy: float  # on letters that it has not seen
    skipped: int
    scale: float


def train(way: Way, letters: Letters, unseen: Letters, width: int, steps: int, seed: int) -> Run:
    """The loss is divided by DIVISOR, and the learning rate multiplied by it; the rate falls to 0 in a line."""
    torch.manual_seed(seed)
    device = letters.x.device
    model = make_mlp(width, device).to(way.weights)
    optimizer, scaler = Descent(model, way.write), OwnGradScaler(2.0**16 if way.scaled else 1.0, growth_interval=100)
    generator = torch.Generator().manual_seed(seed)
    losses, skipped = [], 0
    for step in range(steps):
        x, y = letters.batch(BATCH_SIZE, generator)
        optimizer.param_groups[0]["lr"] = LR * (1 - step / steps) * DIVISOR / BATCH_SIZE
        with torch.autocast(device.type, way.autocast) if way.autocast else nullcontext():
            loss = tiny_loss(model(x.to(way.weights)), y)
        model.zero_grad()
        if way.scaled:
            before = scaler.get_scale()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            skipped += scaler.get_scale() < before
        else:
            loss.backward()
            optimizer.step()
        losses.append(loss.detach() * DIVISOR / BATCH_SIZE)
    return Run(torch.stack(losses).tolist(), accuracy(lambda x: model(x.to(way.weights)), unseen), skipped,
               scaler.get_scale())  # fmt: skip


def final_loss(run: Run) -> float:
    """The mean of the last tenth of the steps."""
    last = run.losses[-max(1, len(run.losses) // 10) :]
    return sum(last) / len(last)


def show_training(lesson: Lesson) -> None:
    width, steps = lesson.pick(full=128, quick=64), lesson.pick(full=400, quick=100)
    lesson.section(
        "One network, trained in seven ways",
        "Everything together: a network with three layers reads letters, from the same random weights, with the same "
        "batches and learning rates, falling to 0. Only the bits differ. As above the loss is divided by 2^24, as a mean "
        "over many pixels would do, and the learning rate multiplied. The gradients of a classifier this small would fit "
        "float16 without that; those of your network may not.",
    )
    seed = lesson.options.seed
    letters = load_letters(lesson.pick(full=6000, quick=1000), lesson.device)
    unseen = load_letters(lesson.pick(full=2000, quick=400), lesson.device, train=False)
    runs = {name: train(way, letters, unseen, width, steps, seed)
            for name, way in lesson.progress(list(WAYS.items()), "ways")}  # fmt: skip
    lesson.table(
        [{"way": name, "bytes a weight": WAYS[name].weights.itemsize, "last loss": shown(final_loss(run)),
          "right, new letters": percent(run.accuracy), "left out": run.skipped if WAYS[name].scaled else "–"}
         for name, run in runs.items()]
    )  # fmt: skip
    for name, run in runs.items():
        lesson.record("accuracy", run.accuracy, "share", way=name, steps=steps)
    base = runs["float32"]
    lesson.check("float32 learns", base.accuracy > 0.25, f"{percent(base.accuracy)} right; guessing gives 10 %")
    worst = max(abs(runs[name].accuracy - base.accuracy) for name in SOUND)
    lesson.check("three ways in 16 bits are as good", worst < 0.1,
                 ", ".join(percent(runs[name].accuracy) for name in SOUND))  # fmt: skip
    naive = runs["float16 autocast, no scaler"]
    lesson.check("float16 without a scaler is not", naive.accuracy < base.accuracy - 0.1,
                 f"{percent(naive.accuracy)}: its gradients are 0 or a few units of 2^-24")  # fmt: skip
    brain = final_loss(runs["bfloat16 autocast"])
    lesson.check("bfloat16 needs no scaler: the loss is float32's", abs(brain - final_loss(base)) < 0.1,
                 f"{brain:.3f} and {final_loss(base):.3f}")  # fmt: skip
    lesson.figure("training_by_precision", lambda *axes: draw_training(axes, runs), columns=2)
    lesson.shows(
        f"bfloat16 under autocast reached {percent(runs['bfloat16 autocast'].accuracy)} and float32 "
        f"{percent(base.accuracy)}, with one line more: on a device that has it, begin there. float16 got there too, with a "
        f"scaler; without, it ended at {percent(naive.accuracy)}, and no message said why. The picture is "
        "training_by_precision.png."
    )


def shown(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "nan"


def mean_of_the_last(losses: Sequence[float], count: int = 20) -> list[float]:
    return [sum(losses[max(0, at + 1 - count) : at + 1]) / len(losses[max(0, at + 1 - count) : at + 1])
            for at in range(len(losses))]  # fmt: skip


def draw_training(axes: Sequence[Any], runs: Mapping[str, Run]) -> None:
    """Left: the losses, those beyond the picture cut off at its edge. Right: how far the sound ones are from float32."""
    top = 3.0
    left, right = axes
    smooth = {name: mean_of_the_last(run.losses) for name, run in runs.items()}
    base = smooth["float32"]
    failed = [name for name, values in smooth.items() if not abs(values[-1] - base[-1]) < 0.5]
    every = max(1, len(base) // 6)
    for index, name in enumerate(["float32", *failed]):
        values = [min(value, top) if math.isfinite(value) else top for value in smooth[name]]
        left.plot(values, label="float32, and the others" if name == "float32" else name,
                  markevery=list(range(index * every // 3, len(values), every)))  # fmt: skip
    left.axhline(math.log(10), color="black", linewidth=0.8, linestyle="--", marker="")
    left.annotate("ln 10: knows nothing", (len(base), math.log(10)), (0, 4), fontsize=9, ha="right",
                  textcoords="offset points")  # fmt: skip
    left.set(ylim=(0, top), xlabel="step", ylabel="loss, mean of 20 steps", title="Seven ways to train")
    for index, name in enumerate(name for name in runs if name not in ("float32", *failed)):
        apart = [value - by for value, by in zip(smooth[name], base, strict=True)]
        right.plot(apart, label=name, markevery=list(range(index * every // 4, len(apart), every)))
    right.axhline(0, color="black", linewidth=0.8, linestyle="--", marker="")
    right.set(xlabel="step", ylabel="loss, above that of float32", title="Those that learn, beside float32")
    for axis in axes:
        axis.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14))
