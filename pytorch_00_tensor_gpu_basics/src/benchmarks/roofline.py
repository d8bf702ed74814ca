"""Everything in one picture: what limits a program is its operations for each byte (Williams et al. 2009)."""

from dataclasses import dataclass
from typing import Any

from pytorch_00_tensor_gpu_basics.src.benchmarks.card import raised_to
from pytorch_00_tensor_gpu_basics.src.benchmarks.memory import fitting
from shared.hardware import Limit, matmul_peak, memory_bandwidth
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


@dataclass(frozen=True)
class Roof:
    """The two limits of a device, and what they allow a kernel together."""

    flops: float  # operations a second
    bandwidth: float  # bytes a second

    @property
    def ridge(self) -> float:
        """Operations for each byte from which on arithmetic is the limit."""
        return self.flops / self.bandwidth

    def at(self, intensity: float) -> float:
        """The highest rate that a kernel of this intensity can reach, in operations a second."""
        return min(self.flops, self.bandwidth * intensity)

    def share(self, point: Point) -> float:
        return point.rate / self.at(point.intensity)


def find_roof(lesson: Lesson, dtype: torch.dtype, points: list[Point]) -> Roof:
    """The data sheet's limits; on a CPU, or a GPU that nobody knows, the best that was seen."""
    best_rate = max(point.rate for point in points)
    best_bytes = max(point.bytes_moved / point.seconds for point in points)
    peak = raised_to(matmul_peak(lesson.device, dtype), best_rate, "a product")
    bandwidth = raised_to(memory_bandwidth(lesson.device), best_bytes, "a kernel")
    return Roof(peak.value if peak else best_rate, bandwidth.value if bandwidth else best_bytes)


def draw_roofline(lesson: Lesson) -> None:
    dtype = torch.float32 if lesson.device.type in ("cpu", "mps") else torch.float16
    dtype_name = str(dtype).removeprefix("torch.")
    lesson.section(
        "The roofline of this machine",
        "A kernel that does few operations on each byte can only be as fast as memory delivers (the slope); one that "
        "does many can only be as fast as the multipliers (the flat roof). Where a kernel lies tells you what to "
        "improve: left of the ridge move fewer bytes, right of it use a faster format. A roof is a best, so each point is "
        "the best of its samples too.",
    )
    points = measure_points(lesson, dtype)
    roof = find_roof(lesson, dtype, points)
    rows = []
    for point in points:
        limit = Limit(roof.at(point.intensity), "FLOP/s", "the roofline at this intensity", "derived")
        lesson.record("kernel", point.rate / 1e9, "GFLOP/s", None, limit, kernel=point.name, intensity=point.intensity)
        rows.append(
            {
                "kernel": point.name,
                "FLOP/byte": point.intensity,
                "reached": rate_text(point.rate, "FLOP/s"),
                "roof there": rate_text(limit.value, "FLOP/s"),
                "share": percent(roof.share(point)),
                "limited by": "memory" if point.intensity < roof.ridge else "arithmetic",
            }
        )
    lesson.table(rows)
    best = max(points, key=roof.share)
    if not lesson.quick:  # the results of tiny kernels never leave the cache
        lesson.check(
            "no kernel is above the roof", roof.share(best) <= 1.05, f"{best.name}: {percent(roof.share(best))}"
        )
    thin, thick = (next(point for point in points if point.name.endswith(f"x {count}")) for count in (1, 32))
    lesson.check(
        "more operations for each byte make a memory-bound product faster",
        thick.rate > 3 * thin.rate,
        f"{thick.rate / thin.rate:.1f}x the rate with 32 columns as with one",
    )
    add = points[0].intensity
    lesson.shows(
        f"the ridge is at {roof.ridge:,.0f} FLOP/byte. An addition of two {dtype_name} tensors does {add:.2g}, so it can "
        f"never use more than {percent(add / roof.ridge)} of the multipliers; the best use of what is possible here is "
        f"{best.name}, at {percent(roof.share(best))}."
    )
    draw_picture(lesson, roof, points, f"Roofline, {dtype_name}")


def draw_picture(lesson: Lesson, roof: Roof, points: list[Point], title: str) -> None:
    low = min(point.intensity for point in points) / 2
    high = 4 * max(roof.ridge, *(point.intensity for point in points))

    def draw(ax: Any) -> None:
        edges = [low, roof.ridge, high]
        ax.plot(edges, [roof.at(x) / 1e9 for x in edges], color="black", marker="", linestyle="-", label="limit")
        for name, marker in (("add", "s"), ("sum", "D"), ("gelu", "^")):
            point = next(point for point in points if point.name == name)
            ax.plot([point.intensity], [point.rate / 1e9], marker=marker, linestyle="", label=name)
        products = [point for point in points if point.name.startswith("product")]
        xs, ys = [point.intensity for point in products], [point.rate / 1e9 for point in products]
        ax.plot(xs, ys, marker="o", linestyle=":", label="n x n times n x 1, 2, 4, …")
        beside, above = (
            {"textcoords": "offset points", "xytext": (10, -4)},
            {"textcoords": "offset points", "xytext": (0, 6)},
        )
        ax.annotate(rate_text(roof.bandwidth, "B/s"), (2 * low, roof.at(2 * low) / 1e9), **beside)
        ax.annotate(rate_text(roof.flops, "FLOP/s"), (1.5 * roof.ridge, roof.flops / 1e9), **above)
        ax.set(
            xscale="log", yscale="log", title=title, ylabel="GFLOP/s", xlabel="operations for each byte moved (FLOP/B)"
        )
        ax.set_ylim(top=2.5 * roof.flops / 1e9)
        ax.legend(loc="lower right")

    lesson.figure("roofline", draw)


def measure_points(lesson: Lesson, dtype: torch.dtype) -> list[Point]:
    """Element-wise kernels at the left, products with ever more columns towards the right."""
    size = torch.finfo(dtype).bits // 8
    budget_s = lesson.pick(full=0.15, cpu=0.2, quick=0.03)
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
        seconds = measure(function, lesson.device, budget_s=budget_s, cold_cache=lesson.quick).best_s
        points.append(Point(name, flops * count, passes * size * count, seconds))
    n = lesson.pick(full=8192, cpu=4096, quick=512)
    left = torch.randn(n, n, device=lesson.device).to(dtype)
    for columns in lesson.progress(
        lesson.pick(full=[1, 8, 32, 128, 512, 2048, 8192], cpu=[1, 2, 4, 8, 32, 128, 512], quick=[1, 8, 32, 128]),
        "products",
    ):
        right = torch.randn(n, columns, device=lesson.device).to(dtype)
        target = torch.empty(n, columns, device=lesson.device, dtype=dtype)
        seconds = measure(lambda: torch.mm(left, right, out=target), lesson.device, budget_s=budget_s).best_s
        points.append(Point(f"product x {columns}", 2 * n * n * columns, size * (n * n + 2 * n * columns), seconds))
    return points
