"""Each expression is evaluated and says its shape."""

from typing import Any

from shared.practice import expect
from shared.traps import expect_predictions, shown

import torch

WHY = {
    "x[0]": "a number takes its axis away; x[:1] would keep it",
    "x[..., ::2]": "the dots stand for all axes that are not written, so ::2 is about the columns",
    "x[:1].squeeze()": "squeeze() takes every axis of size 1, and here that is the batch",
    "x[labels < 5]": "the mask covers the first axis and keeps the images where it is true",
    "x[x > 0]": "this mask covers all axes, and what it keeps stands in one row",
    "x[[0, 1], :, [2, 3]]": "the two lists go together as pairs, and with a slice between them their axis goes in front",
    "scores[torch.arange(8), labels]": "two lists of indices are 8 pairs (row, column), not a table",
    "scores[:, labels]": "a slice beside a list is no pair: each of the 8 rows gives all 8 columns",
    "scores.gather(1, labels[:, None])": "gather returns the shape of its index",
    "torch.stack([scores, scores], dim=1)": "stack puts a new axis at dim",
    "torch.cat([scores, labels[:, None]], dim=1)": "cat makes the axis dim longer and needs no new one",
    "x.chunk(6)[0]": "the size of a piece is decided first, 8 / 6 rounded up; fewer than six pieces come out",
}


def shape_of(expression: str) -> tuple[int, ...]:
    labels = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    known = {"torch": torch, "x": torch.ones(8, 3, 4, 6), "scores": torch.zeros(8, 10), "labels": labels}
    return tuple(eval(expression, known).shape)


SHAPES = {expression: shape_of(expression) for expression in WHY}


def check(answer: Any, seed: int) -> None:
    predictions = answer.SHAPES
    expect_predictions(predictions, "SHAPES", WHY, "its shape, a tuple")
    for expression, prediction in predictions.items():
        is_shape = isinstance(prediction, tuple) and all(isinstance(size, int) for size in prediction)
        expect(is_shape, f"`{expression}` is {shown(prediction)}; write a tuple of whole numbers, for one axis (5,)")
    missed = [expression for expression in WHY if tuple(predictions[expression]) != SHAPES[expression]]
    if missed:
        first = missed[0]
        expect(
            False,
            f"{len(missed)} of {len(WHY)} predictions did not come true; the first: `{first}` has the shape "
            f"{SHAPES[first]}, and you said {tuple(predictions[first])}: {WHY[first]}",
        )


def predict(**changed: object) -> dict[str, object]:
    names = {"number": "x[0]", "squeezed": "x[:1].squeeze()", "lists": "x[[0, 1], :, [2, 3]]", "chunk": "x.chunk(6)[0]"}
    names |= {"table": "scores[:, labels]", "pairs": "scores[torch.arange(8), labels]", "masked": "x[x > 0]"}
    return {"SHAPES": SHAPES | {names[name]: shape for name, shape in changed.items()}}


WRONG = {
    "takes a number for a slice": (predict(number=(1, 3, 4, 6)), "a number takes its axis away"),
    "takes pairs for a table and a table for pairs": (predict(table=(8,), pairs=(8, 8)), "2 of 12 predictions"),
    "believes that chunk(6) makes six": (predict(chunk=(1, 3, 4, 6)), "fewer than six pieces come out"),
    "leaves the axis of two lists in its place": (predict(lists=(2, 2, 3, 6)), "their axis goes in front"),
    "writes a number for a shape": (predict(masked=576), "write a tuple of whole numbers"),
}
