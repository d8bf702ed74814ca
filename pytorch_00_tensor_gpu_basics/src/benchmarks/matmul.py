"""Matrix products by size: who wins, the CPU or the GPU, and when the way there costs more than it saves."""

import math
import os
from collections.abc import Callable
from typing import Any

from pytorch_00_tensor_gpu_basics.src.benchmarks.card import raised_to
from shared.hardware import matmul_peak
from shared.lesson import Lesson
from shared.timing import Timing, compare, measure
from shared.units import percent, seconds_text

import torch

CPU = torch.device("cpu")


def measure_products(lesson: Lesson) -> None:
    if lesson.device.type == "cpu":
        threads_against_one(lesson)
    else:
        gpu_against_cpu(lesson)
    torch_against_numpy(lesson)


def products(n: int, device: torch.device) -> Callable[[], torch.Tensor]:
    """An n x n float32 product on `device` into a buffer made beforehand: 2n³ operations on 3n² numbers."""
    a, b = (torch.randn(n, n, device=device) for _ in range(2))
    out = torch.empty(n, n, device=device)
    return lambda: torch.mm(a, b, out=out)


def crossover(sizes: list[int], slower_at_first: list[float], faster_at_last: list[float]) -> float | None:
    """The size from which the second series of times stays below the first, on a straight line between logarithms.

    None where it never does; the smallest size where it always does.
    """
    gaps = [math.log(a / b) for a, b in zip(slower_at_first, faster_at_last, strict=True)]
    if gaps[-1] <= 0:
        return None
    last_loss = max((index for index, gap in enumerate(gaps) if gap <= 0), default=-1)
    if last_loss == -1:
        return float(sizes[0])
    low, high = math.log(sizes[last_loss]), math.log(sizes[last_loss + 1])
    share = -gaps[last_loss] / (gaps[last_loss + 1] - gaps[last_loss])
    return math.exp(low + share * (high - low))


def gpu_against_cpu(lesson: Lesson) -> None:
    lesson.section(
        "A product on the CPU and on the GPU",
        "The same float32 product three times: on the CPU, on the GPU with its data already there, and on the GPU with "
        "both inputs sent and the result fetched. The question is never whether the GPU is fast, but from which size on "
        "the trip pays.",
    )
    sizes = lesson.pick(full=[32, 64, 128, 256, 512, 1024, 2048, 4096], quick=[32, 64, 128, 256])
    budget = lesson.pick(full=0.1, quick=0.03)
    ways: dict[str, list[float]] = {"CPU": [], "GPU": [], "GPU with transfers": []}
    rows = []
    for n in lesson.progress(sizes, "products"):
        a, b = (torch.randn(n, n) for _ in range(2))
        timings = {
            "CPU": measure(products(n, CPU), CPU, budget_s=budget),
            "GPU": measure(products(n, lesson.device), lesson.device, budget_s=budget),
            "GPU with transfers": measure(_there_and_back(a, b, lesson.device), CPU, budget_s=budget),
        }
        for way, timing in timings.items():
            ways[way].append(timing.median_s)
            lesson.record("product", 2 * n**3 / timing.median_s / 1e9, "GFLOP/s", timing, way=way, n=n)
        rows.append(
            {
                "n": n,
                **{way: seconds_text(timing.median_s) for way, timing in timings.items()},
                "GPU gain": f"{timings['CPU'].median_s / timings['GPU'].median_s:.1f}x",
                "with transfers": f"{timings['CPU'].median_s / timings['GPU with transfers'].median_s:.1f}x",
            }
        )
    lesson.table(rows)
    resident, sent = (
        crossover(sizes, ways["CPU"], ways["GPU"]),
        crossover(sizes, ways["CPU"], ways["GPU with transfers"]),
    )
    lesson.check(
        "transfers never make it faster",
        all(b >= 0.9 * a for a, b in zip(ways["GPU"], ways["GPU with transfers"], strict=True)),
        f"{ways['GPU with transfers'][-1] / ways['GPU'][-1]:.1f}x the time at n = {sizes[-1]:,}",
    )
    if not lesson.quick:
        lesson.check(
            "the GPU wins at the largest size",
            resident is not None,
            f"{ways['CPU'][-1] / ways['GPU'][-1]:.0f}x at n = {sizes[-1]:,}",
        )
    a, b = (torch.randn(256, 256) for _ in range(2))
    error = (_there_and_back(a, b, lesson.device)().double() - a.double() @ b.double()).abs().max().item()
    lesson.check("both devices compute the same product", error < 0.01, f"largest difference from float64: {error:.1e}")
    where = {
        name: f"from n = {size:,.0f} on" if size else f"not up to n = {sizes[-1]:,}"
        for name, size in (("resident", resident), ("sent", sent))
    }
    for name, size in (("resident", resident), ("sent", sent)):
        if size:
            lesson.record("crossover", size, "n", data=name)
    lesson.shows(
        f"with its data in place the GPU wins {where['resident']}; with the trip there and back, {where['sent']}. A product "
        "does 2n³ operations on 3n² numbers, so larger ones pay the trip; an element-wise operation never does. "
        "Keep data on the GPU between steps."
    )

    def draw(ax: Any) -> None:
        for way, seconds in ways.items():
            ax.plot(sizes, [s * 1e3 for s in seconds], label=way)
        for size in {size for size in (resident, sent) if size}:
            ax.axvline(size, color="black", linewidth=0.8)
        ax.set(
            xscale="log",
            yscale="log",
            title="One float32 product: CPU, GPU, and the trip",
            xlabel="n of an n x n product",
            ylabel="time (ms)",
        )
        ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
        ax.legend()

    lesson.figure("matmul_crossover", draw)


def _there_and_back(a: torch.Tensor, b: torch.Tensor, device: torch.device) -> Callable[[], torch.Tensor]:
    return lambda: (a.to(device) @ b.to(device)).cpu()  # .cpu() waits, so a clock on the wall is right here


def threads_against_one(lesson: Lesson) -> None:
    lesson.section(
        "A product by size, with one thread and with all",
        "Without a GPU the same question is asked of threads: dividing a small product costs more than it saves. Larger "
        "products also come closer to the limit, because 2n³ operations share 3n² loads.",
    )
    sizes = lesson.pick(full=[], cpu=[16, 32, 64, 128, 256, 512, 1024, 2048], quick=[16, 32, 64, 128, 256])
    threads = torch.get_num_threads()
    alone: list[float] = []
    together: list[float] = []
    bests: list[Timing] = []
    for n in lesson.progress(sizes, "products"):
        product = products(n, CPU)
        timings = compare(
            {"one": _with_threads(1, product), "all": _with_threads(threads, product)},
            CPU,
            rounds=5,
            budget_s=lesson.pick(full=0.2, quick=0.04),
        )
        alone.append(timings["one"].median_s)
        together.append(timings["all"].median_s)
        bests.append(min(timings.values(), key=lambda timing: timing.median_s))
    torch.set_num_threads(threads)
    rates = [2 * n**3 / best.median_s for n, best in zip(sizes, bests, strict=True)]
    peak = raised_to(matmul_peak(CPU, torch.float32), max(rates), "the best product of this table")
    for n, best, rate in zip(sizes, bests, rates, strict=True):
        lesson.record("product", rate / 1e9, "GFLOP/s", best, peak, n=n)
    lesson.table(
        [
            {
                "n": n,
                "1 thread": seconds_text(one),
                f"{threads} threads": seconds_text(all_threads),
                "gain": f"{one / all_threads:.2f}x",
                "GFLOP/s": rate / 1e9,
                "share of the limit": percent(rate / peak.value if peak else None),
            }
            for n, one, all_threads, rate in zip(sizes, alone, together, rates, strict=True)
        ],
        best=rates.index(max(rates)),
    )
    lesson.check(
        "the largest product runs at a higher rate than the smallest",
        rates[-1] > rates[0],
        f"{rates[-1] / 1e9:.1f} against {rates[0] / 1e9:.2f} GFLOP/s",
    )
    size = crossover(sizes, alone, together)
    if threads == 1:
        lesson.shows("PyTorch has one thread here, so there is nothing to divide.")
    elif size is None:
        lesson.shows(
            f"{threads} threads never beat one up to n = {sizes[-1]:,}: this machine's cores are busy with something "
            "else, or are two halves of one core."
        )
    else:
        lesson.shows(
            f"{threads} threads pay from n = {size:,.0f} on and are {alone[-1] / together[-1]:.2f} times as fast at "
            f"n = {sizes[-1]:,}. Below that, hand-outs and waiting cost more than the work. A GPU is the same trade with "
            "thousands of threads, so it needs larger work still."
        )

    def draw(ax: Any) -> None:
        ax.plot(sizes, [2 * n**3 / s / 1e9 for n, s in zip(sizes, alone, strict=True)], label="1 thread")
        ax.plot(sizes, [2 * n**3 / s / 1e9 for n, s in zip(sizes, together, strict=True)], label=f"{threads} threads")
        if peak:
            ax.axhline(peak.value / 1e9, color="black", linewidth=1, label=f"limit: {peak.kind}")
        ax.set(
            xscale="log",
            title="One float32 product on the CPU: threads pay from some size on",
            xlabel="n of an n x n product",
            ylabel="GFLOP/s",
            ylim=(0, None),
        )
        ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
        ax.legend()

    lesson.figure("matmul_by_size", draw)


def _with_threads(count: int, function: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        torch.set_num_threads(count)  # costs well under a microsecond, in both ways alike
        function()

    return run


def torch_against_numpy(lesson: Lesson) -> None:
    lesson.section(
        "The same product in NumPy",
        "NumPy is the yardstick that everybody knows. On the CPU both hand the product to a library written for it: NumPy "
        "mostly to OpenBLAS, PyTorch to Intel's MKL, or to oneDNN for tensors in its own layout. So the difference is "
        "between libraries, not between languages.",
    )
    import numpy as np

    n = lesson.pick(full=2048, quick=512)
    a, b = (torch.randn(n, n) for _ in range(2))
    out, numpy_out = torch.empty(n, n), np.empty((n, n), dtype=np.float32)
    numpy_a, numpy_b = a.numpy(), b.numpy()  # the same memory, seen by NumPy
    ways: dict[str, Callable[[], object]] = {
        "numpy": lambda: np.matmul(numpy_a, numpy_b, out=numpy_out),
        "torch, out=": lambda: torch.mm(a, b, out=out),
        "torch, a @ b": lambda: a @ b,
    }
    if torch.backends.mkldnn.is_available():
        own_a, own_b = a.to_mkldnn(), b.t().contiguous().to_mkldnn()  # linear() multiplies by the transpose
        ways["torch, oneDNN"] = lambda: torch.nn.functional.linear(own_a, own_b)
    # The threads of two libraries must not meet: OpenBLAS's spin on their cores for a while after their work.
    pause_s, rounds = lesson.pick(full=(0.12, 7), quick=(0.03, 5))
    budget_s = lesson.pick(full=1.5, cpu=3.0, quick=0.2)
    timings = compare(ways, CPU, rounds=rounds, budget_s=budget_s, pause_s=pause_s)
    for way, timing in timings.items():
        lesson.record(
            "CPU product",
            2 * n**3 / timing.median_s / 1e9,
            "GFLOP/s",
            timing,
            way=way,
            n=n,
        )
    lesson.table(
        [
            {"way": way, "time": seconds_text(timing.median_s), "GFLOP/s": 2 * n**3 / timing.median_s / 1e9}
            for way, timing in timings.items()
        ]
    )
    # The best of each: what the library can do, where a median on a busy machine says what the neighbours did.
    best = {way: timing.best_s for way, timing in timings.items()}
    fastest = min((way for way in best if way != "numpy"), key=lambda way: best[way])
    gain = best["numpy"] / best[fastest]
    difference = float(np.abs(out.numpy() - numpy_out).max())
    lesson.check("torch and NumPy give the same product", difference < 1e-5 * n, f"largest difference {difference:.1e}")
    evidence = f"{gain:.2f}x, the best of {timings['numpy'].n} each"
    if torch.get_num_threads() == 1 < (os.cpu_count() or 1) and os.environ.get("OMP_NUM_THREADS") != "1":
        lesson.note(f"No contest: NumPy may use all cores while PyTorch has one thread here ({evidence}).")
    else:
        lesson.check("torch keeps up with NumPy on the CPU", gain > 0.9, evidence)
    lesson.shows(
        f"at their best, {fastest} is {gain:.2f} times as fast as NumPy at n = {n:,} on this processor. Handing the data "
        "over costs nothing, since both look at the same memory."
    )
