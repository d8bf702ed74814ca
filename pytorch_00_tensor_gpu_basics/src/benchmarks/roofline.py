"""Everything in one picture: what limits a program is its operations for each byte (Williams et al. 2009)."""

from dataclasses import dataclass
from typing import Any

from pytorch_00_tensor_gpu_basics.src.benchmarks.card import raised_to
from pytorch_00_tensor_gpu_basics.src.benchmarks.memory import fitting
from shared.hardware import matmul_peak, memory_bandwidth
from shared.lesson import Lesson
from shared.timing import measure
from shared.units import percent, rate_text

import torch


@dataclass(frozen=True)
class Point:
    """One measured kernel on the roofline."""

    name: str
    flops: int
    bytes_moved: int
    seconds: float

    @property
    def intensity(self) -> float:
        return self.flops / self.bytes_moved

    @property
    def rate(self) -> float:
        return self.flops / self.seconds


def draw_roofline(lesson: Lesson) -> None:
    dtype = torch.float32 if lesson.device.type in ("cpu", "mps") else torch.float16
    size = torch.finfo(dtype).bits // 8
    lesson.section(
        "The roofline of this machine",
        "A kernel that does few operations on each byte can only be as fast as memory delivers (the slope); one that "
        "does many can only be as fast as the multipliers (the flat roof). Where a kernel lies tells you what to "
        "improve: left of the ridge move fewer bytes, right of it use a faster format. A roof is a best, so each point is "
        "the best of its samples too.",
    )
    peak, bandwidth = matmul_peak(lesson.device, dtype), memory_bandwidth(lesson.device)
    points = measure_points(lesson, dtype, size)
    best_rate = max(point.rate for point in points)
    best_bytes = max(point.bytes_moved / point.seconds for point in points)
    peak, bandwidth = raised_to(peak, best_rate, "a product"), raised_to(bandwidth, best_bytes, "a kernel")
    # A device that nobody knows gets the best of this run as its roof.
    roof, slope = peak.value if peak else best_rate, bandwidth.value if bandwidth else best_bytes
    rows = []
    for point in points:
        attainable = min(roof, slope * point.intensity)
        lesson.record(
            "roofline",
            point.rate / 1e9,
            "GFLOP/s",
            kernel=point.name,
            intensity=point.intensity,
            attainable_gflops=attainable / 1e9,
        )
        rows.append(
            {
                "kernel": point.name,
                "FLOP/byte": point.intensity,
                "reached": rate_text(point.rate, "FLOP/s"),
                "roof there": rate_text(attainable, "FLOP/s"),
                "share": percent(point.rate / attainable),
                "limited by": "memory" if slope * point.intensity < roof else "arithmetic",
            }
        )
    lesson.table(rows)
    if not lesson.quick:  # the results of tiny kernels never leave the cache
        lesson.check(
            "no kernel is above the roof",
            all(point.rate <= 1.05 * min(roof, slope * point.intensity) for point in points),
            f"highest at {max(point.rate / min(roof, slope * point.intensity) for point in points):.0%} of its roof",
        )
    thin, thick = (next(point for point in points if point.name.endswith(f"x {count}")) for count in (1, 32))
    lesson.check(
        "more operations for each byte make a memory-bound product faster",
        thick.rate > 3 * thin.rate,
        f"{thick.rate / thin.rate:.1f}x the rate with 32 columns as with one",
    )
    ridge = roof / slope
    best = max(points, key=lambda point: point.rate / min(roof, slope * point.intensity))
    lesson.shows(
        f"the ridge is at {ridge:,.0f} FLOP/byte. An addition of two {str(dtype).removeprefix('torch.')} tensors does "
        f"{points[0].intensity:.2g}, so it can never use more than {points[0].intensity / ridge:.2%} of the multipliers; "
        f"the best use of what is possible here is {best.name}, at {best.rate / min(roof, slope * best.intensity):.0%}."
    )

    def draw(ax: Any) -> None:
        low, high = (
            min(point.intensity for point in points) / 2,
            max(max(point.intensity for point in points), ridge) * 4,
        )
        xs = [low, ridge, high]
        ax.plot(xs, [min(roof, slope * x) / 1e9 for x in xs], color="black", marker="", linestyle="-", label="limit")
        for name, marker in (("add", "s"), ("sum", "D"), ("gelu", "^"), ("product", "o")):
            chosen = [point for point in points if point.name.startswith(name)]
            ax.plot(
                [point.intensity for point in chosen],
                [point.rate / 1e9 for point in chosen],
                marker=marker,
                linestyle="" if len(chosen) == 1 else ":",
                label=chosen[0].name if len(chosen) == 1 else "n x n times n x 1, 2, 4, …",
            )
        ax.annotate(
            f"{slope / 1e9:,.0f} GB/s",
            (low * 2, slope * low * 2 / 1e9),
            rotation=0,
            textcoords="offset points",
            xytext=(-4, 14),
        )
        ax.annotate(rate_text(roof, "FLOP/s"), (ridge * 1.5, roof / 1e9), textcoords="offset points", xytext=(0, 6))
        ax.set(
            xscale="log",
            yscale="log",
            title=f"Roofline, {str(dtype).removeprefix('torch.')}",
            xlabel="operations for each byte moved (FLOP/B)",
            ylabel="GFLOP/s",
        )
        ax.legend(loc="lower right")

    lesson.figure("roofline", draw)


def measure_points(lesson: Lesson, dtype: torch.dtype, size: int) -> list[Point]:
    """Element-wise kernels at the left, products with ever more columns towards the right."""
    budget_s = lesson.pick(full=0.15, cpu=0.25, quick=0.03)
    count = fitting(lesson.pick(full=2**28, cpu=2**25, quick=2**21), 3 * size, lesson.device)
    a, b = (torch.randn(count, device=lesson.device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    elementwise = [
        ("add", 1, 3, lambda: torch.add(a, b, out=out)),
        ("sum", 1, 1, lambda: a.sum()),
        # x·(1 + tanh(√(2/π)(x + 0.044715x³)))/2, each tanh counted as one operation
        ("gelu", 9, 2, lambda: torch.ops.aten.gelu.out(a, approximate="tanh", out=out)),
    ]
    points = []
    for name, flops, passes, function in lesson.progress(elementwise, "element-wise"):
        # Only tiny arrays could still be in a cache when they are read again.
        seconds = min(measure(function, lesson.device, budget_s=budget_s, cold_cache=lesson.quick).samples_s)
        points.append(Point(name, flops * count, passes * size * count, seconds))
    n = lesson.pick(full=8192, cpu=4096, quick=512)
    left = torch.randn(n, n, device=lesson.device).to(dtype)
    for columns in lesson.progress(
        lesson.pick(full=[1, 8, 32, 128, 512, 2048, 8192], cpu=[1, 2, 4, 8, 32, 128, 512], quick=[1, 8, 32, 128]),
        "products",
    ):
        right = torch.randn(n, columns, device=lesson.device).to(dtype)
        target = torch.empty(n, columns, device=lesson.device, dtype=dtype)
        seconds = min(measure(lambda: torch.mm(left, right, out=target), lesson.device, budget_s=budget_s).samples_s)
        points.append(Point(f"product x {columns}", 2 * n * n * columns, size * (n * n + 2 * n * columns), seconds))
    return points
