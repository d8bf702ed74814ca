"""Each expression is evaluated with PyTorch's own losses and compared with what was written down."""

import warnings
from typing import Any

from shared.practice import expect
from shared.traps import expect_number, expect_predictions

import torch
import torch.nn.functional as F

ONE_YES = "F.binary_cross_entropy_with_logits(torch.zeros(4), torch.tensor([1.0, 0.0, 0.0, 0.0])"
EXPRESSIONS = (
    "F.cross_entropy(torch.zeros(8, 1000), torch.arange(8))",
    f"{ONE_YES})",
    f"{ONE_YES}, pos_weight=torch.tensor(5.0))",
    "F.cross_entropy(torch.zeros(4, 10), torch.tensor([3, -100, -100, -100]))",
    "F.cross_entropy(torch.zeros(3, 10), torch.tensor([0, 1, 2]), weight=torch.arange(1.0, 11.0))",
    "F.cross_entropy(100 * torch.eye(10), torch.arange(10))",
    "F.cross_entropy(torch.eye(10), torch.arange(10))",
    "F.cross_entropy(100 * torch.eye(10), torch.arange(10), label_smoothing=0.1)",
    "F.nll_loss(torch.eye(10), torch.arange(10))",
    "F.cross_entropy(torch.tensor([[0.0, 30.0]]), torch.tensor([0]))",
    "F.binary_cross_entropy(torch.zeros(1), torch.ones(1))",
    "F.mse_loss(torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([1.0, 2.0, 6.0]))",
)


def measured(expression: str) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mse_loss warns of the shapes; in a log nobody sees it
        return float(eval(expression, {"torch": torch, "F": F}))


def is_close(prediction: float, truth: float) -> bool:
    return abs(prediction - truth) <= 0.005 * max(1, abs(truth))


def check(answer: Any, seed: int) -> None:
    predictions = answer.LOSS
    expect_predictions(predictions, "LOSS", EXPRESSIONS, "the number that you expect")
    for expression, prediction in predictions.items():
        expect_number(prediction, f"LOSS: `{expression}`", "a number")
    missed = [expression for expression in EXPRESSIONS if not is_close(predictions[expression], measured(expression))]
    if missed:
        count = f"{len(missed)} of {len(EXPRESSIONS)} predictions"
        expect(False, f"{count} did not come true; the first: `{missed[0]}` is {measured(missed[0]):.4g}, and you wrote "
               f"{predictions[missed[0]]:.4g}. Why?")  # fmt: skip


def predict(word: str, value: float) -> dict[str, object]:
    """The right numbers, but for the expressions that contain `word`."""
    return {"LOSS": {each: value if word in each else measured(each) for each in EXPRESSIONS}}


WRONG = {
    "expects 0 of probabilities that are right": (
        predict("(torch.eye", 0.0),
        "`F.cross_entropy(torch.eye(10), torch.arange(10))` is 1.461",
    ),
    "expects 0 with label smoothing": (predict("label_smoothing", 0.0), "label_smoothing=0.1)` is 9,"),
    "divides by the pos_weight as well": (predict("pos_weight", 0.693), "pos_weight=torch.tensor(5.0))` is 1.386"),
    "multiplies by the class weight": (predict(", weight", 4.605), "weight=torch.arange(1.0, 11.0))` is 2.303"),
    "divides by the padding": (predict("-100", 0.576), "1 of 12 predictions"),
    "expects 0 of right predictions": (predict("mse_loss", 0.0), "torch.tensor([1.0, 2.0, 6.0]))` is 9.333"),
    "expects infinity": (predict("F.binary_cross_entropy(", float("inf")), "which is no finite number"),
}
