"""Each expression is evaluated and saved into memory; the bytes are counted."""

import io
from typing import Any

from shared.practice import expect
from shared.traps import expect_number, expect_predictions

import torch
from torch import nn

EXPRESSIONS = (
    "x.bfloat16()",
    "x[0]",
    "x[0].clone()",
    "[x, x[:500], x.t(), x.view(-1)]",
    "[x, x.clone()]",
    "x > 0",
    "(x > 0).long()",
    "torch.zeros(1, 250).expand(1000, 250)",
    "list(x.split(100))",
    "[part.clone() for part in x.split(100)]",
    "Tied().state_dict()",
    "{'net': net.state_dict(), 'optimizer': vars(Adam(net.weight))}",
    "{name: tensor.half() for name, tensor in Tied().state_dict().items()}",
)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(1000, 250)
        self.scores = nn.Linear(250, 1000, bias=False)
        self.scores.weight = self.tokens.weight


class Adam:
    def __init__(self, p: torch.Tensor) -> None:
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(p), torch.zeros_like(p)


def megabytes(expression: str) -> float:
    names = {"torch": torch, "x": torch.randn(1000, 250), "net": nn.Linear(500, 500, bias=False)}
    file = io.BytesIO()
    torch.save(eval(expression, names | {"Tied": Tied, "Adam": Adam}), file)
    return file.getbuffer().nbytes / 1e6


RIGHT = {expression: megabytes(expression) for expression in EXPRESSIONS}


def check(answer: Any, seed: int) -> None:
    predictions = answer.MEGABYTES
    expect_predictions(predictions, "MEGABYTES", EXPRESSIONS, "a number")
    for expression, prediction in predictions.items():
        expect_number(prediction, f"`{expression}`", "a number, the megabytes")
    missed = [name for name in EXPRESSIONS if abs(predictions[name] - RIGHT[name]) > 0.06]
    if missed:
        count, first = f"{len(missed)} of {len(EXPRESSIONS)} predictions", missed[0]
        expect(False, f"{count} did not come true; the first: `{first}` takes {RIGHT[first]:.3f} MB. Why?")


def predict(**changed: float) -> dict[str, object]:
    """The right answer, but for the expressions whose number is named, such as _4=0.1."""
    return {"MEGABYTES": RIGHT | {EXPRESSIONS[int(number[1:])]: size for number, size in changed.items()}}


WRONG = {
    "a row is as large as a row": (predict(_1=0.0), "`x[0]` takes 1.002 MB"),
    "each view is saved": (predict(_3=3.5), "`[x, x[:500], x.t(), x.view(-1)]` takes 1.00"),
    "truth values are bits": (predict(_5=0.03), "`x > 0` takes 0.25"),
    "an expanded row is a table": (predict(_7=1.0), "`torch.zeros(1, 250).expand(1000, 250)` takes 0.00"),
    "parts are saved with all of it": (predict(_8=10.0), "`list(x.split(100))` takes 1.00"),
    "tied weights are saved twice": (predict(_10=2.0), "`Tied().state_dict()` takes 1.00"),
    "the optimizer is free": (predict(_11=1.0), "1 of 13 predictions"),
    "half is half": (predict(_12=0.5), "1 of 13 predictions"),
}
