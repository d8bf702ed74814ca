"""The oracle is torch's view() on tensors without memory, in layouts that programs really make."""

import random
from collections.abc import Callable
from math import prod
from typing import Any

from shared.practice import expect
from shared.traps import expect_bool, operations

import torch

Case = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def torch_says(shape: tuple[int, ...], stride: tuple[int, ...], new_shape: tuple[int, ...]) -> bool:
    try:
        torch.empty_strided(shape, stride, device="meta").view(new_shape)
    except RuntimeError:
        return False
    return True


def random_layout(draw: random.Random) -> torch.Tensor:
    """Up to four dimensions, sliced, permuted, expanded and with a dimension of size 1, each with a chance."""
    x = torch.empty([draw.choice([1, 2, 3, 4, 6]) for _ in range(draw.randint(1, 4))], device="meta")
    if draw.random() < 0.4:
        x = x[..., :: draw.choice([2, 3])]
    if draw.random() < 0.5:
        x = x.permute(draw.sample(range(x.ndim), x.ndim))
    if draw.random() < 0.2:
        x = x.expand(draw.choice([2, 3]), *x.shape)
    if draw.random() < 0.3:
        x = x.unsqueeze(draw.randint(0, x.ndim))
    return x


def random_factors(draw: random.Random, count: int) -> tuple[int, ...]:
    """A shape with `count` elements, at times with dimensions of size 1."""
    sizes = []
    while count > 1:
        size = draw.choice([size for size in range(2, count + 1) if count % size == 0])
        sizes.append(size)
        count //= size
    if draw.random() < 0.3:
        sizes.insert(draw.randint(0, len(sizes)), 1)
    return tuple(draw.sample(sizes, len(sizes)))


def random_case(draw: random.Random) -> Case:
    x = random_layout(draw)
    return tuple(x.shape), x.stride(), random_factors(draw, prod(x.shape))


TRAPS: list[tuple[str, Case]] = [
    ("a contiguous tensor takes any shape", ((4, 6), (6, 1), (2, 12))),
    ("a transposed matrix cannot be flattened", ((6, 4), (1, 6), (24,))),
    ("no new dimension may reach across the jump between the two", ((6, 4), (1, 6), (8, 3))),
    ("splitting one dimension needs no copy", ((6, 4), (1, 6), (2, 3, 4))),
    ("the first two dimensions still lie in one walk", ((4, 3, 2), (12, 4, 1), (12, 2))),
    ("every other column: an even walk with stride 2 is still one walk", ((3, 4), (8, 2), (12,))),
    ("a dimension of size 1 is never stepped along, so its stride does not matter", ((3, 1, 4), (4, 999, 1), (12,))),
    ("expanded rows have stride 0 and cannot be merged with their columns", ((3, 4), (0, 1), (12,))),
    ("two expanded dimensions are one walk that stays where it is", ((2, 3), (0, 0), (6,))),
    ("without elements nothing is read, so any shape is a view", ((2, 0, 3), (1, 6, 2), (0, 5))),
    ("a tensor of no dimension is one element", ((), (), (1, 1))),
    ("one element may become a tensor of no dimension", ((1, 1), (7, 5), ())),
]


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    random_cases: list[tuple[str, Case]] = [("a layout drawn at random", random_case(draw)) for _ in range(200)]
    for trap, case in TRAPS + random_cases:
        call = f"can_view{case}"
        found = answer.can_view(*case)
        expect_bool(found, call)
        expect(found == torch_says(*case), f"{call} returned {found}, but view() disagrees: {trap}")
    asked = operations(answer.can_view, *TRAPS[1][1])
    expect(not asked, f"can_view asked torch ({', '.join(asked)}); decide from the three tuples")


def only_contiguous(shape: Any, stride: Any, new_shape: Any) -> bool:
    return tuple(stride) == tuple(prod(shape[d + 1 :]) for d in range(len(shape)))


def always(shape: Any, stride: Any, new_shape: Any) -> bool:
    return prod(shape) == prod(new_shape)


def only_one_walk(shape: Any, stride: Any, new_shape: Any) -> bool:
    return tuple(shape) == tuple(new_shape) or all(
        stride[d] == shape[d + 1] * stride[d + 1] for d in range(len(shape) - 1)
    )


def believes_strides_of_size_one(shape: Any, stride: Any, new_shape: Any) -> bool:
    boundaries = {prod(new_shape[d:]) for d in range(len(new_shape))}
    jumps = [d for d in range(1, len(shape)) if stride[d - 1] != shape[d] * stride[d]]
    return all(prod(shape[d:]) in boundaries for d in jumps)


def asks_torch(shape: Any, stride: Any, new_shape: Any) -> bool:
    return torch_says(shape, stride, new_shape)


def definitions(function: Callable[..., bool]) -> dict[str, object]:
    return {"can_view": function}


WRONG = {
    "lets only contiguous tensors be viewed": (definitions(only_contiguous), "splitting one dimension needs no copy"),
    "compares the numbers of elements": (definitions(always), "a transposed matrix cannot be flattened"),
    "merges all dimensions or none": (definitions(only_one_walk), "splitting one dimension needs no copy"),
    "believes the stride of size 1": (definitions(believes_strides_of_size_one), "never stepped along"),
    "asks torch": (definitions(asks_torch), "decide from the three tuples"),
}
