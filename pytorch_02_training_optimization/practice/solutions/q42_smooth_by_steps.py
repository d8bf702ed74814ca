"""Two sums, of the weighted values and of the weights, both fading by the steps that have passed.

Dividing the one by the other is what TensorBoard's correction does too: without it the curve begins near zero, as Adam's
average would without its own. Because a fade over 10 steps equals ten fades over one, the age of a point is all that
counts, however often somebody logs. A NaN must not enter a sum, since it would never leave it again; it stays visible
in its place. When you compare runs that log at different intervals, either smooth like this or do not smooth.
"""

import math


def smooth(steps: list[int], values: list[float], half_life: float) -> list[float]:
    smoothed, total, weight = [], 0.0, 0.0
    for before, step, value in zip([*steps[:1], *steps], steps, values, strict=False):
        fade = 0.5 ** ((step - before) / half_life)
        total, weight = fade * total, fade * weight
        if math.isfinite(value):
            total, weight = total + value, weight + 1
            smoothed.append(total / weight)
        else:
            smoothed.append(value)
    return smoothed
