"""The oracle is Python's own math, number by number, in float64; the gradients have closed forms."""

import math
from collections.abc import Callable
from typing import Any

from shared.practice import expect
from shared.traps import expect_tensor

import torch
from torch.nn import functional as F

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}
Function = Callable[[torch.Tensor], torch.Tensor]


def softplus_of(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def softplus_slope(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def inverse_of(y: float) -> float:
    return y + math.log(-math.expm1(-y))


def inverse_slope(y: float) -> float:
    return -1 / math.expm1(-y)


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def spread(low: float, high: float) -> list[float]:
        return torch.empty(200, dtype=torch.float64).uniform_(low, high, generator=generator).tolist()

    ordinary = [1.0, -1.0, 3.0, *spread(-1, 5)]
    expect_shapes(answer.softplus, "softplus", generator)
    for dtype in TOLERANCE:
        for points in (
            ordinary,
            [100.0, 21.0, 1e3, 1e30, *spread(15, 100)],
            [-20.0, -50.0, -80.0, *spread(-80, -1)],
            [0.0],
        ):
            expect_points(answer.softplus, "softplus", points, dtype, softplus_of, softplus_slope, floor=0.0)
    small, large = [math.exp(-power) for power in spread(0.5, 69)], [100.0, 21.0, 1e3, 1e30, *spread(15, 100)]
    expect_shapes(answer.inverse_softplus, "inverse_softplus", generator)
    for dtype in TOLERANCE:
        for points in ([0.5, 1.0, 2.0, *spread(0.5, 10)], large, [1e-8, 0.01, 1e-20, 1e-30, *small]):
            expect_points(
                answer.inverse_softplus, "inverse_softplus", points, dtype, inverse_of, inverse_slope, floor=1.0
            )


def expect_shapes(function: Function, name: str, generator: torch.Generator) -> None:
    for dtype in TOLERANCE:
        for shape in ((), (0,), (3, 4), (2, 3, 5)):
            x = (
                torch.rand(shape, generator=generator).to(dtype).mT
                if len(shape) > 1
                else torch.ones(shape, dtype=dtype)
            )
            kept = x.clone()
            expect_tensor(function(x), f"{name} of a tensor of shape {tuple(x.shape)}", tuple(x.shape), dtype)
            expect(torch.equal(x, kept), f"{name} changed the tensor that it was given")


def expect_points(
    function: Function,
    name: str,
    points: list[float],
    dtype: torch.dtype,
    value_of: Callable[[float], float],
    slope_of: Callable[[float], float],
    floor: float,
) -> None:
    """Values first, then gradients; the error is counted in units of the right number, or of `floor` if that is larger."""
    x = torch.tensor(points, dtype=dtype, requires_grad=True)
    y = function(x)
    expect(y.requires_grad, f"{name}: the result has no graph, so its parameter would never learn")
    (gradient,) = torch.autograd.grad(y.sum(), x)
    given, kind = x.tolist(), str(dtype).removeprefix("torch.")
    digits = 17 if dtype is torch.float64 else 8
    for at, found in zip(given, y.tolist(), strict=True):
        right = value_of(at)
        is_right = abs(found - right) <= TOLERANCE[dtype] * max(abs(right), floor)
        expect(is_right, f"{name}({at:.6g}) in {kind} is {found:.{digits}g} and should be {right:.{digits}g}")
    for at, found in zip(given, gradient.tolist(), strict=True):
        right = slope_of(at)
        expect(abs(found - right) <= 10 * TOLERANCE[dtype] * abs(right), f"{name}({at:.6g}) in {kind} has the right value, and "
               f"its gradient is {found:.{digits}g} and should be {right:.{digits}g}")  # fmt: skip


def right_softplus(x: torch.Tensor) -> torch.Tensor:
    return -F.logsigmoid(-x)


def right_inverse(y: torch.Tensor) -> torch.Tensor:
    return y + (-torch.expm1(-y)).log()


def with_softplus(softplus: Function) -> dict[str, object]:
    return {"softplus": softplus, "inverse_softplus": right_inverse}


def with_inverse(inverse: Function) -> dict[str, object]:
    return {"softplus": right_softplus, "inverse_softplus": inverse}


WRONG = {
    "softplus by the book": (with_softplus(lambda x: (1 + x.exp()).log()), "softplus(100) in float32 is inf"),
    "softplus in two branches": (
        with_softplus(lambda x: torch.where(x > 20, x, x.exp().log1p())),
        "softplus(100) in float32 has the right value, and its gradient is nan",
    ),
    "softplus that loses small numbers": (
        with_softplus(lambda x: x.relu() + (1 + (-x.abs()).exp()).log()),
        "softplus(-20) in float32 is 0 and",
    ),
    "softplus with a kink": (
        with_softplus(lambda x: x.relu() + (-x.abs()).exp().log1p()),
        "softplus(0) in float32 has the right value, and its gradient is 0 and",
    ),
    "softplus of the library": (with_softplus(F.softplus), "softplus(21) in float64 is 21 and"),
    "inverse by the book": (with_inverse(lambda y: (y.exp() - 1).log()), "inverse_softplus(100) in float32 is inf"),
    "inverse that overflows": (with_inverse(lambda y: y.expm1().log()), "inverse_softplus(100) in float32 is inf"),
    "inverse that loses small numbers": (
        with_inverse(lambda y: y + (-(-y).exp()).log1p()),
        "inverse_softplus(1e-08) in float32 is -inf",
    ),
    "inverse in two branches": (
        with_inverse(lambda y: torch.where(y > 20, y, y.expm1().log())),
        "has the right value, and its gradient is nan",
    ),
    "inverse in two branches, clamped": (
        with_inverse(lambda y: torch.where(y > 20, y, y.clamp(max=20).expm1().log())),
        "inverse_softplus(21) in float64 is",
    ),
    "without a graph": (with_softplus(lambda x: right_softplus(x.detach())), "would never learn"),
}
