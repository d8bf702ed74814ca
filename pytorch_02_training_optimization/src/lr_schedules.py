"""Which learning rate at which step: what curves are there, how does each go wrong, and what does it buy?

A dozen schedules, each a function of the step in one to three lines (schedules/curves.py), equal to
torch.optim.lr_scheduler step for step. Then the ways in which a right curve becomes a wrong one without a word: an
indentation, a checkpoint, a second parameter group. At the end you measure: why Adam wants a warm-up, a range test that
finds a rate in 120 steps, what a decay buys and at which rate, how the rate goes with the batch, and a schedule that
needs to know no end.

    python src/lr_schedules.py            about 40 seconds
    python src/lr_schedules.py --quick    the same path with tiny sizes, a few seconds
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.schedules.batch import show_batch_size
from pytorch_02_training_optimization.src.schedules.curves import (
    cosine,
    exponential,
    glide,
    inverse_root,
    multi_step,
    one_cycle,
    polynomial,
    step_decay,
    warm_restarts,
    warmup,
    warmup_stable_decay,
    warmup_then_cosine,
)
from pytorch_02_training_optimization.src.schedules.effect import show_effect, show_noise
from pytorch_02_training_optimization.src.schedules.range_test import show_range_test
from pytorch_02_training_optimization.src.schedules.resuming import show_late_group, show_resume
from pytorch_02_training_optimization.src.schedules.stepping import (
    Make,
    library_rates,
    make_optimizer,
    own_plateau,
    plateau_losses,
    rate_of,
    show_chain,
    show_order,
    show_per_epoch,
    show_plateau,
)
from pytorch_02_training_optimization.src.schedules.warmup import show_first_steps, show_warmup
from pytorch_02_training_optimization.src.schedules.without_end import show_without_end
from shared.lesson import Lesson

import torch
from torch.optim import lr_scheduler

TOTAL = 100
OwnCurve = Callable[[int], float]

CURVES: dict[str, OwnCurve] = {
    "constant": lambda step: 1.0,
    "step": partial(step_decay, every=30),
    "multi-step": partial(multi_step, milestones=(50, 80), gamma=0.3),
    "exponential": partial(exponential, gamma=0.96),
    "linear": partial(polynomial, over=TOTAL),
    "polynomial, power 2": partial(polynomial, over=TOTAL, power=2.0),
    "cosine": partial(cosine, over=TOTAL),
    "warm-up, cosine": partial(warmup_then_cosine, over=10, total=TOTAL, first=0.1),
    "one-cycle": partial(one_cycle, total=TOTAL),
    "inverse root": partial(inverse_root, over=10),
    "warm-up, stable, decay": partial(warmup_stable_decay, over=10, total=TOTAL, decay=20),
    "cosine past its end": partial(cosine, over=40),
    "warm restarts": partial(warm_restarts, first=15, times=2),
}
FORMULAS = {
    "step": "gamma ** (t // every)",
    "exponential": "gamma ** t",
    "polynomial": "(1 - t / T) ** power; linear is power 1",
    "cosine": "(1 + cos(pi t / T)) / 2",
    "warm-up": "(t + 1) / w for the first w steps, then any other",
    "one-cycle": "half a wave up to the peak at 0.3 T, half a wave down to almost 0",
    "inverse root": "sqrt(w / t), after w steps of warm-up",
    "stable, decay": "1, and a line down to 0 over the last d steps",
    "plateau": "times a factor whenever the loss has stopped falling",
}


def show_curves(lesson: Lesson) -> None:
    lesson.section(
        "A schedule is a function of the step",
        "The learning rate is what you would keep if you could keep only one setting, and one number is rarely right for "
        "a whole training: large steps to get somewhere, small ones to arrive. A schedule is a function from the step t "
        "to a share of the peak rate. That is all it is; classes and state come from how libraries store it:",
    )
    lesson.items(FORMULAS)
    rates = {name: [curve(step) for step in range(TOTAL)] for name, curve in CURVES.items()}
    shown = (0, 10, 25, 50, 75, TOTAL - 1)
    lesson.table(
        [{"schedule": name, **{f"t = {step}": f"{values[step]:.3f}" for step in shown},
          "mean": f"{sum(values) / TOTAL:.2f}"} for name, values in rates.items()]
    )  # fmt: skip
    halves = [rates[name][50] for name in ("linear", "cosine")]
    lesson.check(
        "linear and cosine are at one half in the middle", all(abs(half - 0.5) < 1e-12 for half in halves), "0.5, 0.5"
    )
    quarter, line = rates["cosine"][25], rates["linear"][25]
    lesson.check("cosine stays high for longer, and falls faster", quarter > line and rates["cosine"][75] < 1 - 0.75,
                 f"{quarter:.3f} and {line:.3f} at a quarter, {rates['cosine'][75]:.3f} and 0.250 at three")  # fmt: skip
    tops = {name: max(range(TOTAL), key=rates[name].__getitem__) for name in ("warm-up, cosine", "one-cycle")}
    lesson.check("one-cycle peaks at step 0.3 x 100 - 1", tops["one-cycle"] == 29 and rates["one-cycle"][29] == 1,
                 f"step {tops['one-cycle']}; a warm-up of 10 steps at step {tops['warm-up, cosine']}")  # fmt: skip
    parts = warm_restarts(14, 15, 2), warm_restarts(15, 15, 2), warm_restarts(45, 15, 2)
    lesson.check("warm restarts are back at the peak at 15 and at 45", parts[0] < 0.02 and parts[1:] == (1, 1),
                 "periods of 15, 30, 60 steps")  # fmt: skip
    losses = plateau_losses(torch.Generator().manual_seed(lesson.options.seed), TOTAL, 0.02)
    asking = own_plateau(losses, 1.0, factor=0.5, patience=5)
    lesson.figure("all_curves", lambda *axes: draw_curves(axes, rates, asking), rows=2, columns=2)
    means = {name: sum(values) / TOTAL for name, values in rates.items()}
    lesson.shows(
        f"the last column is the one people forget: with the same peak, cosine gives {means['cosine']:.2f} of the constant "
        f"rate in the mean, step {means['step']:.2f} and warm-up, stable, decay {means['warm-up, stable, decay']:.2f}. A "
        "schedule compared at the same peak is also a comparison of how far the weights may go. The picture is "
        "all_curves.png."
    )


PANELS = {
    "Down in steps": ("step", "multi-step", "exponential"),
    "Down to zero": ("linear", "polynomial, power 2", "cosine"),
    "With a warm-up": ("warm-up, cosine", "one-cycle", "inverse root", "warm-up, stable, decay"),
    "Those that come back, and one that asks": ("cosine past its end", "warm restarts"),
}


def draw_curves(axes: Sequence[Any], rates: dict[str, list[float]], asking: list[float]) -> None:
    for axis, (title, names) in zip(axes, PANELS.items(), strict=True):
        for number, name in enumerate(names):
            axis.plot(rates[name], label=name, markevery=(4 * number, 15))
        if "asks" in title:
            axis.plot(asking, label="plateau, on a noisy loss", markevery=(8, 15))
        axis.set(xlabel="step", ylabel="rate / peak", ylim=(-0.03, 1.4), yticks=[0, 0.25, 0.5, 0.75, 1], title=title)
        axis.legend(fontsize=9, loc="upper right", ncols=2)


# Against the library

PEAK = 0.1


def sequential(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    """The usual composition; the cosine gets the steps that the warm-up leaves."""
    rise = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=10)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL - 10)
    return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[10])


LIBRARY: dict[str, tuple[OwnCurve, Make]] = {
    "StepLR": (CURVES["step"], lambda o: lr_scheduler.StepLR(o, 30)),
    "MultiStepLR": (CURVES["multi-step"], lambda o: lr_scheduler.MultiStepLR(o, [50, 80], gamma=0.3)),
    "ExponentialLR": (CURVES["exponential"], lambda o: lr_scheduler.ExponentialLR(o, 0.96)),
    "LinearLR": (
        partial(warmup, over=10, first=1 / 3),
        lambda o: lr_scheduler.LinearLR(o, start_factor=1 / 3, total_iters=10),
    ),
    "PolynomialLR": (CURVES["polynomial, power 2"], lambda o: lr_scheduler.PolynomialLR(o, TOTAL, power=2.0)),
    "CosineAnnealingLR": (CURVES["cosine past its end"], lambda o: lr_scheduler.CosineAnnealingLR(o, 40)),
    "CosineAnnealingLR, eta_min": (
        partial(cosine, over=40, floor=0.1),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 40, eta_min=0.1 * PEAK),
    ),
    "CosineAnnealingWarmRestarts": (
        CURVES["warm restarts"],
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 15, T_mult=2),
    ),
    "SequentialLR, LinearLR + cosine": (CURVES["warm-up, cosine"], sequential),
    "OneCycleLR": (
        CURVES["one-cycle"],
        lambda o: lr_scheduler.OneCycleLR(o, PEAK, total_steps=TOTAL, cycle_momentum=False),
    ),
    "LambdaLR": (CURVES["inverse root"], lambda o: lr_scheduler.LambdaLR(o, CURVES["inverse root"])),
}


def one_cycle_momenta(steps: int) -> list[float]:
    """What OneCycleLR makes of the momentum at each step: it goes down where the rate goes up."""
    optimizer = make_optimizer(PEAK, momentum=0.9)
    scheduler, found = lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=TOTAL), []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if step < TOTAL - 1:
            scheduler.step()
    return found


def own_momentum(step: int) -> float:
    top = 0.3 * TOTAL - 1
    return glide(0.95, 0.85, step / top) if step <= top else glide(0.85, 0.95, (step - top) / (TOTAL - 1 - top))


def show_equal(lesson: Lesson) -> None:
    lesson.section(
        "Step for step with torch.optim.lr_scheduler",
        f"Each function against the library's class, {TOTAL} steps from a peak of {PEAK}: the rate that stands in the "
        "optimizer when it makes step t. The cosine runs on behind its T_max, so its way up is compared too. Largest "
        "difference as a share of the peak:",
    )
    table, off = [], {}
    for name, (own, make) in LIBRARY.items():
        found = library_rates(make, PEAK, TOTAL)
        off[name] = max(abs(rate / PEAK - own(step)) for step, rate in enumerate(found))
        table.append({"torch.optim.lr_scheduler": name, "first": found[0], f"step {TOTAL // 2}": found[TOTAL // 2],
                      "last": f"{found[-1]:.2e}", "off by": f"{off[name]:.0e}"})  # fmt: skip
    lesson.table(table)
    worst = max(off, key=lambda name: off[name])
    lesson.check(
        f"{len(off)} schedulers are {len(off)} short functions",
        off[worst] < 1e-12,
        f"{off[worst]:.0e} at worst, {worst}",
    )
    momenta = one_cycle_momenta(TOTAL)
    gap = max(abs(found - own_momentum(step)) for step, found in enumerate(momenta))
    lesson.check("OneCycleLR moves the momentum against the rate", gap < 1e-12,
                 f"{momenta[0]:.2f} at first, {momenta[29]:.2f} at the peak, {momenta[-1]:.2f} at the end")  # fmt: skip
    thirds = library_rates(lr_scheduler.LinearLR, PEAK, 7)
    lesson.check("LinearLR alone begins at a third and lasts 5 calls", abs(thirds[0] - PEAK / 3) < 1e-12
                 and thirds[4] < PEAK * 0.99 and abs(thirds[5] - PEAK) < 1e-12, "its defaults; name your own")  # fmt: skip
    optimizer = make_optimizer(7.0)
    lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=TOTAL, cycle_momentum=False)
    lesson.check("OneCycleLR ignores the optimizer's lr", abs(rate_of(optimizer) - PEAK / 25) < 1e-12,
                 f"made with 7, begins at max_lr / 25 = {PEAK / 25:g}")  # fmt: skip
    lesson.shows(
        f"the classes agree with these functions to {off[worst]:.0e} of the peak. So when a paper describes a schedule that "
        "PyTorch does not have, such as inverse root or warm-up, stable, decay in the picture, write the function and hand "
        "it to LambdaLR."
    )


def main(argv: list[str] | None = None) -> int:
    title = "Learning-rate schedules: every curve built, the ways it goes wrong, and what it buys."
    with Lesson(__file__, argv, title=title) as lesson:
        show_curves(lesson)
        show_equal(lesson)
        show_plateau(lesson)
        show_order(lesson)
        show_per_epoch(lesson)
        show_chain(lesson)
        show_resume(lesson)
        show_late_group(lesson)
        show_first_steps(lesson)
        show_warmup(lesson)
        show_range_test(lesson)
        show_noise(lesson)
        show_effect(lesson)
        show_batch_size(lesson)
        show_without_end(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
