"""The same product in every number format that the device can multiply, with what each costs in accuracy."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import mul
from typing import Any

from pytorch_00_tensor_gpu_basics.src.benchmarks.card import in_unit, raised_to
from shared.device import synchronize
from shared.hardware import matmul_peak
from shared.lesson import Lesson
from shared.timing import measure
from shared.units import percent, seconds_text, significant

import torch

# m x k times k x n. The long k of the fourth lets one output tile stay in registers for long: the best known shape for
# bfloat16 on an H100 (stas00/ml-engineering, mamf-finder table). The last is one decoding step of a language model.
GPU_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (4096, 16384, 4096), (2048, 13312, 2048), (16, 8192, 8192))
SLOWEST_S = 1.0  # a format that has to be emulated can be a thousand times slower; it gets smaller products


@dataclass(frozen=True)
class Format:
    """A number format as matrix products know it."""

    name: str
    dtype: torch.dtype
    error_bound: float  # of the product, relative to its norm, far above what the format explains
    tf32: bool = False


FORMATS = (
    Format("float64", torch.float64, 1e-13),
    Format("float32", torch.float32, 1e-5),
    Format("TF32", torch.float32, 5e-3, tf32=True),
    Format("bfloat16", torch.bfloat16, 3e-2),
    Format("float16", torch.float16, 5e-3),
    Format("float8", torch.float8_e4m3fn, 0.2),
    Format("int8", torch.int8, 0.0),
)


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Lets float32 products round their inputs to TF32's 10 bits, as PyTorch's users may choose."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def operands(form: Format, m: int, k: int, n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random (m, k) and (k, n) matrices; the second lies in memory by columns, as the weight of a linear layer does.

    It is the only order that tensor cores take for float8 on Hopper, and the fast one for int8.
    """
    if form.dtype == torch.int8:
        a, b = (torch.randint(-128, 128, shape, device=device, dtype=torch.int8) for shape in ((m, k), (n, k)))
    else:
        a, b = (torch.randn(shape, device=device).to(form.dtype) for shape in ((m, k), (n, k)))
    return a, b.t()


def product(form: Format, a: torch.Tensor, b: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The call that multiplies in this format: int8 gives int32, float8 gives bfloat16."""
    if form.dtype == torch.int8:
        return lambda: torch._int_mm(a, b)
    if form.dtype == torch.float8_e4m3fn:
        one = torch.ones((), device=a.device)
        # Sums stay in the tensor cores, as in the forward pass of float8 training: moving them out every few steps costs
        # Hopper 10 to 20 % (pytorch/ao issue 2377). Ada's peak is one with float32 sums, so there it stays off.
        fast = a.device.type == "cuda" and torch.cuda.get_device_capability(a.device) >= (9, 0)
        return lambda: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=fast)
    out = torch.empty(a.shape[0], b.shape[1], device=a.device, dtype=a.dtype)
    return lambda: torch.mm(a, b, out=out)


def exact_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product of two small matrices with every sum rounded once, at its end (math.fsum): the yardstick for errors."""
    columns = b.T.tolist()
    return torch.tensor(
        [[math.fsum(map(mul, row, column)) for column in columns] for row in a.tolist()], dtype=torch.float64
    )


def relative_error(form: Format, device: torch.device) -> float:
    """Norm of (product - exact product) over the norm of the exact one, rounding of the inputs included."""
    n = 64
    a, b = operands(form, n, n, n, device)
    if form.dtype == torch.int8:
        drawn_a, drawn_b = a.cpu().double(), b.cpu().double()
    else:  # draw in float64, then round to the format as operands() does
        drawn_a, drawn_b = (torch.randn(n, n, dtype=torch.float64) for _ in range(2))
        a.copy_(drawn_a.to(form.dtype))
        b.copy_(drawn_b.to(form.dtype))
    exact = exact_product(drawn_a, drawn_b)
    with tf32_products(form.tf32):
        got = product(form, a, b)().cpu().double()
    return ((got - exact).norm() / exact.norm()).item()


def measure_precisions(lesson: Lesson) -> None:
    lesson.section(
        "The price of precision",
        "One product in every format. Fewer bits mean fewer transistors for a multiplier and fewer bytes to move, so each "
        "halving should double the speed where the chip has units for it. The error beside the speed is what you pay; it "
        "is relative to a product whose every sum is rounded once.",
    )
    rows: list[dict[str, object]] = []
    best_rates, errors = {}, {}
    for form in lesson.progress(FORMATS, "formats"):
        if form.tf32 and not has_tf32(lesson.device):
            lesson.skip("TF32 products.", "an NVIDIA GPU of compute capability 8.0 or newer")
            continue
        try:
            errors[form.name] = relative_error(form, lesson.device)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as problem:
            reason = " ".join(str(problem).split())[:90]
            lesson.skip(f"{form.name} products.", f"another device: this one says {reason!r}")
            continue
        with tf32_products(form.tf32):
            lesson.record("relative error", errors[form.name], "1", format=form.name)
            best_rates[form.name] = measure_format(lesson, form, errors[form.name], rows)
    lesson.table(rows)
    bounds = {form.name: form.error_bound for form in FORMATS}
    worst = max(errors, key=lambda name: errors[name] / max(bounds[name], 1e-300) if errors[name] else 0.0)
    lesson.check(
        "every format is as accurate as its bits promise, and no worse",
        all(error <= bounds[name] for name, error in errors.items()),
        f"closest to its bound: {worst}, {errors[worst]:.1e} of {bounds[worst]:.0e}",
    )
    draw_formats(lesson, best_rates)
    fastest = max(best_rates, key=lambda name: best_rates[name])
    gain = best_rates[fastest] / best_rates["float32"]
    slowest = min(best_rates, key=lambda name: best_rates[name])
    lesson.shows(
        f"{fastest} is the fastest format here, {gain:.1f} times float32; {slowest} is the slowest, "
        f"{best_rates[slowest] / best_rates['float32']:.2g} times float32. A format without units of its own is "
        "converted or emulated, so a smaller one is not faster by itself: ask the chip, not the number of bits."
    )


def has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def measure_format(lesson: Lesson, form: Format, error: float, rows: list[dict[str, object]]) -> float:
    """Adds this format's rows for all shapes; returns its best rate in operations a second."""
    limit = matmul_peak(lesson.device, form.dtype, tf32=form.tf32)
    scale, unit = in_unit(lesson, "OP/s" if form.dtype == torch.int8 else "FLOP/s")
    _, heading = in_unit(lesson, "OP/s")
    best = 0.0
    for m, k, n in shapes_for(lesson, form):
        if form.dtype == torch.int8 and m <= 16:
            continue  # torch._int_mm wants more rows
        if 2 * m * k * n > best * SLOWEST_S / 2 > 0:
            continue  # emulated, such as float64 and bfloat16 on a T4
        a, b = operands(form, m, k, n, lesson.device)
        timing = measure(product(form, a, b), lesson.device, budget_s=lesson.pick(full=0.15, quick=0.03))
        rate = 2 * m * k * n / timing.median_s
        best = max(best, rate)
        limit = raised_to(limit, rate, f"this {form.name} product")
        lesson.record("product", rate / scale, unit, timing, limit, format=form.name, m=m, k=k, n=n)
        rows.append(
            {
                "format": form.name,
                "m x k x n": f"{m} x {k} x {n}",
                "time": seconds_text(timing.median_s),
                heading: rate / scale,
                "limit": limit.value / scale if limit else None,
                "share": percent(rate / limit.value if limit else None),
                "error": f"{error:.1e}",
            }
        )
    return best


def shapes_for(lesson: Lesson, form: Format) -> tuple[tuple[int, int, int], ...]:
    if lesson.device.type == "cuda":
        return ((256, 256, 256),) if lesson.quick else GPU_SHAPES
    # A first small product tells how large a one fits into the time; formats differ by a factor of a thousand here.
    n = 128
    a, b = operands(form, n, n, n, lesson.device)
    multiply = product(form, a, b)
    multiply()
    synchronize(lesson.device)
    start = time.perf_counter()
    multiply()
    synchronize(lesson.device)
    seconds = time.perf_counter() - start
    largest = lesson.pick(full=1024, quick=256)
    while n < largest and 8 * seconds < SLOWEST_S / 8:
        n, seconds = 2 * n, 8 * seconds
    return ((n, n, n), (n, 4 * n, n // 4)) if not lesson.quick else ((n, n, n),)


def draw_formats(lesson: Lesson, best_rates: dict[str, float]) -> None:
    def draw(ax: Any) -> None:
        names = list(best_rates)
        ax.set_axisbelow(True)
        bars = ax.bar(names, [best_rates[name] / 1e9 for name in names], color="#0b5fa5", width=0.6)
        ax.bar_label(bars, [f"{significant(best_rates[name] / 1e9)}" for name in names], padding=3)
        peaks = False
        for index, form in enumerate(form for form in FORMATS if form.name in best_rates):
            limit = matmul_peak(lesson.device, form.dtype, tf32=form.tf32)
            if limit and limit.kind != "measured":
                peaks = True
                ax.hlines(limit.value / 1e9, index - 0.4, index + 0.4, color="black", linewidth=2)
        title = "Best product in each format" + ("; the black line is the limit" if peaks else "")
        ax.set(yscale="log", title=title, ylabel="10⁹ operations a second")
        ax.margins(y=0.15)

    lesson.figure("precision", draw)
