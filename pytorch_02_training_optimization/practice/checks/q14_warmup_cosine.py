"""The ends first, by name; then every step of many schedules against one that was built by walking along it."""

import math
import random
from typing import Any

from shared.practice import expect
from shared.traps import expect_number
from shared.units import significant


def walk(total: int, warmup: int, peak: float, floor: float) -> list[float]:
    """The rates of all steps and three more, one after another."""
    rates = [peak * (number / warmup) for number in range(1, warmup + 1)] or [peak]
    gaps = total - len(rates)
    rates += [floor + (peak - floor) * math.cos(math.pi * gap / gaps / 2) ** 2 for gap in range(1, gaps + 1)]
    return [*rates, floor, floor, floor]


CASES = (
    ("the first step of a warm-up", 0, (10, 4, 1.0, 0.0)),
    ("the peak is at step warmup - 1", 3, (10, 4, 1.0, 0.0)),
    ("after the peak the rate falls at once", 4, (10, 4, 1.0, 0.0)),
    ("the last step is at the floor", 9, (10, 4, 1.0, 0.1)),
    ("after the last step it stays at the floor", 10, (10, 4, 1.0, 0.1)),
    ("after the last step it stays at the floor", 12, (10, 4, 1.0, 0.1)),
    ("without a warm-up the first step has the peak", 0, (5, 0, 0.5, 0.1)),
    ("without a warm-up the wave begins at step 0", 1, (5, 0, 0.5, 0.1)),
    ("one step, and no warm-up", 0, (1, 0, 0.5, 0.1)),
    ("one step, all of it warm-up", 0, (1, 1, 0.5, 0.1)),
    ("nothing but warm-up: the last step has the peak", 5, (6, 6, 0.5, 0.1)),
    ("nothing but warm-up: the step after the last", 6, (6, 6, 0.5, 0.1)),
    ("all but one step is warm-up", 5, (6, 5, 0.5, 0.1)),
    ("a warm-up of one step", 1, (6, 1, 0.5, 0.1)),
)


def check(answer: Any, seed: int) -> None:
    for why, step, case in CASES:
        expect_rate(answer, why, step, *case)
    draw = random.Random(seed)
    for _ in range(30):
        total = draw.randint(1, 40)
        case = (total, draw.randint(0, total), draw.uniform(0.01, 2), draw.uniform(0, 0.01))
        for step in range(total + 3):
            expect_rate(answer, f"step {step} of {total}", step, *case)


def expect_rate(answer: Any, why: str, step: int, total: int, warmup: int, peak: float, floor: float) -> None:
    call = f"rate_at({step}, {total}, {warmup}, {peak:.4g}, {floor:.4g})"
    try:
        found = answer.rate_at(step, total, warmup, peak, floor)
    except ZeroDivisionError:
        expect(False, f"{call} divides by 0: {why}")
    expect_number(found, call, "the rate, a float")
    right = walk(total, warmup, peak, floor)[step]
    expect(
        math.isclose(found, right, rel_tol=1e-9, abs_tol=1e-12 * peak),
        f"{call} is {significant(float(found), 5)} and should be {significant(right, 5)}: {why}",
    )


def wave(share: float, peak: float, floor: float) -> float:
    return floor + (peak - floor) * (1 + math.cos(math.pi * share)) / 2


def begins_with_nothing(step: int, total: int, warmup: int, peak: float, floor: float) -> float:
    if step < warmup:
        return peak * step / warmup
    return wave(min(1.0, (step - warmup) / max(1, total - 1 - warmup)), peak, floor)


def uses_the_peak_twice(step: int, total: int, warmup: int, peak: float, floor: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return wave(min(1.0, (step - warmup) / max(1, total - 1 - warmup)), peak, floor)


def never_arrives(step: int, total: int, warmup: int, peak: float, floor: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return wave(min(1.0, (step - warmup + 1) / (total - warmup + 1)), peak, floor)


def goes_up_again(step: int, total: int, warmup: int, peak: float, floor: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return wave((step - warmup + 1) / max(1, total - warmup), peak, floor)


def forgets_that_there_may_be_none(step: int, total: int, warmup: int, peak: float, floor: float) -> float:
    if step <= warmup - 1 or step >= total:
        return floor if step >= total else peak * (step + 1) / warmup
    return wave((step - warmup + 1) / (total - warmup), peak, floor)


def falls_to_zero(step: int, total: int, warmup: int, peak: float, floor: float) -> float:
    return walk(total, warmup, peak, 0.0)[step]


WRONG = {
    "the first step has a rate of 0": ({"rate_at": begins_with_nothing}, "is 0 and should be 0.25000"),
    "the peak is used twice": ({"rate_at": uses_the_peak_twice}, "after the peak the rate falls at once"),
    "the floor is never reached": ({"rate_at": never_arrives}, "should be 0.93301"),
    "it goes up after the end": ({"rate_at": goes_up_again}, "after the last step it stays at the floor"),
    "no warm-up was not thought of": (
        {"rate_at": forgets_that_there_may_be_none},
        "without a warm-up the first step has the peak",
    ),
    "it falls to 0 instead of the floor": ({"rate_at": falls_to_zero}, "the last step is at the floor"),
}
