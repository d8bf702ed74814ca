"""A chapter of optimizer_comparison: weight decay and L2, which are one thing under SGD and two under Adam."""

import math
from collections.abc import Callable, Iterable

from pytorch_02_training_optimization.src.optimizers.rules import SGD, Adam, AdamW, Momentum, Rule
from shared.lesson import Lesson
from shared.units import percent

import torch

Make = Callable[[Iterable[torch.Tensor]], Rule]
LR, DECAY = 0.01, 0.1
NOISES = (10.0, 1.0, 0.1, 0.0)


class DecoupledSGD(SGD):
    """SGD with AdamW's decay: the weight shrinks by lr x weight_decay and the gradient stays as it is."""

    def update(self, w: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        w.mul_(1 - self.lr * self.weight_decay)
        w.sub_(self.lr * g)


RULES: dict[str, Make] = {
    "SGD + L2": lambda w: SGD(w, LR, weight_decay=DECAY),
    "SGD, decoupled": lambda w: DecoupledSGD(w, LR, weight_decay=DECAY),
    "momentum + L2": lambda w: Momentum(w, LR, weight_decay=DECAY),
    "Adam + L2": lambda w: Adam(w, LR, weight_decay=DECAY),
    "AdamW": lambda w: AdamW(w, LR, weight_decay=DECAY),
}


def weights_after(make: Make, noises: tuple[float, ...], count: int, steps: int, seed: int) -> torch.Tensor:
    """`count` weights for each of `noises` (noises, count), which began at 1, after gradients that are noise of that
    size around 0; float64 on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor(noises, dtype=torch.float64).unsqueeze(1)
    w = torch.ones(len(noises), count, dtype=torch.float64)
    rule = make([w])
    for _ in range(steps):
        w.grad = size * torch.randn(w.shape, generator=generator, dtype=torch.float64)
        rule.step()
    return w


def show_decay(lesson: Lesson) -> None:
    count, steps = lesson.pick(full=4000, quick=1000), 500
    lesson.section(
        "Weight decay and L2",
        "L2 adds weight_decay/2 x w² to the loss, so weight_decay x w to the gradient. Weight decay shrinks the weight "
        "itself, by lr x weight_decay a step. torch.optim.Adam(weight_decay=…) is L2, AdamW is decay. Here weights "
        f"start at 1 and their gradients are noise around 0, {steps} steps with lr {LR} and weight_decay {DECAY}: only the "
        f"decay moves their mean. What is left of it, where decay alone leaves (1 - {LR * DECAY:g})^{steps} = "
        f"{(1 - LR * DECAY) ** steps:.3f}:",
    )
    seed = lesson.options.seed
    after = {name: dict(zip(NOISES, weights_after(make, NOISES, count, steps, seed), strict=True))
             for name, make in RULES.items()}  # fmt: skip
    lesson.table([{"size of the gradients": noise, **{name: round(found[noise].mean().item(), 3)
                   for name, found in after.items()}} for noise in NOISES])  # fmt: skip
    pairs = [(after["SGD + L2"][noise], after["SGD, decoupled"][noise]) for noise in NOISES]
    apart = max((a - b).abs().max().item() for a, b in pairs)
    lesson.check("under SGD the two are the same, weight for weight", apart < 1e-11, f"at most {apart:.0e} apart")
    expected = (1 - LR * DECAY) ** steps

    def standard_errors(name: str, target: float) -> float:
        spreads = {noise: max(w.std().item() / math.sqrt(count), 1e-9) for noise, w in after[name].items()}
        return max(abs(after[name][noise].mean().item() - target) / spreads[noise] for noise in NOISES)

    lesson.check("AdamW shrinks all weights alike, as predicted", standard_errors("AdamW", expected) < 5.5,
                 f"{standard_errors('AdamW', expected):.1f} standard errors at worst")  # fmt: skip
    loud, quiet = (after["Adam + L2"][noise].mean().item() for noise in (10.0, 0.1))
    lesson.check("Adam + L2 spares weights with large gradients", loud > 0.85 and abs(quiet) < 0.1,
                 f"{percent(loud)} left of the loud ones, {percent(abs(quiet))} of the quiet ones")  # fmt: skip
    paths = [weights_after(lambda w: Adam(w, LR, weight_decay=decay), (0.0,), 1, 50, seed) for decay in (1e-3, 1e-1)]
    lesson.check("a weight without gradient: any weight_decay does the same",
                 (paths[0] - paths[1]).abs().item() < 1e-3 and abs(paths[0].item() - (1 - 50 * LR)) < 0.05,
                 f"left after 50 steps: {paths[0].item():.4f} and {paths[1].item():.4f}")  # fmt: skip
    a_step = 1 - after["momentum + L2"][0.0].mean().item() ** (1 / steps)
    lesson.check("momentum 0.9 makes L2 about ten times as strong", 9 < a_step / (LR * DECAY) < 12,
                 f"{percent(a_step)} of the weight a step in place of {percent(LR * DECAY)}")  # fmt: skip
    lesson.shows(
        "Adam divides L2's pull by the root of v like any gradient: weights with large gradients hardly feel it, and "
        "those without any lose lr a step, whatever weight_decay says; only where they happen to be about 1 is it the "
        f"decay that you asked for. With AdamW every weight keeps "
        f"{percent(expected)} here, and the number that counts is lr x weight_decay x steps = {LR * DECAY * steps:g}: halve "
        "the lr and you halve the decay."
    )
