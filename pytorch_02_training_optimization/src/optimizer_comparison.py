"""What does each optimizer do with a gradient, what is every part of it for, and which one is best?

Seven optimizers, each one rule of a few lines (optimizers/rules.py), walk step for step with torch.optim's. Then their
parts: what bias correction and eps do in Adam, why its steps do not know how large the loss is, how each gets through a
ravine and off a saddle, why weight decay is not L2, what Muon does to a matrix (optimizers/muon.py, to use), what they
remember and what a step costs. At the end they read letters, each with the learning rate that suits it, and you will
see how one learning rate for all would have misled you.

    python src/optimizer_comparison.py            about 40 seconds
    python src/optimizer_comparison.py --quick    the same path with tiny sizes, a few seconds
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.optimizers import muon
from pytorch_02_training_optimization.src.optimizers.adam_terms import (
    show_bias_correction,
    show_scale,
    show_spike_and_eps,
    step_sizes,
)
from pytorch_02_training_optimization.src.optimizers.costs import show_implementations, show_state
from pytorch_02_training_optimization.src.optimizers.decay import show_decay
from pytorch_02_training_optimization.src.optimizers.letters import show_one_rate_for_all, show_sweep
from pytorch_02_training_optimization.src.optimizers.orthogonal import show_hidden_only, show_orthogonal, show_precision
from pytorch_02_training_optimization.src.optimizers.rules import SGD, Adam, AdamW, Momentum, Nesterov, RMSprop, Rule
from pytorch_02_training_optimization.src.optimizers.surfaces import show_ravine, show_saddle
from shared.agreement import deviation
from shared.lesson import Lesson

import torch
import torch.nn.functional as F

CPU = torch.device("cpu")
Parameters = list[torch.Tensor]


# The rules

FORMULAS = {
    "SGD": "w -= lr g",
    "momentum": "m = 0.9 m + g;  w -= lr m",
    "Nesterov": "m = 0.9 m + g;  w -= lr (g + 0.9 m)",
    "RMSprop": "v = 0.99 v + 0.01 g²;  w -= lr g / (sqrt(v) + eps)",
    "Adam": "m = 0.9 m + 0.1 g;  v = 0.999 v + 0.001 g²;  w -= lr m' / (sqrt(v') + eps), m' and v' corrected",
    "AdamW": "w -= lr weight_decay w;  then as Adam",
    "Muon": "m = 0.95 m + 0.05 g;  w -= lr orthogonal(0.05 g + 0.95 m), for a matrix",
}
ONE_WEIGHT: dict[str, Callable[[Parameters], Rule]] = {
    "SGD": lambda w: SGD(w, 0.1),
    "momentum": lambda w: Momentum(w, 0.1),
    "Nesterov": lambda w: Nesterov(w, 0.1),
    "RMSprop": lambda w: RMSprop(w, 0.1),
    "Adam": lambda w: Adam(w, 0.1),
}


def show_rules(lesson: Lesson) -> None:
    lesson.section(
        "An optimizer is a rule for one step",
        "Autograd gives each weight w its gradient g. What the optimizer adds is what it remembers from the steps before: "
        "m, a sum or mean of gradients, and v, a mean of their squares. All seven in one line each, with the usual "
        "constants; then the length of their steps under a gradient that is 2 at every step, with lr 0.1:",
    )
    lesson.items(FORMULAS)
    constant = torch.full((1000,), 2.0)
    sizes = {name: step_sizes(make, constant) for name, make in ONE_WEIGHT.items()}
    lesson.table([{"optimizer": name, **{f"step {t}": round(found[t - 1].item(), 4) for t in (1, 2, 10, 100, 1000)}}
                  for name, found in sizes.items()])  # fmt: skip
    lesson.check("SGD: lr x gradient, always", bool((sizes["SGD"] - 0.2).abs().max() < 1e-12), "0.1 x 2 = 0.2")
    lesson.check("momentum 0.9 ends at 1 / (1 - 0.9) = 10 times that", abs(sizes["momentum"][-1] - 2) < 1e-9,
                 f"{sizes['momentum'][-1].item():.4f}, {sizes['momentum'][9].item():.2f} at step 10")  # fmt: skip
    lesson.check("Nesterov ends at the same, sooner", abs(sizes["Nesterov"][-1] - 2) < 1e-9
                 and bool((sizes["Nesterov"][:100] > sizes["momentum"][:100]).all()),
                 f"{sizes['Nesterov'][9].item():.2f} at step 10")  # fmt: skip
    lesson.check("RMSprop begins at 10 lr, as its v begins at 0", abs(sizes["RMSprop"][0] - 1) < 1e-6,
                 f"{sizes['RMSprop'][0].item():.4f} = lr / sqrt(1 - 0.99), later {sizes['RMSprop'][-1].item():.4f}")  # fmt: skip
    tiny = step_sizes(ONE_WEIGHT["Adam"], constant[:100] / 1000)
    lesson.check("Adam: lr, whatever the gradient", max((x - 0.1).abs().max().item() for x in (sizes["Adam"], tiny)) < 1e-5,
                 f"{sizes['Adam'][0].item():.4f} under 2, {tiny[0].item():.4f} under 0.002")  # fmt: skip
    lesson.shows(
        f"the same lr means different things: after 100 steps they move by {sizes['SGD'][99].item():.2f} (SGD), "
        f"{sizes['momentum'][99].item():.2f} (momentum) and {sizes['Adam'][99].item():.2f} (Adam). Whoever switches "
        "momentum 0.9 on should divide the lr by 10, and whoever changes the optimizer must look for a new one."
    )


# Against torch.optim

Pair = tuple[Callable[[Parameters], Any], Callable[[Parameters], Any]]
DECAY = 0.01
PAIRS: dict[str, Pair] = {
    "SGD": (lambda p: SGD(p, 0.1, DECAY), partial(torch.optim.SGD, lr=0.1, weight_decay=DECAY)),
    "momentum": (
        lambda p: Momentum(p, 0.1, weight_decay=DECAY),
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=DECAY),
    ),
    "Nesterov": (
        lambda p: Nesterov(p, 0.1, weight_decay=DECAY),
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=DECAY),
    ),
    "RMSprop": (
        lambda p: RMSprop(p, 0.01, weight_decay=DECAY),
        partial(torch.optim.RMSprop, lr=0.01, weight_decay=DECAY),
    ),
    "Adam": (lambda p: Adam(p, 0.01, weight_decay=DECAY), partial(torch.optim.Adam, lr=0.01, weight_decay=DECAY)),
    "AdamW": (lambda p: AdamW(p, 0.01), partial(torch.optim.AdamW, lr=0.01)),
    "Muon": (lambda p: muon.Muon(p[::2], 0.02, ns_dtype=torch.bfloat16), lambda p: torch.optim.Muon(p[::2], 0.02)),
}  # fmt: skip


def train_small(make: Callable[[Parameters], Any], steps: int, seed: int, dtype: torch.dtype,
                device: torch.device) -> Parameters:  # fmt: skip
    """Weights of a 20-16-5 tanh network after so many batches of noise; Muon moves its two matrices only."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    parameters = [0.3 * draw(*shape) for shape in ((16, 20), (16,), (5, 16), (5,))]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = make(parameters)
    for _ in range(steps):
        x, y = draw(32, 20), torch.randint(5, (32,), generator=generator).to(device)
        for parameter in parameters:
            parameter.grad = None
        hidden = torch.tanh(F.linear(x, parameters[0], parameters[1]))
        F.cross_entropy(F.linear(hidden, parameters[2], parameters[3]), y).backward()
        optimizer.step()
    return parameters


def show_equal(lesson: Lesson) -> None:
    steps = lesson.pick(full=200, quick=30)
    lesson.section(
        "Step for step with torch.optim",
        f"Each rule trains a small network of its own for {steps} steps, with weight decay, and torch.optim trains a "
        "second one from the same start on the same batches. Nothing is set back in between, so a wrong term would "
        "add up. Largest difference of any weight at the end, in units of the largest weight (or of 1):",
    )
    table, off = [], {}
    for name, pair in PAIRS.items():
        for dtype, device in ((torch.float64, CPU), (torch.float32, lesson.device)):
            own, library = (train_small(make, steps, lesson.options.seed, dtype, device) for make in pair)
            off[name, dtype] = max(deviation(a, b) for a, b in zip(own, library, strict=True))
        table.append({"optimizer": name, "float64": f"{off[name, torch.float64]:.0e}",
                      "float32": f"{off[name, torch.float32]:.0e}"})  # fmt: skip
    lesson.table(table)
    plain = [name for name in PAIRS if name != "Muon"]
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        worst = max(off[name, dtype] for name in plain)
        lesson.check(f"six optimizers equal torch.optim's in {str(dtype).removeprefix('torch.')}", worst < bound,
                     f"{worst:.0e} at worst after {steps} steps")  # fmt: skip
    worst = max(off["Muon", dtype] for dtype in (torch.float64, torch.float32))
    lesson.check("Muon too, to what its bfloat16 products allow", worst < 0.05, f"{worst:.0e} at worst")
    lesson.shows(
        "the seven rules are what torch.optim runs. What its classes add is around the rule: parameter groups, a "
        "state_dict for checkpoints, closures, and the faster ways through many tensors that come below."
    )


def main(argv: list[str] | None = None) -> int:
    title = "Optimizers: built, taken apart, and compared fairly."
    with Lesson(__file__, argv, title=title) as lesson:
        show_rules(lesson)
        show_equal(lesson)
        show_bias_correction(lesson)
        show_spike_and_eps(lesson)
        show_scale(lesson)
        show_ravine(lesson)
        show_saddle(lesson)
        show_decay(lesson)
        show_orthogonal(lesson)
        show_precision(lesson)
        show_hidden_only(lesson)
        show_state(lesson)
        show_implementations(lesson)
        sweeps = show_sweep(lesson)
        show_one_rate_for_all(lesson, sweeps)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
