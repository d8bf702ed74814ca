"""Draws are counted: by part, by class and by sample, with bounds of six standard errors."""

import math
from numbers import Integral
from typing import Any

from shared.practice import expect
from shared.traps import shown

import torch

DRAWS = 20_000


def cases(seed: int) -> list[tuple[str, list[int], list[bool]]]:
    """Labels, and which samples are for validation."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (60,), generator=generator)
    at_random = (torch.rand(60, generator=generator) < 0.3).tolist()
    return [
        ("four samples", [0, 0, 0, 1], [True, False, False, False]),
        ("validation at the end", [0, 1, 1, 1, 0, 0], [False, False, False, False, True, True]),
        ("validation with most of class 1", [1, 1, 1, 1, 0, 0, 0, 0, 1, 0], [True] * 4 + [False] * 6),
        ("a class that is only in validation", [2, 0, 0, 1, 2, 0], [True, False, False, False, True, False]),
        ("no class 1 at all", [0, 2, 0, 0, 2, 2], [False, False, True, False, False, True]),
        ("one sample for training", [0, 1, 2], [True, True, False]),
        ("60 samples", labels.tolist(), at_random),
    ]


def check(answer: Any, seed: int) -> None:
    for name, labels, is_validation in cases(seed):
        expect_fair(answer, name, torch.tensor(labels), torch.tensor(is_validation), seed)
    expect_own_generator(answer, seed)


def draw(answer: Any, call: str, labels: torch.Tensor, is_validation: torch.Tensor, count: int, seed: int) -> list[int]:
    kept = labels.clone(), is_validation.clone()
    drawn = answer.draw_epoch(labels, is_validation, count, torch.Generator().manual_seed(seed))
    is_list = isinstance(drawn, list) and all(isinstance(i, Integral) and not isinstance(i, bool) for i in drawn)
    expect(is_list, f"{call} returned {shown(drawn)}; return a list of {count} indices")
    expect(torch.equal(labels, kept[0]) and torch.equal(is_validation, kept[1]), f"{call} changed what it was given")
    expect(len(drawn) == count, f"{call} returned {len(drawn)} indices, and was asked for {count}")
    wrong = [i for i in drawn if not 0 <= i < len(labels)]
    expect(not wrong, f"{call} returned the index {wrong[:1]}; the data set has the indices 0 to {len(labels) - 1}")
    return drawn


def expect_fair(answer: Any, name: str, labels: torch.Tensor, is_validation: torch.Tensor, seed: int) -> None:
    call = f"draw_epoch of {name}"
    if len(labels) < 10:
        call += f", labels {labels.tolist()}, validation {is_validation.nonzero().squeeze(1).tolist()}"
    drawn = torch.tensor(draw(answer, call, labels, is_validation, DRAWS, seed))
    leaked = int(is_validation[drawn].sum())
    expect(
        leaked == 0,
        f"{call}: {leaked:,} of {DRAWS:,} indices are validation samples, such as {drawn[is_validation[drawn]][:1].tolist()}",
    )
    classes = labels[~is_validation].unique().tolist()
    for number in classes:
        expect_share(f"{call}: class {number}", int((labels[drawn] == number).sum()), 1 / len(classes), "each class")
    for i in (~is_validation).nonzero().squeeze(1).tolist():
        peers = int((labels[~is_validation] == labels[i]).sum())
        expect_share(
            f"{call}: sample {i}", int((drawn == i).sum()), 1 / len(classes) / peers, f"of class {labels[i]} each"
        )


def expect_share(what: str, found: int, share: float, whose: str) -> None:
    bound = 6 * math.sqrt(share * (1 - share) / DRAWS) + 1e-9
    is_fair = abs(found / DRAWS - share) <= bound
    expect(
        is_fair, f"{what} is {found / DRAWS:.1%} of the draws; {whose} should be {share:.1%}, give or take {bound:.1%}"
    )


def expect_own_generator(answer: Any, seed: int) -> None:
    labels, is_validation = torch.arange(30) % 3, torch.arange(30) % 5 == 0
    call = "draw_epoch of 30 samples"
    torch.manual_seed(seed)
    first = draw(answer, call, labels, is_validation, 40, seed)
    torch.manual_seed(seed + 1)  # nobody may draw from the global generator
    expect(
        draw(answer, call, labels, is_validation, 40, seed) == first,
        f"{call} gave other indices for a generator of the same seed; draw from it and from no other",
    )
    other = draw(answer, call, labels, is_validation, 40, seed + 1)
    expect(other != first, f"{call} gave the same indices for a generator of another seed; epochs must differ")


def drawn_by(labels: torch.Tensor, is_validation: torch.Tensor, count: int, generator: torch.Generator | None,
             counted: torch.Tensor) -> torch.Tensor:  # fmt: skip
    train = (~is_validation).nonzero().squeeze(1)
    weights = 1 / counted.bincount(minlength=int(labels.max()) + 1).clamp(min=1)[labels[train]]
    return torch.multinomial(weights, count, replacement=True, generator=generator)


def returns_positions(
    labels: torch.Tensor, is_validation: torch.Tensor, count: int, generator: torch.Generator
) -> list[int]:
    return drawn_by(labels, is_validation, count, generator, labels[~is_validation]).tolist()


def counts_all_samples(
    labels: torch.Tensor, is_validation: torch.Tensor, count: int, generator: torch.Generator
) -> list[int]:
    train = (~is_validation).nonzero().squeeze(1)
    return train[drawn_by(labels, is_validation, count, generator, labels)].tolist()


def drops_them_afterwards(
    labels: torch.Tensor, is_validation: torch.Tensor, count: int, generator: torch.Generator
) -> list[int]:
    weights = 1 / labels.bincount()[labels]
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    return drawn[~is_validation[drawn]].tolist()


def draws_without_weights(
    labels: torch.Tensor, is_validation: torch.Tensor, count: int, generator: torch.Generator
) -> list[int]:
    train = (~is_validation).nonzero().squeeze(1)
    return train[torch.randint(len(train), (count,), generator=generator)].tolist()


def uses_the_global_generator(
    labels: torch.Tensor, is_validation: torch.Tensor, count: int, generator: torch.Generator
) -> list[int]:
    train = (~is_validation).nonzero().squeeze(1)
    return train[drawn_by(labels, is_validation, count, None, labels[train])].tolist()


WRONG = {
    "returns positions": ({"draw_epoch": returns_positions}, "indices are validation samples"),
    "counts all samples": ({"draw_epoch": counts_all_samples}, "class 0 is"),
    "drops them afterwards": ({"draw_epoch": drops_them_afterwards}, "and was asked for"),
    "draws without weights": ({"draw_epoch": draws_without_weights}, "each class should be 50.0%"),
    "uses the global generator": ({"draw_epoch": uses_the_global_generator}, "draw from it and from no other"),
}
