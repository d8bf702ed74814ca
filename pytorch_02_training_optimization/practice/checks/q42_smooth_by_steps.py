"""Curves of which the smoothed value is known, then random ones against the definition, and a count of steps."""

import math
import random
from typing import Any

from shared.practice import expect
from shared.traps import python_steps, shown


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    level = draw.uniform(1, 9)
    found = ask(answer, [0, 1, 2, 3], [level] * 4, 5.0)
    expect(math.isclose(found[0], level), f"a constant curve of {level:.4g} begins at {found[0]:.4g} when smoothed: what do "
           "you divide by while there are few points?")  # fmt: skip
    expect_close(answer, [0, 1, 2, 3], [level] * 4, 5.0, "a constant curve")
    expect_close(
        answer, [0, 1, 2], [1.0, 4.0, 4.0], 1.0, "a curve logged at every step: no point weighs more than a newer one"
    )
    expect_close(answer, [5, 6, 16, 40], [3.0, 1.0, 2.0, 7.0], 4.0,
                 "a curve with unequal distances: age is counted in steps, not in points")  # fmt: skip
    expect_close(answer, [0, 10, 30], [1.0, 4.0, 4.0], 10.0, "the example")
    expect_close(answer, [100, 102, 104], [0.0, 8.0, 4.0], 2.0, "a curve that begins at step 100")
    sick = [1.0, math.nan, 2.0, math.inf, 3.0, -math.inf, 4.0]
    expect_close(answer, [0, 3, 4, 9, 10, 11, 12], sick, 3.0, "a curve with NaN and infinities, which have no weight")
    expect_close(answer, [0, 2, 4], [math.nan, math.nan, 5.0], 3.0, "a curve that begins with NaN")
    expect_close(answer, [], [], 3.0, "no points")
    expect_close(answer, [7], [2.0], 3.0, "one point")
    expect_close(answer, [0, 1, 10**6], [1.0, 2.0, 5.0], 3.0, "a gap of a million steps")
    for _ in range(8):
        steps = sorted(draw.sample(range(200), draw.randint(2, 40)))
        values = [draw.gauss(0, 1) if draw.random() < 0.9 else math.nan for _ in steps]
        expect_close(answer, steps, values, draw.uniform(0.5, 50), f"{len(steps)} random points")
    work = [python_steps(answer.smooth, list(range(count)), [1.0] * count, 5.0) for count in (100, 400)]
    expect(work[1] < 8 * work[0] + 100, f"100 points take {work[0]:,} lines of Python and 400 take {work[1]:,}; four times the "
           "points should be four times the work")  # fmt: skip


def by_definition(steps: list[int], values: list[float], half_life: float) -> list[float]:
    smoothed = []
    for now, value in zip(steps, values, strict=True):
        if not math.isfinite(value):
            smoothed.append(value)
            continue
        past = [(0.5 ** ((now - step) / half_life), x) for step, x in zip(steps, values, strict=True)
                if step <= now and math.isfinite(x)]  # fmt: skip
        smoothed.append(math.fsum(w * x for w, x in past) / math.fsum(w for w, _ in past))
    return smoothed


def ask(answer: Any, steps: list[int], values: list[float], half_life: float) -> list[float]:
    call = f"smooth of {len(values)} points with half_life={half_life:.3g}"
    kept = list(steps), list(map(repr, values))
    found = answer.smooth(steps, values, half_life)
    is_list = isinstance(found, list) and all(isinstance(value, float) for value in found)
    expect(is_list, f"{call} returned {shown(found)}; return a list of floats")
    expect(
        found is not values and (list(steps), list(map(repr, values))) == kept,
        f"{call} changed or returned what it was given",
    )
    expect(len(found) == len(values), f"{call} returned {len(found)} values; return one for each point")
    return found  # type: ignore[no-any-return]


def expect_close(answer: Any, steps: list[int], values: list[float], half_life: float, what: str) -> None:
    found, wanted = ask(answer, steps, values, half_life), by_definition(steps, values, half_life)
    for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
        is_equal = math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) or (math.isnan(a) and math.isnan(b))
        expect(is_equal, f"{what}: point {index}, at step {steps[index]}, is {a:.6g} and should be {b:.6g}")


def counts_points(steps: list[int], values: list[float], half_life: float) -> list[float]:
    return by_definition(list(range(len(values))), values, half_life)


def from_zero(steps: list[int], values: list[float], half_life: float) -> list[float]:
    average, smoothed, last = 0.0, [], steps[0] - 1 if steps else 0
    for step, value in zip(steps, values, strict=True):
        fade = 0.5 ** ((step - last) / half_life)
        average, last = fade * average + (1 - fade) * value, step
        smoothed.append(average)
    return smoothed


def begins_with_the_first(steps: list[int], values: list[float], half_life: float) -> list[float]:
    smoothed: list[float] = []
    for index, value in enumerate(values):
        fade = 0.5 ** ((steps[index] - steps[index - 1]) / half_life) if index else 0.0
        smoothed.append(fade * smoothed[-1] + (1 - fade) * value if index else value)
    return smoothed


def lets_nan_in(steps: list[int], values: list[float], half_life: float) -> list[float]:
    smoothed, total, weight = [], 0.0, 0.0
    for before, step, value in zip([*steps[:1], *steps], steps, values, strict=False):
        fade = 0.5 ** ((step - before) / half_life)
        total, weight = fade * total + value, fade * weight + 1
        smoothed.append(total / weight)
    return smoothed


WRONG = {
    "counts points": ({"smooth": counts_points}, "age is counted in steps"),
    "begins at zero": ({"smooth": from_zero}, "what do you divide by"),
    "the first point weighs too much": ({"smooth": begins_with_the_first}, "no point weighs more"),
    "a NaN stays for ever": ({"smooth": lets_nan_in}, "which have no weight"),
    "looks at all points for each": ({"smooth": by_definition}, "four times the work"),
}
