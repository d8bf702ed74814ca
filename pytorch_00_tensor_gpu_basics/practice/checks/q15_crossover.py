"""The oracle evaluates both times for every size and takes the first at which the GPU is ahead."""

import random
from typing import Any

from shared.practice import expect
from shared.traps import expect_integer

import torch

Machine = tuple[float, float, float, float]


def first_ahead(machine: Machine, largest: int, transfers: int = 3, matrices: int = 3, flops: int = 2) -> int | None:
    cpu_flop_s, gpu_flop_s, latency_s, link_byte_s = machine
    n = torch.arange(1, largest + 1, dtype=torch.float64)
    travel_s = transfers * latency_s + 4 * matrices * n**2 / link_byte_s
    ahead = travel_s + flops * n**3 / gpu_flop_s < flops * n**3 / cpu_flop_s
    return int(ahead.nonzero()[0]) + 1 if ahead.any() else None


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    example = (1e12, 100e12, 10e-6, 25e9)
    expect_crossover(answer, example, 10_000, "the example")
    for _ in range(10):
        cpu_flop_s = draw.uniform(0.1e12, 2e12)
        machine = (cpu_flop_s, draw.uniform(3, 200) * cpu_flop_s, draw.uniform(2e-6, 50e-6), draw.uniform(5e9, 60e9))
        right = first_ahead(machine, 4_000)
        expect_crossover(answer, machine, 4_000, "a machine drawn at random")
        if right is not None and right > 1:
            expect_crossover(answer, machine, right, "`largest` is itself a size that counts")
            expect_crossover(answer, machine, right - 1, "the crossover lies one beyond `largest`")
    expect_crossover(answer, (1e12, 2e12, 1e-18, 1e18), 100, "a link that costs next to nothing pays at once")
    expect_crossover(answer, (2e12, 1e12, 10e-6, 25e9), 3_000, "a GPU slower than the CPU never pays")


def expect_crossover(answer: Any, machine: Machine, largest: int, what: str) -> None:
    numbers = ", ".join(f"{number:.4g}" for number in machine)
    call = f"crossover({numbers}, {largest})"
    found, right = answer.crossover(*machine, largest), first_ahead(machine, largest)
    if right is None:
        expect(found is None, f"{call} returned {found}, and should return None: {what}")
    else:
        expect_integer(found, call, f"the size {right}, an int ({what})")
        expect(found == right, f"{call} returned {found}, and the GPU is ahead from {right} on ({what})")


def forgets_to_fetch(*arguments: Any) -> int | None:
    return first_ahead(arguments[:4], arguments[4], transfers=2, matrices=2)


def forgets_to_travel(*arguments: Any) -> int | None:
    return first_ahead(arguments[:4], arguments[4], transfers=0, matrices=0)


def sends_only_once(*arguments: Any) -> int | None:
    return first_ahead(arguments[:4], arguments[4], transfers=1)


def always_finds_one(*arguments: Any) -> int | None:
    return first_ahead(arguments[:4], arguments[4]) or arguments[4]


WRONG = {
    "forgets to fetch the product": ({"crossover": forgets_to_fetch}, "the GPU is ahead from 360 on"),
    "forgets the transfers": ({"crossover": forgets_to_travel}, "returned 1, and the GPU is ahead from 360 on"),
    "pays the latency once": ({"crossover": sends_only_once}, "the GPU is ahead from 360 on"),
    "always finds a size": ({"crossover": always_finds_one}, "should return None"),
}
