"""Each expression is evaluated on this machine, in float64, and the steps of x.grad that are not 0 are counted."""

from functools import cache
from typing import Any

from shared.practice import expect
from shared.traps import expect_integer, expect_predictions, shown

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

EXPRESSIONS = (
    "one(x)[0][2]",
    "stack(x)[0][2]",
    "one(x[4:], one(x[:4])[1])[1]",
    "one(x[4:], one(x[:4])[1].detach())[1]",
    "both(x)[0][2, :, :5]",
    "both(x)[0][2, :, 5:]",
    "both(x)[0][-1, :, 5:]",
    "both(x)[1][1]",
    "deep(x)[0][2, :, :5]",
    "one(packed)[1]",
    "pad_packed_sequence(both(packed)[0])[0][2, :, 5:]",
    "first(x)[1][0, -1]",
)


@cache
def steps_with_a_gradient(expression: str) -> tuple[int, ...]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        names: dict[str, Any] = {
            "one": nn.GRU(3, 5),
            "stack": nn.GRU(3, 5, 2),
            "both": nn.GRU(3, 5, bidirectional=True),
            "deep": nn.GRU(3, 5, 2, bidirectional=True),
            "first": nn.GRU(3, 5, batch_first=True),
        }
        for network in names.values():
            network.double()
        x = torch.randn(8, 1, 3, dtype=torch.float64).requires_grad_()
    names |= {"x": x, "packed": pack_padded_sequence(x, [5]), "pad_packed_sequence": pad_packed_sequence}
    eval(expression, names).square().sum().backward()
    assert x.grad is not None
    return tuple(x.grad.any(dim=2).flatten().nonzero().flatten().tolist())


def check(answer: Any, seed: int) -> None:
    predictions = answer.STEPS
    expect_predictions(predictions, "STEPS", EXPRESSIONS, "a whole number from 0 to 8")
    for expression, prediction in predictions.items():
        expect_integer(prediction, f"STEPS: `{expression}`", "a whole number")
        expect(0 <= prediction <= 8, f"STEPS: `{expression}` is {shown(prediction)}; x has 8 steps")
    missed = [each for each in EXPRESSIONS if predictions[each] != len(steps_with_a_gradient(each))]
    if missed:
        steps = steps_with_a_gradient(missed[0])
        which = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
        count = f"{len(missed)} of {len(EXPRESSIONS)} predictions"
        expect(False, f"{count} did not come true; the first: `{missed[0]}` has a gradient at {which} ({len(steps)}), and you "
               f"wrote {predictions[missed[0]]}. Why?")  # fmt: skip


def predict(**changed: int) -> dict[str, object]:
    """The right numbers, but for the expressions at these places (p0 is the first)."""
    right = [len(steps_with_a_gradient(expression)) for expression in EXPRESSIONS]
    for place, value in changed.items():
        right[int(place[1:])] = value
    return {"STEPS": dict(zip(EXPRESSIONS, right, strict=True))}


WRONG = {
    "believes that layers look further": (predict(p1=5), "`stack(x)[0][2]` has a gradient at steps 0 to 2 (3)"),
    "believes that detach() lets a gradient through": (predict(p3=8), "has a gradient at steps 4 to 7 (4)"),
    "takes both directions for one": (predict(p5=3), "`both(x)[0][2, :, 5:]` has a gradient at steps 2 to 7 (6)"),
    "looks for the backward end at the last step": (predict(p6=8), "has a gradient at step 7 (1)"),
    "keeps the forward half clean in deep networks": (
        predict(p8=3),
        "`deep(x)[0][2, :, :5]` has a gradient at steps 0 to 7 (8)",
    ),
    "reads the padding backwards": (predict(p10=6), "has a gradient at steps 2 to 4 (3)"),
    "does not see batch_first": (predict(p11=8), "`first(x)[1][0, -1]` has a gradient at step 7 (1)"),
    "says 8 for all": (predict(**{f"p{i}": 8 for i in range(12)}), "9 of 12 predictions"),
}
