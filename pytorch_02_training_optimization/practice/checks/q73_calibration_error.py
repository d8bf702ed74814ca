"""The oracle is a loop over bins; small cases with a bin of their own come first, then random logits of every type."""

import math
from collections.abc import Callable
from typing import Any

from shared.practice import expect
from shared.traps import expect_number

import torch


def by_hand(logits: torch.Tensor, labels: torch.Tensor, bins: int) -> float:
    confidences, answers = logits.double().softmax(dim=1).max(dim=1)
    total = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, c in enumerate(confidences.tolist()) if math.ceil(c * bins) == m]
        if inside:
            sure = sum(confidences[i].item() for i in inside)
            right = sum(answers[i].item() == labels[i].item() for i in inside)
            total += abs(sure - right) / len(labels)
    return total


def logits_for(*probabilities: float) -> torch.Tensor:
    """(N, 2): two classes, the first with each of the probabilities."""
    first = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([first, 1 - first], dim=1).log()


CASES: dict[str, tuple[torch.Tensor, list[int], int]] = {
    "one sample, half sure and right": (torch.zeros(1, 2), [0], 4),
    "the example, one of two right": (torch.zeros(2, 2), [0, 1], 5),
    "the example, both wrong": (torch.zeros(2, 2), [1, 1], 5),
    "too sure in one bin and too shy in another; the two must not cancel": (logits_for(0.95, 0.65), [1, 0], 10),
    "three samples in one bin and one in another; samples count alike": (
        logits_for(0.9, 0.9, 0.9, 0.7),
        [0, 0, 1, 1],
        4,
    ),
    "a confidence of 0.5 with two bins lies in the lower one": (torch.tensor([[0.0, 0.0], [2.0, 0.0]]), [0, 1], 2),
    "a confidence of 1 lies in the last bin": (torch.tensor([[900.0, -900.0], [0.0, 5.0]]), [0, 1], 3),
    "twenty classes, all alike: a confidence of 0.05 lies in the first bin": (torch.zeros(3, 20), [0, 1, 2], 10),
    "a single bin": (logits_for(0.8, 0.6, 0.9), [0, 1, 1], 1),
}


def check(answer: Any, seed: int) -> None:
    for why, (logits, given, bins) in CASES.items():
        expect_error(answer, logits.double(), torch.tensor(given), bins, why)
    generator = torch.Generator().manual_seed(seed)
    for samples, classes, bins, dtype in (
        (200, 5, 15, torch.float32), (37, 2, 7, torch.float64), (500, 10, 10, torch.float16), (64, 3, 40, torch.bfloat16)
    ):  # fmt: skip
        logits = (2 * torch.randn(classes, samples, generator=generator)).to(dtype).T  # not contiguous
        labels = torch.randint(classes, (samples,), generator=generator)
        expect_error(answer, logits, labels, bins, f"random logits, {str(dtype).removeprefix('torch.')}")


def expect_error(answer: Any, logits: torch.Tensor, labels: torch.Tensor, bins: int, why: str) -> None:
    call = f"calibration_error with logits {tuple(logits.shape)} and {bins} bins"
    before = logits.clone(), labels.clone()
    found, right = answer.calibration_error(logits, labels, bins), by_hand(logits, labels, bins)
    is_nan = isinstance(found, float) and math.isnan(found)
    expect(not is_nan, f"{call} returned NaN ({why}); what becomes of a bin without samples?")
    expect_number(found, call, "the error, a float")
    close = math.isclose(found, right, rel_tol=1e-9, abs_tol=1e-12)
    expect(close, f"{call} returned {found:.9g} and should return {right:.9g}: {why}")
    untouched = torch.equal(logits, before[0]) and torch.equal(labels, before[1])
    expect(untouched, f"{call} changed its input")


def written(
    confide: Callable[[torch.Tensor], torch.Tensor] | None = None,
    weigh: bool = True,
    skips_empty: bool = True,
    place: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    of_the_label: bool = False,
) -> dict[str, object]:
    """Bin by bin with means, as most people begin; the keywords are the mistakes of WRONG."""

    def calibration_error(logits: torch.Tensor, labels: torch.Tensor, bins: int) -> float:
        probabilities = confide(logits) if confide else logits.double().softmax(dim=1)
        confidence, answers = probabilities.max(dim=1)
        if of_the_label:
            confidence = probabilities.gather(1, labels[:, None]).squeeze(1)
        right = (answers == labels).double()
        where = place(confidence, bins) if place else (confidence * bins).ceil().long().clamp(1, bins) - 1
        parts = []
        for m in range(bins):
            inside = where == m
            if skips_empty and not inside.any():
                continue
            distance = (confidence[inside].mean() - right[inside].mean()).abs().item()
            parts.append(distance * (inside.sum().item() / len(labels) if weigh else 1.0))
        return sum(parts) if weigh else sum(parts) / len(parts)

    return {"calibration_error": calibration_error}


def over_all(logits: torch.Tensor, labels: torch.Tensor, bins: int) -> float:
    confidence, answers = logits.double().softmax(dim=1).max(dim=1)
    return (confidence.mean() - (answers == labels).double().mean()).abs().item()


WRONG = {
    "compares two means over all": ({"calibration_error": over_all}, "the two must not cancel"),
    "forgets empty bins": (written(skips_empty=False), "what becomes of a bin without samples?"),
    "lets every bin count alike": (written(weigh=False), "samples count alike"),
    "takes the lower edge into the bin": (
        written(place=lambda confidence, bins: (confidence * bins).long().clamp(max=bins - 1)),
        "lies in the lower one",
    ),
    "takes the probability of the label": (written(of_the_label=True), "too sure in one bin"),
    "takes logits for probabilities": (written(confide=lambda logits: logits.double()), "half sure and right"),
    "computes in the type that comes": (
        written(confide=lambda logits: logits.softmax(dim=1)),
        "random logits, float32",
    ),
}
