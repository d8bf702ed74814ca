"""A device of pretence, whose queue and clock are exact, and then the real one between two bounds that noise cannot move.

The bounds: the timed region contains the work of its calls, so it is no shorter than they are; and it lies within the
call of the stopwatch, so it is no longer than that.
"""

import random
import time
from collections.abc import Callable
from typing import Any

from shared.device import pick_device, synchronize
from shared.practice import expect
from shared.traps import expect_number
from shared.units import seconds_text

import torch


class PretendedDevice:
    """Python is busy for launch_s with each call; the device takes work_s for it, one after the other."""

    def __init__(self, launch_s: float, work_s: float, compile_s: float = 0.0, busy_s: float = 0.0) -> None:
        self.launch_s, self.work_s, self.compile_s = launch_s, work_s, compile_s
        self.now = 100.0
        self.free_at = self.now + busy_s
        self.calls = 0

    def call(self) -> None:
        self.now += self.launch_s + (self.compile_s if self.calls == 0 else 0.0)
        self.free_at = max(self.free_at, self.now) + self.work_s
        self.calls += 1

    def synchronize(self) -> None:
        self.now = max(self.now, self.free_at)

    def clock(self) -> float:
        return self.now


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    launch_s, work_s = draw.uniform(4e-6, 9e-6), draw.uniform(0.5e-3, 2e-3)
    quiet = "a device that needs {work} for a call"
    for calls in (10, 1, draw.randint(2, 30)):
        expect_between(answer, PretendedDevice(launch_s, work_s), calls, quiet)
    expect_between(answer, PretendedDevice(work_s, launch_s), 10, "Python, which needs {launch} to start a call")
    busy = "a device that was busy for another 0.3 s at the start and needs {work} for a call"
    expect_between(answer, PretendedDevice(launch_s, work_s, busy_s=0.3), 10, busy)
    compiling = "a device that compiles for 2 s at the first call and needs {work} for each"
    expect_between(answer, PretendedDevice(launch_s, work_s, compile_s=2.0), 10, compiling)
    expect_sound_on_real_device(answer)


def expect_between(answer: Any, device: PretendedDevice, calls: int, what: str) -> None:
    """In a row, a call takes what the slower of Python and device needs; waited for one by one, both together."""
    found = answer.seconds_per_call(device.call, device.synchronize, calls, device.clock)
    expect_number(found, "seconds_per_call(function, synchronize, calls, clock)", "a float of seconds")
    least_s, most_s = max(device.launch_s, device.work_s), device.launch_s + device.work_s
    told = what.format(work=seconds_text(device.work_s), launch=seconds_text(device.launch_s))
    said = f"for {calls} calls of {told} your stopwatch says {seconds_text(found)} per call"
    expect(found > 0.999 * least_s, f"{said}: it stopped before the work was done")
    expect(found < 1.001 * most_s, f"{said}: it counted something that is not the work of these calls")
    warmed_up = device.calls > calls
    expect(warmed_up, f"{said}, but called the function {device.calls} times; warm up, then time {calls} calls")


def expect_sound_on_real_device(answer: Any) -> None:
    device = pick_device()
    x = torch.randn(512, 512, device=device)
    took: list[Callable[[], float]] = []

    def work() -> None:
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            x @ x
            end.record()
            took.append(lambda: start.elapsed_time(end) * 1e-3)
        else:
            began_s = time.perf_counter()
            x @ x
            elapsed_s = time.perf_counter() - began_s
            took.append(lambda: elapsed_s)

    calls = 5
    before_s = time.perf_counter()
    found = answer.seconds_per_call(work, lambda: synchronize(device), calls)
    whole_s = time.perf_counter() - before_s
    synchronize(device)
    least_s = sum(seconds() for seconds in took[-calls:]) / calls
    said = f"on {device.type} your stopwatch says {seconds_text(found)} for a product"
    expect(found > 0.95 * least_s, f"{said}, of which the device alone worked {seconds_text(least_s)}")
    expect(found * calls <= whole_s, f"{said} and {calls} calls, which were over after {seconds_text(whole_s)} in all")


def waits_only_at_the_end(function: Any, synchronize: Any, calls: int = 10, clock: Any = time.perf_counter) -> float:
    function()
    start = clock()
    for _ in range(calls):
        function()
    synchronize()
    return (clock() - start) / calls


def waits_only_at_the_start(function: Any, synchronize: Any, calls: int = 10, clock: Any = time.perf_counter) -> float:
    function()
    synchronize()
    start = clock()
    for _ in range(calls):
        function()
    return (clock() - start) / calls


def counts_the_first_call(function: Any, synchronize: Any, calls: int = 10, clock: Any = time.perf_counter) -> float:
    synchronize()
    start = clock()
    for _ in range(calls):
        function()
    synchronize()
    return (clock() - start) / calls


def forgets_to_divide(function: Any, synchronize: Any, calls: int = 10, clock: Any = time.perf_counter) -> float:
    return calls * counts_the_first_call(function, synchronize, calls, clock)


WRONG = {
    "waits only at the end": ({"seconds_per_call": waits_only_at_the_end}, "not the work of these calls"),
    "waits only at the start": ({"seconds_per_call": waits_only_at_the_start}, "stopped before the work was done"),
    "does not warm up": ({"seconds_per_call": counts_the_first_call}, "warm up, then time 10 calls"),
    "forgets to divide": ({"seconds_per_call": forgets_to_divide}, "not the work of these calls"),
}
