"""Chapters of optimizer_comparison: what bias correction, eps and the division by a root are for in Adam."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from pytorch_02_training_optimization.src.optimizers.rules import SGD, Adam, Rule
from pytorch_02_training_optimization.src.optimizers.surfaces import walk
from shared.lesson import Lesson
from shared.units import significant

import torch

LR = 0.01
Make = Callable[[Iterable[torch.Tensor]], Rule]


class AdamWithoutCorrection(Adam):
    """The mistake: both averages begin at 0, and the one of the squares takes a hundred times longer to fill."""

    def adapt(self, w: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        beta1, beta2 = self.betas
        m = state.setdefault("m", torch.zeros_like(w)).mul_(beta1).add_(g, alpha=1 - beta1)
        v = state.setdefault("v", torch.zeros_like(w)).mul_(beta2).addcmul_(g, g, value=1 - beta2)
        w.sub_(self.lr * m / (v.sqrt() + self.eps))


def step_sizes(make: Make, gradients: torch.Tensor) -> torch.Tensor:
    """How far one weight goes downhill at each step, when its gradients are these; in float64 on the CPU."""
    w = torch.zeros(1, dtype=torch.float64)
    rule, places = make([w]), [w.clone()]
    for gradient in gradients.tolist():
        w.grad = torch.full_like(w, gradient)
        rule.step()
        places.append(w.clone())
    return -torch.cat(places).diff()


def uncorrected_share(step: torch.Tensor, betas: tuple[float, float] = (0.9, 0.999)) -> torch.Tensor:
    """Adam's step without correction as a multiple of lr, under a constant gradient: (1 - β1ᵗ) / √(1 - β2ᵗ)."""
    return (1 - betas[0] ** step) / (1 - betas[1] ** step).sqrt()


def show_bias_correction(lesson: Lesson) -> None:
    lesson.section(
        "Adam's bias correction: the first thousand steps",
        "Adam divides m, a running mean of gradients, by the root of v, a running mean of their squares. Both begin at "
        "0, so at first both are too small: m by 1 - 0.9^t, v by 1 - 0.999^t. The two do not cancel: v needs "
        "thousands of steps. Adam divides each by its own factor. Here the gradient is 2 at every step:",
    )
    steps = 1000
    constant = torch.full((steps,), 2.0)
    right = step_sizes(lambda w: Adam(w, LR), constant) / LR
    wrong = step_sizes(lambda w: AdamWithoutCorrection(w, LR), constant) / LR
    count = torch.arange(1, steps + 1, dtype=torch.float64)
    formula = uncorrected_share(count)
    shown = [1, 3, 10, 100, 1000]
    lesson.table(
        [{"step": t, "Adam's step / lr": round(right[t - 1].item(), 4), "without correction": wrong[t - 1].item(),
          "(1 - 0.9^t) / sqrt(1 - 0.999^t)": formula[t - 1].item()} for t in shown]
    )  # fmt: skip
    lesson.check("with both corrections every step is lr", (right - 1).abs().max() < 1e-6,
                 f"at most {significant((right - 1).abs().max().item(), 2)} lr off in {steps:,} steps")  # fmt: skip
    lesson.check("without correction the steps follow the formula", (wrong - formula).abs().max() < 1e-6,
                 f"to {significant((wrong - formula).abs().max().item(), 2)} lr")  # fmt: skip
    peak = int(wrong.argmax()) + 1
    lesson.check("they are largest where you can afford it least", wrong.max() > 5 and peak < 50,
                 f"{wrong.max().item():.1f} lr at step {peak}")  # fmt: skip
    lesson.figure("bias_correction", lambda axis: draw_step_sizes(axis, count, right, wrong))
    lesson.shows(
        f"without its two divisions Adam starts with steps of {wrong[0].item():.1f} lr, climbs to "
        f"{wrong.max().item():.1f} lr, and is still at {wrong[999].item():.2f} lr after a thousand steps. The correction "
        "makes the size right, not the direction: v of the first steps has seen few gradients and is noisy, which is "
        "what a warm-up of the learning rate is for."
    )


def draw_step_sizes(axis: Any, count: torch.Tensor, right: torch.Tensor, wrong: torch.Tensor) -> None:
    axis.plot(count, wrong, "--", marker="", label="without bias correction")
    axis.plot(count, right, "-", marker="", label="Adam")
    axis.set(xscale="log", xlabel="step", ylabel="size of the step (lr)", ylim=(0, 7.2),
             title="Adam's steps under a constant gradient")  # fmt: skip
    axis.legend()


def show_spike_and_eps(lesson: Lesson) -> None:
    lesson.section(
        "Adam's memory and its eps",
        "beta2 says how long v remembers: about 1 / (1 - beta2) steps. One bad batch with a gradient 30 times as large "
        "therefore slows every step that follows, until v has forgotten it. And eps, the 1e-8 in the denominator, is "
        "more than a guard against 0 / 0: it is the size of gradient below which Adam stops being Adam.",
    )
    after, spike = 1500, 30.0
    gradients = torch.ones(1 + after, dtype=torch.float64)
    gradients[0] = spike
    slowed = {}
    for beta2 in (0.999, 0.95):
        sizes = step_sizes(lambda w: settled_adam(w, (0.9, beta2)), gradients) / LR
        slowed[beta2] = [sizes[t].item() for t in (50, 500)], int((sizes[50:] > 0.9).nonzero()[0]) + 50
    lesson.table(
        [{"beta2": beta2, "step / lr, 50 steps after": sizes[0], "500 steps after": sizes[1],
          "back at 0.9 lr after": f"{back:,} steps"} for beta2, (sizes, back) in slowed.items()]
    )  # fmt: skip
    predicted = {beta2: math.log((1 / 0.81 - 1) / ((1 - beta2) * (spike**2 - 1))) / math.log(beta2) for beta2 in slowed}
    lesson.check("one spike of 30 slows Adam for as long as v remembers it",
                 all(abs(slowed[beta2][1] - steps) <= 2 for beta2, steps in predicted.items()),
                 f"predicted {predicted[0.999]:,.0f} and {predicted[0.95]:,.0f} steps")  # fmt: skip
    small = [1e-4, 1e-7, 1e-8, 1e-9, 1e-11]
    firsts = {g: step_sizes(lambda w: Adam(w, LR), torch.tensor([g], dtype=torch.float64)).item() / LR for g in small}
    lesson.table([{"gradient": f"{g:.0e}", "first step / lr": first, "g / (g + eps)": g / (g + 1e-8)}
                  for g, first in firsts.items()])  # fmt: skip
    off = max(abs(first - g / (g + 1e-8)) for g, first in firsts.items())
    lesson.check("the first step is lr x g / (|g| + eps)", off < 1e-6, f"to {off:.0e} lr")
    silent = step_sizes(lambda w: Adam(w, LR, eps=0.0), torch.zeros(1))
    lesson.check("without eps a gradient of 0 gives 0 / 0", bool(silent.isnan().all()), f"a step of {silent.item()}")
    lesson.shows(
        f"with the default 0.999 a single bad batch costs {slowed[0.999][1]:,} slow steps, with 0.95, which trainings of "
        f"large language models use, {slowed[0.95][1]}. Gradients of 1e-8 make half a step, and smaller ones next to "
        "none: where yours are that small (a mean over millions, a loss scaled down), lower eps or scale the loss up."
    )


def settled_adam(parameters: Iterable[torch.Tensor], betas: tuple[float, float]) -> Adam:
    """Adam as it is after endless gradients of 1: both averages at 1, and corrections that divide by 1."""
    adam = Adam(parameters, LR, betas)
    for w, state in zip(adam.parameters, adam.states, strict=True):
        state |= {"m": torch.ones_like(w), "v": torch.ones_like(w), "t": torch.tensor(1e6)}
    return adam


def curved_gradient(w: torch.Tensor) -> torch.Tensor:
    """Of (w₀⁴ + 30 w₁²) / 2."""
    return torch.stack([2 * w[0] ** 3, 30 * w[1]])


def show_scale(lesson: Lesson) -> None:
    lesson.section(
        "A loss a thousand times as large",
        "Multiply the loss by a constant: the sum over a batch in place of its mean, say, or a loss in cents in place "
        "of dollars. The minimum stays where it is. SGD's step grows with the constant; in Adam's m / sqrt(v) it "
        "cancels. Each rule walks down the same curve, 200 steps, with the loss as it is and times 1024:",
    )
    start = torch.tensor([1.5, 1.0], dtype=torch.float64)
    table, apart = [], {}
    makes: dict[str, Make] = {
        "SGD": lambda w: SGD(w, LR),
        "Adam": lambda w: Adam(w, LR),
        "Adam, eps = 0": lambda w: Adam(w, LR, eps=0.0),
    }
    for name, make in makes.items():
        plain, scaled = (walk(make, lambda w: scale * curved_gradient(w), start, 200) for scale in (1.0, 1024.0))
        difference = (plain - scaled).abs().nan_to_num(math.inf, math.inf)
        apart[name] = difference.max().item()
        table.append({"optimizer": name, "w after 200 steps": in_brackets(plain[-1]),
                      "with the loss x 1024": in_brackets(scaled[-1]),
                      "paths apart by": f"{apart[name]:.0e}" if math.isfinite(apart[name]) else "diverged"})  # fmt: skip
    lesson.table(table)
    lesson.check("Adam walks the same path", apart["Adam"] < 1e-6, f"at most {apart['Adam']:.0e} apart, which is eps")
    lesson.check(
        "without eps the same bits", apart["Adam, eps = 0"] == 0, "1024 is a power of 2, so nothing is rounded"
    )
    lesson.check("SGD with the same lr diverges", apart["SGD"] > 1e3, "its steps are 1024 times as long")
    lesson.shows(
        "with Adam a learning rate has a meaning of its own: about how far a weight goes in one step. It survives another "
        "reduction over the batch, another loss weight, another unit. With SGD each of these changes the step, and the "
        "lr has to be found again."
    )


def in_brackets(w: torch.Tensor) -> str:
    return f"({', '.join(significant(value) if math.isfinite(value) else 'inf' for value in w.tolist())})"
