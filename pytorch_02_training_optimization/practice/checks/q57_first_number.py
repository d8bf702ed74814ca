"""Each start is made and its loss computed; where chance would blur it, over all labels or over many draws."""

import math
from collections.abc import Callable
from typing import Any

from shared.practice import expect
from shared.traps import expect_number, expect_predictions
from shared.units import significant

import torch
import torch.nn.functional as F

TOLERANCE = 0.01
LOUD = "512 inputs of mean 0 and std 1, a last layer of torch.randn(10, 512)"
SHARES = torch.tensor([0.91] + [0.01] * 9)


def over_all_labels(scores: torch.Tensor) -> float:
    """The mean cross-entropy of each row with every class as its label."""
    return (scores.logsumexp(1) - scores.mean(1)).mean().item()


def of_shares(scores: torch.Tensor) -> float:
    """The cross-entropy of one row of scores, in expectation over the labels."""
    return F.cross_entropy(scores[None], SHARES[None]).item()


def of_positives(score: float) -> float:
    """With the 1 % as a soft label: the loss is linear in it."""
    return F.binary_cross_entropy_with_logits(torch.tensor([score]), torch.tensor([0.01])).item()


def loud_layer() -> float:
    x = torch.randn(2000, 512)
    return sum(over_all_labels(x @ torch.randn(512, 10)) for _ in range(20)) / 20


def quiet_layer() -> float:
    return over_all_labels(torch.randn(1000, 512) @ torch.randn(512, 1000) / 512**0.5)


def tied_table() -> float:
    tables = [torch.randn(1000, 64) for _ in range(12)]
    return sum(over_all_labels(table @ table.T) for table in tables) / len(tables)


def temperatures() -> float:
    drawn = torch.randn(1000, dtype=torch.float64)
    y = 20 + 10 * (drawn - drawn.mean()) / drawn.std(correction=0)
    return F.mse_loss(torch.zeros_like(y), y).item()


ZEROS = torch.zeros(32, 10)
STARTS: dict[str, Callable[[], float]] = {
    "scores 0, from a last layer of zeros": lambda: over_all_labels(ZEROS),
    "the same, summed over a batch of 32 (reduction='sum')": lambda: F.cross_entropy(
        ZEROS, torch.arange(32) % 10, reduction="sum"
    ).item(),
    "the same, by a model whose last layer is a Softmax of these scores": lambda: over_all_labels(ZEROS.softmax(1)),
    LOUD: loud_layer,
    "512 inputs of mean 0 and std 1, a last layer of torch.randn(1000, 512) / 512**0.5": quiet_layer,
    "of these shares, a last layer of zeros": lambda: of_shares(torch.zeros(10)),
    "of these shares, weights 0 and as biases the logarithms of the shares": lambda: of_shares(SHARES.log()),
    "1 % positive, a score of 0 that goes through a Sigmoid before the loss": lambda: of_positives(0.5),
    "1 % positive, a score of log(0.01 / 0.99)": lambda: of_positives(math.log(0.01 / 0.99)),
    "next words at random, scores: table @ table[word]": tied_table,
    "temperatures as they are, all predictions 0": temperatures,
}
NAMES = tuple(STARTS)


def check(answer: Any, seed: int) -> None:
    predictions = answer.FIRST_LOSS
    expect_predictions(predictions, "FIRST_LOSS", NAMES, "a number")
    for start, prediction in predictions.items():
        expect_number(prediction, f"FIRST_LOSS: `{start}`", "a number")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        measured = {start: measure() for start, measure in STARTS.items()}
    # Of the loud layer only some draws can be measured, to half a percent or so.
    allowed = {start: TOLERANCE * (3 if start == LOUD else 1) for start in NAMES}
    missed = [start for start in NAMES if abs(predictions[start] / measured[start] - 1) > allowed[start]]
    if missed:
        count = f"{len(missed)} of {len(NAMES)} predictions"
        expect(False, f"{count} did not come true; the first: `{missed[0]}` begins with {significant(measured[missed[0]])}, not "
               f"{significant(predictions[missed[0]])}. Why?")  # fmt: skip


RIGHT = (2.303, 73.7, 2.303, 34.8, 7.41, 2.303, 0.500, 0.969, 0.0560, 64.0, 500.0)


def mistaken(wrong: dict[int, float]) -> dict[str, object]:
    """All predictions right but these."""
    return {"FIRST_LOSS": {start: wrong.get(i, RIGHT[i]) for i, start in enumerate(NAMES)}}


WRONG = {
    "takes every start for ln C": (mistaken({3: 2.303, 4: 6.908}), "torch.randn(10, 512)` begins with 3"),
    "forgets that small differences cost, too": (mistaken({4: 6.908}), "/ 512**0.5` begins with 7.4"),
    "sees a floor in the first loss": (
        mistaken({2: 1.461}),
        "is a Softmax of these scores` begins with 2.30, not 1.46",
    ),
    "lets equal scores know the shares": (mistaken({5: 0.5}), "a last layer of zeros` begins with 2.30, not 0.5"),
    "counts only the frequent class": (mistaken({6: 0.094}), "the logarithms of the shares` begins with 0.500"),
    "takes a sigmoid of 0 for a score of 0": (mistaken({7: 0.693}), "before the loss` begins with 0.969, not 0.693"),
    "takes a mean for a sum": (mistaken({1: 2.303}), "reduction='sum')` begins with 73.7, not 2.30"),
    "takes a tied table for ignorant": (mistaken({9: 6.908}), "table @ table[word]` begins with 6"),
    "forgets the mean of the temperatures": (mistaken({10: 100.0}), "all predictions 0` begins with 500"),
}
