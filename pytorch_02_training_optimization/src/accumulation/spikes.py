"""One bad batch with momentum and with Adam, and a limit that comes from the log and not from a blog."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.accumulation.task import RULES, draw_batches, make_model
from pytorch_02_training_optimization.src.letters.rows import Letters, load_letters
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
import torch.nn.functional as F
from torch import nn

SPIKE = 255.0  # pixels that were not divided by 255


@dataclass(frozen=True)
class Run:
    """Of each step: the loss, the norm of the gradient before clipping, and how far the weights moved."""

    loss: list[float]
    norm: list[float]
    moved: list[float]


def train(rule_name: str, letters: Letters, steps: int, width: int, seed: int, max_norm: float = math.inf,
          bad_step: int | None = None) -> Run:  # fmt: skip
    """ReLU passes large numbers on, so the batch of `bad_step`, 255 times too bright, reaches the gradient whole."""
    model = make_model(width, seed, letters.x.device, activation=nn.ReLU)
    make, lr = RULES[rule_name]
    parameters = list(model.parameters())
    rule, losses, norms, moved = make(parameters, lr), [], [], []
    for step, (x, y) in enumerate(draw_batches(letters, steps, seed)):
        model.zero_grad()
        loss = F.cross_entropy(model(SPIKE * x if step == bad_step else x), y)
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(parameters, max_norm))
        before = nn.utils.parameters_to_vector(parameters).detach()
        rule.step()
        moved.append((nn.utils.parameters_to_vector(parameters).detach() - before).norm())
        losses.append(loss.detach())
    return Run(*(torch.stack(values).cpu().tolist() for values in (losses, norms, moved)))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def show_spike(lesson: Lesson) -> None:
    steps, width = lesson.pick(full=400, quick=75), lesson.pick(full=128, quick=32)
    bad_step = steps // 3
    lesson.section(
        "One bad batch, and what each optimizer makes of it",
        f"In step {bad_step} of {steps} somebody forgot to divide the pixels by 255. Momentum takes one giant step, and carries "
        "on in that direction. Adam's step has a bounded length, so it is said to need no clipping. But its second moment has "
        "seen the gradient too, and forgets by a thousandth per step. The limit is twice the largest norm before the bad batch.",
    )
    seed = lesson.options.seed
    letters = load_letters(lesson.pick(full=4000, quick=1000)).to(lesson.device)
    runs: dict[tuple[str, str], Run] = {}
    table = []
    tail = max(5, steps // 20)
    for rule in RULES:
        calm = train(rule, letters, steps, width, seed)
        max_norm = 2 * max(calm.norm[:bad_step])
        runs[rule, "no bad batch"] = calm
        runs[rule, "not clipped"] = train(rule, letters, steps, width, seed, bad_step=bad_step)
        runs[rule, "clipped"] = train(rule, letters, steps, width, seed, max_norm, bad_step)
        for name in ("no bad batch", "not clipped", "clipped"):
            run = runs[rule, name]
            table.append({"optimizer": rule, "run": name, "bad gradient": significant(run.norm[bad_step]),
                          "worst loss after": significant(max(finite(run.loss[bad_step + 1 :]))),
                          "at the end": end_of(run, tail),
                          "last steps' length": significant(mean(run.moved[-tail:]), 2)})  # fmt: skip
    lesson.table(table)
    for rule in RULES:
        calm, free, clipped = (runs[rule, name] for name in ("no bad batch", "not clipped", "clipped"))
        lesson.check(f"{rule}: until the bad batch all three are one",
                     calm.loss[:bad_step] == free.loss[:bad_step] == clipped.loss[:bad_step],
                     f"{bad_step} losses to the last bit: the limit rested")  # fmt: skip
        lesson.check(f"{rule}: without clipping it is behind at the end", not end_of(free, tail) < end_of(clipped, tail) + 0.05,
                     f"loss {end_of(free, tail):.3g}, clipped {end_of(clipped, tail):.3g}")  # fmt: skip
        lesson.check(f"{rule}: with clipping the bad batch is hardly seen", end_of(clipped, tail) < end_of(calm, tail) + 0.15,
                     f"{end_of(clipped, tail):.3f}, without it {end_of(calm, tail):.3f}")  # fmt: skip
    calm, free = runs["Adam", "no bad batch"], runs["Adam", "not clipped"]
    slower = mean(calm.moved[-tail:]) / mean(free.moved[-tail:])
    lesson.check("Adam: afterwards it crawls", slower > 1.5,
                 f"steps {slower:.1f} times as short, {steps - bad_step} steps later")  # fmt: skip
    lesson.figure("bad_batch", lambda *axes: draw_spikes(axes, runs, bad_step), columns=2)
    ratio = free.norm[bad_step] / max(calm.norm[:bad_step])
    lesson.shows(
        f"a gradient {ratio:,.0f} times the largest before left Adam with steps {slower:.1f} times too short: no explosion, "
        "but a training that seems to have converged. So clip with Adam too, not for the step but for its memory. "
        "(optimizer_comparison follows that memory on one weight; the picture here is bad_batch.png.)"
    )


def finite(values: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) else math.inf for value in values]


def end_of(run: Run, tail: int) -> float:
    return mean(run.loss[-tail:])


def smooth(values: Sequence[float], count: int = 10) -> list[float]:
    return [mean(values[max(0, i + 1 - count) : i + 1]) for i in range(len(values))]


def draw_spikes(axes: Sequence[Any], runs: dict[tuple[str, str], Run], bad_step: int) -> None:
    for axis, rule in zip(axes, RULES, strict=True):
        for name, width in (("no bad batch", 5.0), ("not clipped", 1.5), ("clipped", 1.5)):
            losses = finite(runs[rule, name].loss)
            losses[bad_step] = losses[bad_step - 1]  # the bad batch's own loss says nothing about the weights
            losses = [min(loss, 1e4) for loss in smooth(losses)]
            axis.plot(losses, marker="", linewidth=width, alpha=0.35 if width > 2 else 1, label=name)
        axis.axvline(bad_step, color="black", linewidth=0.8, linestyle=":", marker="")
        axis.set(yscale="log", xlabel="step", ylabel="loss, mean of 10 steps", ylim=(0.2, 1e3), title=rule)
        axis.legend(fontsize=9)


# The limit


def running_percentile(norms: Sequence[float], share: float, after: int) -> list[float]:
    """The limit before each step: the percentile of all norms so far, infinite for the first `after` steps.

    Seetharaman et al. 2020 (AutoClip), section 3, who take the tenth percentile.
    """
    history = torch.tensor(norms)
    return [math.inf if step < after else float(history[:step].quantile(share)) for step in range(len(norms))]


def share_above(norms: Sequence[float], limits: Sequence[float]) -> float:
    return sum(norm > limit for norm, limit in zip(norms, limits, strict=True)) / len(norms)


def show_threshold(lesson: Lesson) -> None:
    steps, width, rule = lesson.pick(full=400, quick=80), lesson.pick(full=128, quick=32), "momentum"
    lesson.section(
        "Where the threshold comes from",
        "max_norm=1.0 stands in much code and belongs to somebody else's network. A norm depends on the width, the loss "
        "and the batch, and drifts while the network learns. So train a while with max_norm=inf, which clips nothing and returns "
        "the norm all the same; write it down; then take a percentile of what you saw.",
    )
    seed = lesson.options.seed
    letters = load_letters(lesson.pick(full=4000, quick=1000)).to(lesson.device)
    logged = train(rule, letters, steps, width, seed)
    fifth = steps // 5
    quantiles = (0.5, 0.9, 0.99)
    phases = {
        f"{i * fifth} to {(i + 1) * fifth - 1}": torch.tensor(logged.norm[i * fifth : (i + 1) * fifth])
        for i in range(5)
    }
    lesson.table([{"steps": name, **{f"{percent(q)} below": float(norms.quantile(q)) for q in quantiles},
                   "largest": float(norms.max())} for name, norms in phases.items()])  # fmt: skip
    first, last = (float(phases[name].quantile(0.5)) for name in (next(iter(phases)), list(phases)[-1]))
    fixed = float(torch.tensor(logged.norm[:fifth]).quantile(0.9))
    moving = running_percentile(logged.norm, 0.9, fifth)
    rest = logged.norm[fifth:]
    cut = share_above(rest, [fixed] * len(rest)), share_above(rest, moving[fifth:])
    lesson.check("the norm drifts while the network learns", max(first, last) / min(first, last) > 1.1,
                 f"median {first:.2f} in the first fifth, {last:.2f} in the last")  # fmt: skip
    lesson.check("the 90 % of the first fifth are not those of the rest", abs(cut[0] - 0.1) > 0.02,
                 f"max_norm {fixed:.2f} would cut {percent(cut[0])} of it; a running percentile {percent(cut[1])}")  # fmt: skip
    middle = float(torch.tensor(logged.norm).quantile(0.5))
    limits = {"never": math.inf, "99 % of the norms": float(torch.tensor(logged.norm).quantile(0.99)),
              "the median": middle, "a tenth of it": middle / 10, "a hundredth": middle / 100}  # fmt: skip
    tail = max(5, steps // 20)
    runs = {name: train(rule, letters, steps, width, seed, limit) for name, limit in limits.items()}
    table = [{"max_norm": name, "is": f"{limit:.3g}", "steps clipped": percent(share_above(runs[name].norm, [limit] * steps)),
              "loss at the end": end_of(runs[name], tail),
              "step length": significant(mean(runs[name].moved[fifth:]), 2)} for name, limit in limits.items()]  # fmt: skip
    lesson.table(table)
    ends = {name: end_of(run, tail) for name, run in runs.items()}
    lesson.check("at 99 % clipping costs nothing", abs(ends["99 % of the norms"] - ends["never"]) < 0.05,
                 f"loss {ends['99 % of the norms']:.3f} and {ends['never']:.3f}")  # fmt: skip
    lesson.check("a limit far below every norm is a lower learning rate", ends["a hundredth"] > ends["never"] + 0.05,
                 f"loss {ends['a hundredth']:.3f}: each step has the same length")  # fmt: skip
    lesson.figure("gradient_norms", lambda axis: draw_norms(axis, logged.norm, fixed, moving))
    lesson.shows(
        f"here a limit of {limits['99 % of the norms']:.2g} rests in 99 of 100 steps and waits for the bad one; 1.0 would have "
        f"cut {percent(share_above(logged.norm, [1.0] * steps))}. One that acts in every step is not protection but normalised "
        "gradient descent, with max_norm x lr for its step: a choice that one may make, and should know of. Log the norm and the "
        "share of steps clipped. The picture is gradient_norms.png."
    )


def draw_norms(axis: Any, norms: Sequence[float], fixed: float, moving: Sequence[float]) -> None:
    axis.plot(norms, ".", color="#525252", markersize=3, linestyle="", label="gradient norm of a step")
    axis.axhline(fixed, color="#c2410c", linestyle="--", marker="", label="90 % of the first fifth")
    shown = [(step, limit) for step, limit in enumerate(moving) if math.isfinite(limit)]
    axis.plot(*zip(*shown, strict=True), color="#0b5fa5", linestyle="-", marker="", label="90 % of all steps so far")
    axis.axvline(len(norms) // 5, color="black", linewidth=0.8, linestyle=":", marker="")
    axis.set(xlabel="step", ylabel="norm of the gradient", ylim=(0, None), title="The limit comes from the log")
    axis.legend(fontsize=9)
