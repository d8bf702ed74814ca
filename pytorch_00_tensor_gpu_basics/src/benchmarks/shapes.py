"""Why 4,095 can be slower than 4,096: products are cut into tiles, and tiles are dealt out in waves."""

from itertools import takewhile
from typing import Any

from pytorch_00_tensor_gpu_basics.src.benchmarks.card import in_unit
from shared.lesson import Lesson
from shared.timing import measure
from shared.units import seconds_text

import torch


def measure_shapes(lesson: Lesson) -> None:
    odd_and_even(lesson)
    thin_and_square(lesson)
    if lesson.device.type == "cuda":
        tiles_and_waves(lesson)


def product_rate(lesson: Lesson, m: int, k: int, n: int, dtype: torch.dtype) -> float:
    """Operations a second of an (m, k) by (k, n) product, recorded."""
    a = torch.randn(m, k, device=lesson.device).to(dtype)
    b = torch.randn(k, n, device=lesson.device).to(dtype)
    out = torch.empty(m, n, device=lesson.device, dtype=dtype)
    budget_s = lesson.pick(full=0.05, cpu=0.2, quick=0.02)
    timing = measure(lambda: torch.mm(a, b, out=out), lesson.device, budget_s=budget_s)
    rate = 2 * m * k * n / timing.median_s
    scale, unit = in_unit(lesson, "FLOP/s")
    lesson.record("product", rate / scale, unit, timing, m=m, k=k, n=n, dtype=dtype)
    return rate


def _dtype(lesson: Lesson) -> torch.dtype:
    return torch.float32 if lesson.device.type == "cpu" else torch.float16


def odd_and_even(lesson: Lesson) -> None:
    dtype = _dtype(lesson)
    lesson.section(
        "Round sizes",
        f"Square {str(dtype).removeprefix('torch.')} products of nearly the same size. Wide loads and tensor "
        "cores take 8 or 16 numbers at a time; rows whose length is no multiple of that start at crooked addresses.",
    )
    n = lesson.pick(full=4096, cpu=1024, quick=512)
    sizes = [n - 1, n - 2, n - 4, n - 8, n - 64, n, n + 1, n + 8]
    scale, unit = in_unit(lesson, "FLOP/s")
    rates = {size: product_rate(lesson, size, size, size, dtype) for size in lesson.progress(sizes, "sizes")}
    rows = [
        {
            "n": size,
            "divisible by": size & -size,
            unit: rates[size] / scale,
            f"of n = {n:,}": f"{rates[size] / rates[n]:.2f}x",
        }
        for size in sizes
    ]
    lesson.table(rows)
    if lesson.device.type == "cuda" and not lesson.quick:
        lesson.check(
            "a multiple of 64 is at least 1.1 times as fast as an odd size",
            rates[n] > 1.1 * rates[n - 1],
            f"{rates[n] / rates[n - 1]:.2f}x for {n:,} over {n - 1:,}",
        )
    else:
        spread = max(rates.values()) / min(rates.values())
        lesson.check(
            "sizes this close stay within a factor of 5 of each other", spread < 5, f"{spread:.2f}x between them"
        )
    crooked = rates[n - 1] / rates[n]
    lesson.shows(
        f"n = {n - 1:,} runs at {crooked:.2f} of the rate of n = {n:,}. "
        + (
            "Choose widths, vocabularies and batch sizes divisible by 64: a vocabulary of 50,257 padded to 50,304 is the "
            "well-known case."
            if crooked < 0.9
            else "So the library hides crooked sizes well here; in front of a GPU's tensor cores it rarely can."
        )
    )


def thin_and_square(lesson: Lesson) -> None:
    dtype = _dtype(lesson)
    size = torch.finfo(dtype).bits // 8
    lesson.section(
        "Thin and square products",
        "The same matrix times 1, 2, 4, … columns. Each column reuses the numbers already loaded, so many columns cost "
        "little more than one. That is why a server batches requests, and why decoding one token at a time is slow.",
    )
    n = lesson.pick(full=8192, cpu=2048, quick=256)
    columns = [count for count in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if count <= n]
    rows, rates = [], {}
    scale, unit = in_unit(lesson, "FLOP/s")
    for count in lesson.progress(columns, "columns"):
        rates[count] = product_rate(lesson, n, n, count, dtype)
        seconds = 2 * n * n * count / rates[count]
        rows.append(
            {
                "columns": count,
                "time": seconds_text(seconds),
                "per column": seconds_text(seconds / count),
                unit: rates[count] / scale,
                "GB/s": size * (n * n + 2 * n * count) / seconds / 1e9,
            }
        )
    lesson.table(rows)
    last = columns[-1]
    lesson.check(
        "many columns at once come cheaper than one by one",
        rates[last] > 2 * rates[1],
        f"{rates[last] / rates[1]:.0f}x cheaper per column with {last}",
    )
    lesson.shows(f"one column keeps this device at {rates[1] / rates[last]:.1%} of the rate of {last}. {reuse(rates)}")


def reuse(rates: dict[int, float]) -> str:
    """What the rates by number of columns say about how many come nearly for free."""
    times = {count: count / rate for count, rate in rates.items()}
    free = max(takewhile(lambda count: times[count] < 2 * times[1], times))
    if free > 1:
        return f"Up to {free} columns take less than twice as long as one: they are nearly free."
    second = sorted(times)[1]
    pays = next((count for count in times if count > 1 and times[count] / count < times[1]), None)
    return (
        f"Here even {second} take {times[second] / times[1]:.1f} times as long: the library has one kernel for a vector and "
        + (f"another for a matrix, which pays from {pays} columns on." if pays else "another for a matrix.")
    )


def tiles_and_waves(lesson: Lesson) -> None:
    dtype = _dtype(lesson)
    processors = torch.cuda.get_device_properties(lesson.device).multi_processor_count
    lesson.section(
        "Tiles and waves",
        f"The output is cut into tiles, such as 128 x 256, and each of the {processors} multiprocessors takes one at a time. "
        "One tile more than a full wave needs a second wave for itself, so the rate falls and climbs like a saw. Sizes "
        "just below an edge are the cheap ones.",
    )
    step, width = 128, lesson.pick(full=4096, quick=512)
    sizes = list(range(step, lesson.pick(full=6144, quick=512) + 1, step))
    rates = {}
    for m in lesson.progress(sizes, "sizes"):
        rates[m] = product_rate(lesson, m, width, width, dtype)
    falls = {m: rates[m] / rates[m - step] for m in sizes[1:]}
    edge = min(falls, key=lambda m: falls[m])
    best = max(rates.values())
    lesson.check(
        f"{step} rows are too few tiles to keep every multiprocessor busy",
        rates[step] < 0.8 * best,
        f"{rates[step] / best:.0%} of the best rate",
    )
    lesson.shows(
        f"the deepest edge is at {edge:,} rows: the rate falls to {falls[edge]:.0%} of that at {edge - step:,}, although "
        "there is more work to share."
    )

    def draw(ax: Any) -> None:
        ax.plot(sizes, [rates[m] / 1e12 for m in sizes])
        ax.set(
            title="Waves: product rate as rows are added",
            xlabel=f"m of an m x {width} by {width} x {width} product",
            ylabel="TFLOP/s",
            ylim=(0, None),
        )

    lesson.figure("waves", draw)
