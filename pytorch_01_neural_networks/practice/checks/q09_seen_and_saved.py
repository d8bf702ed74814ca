"""Each line is run in a module of its own, and the numbers are counted."""

import copy
from typing import Any

from shared.practice import expect
from shared.traps import expect_predictions, shown

import torch
from torch import nn

LINES = (
    "self.a = nn.Linear(3, 3); self.a = nn.Linear(3, 1)",
    "self.a = nn.BatchNorm1d(5)",
    "self.a = nn.BatchNorm1d(5, affine=False)",
    "self.a = nn.ModuleList([nn.Linear(3, 3)] * 4)",
    "self.a = [nn.Linear(3, 3) for _ in range(4)]",
    "self.a = [nn.Linear(3, 3) for _ in range(4)]; self.b = nn.Sequential(*self.a)",
    "self.a = nn.ParameterList(torch.ones(2) for _ in range(4))",
    "self.a = nn.Parameter(torch.ones(6), requires_grad=False)",
    "self.a = nn.Linear(3, 3); self.b = self.a.weight",
    "self.a = nn.Linear(3, 3); self.b = self.a.weight.clone()",
    "self.a = nn.Linear(3, 3); self.b = copy.deepcopy(self.a).requires_grad_(False)",
    "self.a = nn.Embedding(20, 3); self.b = nn.Linear(3, 20); self.b.weight = self.a.weight",
)
COUNTED_BY = ("parameters()", "state_dict()")
Counts = tuple[int, int]


def counted(line: str) -> Counts:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            exec(line, {"torch": torch, "nn": nn, "copy": copy, "self": self})

    with torch.random.fork_rng(devices=[]):  # a layer draws its weights
        model = Written()
    return sum(p.numel() for p in model.parameters()), sum(x.numel() for x in model.state_dict().values())


def check(answer: Any, seed: int) -> None:
    predictions = answer.SEEN_AND_SAVED
    expect_predictions(predictions, "SEEN_AND_SAVED", LINES, "a pair such as (12, 12)")
    for line, prediction in predictions.items():
        is_pair = isinstance(prediction, tuple | list) and [type(count) for count in prediction] == [int, int]
        expect(is_pair, f"`{line}` is {shown(prediction)}; write two whole numbers, such as (12, 12)")
    missed = [line for line in LINES if tuple(predictions[line]) != counted(line)]
    if missed:
        pairs = zip(COUNTED_BY, predictions[missed[0]], counted(missed[0]), strict=True)
        wrong = [f"{what} counts {right} numbers, not {said}" for what, said, right in pairs if said != right]
        count = f"{len(missed)} of {len(LINES)} predictions"
        expect(False, f"{count} did not come true; the first: with `{missed[0]}` {' and '.join(wrong)}. Why?")


def mistaken(wrong: dict[int, Counts]) -> dict[str, object]:
    """All predictions right but those of the lines with these numbers."""
    return {"SEEN_AND_SAVED": {line: wrong.get(i, counted(line)) for i, line in enumerate(LINES)}}


WRONG = {
    "forgets the buffers": (
        mistaken({1: (10, 10), 2: (0, 0)}),
        "BatchNorm1d(5)` state_dict() counts 21 numbers, not 10",
    ),
    "forgets the counter of batches": (mistaken({1: (10, 20), 2: (0, 10)}), "counts 21 numbers, not 20"),
    "takes one layer four times for four": (mistaken({3: (48, 48)}), "parameters() counts 12 numbers, not 48"),
    "saves a shared tensor once": (
        mistaken({3: (12, 12), 8: (12, 12), 11: (80, 80)}),
        "3 of 12 predictions did not come true; the first: with `self.a = nn.ModuleList([nn.Linear(3, 3)] * 4)` state_dict()",
    ),
    "looks into lists": (mistaken({4: (48, 48)}), "parameters() counts 0 numbers, not 48"),
    "loses what was ever in a list": (mistaken({5: (0, 0)}), "parameters() counts 48 numbers, not 0"),
    "does not see what is frozen": (mistaken({7: (0, 6), 10: (12, 24)}), "parameters() counts 6 numbers, not 0"),
    "takes a copy of a parameter for one": (mistaken({9: (21, 21)}), "parameters() counts 12 numbers, not 21"),
}
