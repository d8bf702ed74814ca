"""Each expression is evaluated, and its storage says how many bytes it has."""

from typing import Any

from shared.practice import expect
from shared.traps import expect_predictions, shown

import torch

EXPRESSIONS = (
    "x",
    "x > 5",
    "x / 2",
    "x.to(torch.bfloat16)",
    "x[:10]",
    "x[:10].clone()",
    "torch.zeros(1).expand(1000, 1000)",
    "torch.rand(1000, 1000) + 1j",
    "torch.empty(7_000_000_000, dtype=torch.bfloat16, device='meta')",
)


def bytes_held(expression: str) -> int:
    x = torch.arange(1_000_000)
    return eval(expression, {"torch": torch, "x": x}).untyped_storage().nbytes()


HELD = {expression: bytes_held(expression) for expression in EXPRESSIONS}


def check(answer: Any, seed: int) -> None:
    predictions = answer.BYTES_HELD
    expect_predictions(predictions, "BYTES_HELD", EXPRESSIONS, "a number of bytes")
    for expression, prediction in predictions.items():
        is_whole = isinstance(prediction, int) and not isinstance(prediction, bool)
        expect(is_whole, f"`{expression}` is {shown(prediction)}; write a whole number of bytes")
    missed = [expression for expression in EXPRESSIONS if predictions[expression] != HELD[expression]]
    if missed:
        first = missed[0]
        expect(
            False,
            f"{len(missed)} of {len(EXPRESSIONS)} predictions did not come true; the first: `{first}` holds "
            f"{HELD[first]:,} bytes, and you said {predictions[first]:,}. Where does the factor of "
            f"{factor(predictions[first], HELD[first])} come from?",
        )


def factor(predicted: int, held: int) -> str:
    return f"{max(predicted, held) / min(predicted, held):,.3g}" if predicted > 0 else "infinity"


def predict(**changed: int) -> dict[str, object]:
    names = {"integers": "x", "bools": "x > 5", "halves": "x / 2", "slice": "x[:10]", "expanded": EXPRESSIONS[6]}
    return {"BYTES_HELD": HELD | {names[name]: count for name, count in changed.items()}}


WRONG = {
    "takes integers for int32": (predict(integers=4_000_000), "`x` holds 8,000,000 bytes"),
    "packs eight bools into a byte": (predict(bools=125_000), "the factor of 8"),
    "believes that a division keeps the size": (predict(halves=8_000_000), "`x / 2` holds 4,000,000 bytes"),
    "counts only what the slice shows": (predict(slice=80, expanded=4_000_000), "2 of 9 predictions"),
}
