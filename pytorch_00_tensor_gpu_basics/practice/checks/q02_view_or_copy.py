"""Each expression is evaluated, and the addresses of the two storages are compared."""

from typing import Any

from shared.practice import expect
from shared.traps import expect_predictions, shown

import torch

EXPRESSIONS = (
    "x[:, ::2]",
    "x[[0, 2]]",
    "x[x > 5]",
    "x.t()",
    "x.reshape(2, 6)",
    "x.t().reshape(2, 6)",
    "x.contiguous()",
    "x.t().contiguous()",
    "x.to(torch.float32)",
    "x.expand(5, 3, 4)",
    "torch.tensor(x.numpy())",
    "torch.as_tensor(x.numpy())",
)


def shares_memory(expression: str) -> bool:
    x = torch.arange(12.0).reshape(3, 4)
    result = eval(expression, {"torch": torch, "x": x})
    return result.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def check(answer: Any, seed: int) -> None:
    predictions = answer.SHARES_MEMORY
    expect_predictions(predictions, "SHARES_MEMORY", EXPRESSIONS, "True or False")
    for expression, prediction in predictions.items():
        expect(isinstance(prediction, bool), f"`{expression}` is {shown(prediction)}; write True or False")
    missed = [expression for expression in EXPRESSIONS if predictions[expression] is not shares_memory(expression)]
    if missed:
        truth = "shares the memory of x" if shares_memory(missed[0]) else "is a copy"
        count = f"{len(missed)} of {len(EXPRESSIONS)} predictions"
        expect(False, f"{count} did not come true; the first: `{missed[0]}` {truth}. Why?")


def predict(*shared: str) -> dict[str, object]:
    return {"SHARES_MEMORY": {expression: expression in shared for expression in EXPRESSIONS}}


VIEWS = tuple(expression for expression in EXPRESSIONS if shares_memory(expression))

WRONG = {
    "takes all indexing for views": (predict(*VIEWS, "x[[0, 2]]", "x[x > 5]"), "`x[[0, 2]]` is a copy"),
    "takes every reshape for a view": (predict(*VIEWS, "x.t().reshape(2, 6)"), "`x.t().reshape(2, 6)` is a copy"),
    "believes that contiguous() always copies": (
        predict(*(view for view in VIEWS if view != "x.contiguous()")),
        "`x.contiguous()` shares the memory",
    ),
    "trusts only what has view in its name": (predict(), "7 of 12 predictions"),
}
