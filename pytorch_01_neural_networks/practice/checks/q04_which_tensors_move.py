"""Each line is run on a network in float64, and autograd says which gradients are other than 0."""

from typing import Any

from shared.practice import expect
from shared.traps import expect_predictions, shown

import torch
import torch.nn.functional as F

NAMES = ("w1", "b1", "w2", "b2")
ALL = " ".join(NAMES)
LINES = (
    "pass",
    "w2[:] = 0",
    "w1[:] = 0; b1[:] = 0",
    "w1[:] = 0; b1[:] = 0; f = torch.tanh",
    "w1[:] = 0; b1[:] = 0; f = torch.sigmoid",
    "w1[:] = 0; b1[:] = 0; w2[:] = 0; b2[:] = 0",
    "w1[:] = 0; b1[:] = 0; w2[:] = 0; b2[:] = 0; y[3] = 1",
    "b1[:] = -100",
    "x[:] = 0",
    "w2[1] = w2[0]",
    "y[:] = 0; b2[0] = 1000",
    "y[:] = 1; b2[0] = 1000",
)


def moving(line: str, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    names: dict[str, Any] = {"torch": torch, "f": torch.relu, "x": normal(6, 3), "y": torch.tensor([0, 0, 0, 0, 1, 1])}
    names |= {"w1": normal(4, 3), "b1": normal(4).abs(), "w2": normal(2, 4), "b2": normal(2)}
    exec(line, names)
    x, y, f = (names[name] for name in ("x", "y", "f"))
    w1, b1, w2, b2 = leaves = [names[name].requires_grad_() for name in NAMES]
    loss = F.cross_entropy(f(x @ w1.T + b1) @ w2.T + b2, y)
    gradients = torch.autograd.grad(loss, leaves)
    return " ".join(name for name, each in zip(NAMES, gradients, strict=True) if each.abs().max() > 1e-12)  # rounding


def check(answer: Any, seed: int) -> None:
    predictions = answer.MOVE
    wanted = 'the names of the tensors that move, or "" where none does'
    expect_predictions(predictions, "MOVE", LINES, wanted)
    for line, prediction in predictions.items():
        is_names = isinstance(prediction, str) and set(prediction.split()) <= set(NAMES)
        expect(is_names, f"MOVE: `{line}` is {shown(prediction)}; write {wanted}, all four as {ALL!r}")
    truths = {line: moving(line, seed) for line in LINES}
    missed = [line for line in LINES if set(predictions[line].split()) != set(truths[line].split())]
    if missed:
        line, count = missed[0], f"{len(missed)} of {len(LINES)} predictions"
        expect(False, f"{count} did not come true; the first: after `{line}` there is a gradient in "
               f"{truths[line] or 'none of the four'}, and you wrote {predictions[line] or 'none'}. Why?")  # fmt: skip


def predict(**changes: str) -> dict[str, object]:
    """Right but for the lines of the given numbers, such as line_1="w1 b1"."""
    numbers = {int(name.removeprefix("line_")): value for name, value in changes.items()}
    return {"MOVE": {line: numbers.get(i, moving(line, 0)) for i, line in enumerate(LINES)}}


WRONG = {
    "believes that everything always moves": (
        {"MOVE": dict.fromkeys(LINES, ALL)},
        "after `w2[:] = 0` there is a gradient in w2 b2",
    ),
    "believes that zeros do not learn": (predict(line_1="w1 b1 b2"), "after `w2[:] = 0`"),
    "takes tanh for ReLU": (predict(line_3="b2"), "f = torch.tanh` there is a gradient in w1 b1 b2"),
    "forgets that sigmoid of 0 is 1/2": (
        predict(line_4="w1 b1 b2"),
        "f = torch.sigmoid` there is a gradient in w1 b1 w2 b2",
    ),
    "overlooks the balance of the classes": (predict(line_6="b2"), "y[3] = 1` there is a gradient in none of the four"),
    "lets dead units learn": (predict(line_7="b1 b2"), "after `b1[:] = -100`"),
    "lets equal rows pass a delta": (predict(line_9=ALL), "after `w2[1] = w2[0]`"),
    "believes that the sure learn nothing": (predict(line_11=""), "after `y[:] = 1; b2[0] = 1000`"),
}
