"""Each line is computed with the formulas of torch.optim, one weight in float64; nothing is drawn at random."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from shared.practice import expect
from shared.traps import expect_number, expect_predictions
from shared.units import significant

SGD_MOVED = "moved(SGD(lr=0.1), g=2, steps=100)"
MOMENTUM = "moved(SGD(lr=0.001, momentum=0.9), g=2, steps=1000)"
LARGE = "moved(Adam(lr=0.1), g=2, steps=100)"
SMALL = "moved(Adam(lr=0.1), g=0.002, steps=100)"
TINY = "moved(Adam(lr=0.1), g=1e-8, steps=1)"
FIRST = "moved(RMSprop(lr=0.01), g=2, steps=1)"
SGD_LEFT = "left(SGD(lr=0.01, weight_decay=0.1), steps=500)"
DECAYED = "left(AdamW(lr=0.01, weight_decay=0.1), steps=500)"
HALF_LR = "left(AdamW(lr=0.005, weight_decay=0.1), steps=500)"
L2 = "left(Adam(lr=0.01, weight_decay=0.1), steps=20)"
WEAK_L2 = "left(Adam(lr=0.01, weight_decay=0.001), steps=20)"
LOUD_L2 = "left(Adam(lr=0.01, weight_decay=0.1), steps=500, swing=10)"
LOUD = "left(AdamW(lr=0.01, weight_decay=0.1), steps=500, swing=10)"
LINES = (SGD_MOVED, MOMENTUM, LARGE, SMALL, TINY, FIRST, SGD_LEFT, DECAYED, HALF_LR, L2, WEAK_L2, LOUD_L2, LOUD)
REASONS = {
    MOMENTUM: "a gradient that stays is added up, 1 + 0.9 + 0.81 + … times",
    LARGE: "m / sqrt(v) of a gradient that stays is 1",
    SMALL: "m / sqrt(v) of a gradient that stays is 1",
    TINY: "eps is as large as this gradient",
    FIRST: "v begins at 0, and nobody corrects that",
    HALF_LR: "a step of decay is lr x weight_decay",
    L2: "to Adam the pull of L2 is a gradient like any other",
    WEAK_L2: "to Adam the pull of L2 is a gradient like any other",
    LOUD_L2: "the pull of L2 is divided by the root of v, and so by 10",
    LOUD: "the decay of AdamW does not see the gradient",
}
TOLERANCE = 0.03
Rule = Callable[[float, float], float]  # weight and gradient → the weight after the step


def SGD(lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> Rule:  # noqa: N802, as in the question
    m = 0.0

    def step(w: float, g: float) -> float:
        nonlocal m
        m = momentum * m + g + weight_decay * w
        return w - lr * m

    return step


def RMSprop(lr: float) -> Rule:  # noqa: N802
    v = 0.0

    def step(w: float, g: float) -> float:
        nonlocal v
        v = 0.99 * v + 0.01 * g * g
        return w - lr * g / (math.sqrt(v) + 1e-8)

    return step


def Adam(lr: float, weight_decay: float = 0.0, is_decoupled: bool = False) -> Rule:  # noqa: N802
    m, v, t = 0.0, 0.0, 0

    def step(w: float, g: float) -> float:
        nonlocal m, v, t
        if is_decoupled:
            w *= 1 - lr * weight_decay
        else:
            g += weight_decay * w
        t += 1
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        return w - lr * m / (1 - 0.9**t) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)

    return step


def AdamW(lr: float, weight_decay: float = 0.01) -> Rule:  # noqa: N802
    return Adam(lr, weight_decay, is_decoupled=True)


def moved(optimizer: Rule, g: float, steps: int) -> float:
    w = 0.0
    for _ in range(steps):
        w = optimizer(w, g)
    return -w


def left(optimizer: Rule, steps: int, swing: float = 0.0) -> float:
    w = 1.0
    for number in range(steps):
        w = optimizer(w, -swing if number % 2 else swing)
    return w


NAMES = {"SGD": SGD, "RMSprop": RMSprop, "Adam": Adam, "AdamW": AdamW, "moved": moved, "left": left}


@cache
def number_of(line: str) -> float:
    return float(eval(line, dict(NAMES)))


def check(answer: Any, seed: int) -> None:
    predictions = answer.NUMBERS
    expect_predictions(predictions, "NUMBERS", LINES, "a number")
    for line, prediction in predictions.items():
        expect_number(prediction, f"NUMBERS[{line!r}]", "a number")
    missed = [line for line in LINES if not math.isclose(predictions[line], number_of(line), rel_tol=TOLERANCE)]
    if missed:
        reason = f": {REASONS[missed[0]]}" if missed[0] in REASONS else ""
        expect(
            False,
            f"{len(missed)} of {len(LINES)} predictions did not come true; the first: `{missed[0]}` is "
            f"{significant(number_of(missed[0]))}{reason}",
        )


RIGHT = {line: number_of(line) for line in LINES}


def predict(changes: dict[str, float]) -> dict[str, object]:
    return {"NUMBERS": RIGHT | changes}


WRONG = {
    "takes momentum for a mean": (predict({MOMENTUM: 2.0}), "1 + 0.9 + 0.81"),
    "takes Adam's step for proportional": (predict({LARGE: 20.0, SMALL: 0.02}), "m / sqrt(v) of a gradient"),
    "does not know eps": (predict({TINY: 0.1}), "eps is as large as this gradient"),
    "corrects RMSprop": (predict({FIRST: 0.01}), "nobody corrects that"),
    "takes the decay for a rate alone": (predict({HALF_LR: RIGHT[DECAYED]}), "lr x weight_decay"),
    "takes Adam's L2 for decay": (
        predict({L2: 0.98, WEAK_L2: 0.9998, LOUD_L2: 0.606}),
        "3 of 13 predictions",
    ),
    "takes L2 to be proportional": (predict({WEAK_L2: 0.998}), "a gradient like any other"),
    "lets AdamW spare what is loud": (predict({LOUD: 0.95}), "does not see the gradient"),
    "takes SGD's L2 for something else": (predict({SGD_LEFT: 0.5}), "1 of 13 predictions did not come true"),
}
