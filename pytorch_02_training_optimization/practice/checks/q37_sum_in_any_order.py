"""Fractions of Python are the oracle: they add without rounding."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from shared.practice import expect
from shared.traps import expect_tensor, operations

import torch

MOST_OPERATIONS = 10


def exact_sum(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(float(sum(map(Fraction, x.tolist()), Fraction())), dtype=torch.float32)


def cases(seed: int) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(999, generator=generator)
    wide = torch.randn(300, generator=generator) * 10.0 ** torch.randint(-30, 30, (300,), generator=generator)
    return [
        ("[3.0, 0.25]", torch.tensor([3.0, 0.25])),
        ("[1e8, 1.0, -1e8]", torch.tensor([1e8, 1.0, -1e8])),
        ("[1e30, 1.0, -1e30]", torch.tensor([1e30, 1.0, -1e30])),
        ("[]", torch.zeros(0)),
        ("[3e38, 3e38, -3e38]", torch.tensor([3e38, 3e38, -3e38])),
        ("[1e-45, 1e-45]", torch.tensor([1e-45, 1e-45])),
        ("999 normal numbers", normal),
        ("300 numbers from 1e-30 to 1e30, and what cancels them", torch.cat([wide, -wide, normal[:7]])),
        ("every second of 999 numbers", torch.randn(999, generator=generator)[::2]),
    ]


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, x in cases(seed):
        right = exact_sum(x)
        for order in (torch.arange(len(x)), torch.arange(len(x)).flip(0), *(torch.randperm(len(x), generator=generator)
                      for _ in range(5))):  # fmt: skip
            arranged = x[order] if not torch.equal(order, torch.arange(len(x))) else x
            numbers = (
                f"[{', '.join(f'{value:g}' for value in arranged.tolist())}]"
                if len(x) <= 3
                else f"{name}, in some order"
            )
            call = f"sum_in_any_order of {numbers}"
            kept = arranged.clone()
            found = answer.sum_in_any_order(arranged)
            expect_tensor(found, call, (), torch.float32)
            expect(torch.equal(arranged, kept), f"{call} changed its input")
            apart = f"{found.item():.9g}, and the exact sum is {right.item():.9g}"
            expect(torch.equal(found, right), f"{call} is {apart}")
    x = cases(seed)[6][1]
    count = len(operations(answer.sum_in_any_order, x))
    expect(
        count <= MOST_OPERATIONS,
        f"right, but {count:,} tensor operations for {len(x)} numbers: each costs more than an addition of plain numbers, so "
        "take them out of the tensor in one",
    )


def in_some_order(add: Callable[[torch.Tensor], object]) -> dict[str, object]:
    def sum_in_any_order(x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(add(x)).to(torch.float32)

    return {"sum_in_any_order": sum_in_any_order}


def one_by_one(x: torch.Tensor) -> float:
    return math.fsum(value.item() for value in x)


WRONG = {
    "sums in float32": (in_some_order(lambda x: x.sum()), "sum_in_any_order of [1e+08, 1, -1e+08] is 0"),
    "sums in float64": (in_some_order(lambda x: x.double().sum()), "sum_in_any_order of [1e+30, 1, -1e+30] is 0"),
    "sorts first": (in_some_order(lambda x: x.sort().values.double().sum()), "is 0, and the exact sum is 1"),
    "starts with the smallest": (
        in_some_order(lambda x: x[x.abs().argsort()].double().sum()),
        "and the exact sum is 1",
    ),
    "adds Python's floats": (in_some_order(lambda x: sum(x.tolist())), "and the exact sum is 1"),
    "reads one by one": (in_some_order(one_by_one), "right, but"),
}
