"""How many bytes a second this device's memory really moves, and what its caches add."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytorch_00_tensor_gpu_basics.src.benchmarks.card import raised_to
from shared.device import memory
from shared.hardware import memory_bandwidth
from shared.lesson import Lesson
from shared.timing import Timing, measure
from shared.units import bytes_text, percent, seconds_text

import torch


@dataclass(frozen=True)
class Kernel:
    """One of the STREAM kernels (McCalpin 1995), and the bytes that it must move for each float32 element."""

    name: str
    meaning: str
    bytes_per_element: int
    run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]


KERNELS = (
    Kernel("copy", "c = a", 8, lambda a, b, c: c.copy_(a)),
    Kernel("scale", "c = 3a", 8, lambda a, b, c: torch.mul(a, 3.0, out=c)),
    Kernel("add", "c = a + b", 12, lambda a, b, c: torch.add(a, b, out=c)),
    Kernel("triad", "c = a + 3b", 12, lambda a, b, c: torch.add(a, b, alpha=3.0, out=c)),
    Kernel("sum", "Σ a", 4, lambda a, b, c: a.sum()),
)


def fitting(count: int, bytes_each: int, device: torch.device) -> int:
    """`count`, halved until that many elements of `bytes_each` bytes take at most half of the free memory."""
    now = memory(device)
    if now.free_bytes is not None:
        free_bytes = now.free_bytes + (now.reserved_bytes or 0) - (now.allocated_bytes or 0)
        while count * bytes_each > free_bytes / 2 and count > 1:
            count //= 2
    return count


def measure_memory(lesson: Lesson) -> None:
    stream_kernels(lesson)
    cache_sweep(lesson)


def stream_kernels(lesson: Lesson) -> None:
    lesson.section(
        "Memory bandwidth",
        "Five kernels that do almost no arithmetic, on arrays far larger than any cache: what they take is what memory "
        "takes. Activations, optimiser steps, normalisations and the decoding of a language model all live here.",
    )
    count = fitting(lesson.pick(full=2**28, cpu=2**25, quick=2**24), 12, lesson.device)
    a, b, c = (torch.randn(count, device=lesson.device) for _ in range(3))
    timings, rates = {}, {}
    for kernel in lesson.progress(KERNELS, "kernels"):
        # No cold cache: none of these arrays is still in one when it is read again.
        budget_s = lesson.pick(full=0.4, quick=0.05)
        timing = measure(lambda: kernel.run(a, b, c), lesson.device, budget_s=budget_s, cold_cache=lesson.quick)
        timings[kernel.name] = timing
        rates[kernel.name] = kernel.bytes_per_element * count / timing.median_s / 1e9
    best = max(rates, key=lambda name: rates[name])
    limit = raised_to(memory_bandwidth(lesson.device), rates[best] * 1e9, f"this {best}")
    rows = []
    for kernel in KERNELS:
        rate, timing = rates[kernel.name], timings[kernel.name]
        lesson.record("bandwidth", rate, "GB/s", timing, limit, kernel=kernel.name, elements=count)
        rows.append(
            {
                "kernel": kernel.name,
                "": kernel.meaning,
                "bytes/element": kernel.bytes_per_element,
                "time": seconds_text(timing.median_s),
                "GB/s": rate,
                "limit": limit.value / 1e9 if limit else None,
                "share": percent(rate * 1e9 / limit.value if limit else None),
            }
        )
    lesson.table(rows, best=list(rates).index(best))
    KERNELS[3].run(a, b, c)
    part = slice(0, 100_000)
    exact = a[part].double() + 3 * b[part].double() if lesson.device.type != "mps" else a[part] + 3 * b[part]
    error = (c[part] - exact).abs().max().item()
    lesson.check("triad wrote a + 3b", error < 1e-5, f"largest error {error:.1e} on {min(count, 100_000):,} elements")
    if limit and limit.kind == "data sheet" and not lesson.quick:  # tiny arrays never leave the cache
        lesson.check(
            "no kernel beats the data sheet",
            rates[best] * 1e9 < 1.02 * limit.value,
            f"{best}: {percent(rates[best] * 1e9 / limit.value)}",
        )
    weights_gb = 14  # 7 billion parameters in bfloat16
    lesson.shows(
        f"{best} moves {rates[best]:,.0f} GB/s. A language model reads all of its weights for every token, so one with "
        f"7 billion parameters in bfloat16 ({weights_gb} GB) could give at most {rates[best] / weights_gb:,.1f} tokens "
        "a second from this memory, however many operations the chip can do."
    )


def cache_sweep(lesson: Lesson) -> None:
    lesson.section(
        "Where the caches end",
        "The same copy over growing arrays. While both arrays fit into a cache the data never leaves the chip; when they "
        "do not, the rate falls to that of memory. To the left the price of the call hides all of it.",
    )
    largest = lesson.pick(full=2**30, cpu=2**28, quick=2**24)
    sizes = [2**power for power in range(lesson.pick(full=16, cpu=13, quick=14), largest.bit_length())]
    rows, rates = [], {}
    for size in lesson.progress(sizes, "copying"):
        a = torch.randn(max(1, size // 8), device=lesson.device)  # two float32 arrays of size/2 bytes each
        c = torch.empty_like(a)
        timing: Timing = measure(
            lambda: c.copy_(a),
            lesson.device,
            budget_s=lesson.pick(full=0.1, quick=0.02),
            cold_cache=False,
            hide_launch=True,
        )
        rates[size] = lesson.record("copy", size / timing.median_s / 1e9, "GB/s", timing, bytes=size)
        rows.append({"both arrays": bytes_text(size), "time": seconds_text(timing.median_s), "GB/s": rates[size]})
    best = max(rates, key=lambda size: rates[size])
    lesson.table(rows, best=sizes.index(best))
    lesson.check(
        "the smallest copy is slowed by the price of its call",
        rates[sizes[0]] < 0.8 * rates[best],
        f"{rates[sizes[0]]:.1f} against {rates[best]:.1f} GB/s",
    )
    gain = rates[best] / rates[largest]
    lesson.shows(
        f"the best rate, {rates[best]:,.0f} GB/s, is at {bytes_text(best)}, {gain:.1f} times the rate at "
        f"{bytes_text(largest)}. Work that is cut into pieces of that size, each finished before the next begins, runs "
        "from the cache; that is what tiling and fused kernels do."
    )
    limit = memory_bandwidth(lesson.device)

    def draw(ax: Any) -> None:
        ax.plot([size / 2**20 for size in sizes], [rates[size] for size in sizes], label="copy, read + write")
        if limit:
            ax.axhline(limit.value / 1e9, color="black", linewidth=1, label=f"memory: {limit.kind}")
        ax.set(
            xscale="log",
            title="Copy rate by size: caches, then memory",
            xlabel="bytes in both arrays (MiB)",
            ylabel="GB/s",
            ylim=(0, None),
        )
        ax.legend()

    lesson.figure("memory_by_size", draw)
