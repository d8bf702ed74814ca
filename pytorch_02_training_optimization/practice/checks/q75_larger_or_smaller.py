"""Every pair is measured, with so many draws that chance cannot turn a sign; "=" means equal within the draws' error."""

import math
from typing import Any

from shared.practice import expect
from shared.traps import expect_predictions, shown

import torch
import torch.nn.functional as F
from torch import nn

SIGNS = (">", "<", "=")
Pair = tuple[float, float, float]  # the two numbers, and how far apart they may be to count as the same


def winner(generator: torch.Generator, count: int) -> float:
    """Mean accuracy of the best of 20 models that are all 50 % right."""
    seen = torch.binomial(torch.full((2000, 20), float(count)), torch.tensor(0.5).expand(2000, 20), generator=generator)
    return (seen.amax(dim=1) / count).mean().item()


def best_of_20(generator: torch.Generator) -> Pair:
    return winner(generator, 100), 0.5, 0.02


def excess(generator: torch.Generator) -> Pair:
    return winner(generator, 10_000) - 0.5, winner(generator, 100) - 0.5, 0.02


def dropped_units(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    unit = torch.randn(400_000, generator=generator).relu()
    return unit * (torch.rand(unit.shape, generator=generator) < 0.5) * 2, unit


def dropout_mean(generator: torch.Generator) -> Pair:
    dropped, unit = dropped_units(generator)
    return dropped.mean().item(), unit.mean().item(), 0.01


def dropout_variance(generator: torch.Generator) -> Pair:
    dropped, unit = dropped_units(generator)
    return dropped.var().item(), unit.var().item(), 0.01


def sure_logits(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from the softmax of the logits / 5: the network is five times too sure."""
    honest = torch.randn(4000, 10, generator=generator)
    labels = torch.multinomial(honest.softmax(dim=1), 1, generator=generator).squeeze(1)
    return 5 * honest, labels


def divided_accuracy(generator: torch.Generator) -> Pair:
    logits, y = sure_logits(generator)
    accuracies = [((z.argmax(dim=1)) == y).float().mean().item() for z in (logits / 3, logits)]
    return accuracies[0], accuracies[1], 1e-3


def divided_loss(generator: torch.Generator) -> Pair:
    logits, y = sure_logits(generator)
    return F.cross_entropy(logits / 3, y).item(), F.cross_entropy(logits, y).item(), 0.01


def smoothed(generator: torch.Generator) -> Pair:
    losses = []
    for probability in (0.9999, 0.91):
        logits = torch.tensor([[probability] + [(1 - probability) / 9] * 9], dtype=torch.float64).log()
        losses.append(F.cross_entropy(logits, torch.tensor([0]), label_smoothing=0.1).item())
    return losses[0], losses[1], 0.01


def calibration_error(confidence: torch.Tensor, right: torch.Tensor) -> float:
    place = (confidence * 10).ceil().long().clamp(1, 10) - 1
    sums = torch.zeros(10).index_add(0, place, confidence - right.float())
    return sums.abs().sum().item() / len(right)


def measured_calibration(generator: torch.Generator) -> Pair:
    errors = []
    for count in (100, 10_000):
        confidence = torch.rand(20, count, generator=generator)
        right = torch.rand(20, count, generator=generator) < confidence
        errors.append(sum(calibration_error(*pair) for pair in zip(confidence, right, strict=True)) / 20)
    return errors[0], errors[1], 0.01


def halved(generator: torch.Generator) -> Pair:
    layer, norm = nn.Linear(8, 16), nn.LayerNorm(16)
    x = torch.randn(4, 8, generator=generator)
    with torch.no_grad():
        before = norm(layer(x))
        for parameter in layer.parameters():
            parameter.mul_(0.5)
        after = norm(layer(x))
    return after[0, 0].item(), before[0, 0].item(), 0.01


def paired(generator: torch.Generator) -> Pair:
    luck = 3 * torch.randn(500, 8, generator=generator)  # of each seed, shared by both runs
    plain, cured = (luck + 0.5 * torch.randn(500, 8, generator=generator) for _ in range(2))
    by_seed = (cured - plain).std(dim=1) / math.sqrt(8)
    as_strangers = ((cured.var(dim=1) + plain.var(dim=1)) / 8).sqrt()
    return by_seed.mean().item(), as_strangers.mean().item(), 0.05


PAIRS = {
    "best validation accuracy of 20 equal models on 100 samples, against its accuracy on fresh ones": best_of_20,
    "the same excess with 10,000 validation samples, against the excess with 100": excess,
    "mean of a hidden unit with dropout 0.5 in training, against its mean in eval": dropout_mean,
    "variance of a hidden unit with dropout 0.5 in training, against its variance in eval": dropout_variance,
    "accuracy after all logits are divided by 3, against before": divided_accuracy,
    "loss of a network that is far too sure, after its logits are divided by 3, against before": divided_loss,
    "smoothed loss (0.1) of a right answer at a probability of 0.9999, against at 0.91, of 10 classes": smoothed,
    "calibration error of a perfectly calibrated model, measured on 100 samples, against on 10,000": measured_calibration,
    "output of a LayerNorm after the Linear in front of it was halved, against before": halved,
    "standard error of a difference over 8 seeds, paired by seed, where seeds matter more than the cure, "
    "against unpaired": paired,
}


def sign_of(pair: Pair) -> str:
    first, second, same = pair
    return "=" if abs(first - second) <= same else ">" if first > second else "<"


def check(answer: Any, seed: int) -> None:
    predictions = answer.SIGN
    expect_predictions(predictions, "SIGN", PAIRS, 'one of ">", "<" and "="')
    for text, prediction in predictions.items():
        is_sign = isinstance(prediction, str) and prediction in SIGNS
        expect(is_sign, f"`{text}` is {shown(prediction)}; write one of {', '.join(map(repr, SIGNS))}")
    measured = {text: measure(torch.Generator().manual_seed(seed)) for text, measure in PAIRS.items()}
    missed = [text for text in PAIRS if predictions[text] != sign_of(measured[text])]
    if missed:
        first, second, _ = measured[missed[0]]
        expect(False, f"{len(missed)} of {len(PAIRS)} predictions did not come true; the first: `{missed[0]}`: "
               f"measured {first:.4g} and {second:.4g}. Why?")  # fmt: skip


RIGHT = dict(zip(PAIRS, "><=>=<>>=<", strict=True))


def predict(**changed: str) -> dict[str, object]:
    """The right answer, but for the pairs whose number is named, such as _4=">"."""
    texts = list(PAIRS)
    return {"SIGN": RIGHT | {texts[int(number[1:])]: sign for number, sign in changed.items()}}


WRONG = {
    "the best is as good as it seems": (predict(_0="="), "the first: `best validation accuracy"),
    "dropout halves the mean": (predict(_2="<"), "the first: `mean of a hidden unit"),
    "dropout leaves the variance": (predict(_3="="), "the first: `variance of a hidden unit"),
    "a temperature changes answers": (predict(_4="<"), "the first: `accuracy after all logits"),
    "smoothing rewards certainty": (predict(_6="<"), "the first: `smoothed loss"),
    "perfect is measured as 0": (predict(_7="="), "the first: `calibration error"),
    "a norm feels the size": (predict(_8="<"), "the first: `output of a LayerNorm"),
    "pairing changes nothing": (predict(_9="="), "1 of 10 predictions"),
}
