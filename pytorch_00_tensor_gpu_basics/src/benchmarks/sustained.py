"""What is left of the speed after 20 seconds of load: heat and power decide, and the driver says which."""

import time
from typing import Any

from pytorch_00_tensor_gpu_basics.src.benchmarks.card import in_unit, label, raised_to
from shared.device import synchronize
from shared.hardware import matmul_peak
from shared.lesson import Lesson
from shared.telemetry import telemetry_for
from shared.timing import measure, quantile
from shared.units import percent

import torch


def measure_sustained(lesson: Lesson) -> None:
    duration_s = lesson.pick(full=20.0, cpu=3.0, quick=0.5)
    dtype = torch.float32 if lesson.device.type == "cpu" else torch.float16
    lesson.section(
        "Under load",
        f"Every figure so far came from a fraction of a second. Here one {str(dtype).removeprefix('torch.')} product is repeated "
        f"for {duration_s:g} s. A chip that reaches its power limit or gets hot lowers its clock, and a laptop or a shared "
        "machine slows down for reasons of its own. Training runs at this speed, not at the one of a short benchmark.",
    )
    n = lesson.pick(full=8192, cpu=1024, quick=256)
    a, b = (torch.randn(n, n, device=lesson.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    one_s = measure(lambda: torch.mm(a, b, out=out), lesson.device, budget_s=0.05).median_s
    repeats = max(1, min(1000, round(0.05 / one_s)))  # a point about every 50 ms
    ends, rates = [], []
    with telemetry_for(lesson.device) as telemetry:
        start = last = time.perf_counter()
        while last - start < duration_s:
            for _ in range(repeats):
                torch.mm(a, b, out=out)
            synchronize(lesson.device)
            now = time.perf_counter()
            rates.append(repeats * 2 * n**3 / (now - last))
            ends.append(now - start)
            last = now
    tenth = max(1, len(rates) // 10)
    first, settled = quantile(rates[:tenth], 0.5), quantile(rates[-tenth:], 0.5)
    limit = raised_to(matmul_peak(lesson.device, dtype), max(first, settled), "this product")
    scale, unit = in_unit(lesson, "FLOP/s")
    lesson.record("sustained", settled / scale, unit, None, limit, seconds=duration_s, dtype=dtype)
    lesson.record("first tenth", first / scale, unit, None, limit, seconds=duration_s, dtype=dtype)
    lesson.table(
        [
            {
                "part of the run": name,
                unit: rate / scale,
                "share of the limit": percent(rate / limit.value if limit else None),
            }
            for name, rate in (("first tenth", first), ("last tenth", settled), ("slowest point", min(rates)))
        ]
    )
    summary = telemetry.summary()
    readings = {key: value for key, value in summary.items() if isinstance(value, dict) and "median" in value}
    lesson.table([{"reading": label(key), **value} for key, value in readings.items()])
    if not telemetry.available:
        lesson.note(f"No clocks or power readings: {telemetry.reason}")
    if slowed := summary.get("slowed_by"):
        shares = ", ".join(f"{reason} {percent(summary['throttle_reasons'][reason])} of the time" for reason in slowed)
        lesson.note(f"The driver held the clock back: {shares}.")
    lesson.check(
        "the run lasted as long as asked",
        duration_s <= ends[-1] < duration_s + 2 + 0.2 * duration_s,
        f"{ends[-1]:.1f} s in {len(rates)} points",
    )
    lesson.shows(
        f"at the end the product ran at {settled / first:.0%} of its rate at the beginning, and the slowest moment was at "
        f"{min(rates) / quantile(rates, 0.5):.0%} of the median. "
        + (
            "Short benchmarks can be believed here."
            if settled > 0.95 * first
            else "Plan long runs with the last figure."
        )
    )

    def draw(ax: Any) -> None:
        ax.plot(ends, [rate / scale for rate in rates], marker="", linewidth=1, label="product rate")
        ax.set(title="One product under load", xlabel="time (s)", ylabel=unit, ylim=(0, None))
        clocks = [
            (sample.time_s, sample.sm_clock_mhz)
            for sample in telemetry.samples
            if getattr(sample, "sm_clock_mhz", None)
        ]
        if clocks:
            right = ax.twinx()
            right.plot(
                [t for t, _ in clocks],
                [clock for _, clock in clocks],
                color="#c2410c",
                linestyle="--",
                marker="",
                label="SM clock",
            )
            right.set(ylabel="clock (MHz)", ylim=(0, None))
            right.grid(False)
            right.legend(loc="lower right")
        ax.legend(loc="lower left")

    lesson.figure("sustained", draw)
