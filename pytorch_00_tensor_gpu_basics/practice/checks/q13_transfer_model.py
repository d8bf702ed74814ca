"""Times made from a known latency and bandwidth, exact at first and then with 2 % of noise."""

import random
from collections.abc import Sequence
from typing import Any

from shared.practice import expect
from shared.traps import expect_number, shown
from shared.units import rate_text, seconds_text

import torch

Fit = tuple[float, float]


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    latency_s, byte_s = draw.uniform(5e-6, 20e-6), draw.uniform(10e9, 60e9)
    two = [1_000, 1_000_000]
    expect_found(answer, "two exact transfers", two, latency_s, byte_s, 1e-6)
    wide = [4**power for power in range(1, 16)]  # 4 B to 1 GiB
    expect_found(answer, "exact transfers from 4 B to 1 GiB", wide, latency_s, byte_s, 1e-6)
    large = [3 * 10**5 * n for n in range(1, 9)]  # the smallest takes about twice the latency
    expect_found(answer, "exact transfers of 0.3 to 2.4 MB", draw.sample(large, len(large)), latency_s, byte_s, 1e-6)
    noisy = draw.sample(wide * 4, 60)
    noise = [draw.uniform(0.98, 1.02) for _ in noisy]
    expect_found(answer, "60 transfers from 4 B to 1 GiB, in mixed order and each up to 2 % off", noisy, latency_s, byte_s,
                 0.02, noise)  # fmt: skip


def expect_found(
    answer: Any,
    what: str,
    sizes: list[int],
    latency_s: float,
    byte_s: float,
    tolerance: float,
    noise: Sequence[float] = (),
) -> None:
    seconds = [latency_s + size / byte_s for size in sizes]
    if noise:
        seconds = [time * factor for time, factor in zip(seconds, noise, strict=True)]
    found = answer.fit_transfer_model(sizes, seconds)
    call = f"fit_transfer_model of {what}"
    is_pair = isinstance(found, tuple | list) and len(found) == 2
    expect(is_pair, f"{call} returned {shown(found)}; return (latency in seconds, bandwidth in bytes per second)")
    for value, name in zip(found, ("latency", "bandwidth"), strict=True):
        expect_number(value, f"{call}: the {name}", "two floats")
    hint = "; large transfers are off by more than the latency: let each count in per cent" if noise else ""
    expect(
        abs(found[0] - latency_s) <= tolerance * latency_s,
        f"{call} found a latency of {seconds_text(found[0])} and should find {seconds_text(latency_s)}{hint}",
    )
    expect(
        abs(found[1] - byte_s) <= tolerance * byte_s,
        f"{call} found {rate_text(found[1], 'B/s')} and should find {rate_text(byte_s, 'B/s')}",
    )


def fits_absolute_errors(sizes_bytes: Sequence[int], seconds: Sequence[float]) -> Fit:
    size, time = (torch.tensor(values, dtype=torch.float64) for values in (sizes_bytes, seconds))
    slope = ((size - size.mean()) * (time - time.mean())).sum() / (size - size.mean()).square().sum()
    return (time.mean() - slope * size.mean()).item(), (1 / slope).item()


def reads_off_the_ends(sizes_bytes: Sequence[int], seconds: Sequence[float]) -> Fit:
    return min(seconds), max(sizes_bytes) / max(seconds)


def draws_a_line_through_the_ends(sizes_bytes: Sequence[int], seconds: Sequence[float]) -> Fit:
    (small, quick), (large, slow) = sorted(zip(sizes_bytes, seconds, strict=True))[:: len(seconds) - 1]
    seconds_per_byte = (slow - quick) / (large - small)
    return quick - small * seconds_per_byte, 1 / seconds_per_byte


def averages_the_rates(sizes_bytes: Sequence[int], seconds: Sequence[float]) -> Fit:
    rates = [size / time for size, time in zip(sizes_bytes, seconds, strict=True)]
    return draws_a_line_through_the_ends(sizes_bytes, seconds)[0], sum(rates) / len(rates)


WRONG = {
    "fits the absolute errors": ({"fit_transfer_model": fits_absolute_errors}, "let each count in per cent"),
    "takes the fastest transfer for the latency": ({"fit_transfer_model": reads_off_the_ends}, "should find"),
    "averages the rates": ({"fit_transfer_model": averages_the_rates}, "B/s and should find"),
}
