"""Each expression is evaluated inside the block, and its dtype is looked at."""

from typing import Any

from shared.practice import expect
from shared.traps import expect_predictions, shown

import torch
import torch.nn.functional as F

EXPRESSIONS = (
    "a @ b",
    "a + b",
    "(a @ b).relu()",
    "a @ b + a",
    "a.half() @ b.half()",
    "a.double() @ b.double()",
    "a.clone().addmm_(a, b)",
    "layer(a)",
    "layer.weight",
    "torch.autograd.grad(layer(a).sum(), layer.weight)[0]",
    "F.mse_loss(layer(a), layer(b))",
    "torch.cat([layer(a), a])",
)
NAMES = ("float32", "bfloat16", "float64")


def dtype_of(expression: str) -> str:
    a, b = torch.ones(2, 4, 4).unbind()
    with torch.autocast("cpu", torch.bfloat16):
        result = eval(expression, {"torch": torch, "F": F, "a": a, "b": b, "layer": torch.nn.Linear(4, 4)})
    return str(result.dtype).removeprefix("torch.")


def check(answer: Any, seed: int) -> None:
    predictions = answer.DTYPE
    expect_predictions(predictions, "DTYPE", EXPRESSIONS, "the name of a dtype")
    for expression, prediction in predictions.items():
        is_name = isinstance(prediction, str) and prediction in NAMES
        expect(is_name, f"`{expression}` is {shown(prediction)}; write one of {', '.join(map(repr, NAMES))}")
    missed = [expression for expression in EXPRESSIONS if predictions[expression] != dtype_of(expression)]
    if missed:
        count = f"{len(missed)} of {len(EXPRESSIONS)} predictions"
        expect(False, f"{count} did not come true; the first: `{missed[0]}` is {dtype_of(missed[0])}. Why?")


RIGHT = {expression: dtype_of(expression) for expression in EXPRESSIONS}


def predict(**changed: str) -> dict[str, object]:
    """The right answer, but for the expressions whose number is named, such as _4="float16"."""
    return {"DTYPE": RIGHT | {EXPRESSIONS[int(number[1:])]: name for number, name in changed.items()}}


WRONG = {
    "everything is narrowed": ({"DTYPE": dict.fromkeys(EXPRESSIONS, "bfloat16")}, "the first: `a + b` is float32"),
    "a sum takes the type of its product": (predict(_3="bfloat16", _11="bfloat16"), "`a @ b + a` is float32"),
    "the weights are narrowed": (predict(_8="bfloat16", _9="bfloat16"), "`layer.weight` is float32"),
    "autocast narrows float64": (predict(_5="bfloat16"), "`a.double() @ b.double()` is float64"),
    "a product in place is a product": (predict(_6="bfloat16"), "1 of 12 predictions"),
    "a loss takes what comes": (predict(_10="bfloat16"), "`F.mse_loss(layer(a), layer(b))` is float32"),
}
