"""Each expression runs, but no product in it: it says its sizes and gives a tensor of its shape, one number expanded."""

from collections.abc import Sequence
from typing import Any

from shared.dispatch import Watcher
from shared.practice import expect
from shared.traps import expect_predictions, shown
from shared.units import significant

import torch

SHAPES = {
    "w": (1000, 1000),
    "u": (1000, 1),
    "x": (512, 4096),
    "a": (4096, 8),
    "b": (8, 4096),
    "q": (12, 2048, 64),
    "k": (12, 2048, 64),
    "v": (12, 2048, 64),
    "p": (10_000, 64),
    "r": (10_000, 64),
}
PAIRS = (
    ("w @ w @ u", "w @ (w @ u)"),
    ("x @ (a @ b)", "x @ a @ b"),
    ("q @ k.mT @ v", "q @ (k.mT @ v)"),
    ("(p @ r.mT).diagonal()", "(p * r).sum(dim=1)"),
)


class Multiplications(Watcher):
    """Counts them, and keeps the sizes of each product."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.steps: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        if name not in ("mm", "bmm", "mul"):
            return operation(*args, **(kwargs or {}))
        left, right = (operand.shape for operand in args)
        self.steps.append(f"{tuple(left)} by {tuple(right)}")
        self.total += left.numel() if name == "mul" else left.numel() * right[-1]
        return one_number(left if name == "mul" else (*left[:-1], right[-1]))


def one_number(shape: Sequence[int]) -> torch.Tensor:
    return torch.ones(()).expand(shape)


def counted(expression: str) -> Multiplications:
    with Multiplications() as count:
        eval(expression, {name: one_number(shape) for name, shape in SHAPES.items()})
    return count


COUNTED = {expression: counted(expression) for pair in PAIRS for expression in pair}


def check(answer: Any, seed: int) -> None:
    predictions = answer.MULTIPLICATIONS
    expect_predictions(predictions, "MULTIPLICATIONS", COUNTED, "a number of multiplications")
    for expression, prediction in predictions.items():
        is_whole = isinstance(prediction, int) and not isinstance(prediction, bool)
        expect(is_whole, f"`{expression}` is {shown(prediction)}; write a whole number of multiplications")
    missed = [expression for expression in COUNTED if predictions[expression] != COUNTED[expression].total]
    if missed:
        first = missed[0]
        count = COUNTED[first]
        expect(
            False,
            f"{len(missed)} of {len(COUNTED)} predictions did not come true; the first: `{first}` multiplies "
            f"{', then '.join(count.steps)}, which takes {count.total:,}, and you said {predictions[first]:,}. "
            f"{compared(first)}",
        )


def compared(expression: str) -> str:
    (pair,) = (pair for pair in PAIRS if expression in pair)
    dear, cheap = sorted(pair, key=lambda one: -COUNTED[one].total)
    return f"`{dear}` takes {significant(COUNTED[dear].total / COUNTED[cheap].total)} times as many as `{cheap}`"


def predict(**changed: int) -> dict[str, object]:
    names = {"bracketed": "w @ (w @ u)", "plain": "w @ w @ u", "heads": "q @ k.mT @ v", "diagonal": PAIRS[3][0]}
    right = {expression: count.total for expression, count in COUNTED.items()}
    return {"MULTIPLICATIONS": right | {names[name]: number for name, number in changed.items()}}


WRONG = {
    "believes that Python starts on the right": (predict(plain=2_000_000), "`w @ w @ u` multiplies (1000, 1000) by"),
    "believes that brackets change nothing": (predict(bracketed=1_001_000_000), "takes 500 times as many"),
    "forgets the heads": (predict(heads=2 * 2048 * 2048 * 64), "`q @ k.mT @ v` multiplies (12, 2048, 64) by"),
    "counts only the diagonal": (predict(diagonal=640_000), "takes 10,000 times as many"),
}
