"""The one stopwatch of the lab: how long a function takes on a device, with its spread.

A GPU works through a queue, so a call returns before its work is done. On CUDA the time is taken by events that
the GPU itself stamps; elsewhere by a clock on the wall, read only after the device has finished. Warm-up is apart
(the first call compiles, allocates and fills caches), the median is reported because a mean follows the worst
interruption, and percentiles and n are always kept. Give it random data: zeros flatter a GPU by 13 % (fewer bits
flip, so the clocks stay higher; measured with 8192³ bfloat16 products on an H200).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import repeat

from shared.device import synchronize

import torch

Function = Callable[[], object]

# More than any GPU's last-level cache (126 MB on a B200); triton.testing.do_bench overwrites as much.
FLUSH_BYTES = 256 * 2**20
# A sample shorter than this measures the clock rather than the work. Waiting for MPS alone costs about 0.2 ms.
SHORTEST_SAMPLE_S = {"cpu": 50e-6, "mps": 5e-3, "cuda": 0.0}


def quantile(samples: tuple[float, ...] | list[float], share: float) -> float:
    """The value below which `share` of the samples lie, interpolated between neighbours (NumPy's default)."""
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True)
class Timing:
    """Seconds for one call, as a set of samples; each sample is the mean over `calls_per_sample` calls in a row."""

    samples_s: tuple[float, ...]
    calls_per_sample: int
    method: str
    threads: int  # torch's CPU threads: torch.utils.benchmark silently uses one, so a figure needs its count

    @property
    def median_s(self) -> float:
        return quantile(self.samples_s, 0.5)

    @property
    def best_s(self) -> float:
        """The shortest sample: what the device does while nothing disturbs it. For ceilings, never for a plain result."""
        return min(self.samples_s)

    @property
    def p20_s(self) -> float:
        return quantile(self.samples_s, 0.2)

    @property
    def p80_s(self) -> float:
        return quantile(self.samples_s, 0.8)

    @property
    def n(self) -> int:
        return len(self.samples_s)


@dataclass(frozen=True)
class Ratio:
    """How many times longer one function takes than another: median and percentiles of the rounds' ratios."""

    median: float
    p20: float
    p80: float
    n: int

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.p20:.2f} to {self.p80:.2f}, {self.n} rounds)"


def measure(function: Function, device: torch.device, *, budget_s: float = 0.2, cold_cache: bool = True,
            hide_launch: bool = False) -> Timing:  # fmt: skip
    """Times `function` on `device` for about `budget_s` seconds, at least 5 samples (3 where one call takes a second).

    `cold_cache`: on cuda, 256 MiB of something else are read before each call, so that its inputs come from memory,
    as they do in a program that does anything else in between. `hide_launch`: on cuda, the stream is held until the
    whole call is queued, so that the gaps in which the GPU waits for Python stay out; the call must not synchronise.
    """
    clock = _clock(device)
    function()  # compiles and allocates
    synchronize(device)
    hold_s = _enqueue_seconds(function, device) if hide_launch and device.type == "cuda" else 0.0
    flush = _flush_buffer(device) if cold_cache and device.type == "cuda" else None

    def probe_s(work: Function, calls: int) -> float:
        # Twice: one alone may be long because it is cold or was interrupted, and not because it holds enough work.
        return max(1e-9, min(clock(work, device, calls, None, 0.0)() * calls for _ in range(2)))

    flush_s = probe_s(flush.sum, 1) if flush is not None else 0.0
    calls = 1
    while (sample_s := probe_s(function, calls)) < SHORTEST_SAMPLE_S[device.type]:
        calls *= 2
    for _ in range(min(100, int(0.2 * budget_s / sample_s))):  # caches, clocks, allocator
        function()
    fewest = 3 if sample_s > 1 else 5
    samples = max(fewest, min(1000, int(budget_s / (sample_s + hold_s + flush_s))))
    results = [clock(function, device, calls, flush, hold_s) for _ in range(samples)]
    synchronize(device)
    return Timing(tuple(result() for result in results), calls, clock.__doc__ or "", torch.get_num_threads())


def compare(functions: Mapping[str, Function], device: torch.device, *, rounds: int = 9,
            budget_s: float = 1.0, pause_s: float = 0.0) -> dict[str, Timing]:  # fmt: skip
    """Times several functions in turn, forwards in one round and backwards in the next, about `budget_s` in all.

    A machine's speed drifts with heat and neighbours; functions measured in the same rounds drift together, so the
    ratio of their samples, round by round (`ratio`), means something where two separate times do not. `pause_s` before
    each sample is for functions of two libraries: the threads of one may spin on their cores for 30 ms after its work.
    """
    clock = _clock(device)
    calls: dict[str, int] = {}
    for name, function in functions.items():
        function()
        synchronize(device)
        slot_s = budget_s / rounds / len(functions)
        first = max(clock(function, device, 1, None, 0.0)(), 1e-9)
        # The first estimate is cold and so too long for short functions; the second one is good enough.
        warm = max(clock(function, device, max(1, min(100, int(slot_s / first))), None, 0.0)(), 1e-9)
        calls[name] = max(1, int(slot_s / warm))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds):
        for name in list(functions)[:: 1 if turn % 2 == 0 else -1]:
            if pause_s:
                time.sleep(pause_s)
            samples[name].append(clock(functions[name], device, calls[name], None, 0.0)())
    threads = torch.get_num_threads()
    return {name: Timing(tuple(samples[name]), calls[name], clock.__doc__ or "", threads) for name in functions}


def ratio(slower: Timing, faster: Timing) -> Ratio:
    """How many times longer `slower` took, from two timings of the same `compare`."""
    ratios = [a / b for a, b in zip(slower.samples_s, faster.samples_s, strict=True)]
    return Ratio(quantile(ratios, 0.5), quantile(ratios, 0.2), quantile(ratios, 0.8), len(ratios))


# Of the function, its device, calls in a row, a buffer to read before them, and seconds to hold the stream.
Clock = Callable[[Function, torch.device, int, torch.Tensor | None, float], Callable[[], float]]


def _clock(device: torch.device) -> Clock:
    return _events if device.type == "cuda" else _wall_clock


def _wall_clock(
    function: Function, device: torch.device, calls: int, flush: torch.Tensor | None, hold_s: float
) -> Callable[[], float]:
    """wall clock, device synchronised"""
    synchronize(device)
    start = time.perf_counter()
    for _ in repeat(None, calls):
        function()
    synchronize(device)
    elapsed_s = time.perf_counter() - start
    return lambda: elapsed_s / calls


def _events(
    function: Function, device: torch.device, calls: int, flush: torch.Tensor | None, hold_s: float
) -> Callable[[], float]:
    """CUDA events"""
    if flush is not None:
        flush.sum()  # not zero_(): lines left to be written back would be written at the expense of the function
    if hold_s:
        torch.cuda._sleep(int(hold_s * 3e9))  # in clock cycles; no GPU runs faster than 3 GHz, so at least hold_s
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in repeat(None, calls):
        function()
    end.record()

    def seconds() -> float:
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / calls

    return seconds


def _flush_buffer(device: torch.device) -> torch.Tensor:
    buffer = torch.zeros(FLUSH_BYTES // 4, device=device)
    buffer.sum()  # the first time loads the kernel
    return buffer


def _enqueue_seconds(function: Function, device: torch.device) -> float:
    """How long Python needs to queue the call, doubled so that the stream is surely still held at its end."""
    synchronize(device)
    start = time.perf_counter()
    function()
    enqueued_s = time.perf_counter() - start
    synchronize(device)
    return min(0.05, 2 * enqueued_s + 20e-6)
