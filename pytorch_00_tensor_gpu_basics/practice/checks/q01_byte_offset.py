"""The oracle is the tensor itself: the address of x[index] minus the address of its storage."""

import random
from typing import Any

from shared.practice import expect
from shared.traps import expect_integer

import torch


def layouts(draw: random.Random) -> list[tuple[str, torch.Tensor]]:
    """A tensor for each way in which strides and offsets come about, with a name for it."""
    rows, columns, depth = draw.randint(3, 7), draw.randint(4, 9), draw.randint(2, 5)
    dtype = draw.choice([torch.uint8, torch.float16, torch.float32, torch.int64, torch.complex128])
    whole = torch.zeros(rows, columns, depth, dtype=dtype)
    return [
        ("a contiguous tensor", whole),
        ("a permuted view, whose strides do not fall from left to right", whole.permute(2, 0, 1)),
        ("a view that starts inside the storage", whole[1:, 2:]),
        ("a view that skips elements", whole[1:, 1::2]),
        ("an expanded view, which has stride 0", whole[:, :1, 1].expand(rows, 3)),
        ("a view of no dimension", whole[1, 2, 1]),
    ]


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    for layout, x in layouts(draw):
        last = tuple(size - 1 for size in x.shape)
        somewhere = tuple(draw.randrange(size) for size in x.shape)
        from_the_end = tuple(draw.randint(-size, -1) for size in x.shape)
        for index in (last, somewhere, from_the_end):
            arguments = (index, tuple(x.shape), x.stride(), x.storage_offset(), x.element_size())
            call = f"byte_offset{arguments}"
            found = answer.byte_offset(*arguments)
            right = x[index].data_ptr() - x.untyped_storage().data_ptr()
            expect_integer(found, call, "the number of bytes, an int")
            counts_back = "; a negative index counts from the end" if min(index, default=0) < 0 else ""
            expect(found == right, f"{call} returned {found}, but in {layout} it is {right}{counts_back}")


def counts_elements(index: Any, shape: Any, stride: Any, storage_offset: int, element_size: int) -> int:
    return storage_offset + sum(i % size * step for i, size, step in zip(index, shape, stride, strict=True))


def believes_the_shape(index: Any, shape: Any, stride: Any, storage_offset: int, element_size: int) -> int:
    element = 0
    for i, size in zip(index, shape, strict=True):
        element = element * size + i % size
    return (storage_offset + element) * element_size


def starts_at_zero(index: Any, shape: Any, stride: Any, storage_offset: int, element_size: int) -> int:
    return element_size * sum(i % size * step for i, size, step in zip(index, shape, stride, strict=True))


def never_counts_from_the_end(index: Any, shape: Any, stride: Any, storage_offset: int, element_size: int) -> int:
    return element_size * (storage_offset + sum(i * step for i, step in zip(index, stride, strict=True)))


WRONG = {
    "counts elements instead of bytes": ({"byte_offset": counts_elements}, "in a contiguous tensor it is"),
    "takes the strides from the shape": ({"byte_offset": believes_the_shape}, "do not fall from left to right"),
    "forgets where the view starts": ({"byte_offset": starts_at_zero}, "starts inside the storage"),
    "multiplies negative indices": ({"byte_offset": never_counts_from_the_end}, "a negative index counts from the end"),
}
