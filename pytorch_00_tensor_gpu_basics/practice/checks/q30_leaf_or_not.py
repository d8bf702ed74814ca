"""Each expression is evaluated, and the tensor says itself what it is."""

from typing import Any

from shared.practice import expect
from shared.traps import expect_predictions, shown

import torch

EXPRESSIONS = (
    "x * 2",
    "w.clone()",
    "w.detach()",
    "w > 0",
    "w.sum().item() * x",
    "torch.no_grad()(torch.exp)(w)",
    "w.to(torch.float32)",
    "w.to(torch.float64)",
    "torch.randn(3, requires_grad=True) * 0.1",
    "(torch.randn(3) * 0.1).requires_grad_()",
    "torch.nn.Parameter(w * 0.1)",
    "torch.nn.Linear(3, 1)(x)",
)
MEANING = {
    "leaf": "a leaf: it requires a gradient, and no recorded operation computed it",
    "non-leaf": "no leaf: a recorded operation computed it, its grad_fn is {}",
    "constant": "a constant: its requires_grad is False",
}


def evaluate(expression: str) -> torch.Tensor:
    w, x = torch.ones(3, requires_grad=True), torch.arange(3.0)
    result = eval(expression, {"torch": torch, "w": w, "x": x})
    assert isinstance(result, torch.Tensor)
    return result


def becomes(t: torch.Tensor) -> str:
    if not t.requires_grad:
        return "constant"
    return "leaf" if t.is_leaf else "non-leaf"


def check(answer: Any, seed: int) -> None:
    predictions = answer.BECOMES
    words = '"leaf", "non-leaf" or "constant"'
    expect_predictions(predictions, "BECOMES", EXPRESSIONS, words)
    for expression, prediction in predictions.items():
        expect(prediction in list(MEANING), f"BECOMES: `{expression}` is {shown(prediction)}; write {words}")
    missed = [text for text in EXPRESSIONS if predictions[text] != becomes(evaluate(text))]
    if missed:
        t = evaluate(missed[0])
        truth = MEANING[becomes(t)].format(type(t.grad_fn).__name__)
        count = f"{len(missed)} of {len(EXPRESSIONS)} predictions did not come true"
        expect(False, f"{count}; the first: `{missed[0]}` is {truth}. Why?")


TRUTH = {expression: becomes(evaluate(expression)) for expression in EXPRESSIONS}


def predict(belief: str, *expressions: str) -> dict[str, object]:
    """The truth, but for what is believed of these expressions."""
    return {"BECOMES": TRUTH | dict.fromkeys(expressions, belief)}


WRONG = {
    "takes a clone for a tensor of its own": (predict("leaf", "w.clone()"), "`w.clone()` is no leaf"),
    "follows the word requires_grad": (
        predict("leaf", "torch.randn(3, requires_grad=True) * 0.1"),
        "`torch.randn(3, requires_grad=True) * 0.1` is no leaf",
    ),
    "forgets that a number has left the graph": (
        predict("non-leaf", "w.sum().item() * x"),
        "`w.sum().item() * x` is a constant",
    ),
    "believes that to() always converts": (
        predict("non-leaf", "w.to(torch.float32)"),
        "`w.to(torch.float32)` is a leaf",
    ),
    "takes every tensor for a constant": ({"BECOMES": dict.fromkeys(EXPRESSIONS, "constant")}, "7 of 12 predictions"),
}
