"""Chapters of lr_schedules: the plateau, and how a right curve becomes a wrong one by the way in which it is stepped."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from pytorch_02_training_optimization.src.schedules.curves import Plateau, cosine
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import percent, significant

import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LRScheduler,
    ReduceLROnPlateau,
    StepLR,
)

Optimizer = torch.optim.Optimizer
Make = Callable[[Optimizer], LRScheduler]


def make_optimizer(lr: float, momentum: float = 0.0) -> Optimizer:
    """SGD with one weight that has no gradient: it steps, and nothing moves but the schedule."""
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=momentum)


def rate_of(optimizer: Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


def rates_used(optimizer: Optimizer, scheduler: LRScheduler, steps: int) -> list[float]:
    """Right: the optimizer steps, then the schedule. Returns the rate with which each step was made."""
    rates = []
    for _ in range(steps):
        rates.append(rate_of(optimizer))
        optimizer.step()
        scheduler.step()
    return rates


def library_rates(make: Make, lr: float, steps: int) -> list[float]:
    optimizer = make_optimizer(lr)
    return rates_used(optimizer, make(optimizer), steps)


# The plateau


def plateau_losses(generator: torch.Generator, epochs: int, noise: float) -> list[float]:
    """A loss that falls, from about 2 to 0.5, and comes with noise."""
    falling = 0.5 + 1.5 * torch.exp(-torch.arange(epochs) / (epochs / 8))
    return (falling + noise * torch.randn(epochs, generator=generator)).tolist()


def cuts(rates: Sequence[float]) -> list[int]:
    """The numbers of the losses after which the rate was lower than before."""
    return [at for at in range(1, len(rates)) if rates[at] < rates[at - 1]]


def library_plateau(losses: Sequence[float], lr: float, **options: Any) -> list[float]:
    optimizer = make_optimizer(lr)
    scheduler, rates = ReduceLROnPlateau(optimizer, **options), []
    for loss in losses:
        optimizer.step()
        scheduler.step(loss)
        rates.append(rate_of(optimizer))
    return rates


def own_plateau(losses: Sequence[float], lr: float, **options: Any) -> list[float]:
    plateau = Plateau(lr, **options)
    return [plateau.step(loss) for loss in losses]


PLATEAUS: dict[str, dict[str, float]] = {
    "defaults": {},
    "patience=3": {"patience": 3},
    "patience=3, cooldown=10": {"patience": 3, "cooldown": 10},
    "patience=3, threshold=0.1": {"patience": 3, "threshold": 0.1},
    "patience=0, factor=0.5": {"patience": 0, "factor": 0.5},
}


def show_plateau(lesson: Lesson) -> None:
    epochs, noise = 120, 0.02
    lesson.section(
        "Plateau: a schedule of the loss",
        "Every other schedule knows the step and not the training. ReduceLROnPlateau asks the validation loss: when it "
        "has brought no new best for more than `patience` calls, the rate is multiplied by `factor`. So it needs no plan, "
        f"and it reacts to noise. {epochs} epochs of one falling loss with a noise of {noise:g}, peak rate 0.1:",
    )
    losses = plateau_losses(torch.Generator().manual_seed(lesson.options.seed), epochs, noise)
    table, differ, first = [], [], {}
    for name, options in PLATEAUS.items():
        own, library = (run(losses, 0.1, **options) for run in (own_plateau, library_plateau))
        differ.append(max(abs(a - b) for a, b in zip(own, library, strict=True)))
        first[name] = [*cuts(own), epochs]
        table.append({"options": name, "cuts": len(cuts(own)), "first after epoch": first[name][0],
                      "rate at the end": f"{own[-1]:.0e}"})  # fmt: skip
    lesson.table(table)
    lesson.check(
        "our fifteen lines are ReduceLROnPlateau", max(differ) == 0, f"{len(PLATEAUS)} settings, the same bits"
    )
    patient, hasty = first["defaults"][0], first["patience=0, factor=0.5"][0]
    lesson.check("patience 0 cuts at the first loss that is no best", hasty < patient,
                 f"after epoch {hasty}; with patience 10 after epoch {patient}")  # fmt: skip
    level = own_plateau([1.0] * 12, 0.1)
    lesson.check("patience 10 cuts at the 11th call without a best", cuts(level) == [11], "the first call set the best")
    epoch_steps = 100
    noisy = plateau_losses(torch.Generator().manual_seed(lesson.options.seed), 20 * epoch_steps, 0.2)
    per_step = own_plateau(noisy, 0.1)
    lesson.check("asked at every step, it is over in no time", per_step[5 * epoch_steps] < 1e-3,
                 f"a batch's loss, patience 10: {per_step[5 * epoch_steps]:.0e} after 5 of 20 epochs")  # fmt: skip
    lesson.shows(
        f"on the same losses the first cut came after epoch {min(c[0] for c in first.values())} or "
        f"{max(c[0] for c in first.values())}, by patience and threshold alone. Give it a validation loss, once an epoch, "
        "and more patience than the noise lasts. It cannot bring a rate back up, and a run that was cut by chance is not "
        "repeated by another seed: for a result that others repeat, use a curve of the step."
    )


# The order of two calls


def schedule_before_optimizer(optimizer: Optimizer, scheduler: LRScheduler, steps: int) -> list[float]:
    """The mistake: the schedule has moved on before the first rate was used."""
    rates = []
    for _ in range(steps):
        scheduler.step()
        rates.append(rate_of(optimizer))
        optimizer.step()
    return rates


def warmup_from_nothing(step: int, over: int) -> float:
    """The mistake: steps are counted from 0, so the first one is made with a rate of 0."""
    return min(1.0, step / over)


def warmup_from_one(step: int, over: int) -> float:
    """Right: step 0 is the first, and the full rate is there at step over - 1."""
    return min(1.0, (step + 1) / over)


def show_order(lesson: Lesson) -> None:
    lesson.section(
        "Which rate does the first step use?",
        "Making a scheduler already sets the rate of step 0. So the order of a training loop is: optimizer.step() with "
        "the rate that is there, then scheduler.step() for the next. Off by one at the front costs a step, or the "
        "first and highest rate; off by one at the back means that the last step is not where you planned it.",
    )
    makes = [make_optimizer(0.8) for _ in range(2)]
    schedulers = [ExponentialLR(optimizer, 0.5) for optimizer in makes]
    right = rates_used(makes[0], schedulers[0], 4)
    said = complaint(lambda: schedulers[1].step())
    other = make_optimizer(0.8)
    other.step()  # only to keep PyTorch from saying it again
    scheduler = ExponentialLR(other, 0.5)
    other.step()
    wrong = schedule_before_optimizer(other, scheduler, 4)
    starts = {name: [rate(step, 4) for step in range(5)]
              for name, rate in (("step / 4", warmup_from_nothing), ("(step + 1) / 4", warmup_from_one))}  # fmt: skip
    lesson.table(
        [{"rates of the first steps": name, **{f"step {i}": rate for i, rate in enumerate(rates[:4])}}
         for name, rates in {"halved, optimizer first": right, "halved, scheduler first": wrong,
                             **{f"warm-up {name}": values for name, values in starts.items()}}.items()]
    )  # fmt: skip
    lesson.check("optimizer first: the peak is used", right == [0.8, 0.4, 0.2, 0.1], "0.8, 0.4, 0.2, 0.1")
    lesson.check("scheduler first: it never is", wrong == [0.4, 0.2, 0.1, 0.05], "everything one step early")
    lesson.check("PyTorch warns, once, at the first call", "before `optimizer.step()`" in said, said.partition(":")[0])
    lesson.check("a warm-up of step / n begins with a step of nothing", starts["step / 4"][0] == 0,
                 "a batch is computed and thrown away")  # fmt: skip
    ends = {over: cosine(99, over) for over in (100, 99)}
    lesson.check("T_max = steps: the last step is not made at 0", 0 < ends[100] < 1e-3 and ends[99] == 0,
                 f"100 steps: {ends[100]:.1e} of the peak; T_max = 99 ends at 0, a step wasted")  # fmt: skip
    lesson.shows(
        "there are two numbers to fix in any schedule of your own: the rate of step 0 and that of step total - 1. Print "
        f"both before a long run; here they would read {right[0]:g} and {right[-1]:g}. The warning also comes when a "
        "GradScaler left out the very first step (mixed_precision), and then it is no mistake of yours."
    )


# Per epoch or per step


def count_rises(rates: Sequence[float]) -> int:
    """How many times a rate that had fallen, or had begun, starts to rise."""
    rising = [False, *(b > a for a, b in itertools.pairwise(rates))]
    return sum(now and not before for before, now in itertools.pairwise(rising))


def stepped_every_step(t_max: int, epochs: int, epoch_steps: int) -> list[float]:
    optimizer = make_optimizer(0.1)
    return rates_used(optimizer, CosineAnnealingLR(optimizer, t_max), epochs * epoch_steps)


def stepped_every_epoch(t_max: int, epochs: int, epoch_steps: int) -> list[float]:
    optimizer = make_optimizer(0.1)
    each = rates_used(optimizer, CosineAnnealingLR(optimizer, t_max), epochs)
    return [rate for rate in each for _ in range(epoch_steps)]


def show_per_epoch(lesson: Lesson) -> None:
    epochs, epoch_steps = 10, 30
    steps = epochs * epoch_steps
    lesson.section(
        "Per epoch or per step",
        "T_max, step_size and milestones have no unit: they count calls of scheduler.step(). Whether a call is an epoch or "
        "a batch depends on one level of indentation, and every combination runs without a word. A cosine over "
        f"{epochs} epochs of {epoch_steps} steps, peak 0.1, planned in one unit and stepped in one:",
    )
    ways = {
        "T_max in steps, every step": stepped_every_step(steps, epochs, epoch_steps),
        "T_max in epochs, every epoch": stepped_every_epoch(epochs, epochs, epoch_steps),
        "T_max in steps, every epoch": stepped_every_epoch(steps, epochs, epoch_steps),
        "T_max in epochs, every step": stepped_every_step(epochs, epochs, epoch_steps),
    }
    lesson.table(
        [{"way": name, "step 0": rates[0], f"step {steps // 2}": rates[steps // 2], f"step {steps - 1}": rates[-1],
          "rises": count_rises(rates), "calls": steps if name.endswith("step") else epochs}
         for name, rates in ways.items()]
    )  # fmt: skip
    fine, coarse, frozen, waves = ways.values()
    closed = [0.1 * cosine(step, epochs) for step in range(steps)]
    gap = max(abs(a - b) for a, b in zip(fine, coarse, strict=True))
    lesson.check(
        "both right ways are one curve, fine and in stairs", 0 < gap < 0.02, f"never further than {gap:.3f} apart"
    )
    lesson.check("steps for epochs: the rate hardly falls", frozen[-1] > 0.99 * frozen[0],
                 f"{frozen[-1]:.4f} at the end, after {epochs} of {steps} calls")  # fmt: skip
    off = max(abs(a - b) for a, b in zip(waves, closed, strict=True))
    lesson.check("epochs for steps: after T_max the cosine goes up", off < 1e-12,
                 f"the same wave as 1 + cos(pi step / {epochs}), to {off:.0e}")  # fmt: skip
    lesson.check("so it comes back to the peak again and again", count_rises(waves) == (steps - 1) // (2 * epochs) + (
                 (steps - 1) % (2 * epochs) > epochs), f"{count_rises(waves)} times in {steps} steps")  # fmt: skip
    late = [0.1 * cosine(step, 200) for step in range(steps)]
    lesson.figure("per_epoch_or_per_step", lambda *axes: draw_ways(axes, ways), columns=2)
    lesson.shows(
        f"two of four ways are wrong and none complains: one leaves the rate at {frozen[-1]:.4f}, the other swings "
        f"{count_rises(waves)} times. The same happens gently when a run is made longer than its T_max: {steps} steps with a "
        f"T_max of 200 end at {late[-1]:.3f}, half the peak. In your log the rate is the first curve to look at."
    )


def draw_ways(axes: Sequence[Any], ways: dict[str, list[float]]) -> None:
    for axis, names, title in zip(axes, (list(ways)[:2], list(ways)[2:]), ("planned and stepped in one unit", "mixed up"),
                                  strict=True):  # fmt: skip
        for name in names:
            axis.plot(ways[name], marker="", label=name)
        axis.set(xlabel="step", ylabel="learning rate", ylim=(-0.005, 0.13), title=title)
        axis.legend(fontsize=9, loc="upper right")


# Chained or closed

FORMS: dict[str, tuple[str, Make]] = {
    "StepLR(40)": ("chained", lambda o: StepLR(o, 40)),
    "ExponentialLR(0.99)": ("chained", lambda o: ExponentialLR(o, 0.99)),
    "LinearLR(1, 0.1)": ("chained", lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=100)),
    "CosineAnnealingLR(100)": ("chained", lambda o: CosineAnnealingLR(o, 100)),
    "CosineAnnealingWarmRestarts(100)": (
        "closed",
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 100),
    ),
    "OneCycleLR": (
        "closed",
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=100, cycle_momentum=False),
    ),
    "LambdaLR": ("closed", lambda o: LambdaLR(o, lambda step: cosine(step, 100))),
}


def rate_after_halving(make: Make, at: int, then: int) -> tuple[float, float]:
    """The rate `then` steps after `at`: left alone, and with the rate halved by hand at step `at`."""
    found = []
    for factor in (1.0, 0.5):
        optimizer = make_optimizer(0.1)
        scheduler = make(optimizer)
        rates_used(optimizer, scheduler, at)
        optimizer.param_groups[0]["lr"] *= factor
        rates_used(optimizer, scheduler, then)
        found.append(rate_of(optimizer))
    return found[0], found[1]


def rates_under_two(first: Make, second: Make, steps: int) -> list[float]:
    """Two schedulers on one optimizer, stepped in this order."""
    optimizer = make_optimizer(0.1)
    schedulers, rates = [make(optimizer) for make in (first, second)], []
    for _ in range(steps):
        rates.append(rate_of(optimizer))
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


def show_chain(lesson: Lesson) -> None:
    lesson.section(
        "Chained or closed",
        "PyTorch computes a schedule in one of two ways. Closed: the rate of step t from the peak and t. Chained: the next "
        "rate from the one that stands in the optimizer. Left alone they agree. They part as soon as something else "
        "writes into the optimizer: your hand, a second scheduler, a checkpoint. Here the rate is halved by hand at step 50, "
        "and read at step 60:",
    )
    table, kept = [], {}
    for name, (form, make) in FORMS.items():
        alone, halved = rate_after_halving(make, 50, 10)
        kept[name] = halved / alone
        table.append(
            {"scheduler": name, "form": form, "left alone": alone, "halved": halved, "kept": percent(kept[name])}
        )
    lesson.table(table)
    for form, share in (("chained", 0.5), ("closed", 1.0)):
        shares = [kept[name] for name in FORMS if FORMS[name][0] == form]
        lesson.check(f"{form}: a change by hand {'stays' if form == 'chained' else 'is gone at the next step'}",
                     all(abs(found - share) < 1e-9 for found in shares), f"all {len(shares)} of them")  # fmt: skip
    step, fall, hold = FORMS["StepLR(40)"][1], FORMS["ExponentialLR(0.99)"][1], FORMS["LambdaLR"][1]
    both = rates_under_two(step, fall, 100)
    product = [0.1 * 0.1 ** (t // 40) * 0.99**t for t in range(100)]
    off = max(abs(a / b - 1) for a, b in zip(both, product, strict=True))
    lesson.check("two chained schedulers multiply", off < 1e-12, f"StepLR x ExponentialLR, to {off:.0e}")
    over = rates_under_two(fall, hold, 100)
    lesson.check("a closed one behind wipes the other out",
                 max(abs(a - 0.1 * cosine(t, 100)) for t, a in enumerate(over)) < 1e-12, "LambdaLR alone is left")  # fmt: skip
    steps = lesson.pick(full=20_000, quick=2000)
    last = library_rates(lambda o: ExponentialLR(o, 1 - 1e-4), 0.1, steps)[-1]
    drift = abs(last / (0.1 * (1 - 1e-4) ** (steps - 1)) - 1)
    lesson.check("a chain of products hardly drifts", drift < 1e-11, f"{drift:.0e} after {steps:,} steps")
    lesson.shows(
        "rounding is no reason to prefer either; what others may write is. For a curve that must be what you planned, "
        "write a function of the step and give it to LambdaLR; where two schedules should multiply, chain them "
        f"(ChainedScheduler does it by name). The rate at step 99 under StepLR and ExponentialLR was {significant(both[-1])}."
    )
