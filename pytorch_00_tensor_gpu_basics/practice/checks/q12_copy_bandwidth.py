"""The prediction is compared with this machine's own figure, measured once and given with its spread."""

from functools import cache
from statistics import median
from typing import Any

from shared.device import device_name, pick_device
from shared.practice import expect
from shared.timing import measure
from shared.traps import shown
from shared.units import significant

import torch

WIDEST = 4


@cache
def measured_gb_s() -> tuple[float, float, float]:
    """What neighbours leave (80th percentile of the worst time), the median, and what an undisturbed copy gets."""
    device = pick_device()
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)
    timings = [measure(lambda: target.copy_(source), device) for _ in range(3)]
    slow_s, fast_s = max(timing.p80_s for timing in timings), min(timing.p20_s for timing in timings)
    middle_s = median(timing.median_s for timing in timings)
    low, middle, high = (2 * source.nbytes / seconds / 1e9 for seconds in (slow_s, middle_s, fast_s))
    return low, middle, high


def check(answer: Any, seed: int) -> None:
    prediction = answer.COPY_GB_S
    is_pair = isinstance(prediction, tuple | list) and len(prediction) == 2
    is_pair = is_pair and all(isinstance(end, int | float) and not isinstance(end, bool) for end in prediction)
    expect(is_pair, f"COPY_GB_S is {shown(prediction)}; write (low, high) in GB/s, such as (1.0, 2.0)")
    low, high = prediction
    expect(low > 0, f"COPY_GB_S starts at {low} GB/s; a rate is above zero")
    expect(low < high, f"COPY_GB_S is {prediction}; write the low end first")
    expect(
        high <= WIDEST * low,
        f"from {significant(low)} to {significant(high)} GB/s is a factor of {significant(high / low)}; dare a range "
        f"of at most a factor of {WIDEST}",
    )
    slow, middle, fast = measured_gb_s()
    spread = f"{significant(slow)} to {significant(fast)}"
    measured = f"{device_name(pick_device())} copies {significant(middle)} GB/s ({spread})"
    bet = f"you said {significant(float(low))} to {significant(float(high))}"
    expect(low <= fast, f"{measured}; {bet}, which is too fast. Is your unit GB/s, and what does the data sheet say?")
    expect(high >= slow, f"{measured}; {bet}, which is too slow. Does your figure count reading and writing?")


WRONG = {
    "writes the high end first": ({"COPY_GB_S": (200.0, 100.0)}, "write the low end first"),
    "bets on everything": ({"COPY_GB_S": (1.0, 10_000.0)}, "at most a factor of 4"),
    "starts at nothing": ({"COPY_GB_S": (0.0, 1.0)}, "a rate is above zero"),
    "counts in MB/s": ({"COPY_GB_S": (100_000.0, 400_000.0)}, "which is too fast"),
    "counts in TB/s": ({"COPY_GB_S": (0.01, 0.04)}, "which is too slow"),
}
