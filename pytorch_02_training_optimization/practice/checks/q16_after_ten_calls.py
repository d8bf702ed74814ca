"""Each scheduler of the library is made and called ten times; the rate is read from the optimizer."""

import math
from typing import Any

from shared.practice import expect
from shared.traps import expect_number, expect_predictions
from shared.units import significant

import torch
from torch.optim import lr_scheduler

EXPRESSIONS = (
    "StepLR(o, step_size=5)",
    "MultiStepLR(o, milestones=[10, 20])",
    "ExponentialLR(o, gamma=0.5)",
    "LinearLR(o)",
    "PolynomialLR(o, total_iters=20)",
    "CosineAnnealingLR(o, T_max=10)",
    "CosineAnnealingLR(o, T_max=20)",
    "CosineAnnealingLR(o, T_max=5)",
    "CosineAnnealingWarmRestarts(o, T_0=10)",
    "CosineAnnealingWarmRestarts(o, T_0=5, T_mult=2)",
    "LambdaLR(o, lambda step: 1 / (step + 1))",
    "MultiplicativeLR(o, lambda step: 0.9)",
)


class OnlyARate(torch.optim.Optimizer):
    """What a scheduler asks of an optimizer; Optimizer.__init__ would import a compiler (4 s)."""

    def __init__(self) -> None:
        self.param_groups = [{"params": [], "lr": 1.0}]

    def step(self, closure: Any = None) -> None:
        pass


def rate_after_ten(expression: str) -> float:
    optimizer = OnlyARate()
    scheduler = eval(expression, vars(lr_scheduler) | {"o": optimizer})
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    return float(optimizer.param_groups[0]["lr"])


RIGHT = {expression: rate_after_ten(expression) for expression in EXPRESSIONS}


def is_near(prediction: float, right: float) -> bool:
    return math.isclose(prediction, right, rel_tol=0.06, abs_tol=1e-6)


def check(answer: Any, seed: int) -> None:
    predictions = answer.RATE
    expect_predictions(predictions, "RATE", EXPRESSIONS, "a number")
    for expression, prediction in predictions.items():
        expect_number(prediction, f"`{expression}`", "a number, the rate")
    missed = [name for name in EXPRESSIONS if not is_near(predictions[name], RIGHT[name])]
    if missed:
        first, count = missed[0], f"{len(missed)} of {len(EXPRESSIONS)} predictions"
        expect(
            False, f"{count} did not come true; the first: `{first}` gives {significant(round(RIGHT[first], 9))}. Why?"
        )


def predict(**changed: float) -> dict[str, object]:
    """The right answer, but for the expressions whose number is named, such as _4=0.1."""
    return {"RATE": RIGHT | {EXPRESSIONS[int(number[1:])]: rate for number, rate in changed.items()}}


WRONG = {
    "ten calls end at step 9": (predict(_0=0.1, _1=1.0, _2=0.5**9, _10=0.1), "`StepLR(o, step_size=5)` gives 0.0100"),
    "a milestone counts after its step": (predict(_1=1.0), "`MultiStepLR(o, milestones=[10, 20])` gives 0.100"),
    "LinearLR stays at a third": (predict(_3=1 / 3), "`LinearLR(o)` gives 1.00"),
    "a cosine stays at 0": (predict(_7=0.0), "`CosineAnnealingLR(o, T_max=5)` gives 1.00"),
    "warm restarts wait at 0": (predict(_8=0.0), "`CosineAnnealingWarmRestarts(o, T_0=10)` gives 1.00"),
    "all waves are of one length": (predict(_9=1.0), "1 of 12 predictions"),
    "LambdaLR multiplies": (predict(_10=0.0), "`LambdaLR(o, lambda step: 1 / (step + 1))` gives 0.0909"),
}
