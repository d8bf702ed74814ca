"""Why two right programs give different digits, how fast the difference grows, and how a mistake looks beside that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_01_neural_networks.src.scratch.data import make_spirals
from pytorch_01_neural_networks.src.scratch.mistakes import update_on_the_way_back
from pytorch_01_neural_networks.src.scratch.network import (
    RELU,
    TANH,
    Activation,
    Parameters,
    initial_parameters,
    train_by_hand,
)
from pytorch_01_neural_networks.src.scratch.three_builds import Build, train_by_autograd
from pytorch_01_neural_networks.src.scratch.wording import gap_text
from shared.lesson import Lesson
from shared.units import significant

import torch

CPU = torch.device("cpu")
CALM, CALM32, KINK = "tanh, lr 0.2, float64", "tanh, lr 0.2, float32", "ReLU, lr 0.5, float32"
CHAOS, WRONG, WRONG32 = "tanh, lr 4, float64", "one line wrong, float64", "one line wrong, float32"


@dataclass(frozen=True)
class Case:
    build: Build  # the one that is compared with autograd
    f: Activation
    lr: float
    dtype: torch.dtype


CASES = {
    CALM: Case(train_by_hand, TANH, 0.2, torch.float64),
    CALM32: Case(train_by_hand, TANH, 0.2, torch.float32),
    KINK: Case(train_by_hand, RELU, 0.5, torch.float32),
    CHAOS: Case(train_by_hand, TANH, 4.0, torch.float64),
    WRONG: Case(update_on_the_way_back, TANH, 0.2, torch.float64),
    WRONG32: Case(update_on_the_way_back, TANH, 0.2, torch.float32),
}


def units_switched_apart(a: Parameters, b: Parameters, x: torch.Tensor) -> int:
    """How many sums z1 are positive in one network and not in the other, over all samples and hidden units."""
    return int(((x @ a.w1.T + a.b1 > 0) != (x @ b.w1.T + b.b1 > 0)).sum())


@dataclass(frozen=True)
class Drift:
    """Of each step: the largest difference of a parameter, and how many units are switched apart after it."""

    apart: list[float]
    switched: list[int]

    @property
    def first_switch(self) -> int:
        """How many steps were done when the first unit was switched apart; all of them, if none was."""
        return next((i + 1 for i, count in enumerate(self.switched) if count), len(self.switched))


def drift_of(case: Case, start: Parameters, x: torch.Tensor, y: torch.Tensor, steps: int) -> Drift:
    """Trains `case.build` and autograd side by side on all of the data, where the tensors are."""
    start, x = start.to(case.dtype), x.to(case.dtype)
    apart, switched = [], []
    runs = (build(start, [(x, y)] * steps, case.lr, case.f) for build in (case.build, train_by_autograd))
    for (_, a), (_, b) in zip(*runs, strict=True):
        apart.append(max((one - other).abs().max().item() for one, other in zip(a, b, strict=True)))
        switched.append(units_switched_apart(a, b, x))
    return Drift(apart, switched)


def show_drift(lesson: Lesson) -> None:
    lesson.section(
        "Rounding, a kink, chaos, or a mistake",
        "Two programs that are both right add in another order, so they differ in the last bit. What becomes of that bit "
        "depends on the network and on the learning rate. When your numbers differ from a paper's or a colleague's, this "
        "is the question: is it rounding, or is one of you wrong? Here is the largest difference of any parameter from "
        "the build with autograd, on the spirals.",
    )
    steps = lesson.pick(full=400, quick=100)
    generator = torch.Generator().manual_seed(lesson.options.seed)
    x, y = make_spirals(lesson.pick(full=400, quick=200), generator)
    start = initial_parameters(2, lesson.pick(full=64, quick=32), 2, generator)
    drifts = {}
    for name, case in CASES.items():
        device = CPU if case.dtype == torch.float64 else lesson.device
        drifts[name] = drift_of(case, start.to(device), x.to(device), y.to(device), steps)
    marks = [step for step in (1, 10, 30, 100, 200, 400) if step <= steps]
    lesson.table(
        [
            {"hand against autograd": name, **{f"step {step}": gap_text(drift.apart[step - 1]) for step in marks}}
            for name, drift in drifts.items()
        ]
    )
    calm, calm32 = max(drifts[CALM].apart[:100]), max(drifts[CALM32].apart[:100])
    bits = torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
    lesson.check("rounding: float64 has about 2^29 times less of it", bits / 50 < calm32 / calm < bits * 50,
                 f"{calm32:.0e} / {calm:.0e} = 2^{math.log2(calm32 / calm):.0f}")  # fmt: skip
    kink = drifts[KINK]
    before = max(kink.apart[: kink.first_switch])
    then = f"then up to {max(kink.apart):.0e}" if any(kink.switched) else "all of them"
    lesson.check("ReLU: as calm while its units switch alike", before < 1e-5,
                 f"{before:.0e} for {kink.first_switch} steps, {then}")  # fmt: skip
    grown = drifts[CHAOS].apart[99] / drifts[CALM].apart[99]
    lesson.check("too large a step: the difference grows exponentially", grown > 1e4,
                 f"{drifts[CHAOS].apart[99]:.0e} after 100 steps, even in float64")  # fmt: skip
    wrong, wrong32 = drifts[WRONG].apart[0], drifts[WRONG32].apart[0]
    lesson.check("a mistake: the same difference in float64 as in float32", abs(wrong / wrong32 - 1) < 0.01,
                 f"{significant(wrong)} and {significant(wrong32)} after one step")  # fmt: skip
    lesson.figure("parting_digits", lambda axis: draw_drifts(axis, drifts))
    lesson.shows(
        f"computed in float64, a difference that comes from rounding falls to {calm / calm32:.0e} of what it was, and one "
        f"that comes from a mistake to {wrong / wrong32:.2f} of it. ReLU's slope jumps from 0 to 1, so a sum that rounds to "
        "the other side of 0 adds a whole sample to a gradient. Two right programs may part after some hundred steps "
        "(picture parting_digits.png): compare the first ones."
    )


def draw_drifts(axis: Any, drifts: dict[str, Drift]) -> None:
    for name, drift in drifts.items():
        every = max(1, len(drift.apart) // 10)
        axis.plot(range(1, len(drift.apart) + 1), clear_of_zero(drift.apart), label=name, markevery=every)
    axis.set(yscale="log", xlabel="step", ylabel="largest difference of a parameter", ylim=(1e-18, 1e9),
             title="Two builds of one network: how far apart?")  # fmt: skip
    axis.legend(fontsize=9, ncols=2, loc="upper left")


def clear_of_zero(values: Sequence[float]) -> list[float]:
    """A logarithmic axis has no 0; builds that are equal to the last bit are drawn at its lower end."""
    return [max(value, 1e-18) for value in values]
