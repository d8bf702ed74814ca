"""The oracle is torch.result_type, on every pair of ranks with dtypes drawn at random."""

import random
from collections.abc import Callable
from typing import Any

from shared.practice import expect
from shared.traps import operations, shown

import torch
from torch.overrides import TorchFunctionMode

DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
NUMBERS = (True, 3, 2.5)


def tensor(dtype: torch.dtype, ndim: int) -> torch.Tensor:
    return torch.ones((2,) * ndim, dtype=dtype)


PROMOTES = "both rank alike, so the smallest dtype that holds both wins"
NUMBER = "a number of Python changes the dtype only if it brings a higher category (bool, integer, floating)"
SCALAR = "a tensor of no dimension changes the dtype only if it brings a higher category (bool, integer, floating)"
TRAPS = [
    (PROMOTES, tensor(torch.uint8, 1), tensor(torch.int8, 2)),
    (PROMOTES, tensor(torch.float16, 1), tensor(torch.bfloat16, 1)),
    (PROMOTES, tensor(torch.int64, 1), tensor(torch.float16, 1)),
    (PROMOTES, tensor(torch.float32, 0), tensor(torch.float64, 0)),
    (NUMBER, tensor(torch.float16, 1), 2.5),
    (NUMBER, tensor(torch.uint8, 2), 3),
    (NUMBER, tensor(torch.int32, 1), 2.5),
    (NUMBER, tensor(torch.bool, 1), 3),
    (NUMBER, True, tensor(torch.uint8, 0)),
    (SCALAR, tensor(torch.uint8, 1), tensor(torch.int64, 0)),
    (SCALAR, tensor(torch.float64, 0), tensor(torch.float16, 1)),
    (SCALAR, tensor(torch.int64, 3), tensor(torch.float64, 0)),
]


class ResultType(TorchFunctionMode):
    """Notices that torch.result_type was called."""

    was_called = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.was_called |= function is torch.result_type
        return function(*args, **(kwargs or {}))


def written(operand: object) -> str:
    return shown(operand) if isinstance(operand, torch.Tensor) else f"the number {operand}"


def random_operand(draw: random.Random) -> torch.Tensor | bool | int | float:
    ndim = draw.choice([None, 0, 1, 2])
    return draw.choice(NUMBERS) if ndim is None else tensor(draw.choice(DTYPES), ndim)


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    for a in NUMBERS:
        for b in NUMBERS:
            expect_dtype(answer, a, b, "two numbers rank alike, and each counts as bool, int64 or the default dtype")
    for reason, a, b in TRAPS:
        expect_dtype(answer, a, b, reason)
        expect_dtype(answer, b, a, reason)
    for _ in range(100):
        expect_dtype(answer, random_operand(draw), random_operand(draw), "a pair drawn at random")
    with ResultType() as mode:
        asked = operations(answer.result_dtype, tensor(torch.uint8, 1), tensor(torch.float16, 0))
    adds = [name for name in asked if name.startswith("add")]
    expect(not mode.was_called, "result_dtype asked torch.result_type; work it out from dtype and rank")
    expect(not adds, "result_dtype added the two; work it out from dtype and rank")


def expect_dtype(answer: Any, a: object, b: object, reason: str) -> None:
    found, right = answer.result_dtype(a, b), torch.result_type(a, b)
    pair = f"{written(a)} and {written(b)}"
    expect(isinstance(found, torch.dtype), f"for {pair} it returned {shown(found)}; return a torch.dtype")
    expect(found == right, f"for {pair} it returned {found}, and torch gives {right}: {reason}")


def dtype_of(operand: Any) -> torch.dtype:
    return operand.dtype if isinstance(operand, torch.Tensor) else torch.tensor(operand).dtype


def all_rank_alike(a: Any, b: Any) -> torch.dtype:
    return torch.promote_types(dtype_of(a), dtype_of(b))


def tensor_always_wins(a: Any, b: Any) -> torch.dtype:
    if isinstance(a, torch.Tensor) != isinstance(b, torch.Tensor):
        return a.dtype if isinstance(a, torch.Tensor) else b.dtype
    return all_rank_alike(a, b)


def only_numbers_rank_lower(a: Any, b: Any) -> torch.dtype:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return all_rank_alike(a, b)
    return torch.result_type(a, b)


def adds_them(a: Any, b: Any) -> torch.dtype:
    return (torch.as_tensor(a) + b if not isinstance(b, torch.Tensor) else a + b).dtype


def asks_torch(a: Any, b: Any) -> torch.dtype:
    return torch.result_type(a, b)


def definitions(function: Callable[..., torch.dtype]) -> dict[str, object]:
    return {"result_dtype": function}


WRONG = {
    "ranks all operands alike": (definitions(all_rank_alike), "a number of Python changes the dtype only if"),
    "never lets a number change the dtype": (definitions(tensor_always_wins), "torch gives torch.float32"),
    "ranks tensors of no dimension like others": (
        definitions(only_numbers_rank_lower),
        "a tensor of no dimension changes the dtype only if",
    ),
    "adds them": (definitions(adds_them), "added the two"),
    "asks torch": (definitions(asks_torch), "asked torch.result_type"),
}
