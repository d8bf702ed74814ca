"""One recording is copied and spoilt at a known place, in every stage, in several ways; all after it is spoilt as well."""

import copy
import math
import random
from collections.abc import Callable
from typing import Any

from shared.practice import expect
from shared.traps import shown

import torch

STAGES = ("batch", "loss", "gradient", "weight")
NAMES = {
    "batch": ("images", "labels"),
    "loss": ("mean",),
    "gradient": ("out.weight", "out.bias", "body.weight"),
    "weight": ("out.weight", "out.bias", "body.weight"),
}
SHAPES = {"images": (3, 4), "labels": (3,), "mean": (), "out.weight": (2, 4), "out.bias": (2,), "body.weight": (4, 4)}
Recording = list[dict[str, dict[str, torch.Tensor]]]
Place = tuple[int, str, str]


def record(generator: torch.Generator, steps: int = 4) -> Recording:
    def tensor(name: str) -> torch.Tensor:
        x = torch.randn(SHAPES[name], generator=generator)
        return (10 * x).long() if name == "labels" else x

    return [{stage: {name: tensor(name) for name in NAMES[stage]} for stage in STAGES} for _ in range(steps)]


def spoil_after(recording: Recording, place: Place) -> None:
    """What follows from a difference: everything that is computed later."""
    step, stage, _ = place
    later = [
        (i, s) for i in range(len(recording)) for s in STAGES if (i, STAGES.index(s)) > (step, STAGES.index(stage))
    ]
    for i, s in later:
        for name in recording[i][s]:
            recording[i][s][name] = recording[i][s][name] + 1


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    expect_alike(answer, record(generator))
    chooser = random.Random(seed)
    for stage in STAGES:
        for name in NAMES[stage]:
            expect_found(answer, record(generator), (chooser.randrange(4), stage, name))
    expect_tolerance(answer, record(generator))
    expect_kinds(answer, record(generator))
    expect_order_of_names(answer, record(generator))
    expect_lengths(answer, record(generator))


def expect_answer(
    answer: Any, ours: Recording, theirs: Recording, tolerance: float, right: Place | None, what: str
) -> None:
    kept = copy.deepcopy((ours, theirs))
    found = answer.first_difference(ours, theirs, tolerance)
    for before, after in zip(kept, (ours, theirs), strict=True):
        untouched = all(
            list(a) == list(b) and all(a[stage].keys() == b[stage].keys() for stage in a)
            for a, b in zip(before, after, strict=True)
        )
        expect(untouched, "first_difference() has changed a recording")
    is_answer = found is None or (isinstance(found, tuple) and len(found) == 3)
    expect(is_answer, f"{what}: first_difference() returned {shown(found)}; return (step, stage, name) or None")
    expect(found == right, f"{what}: first_difference() returned {shown(found)}; it should be {right}")


def expect_alike(answer: Any, ours: Recording) -> None:
    ours[1]["gradient"]["out.bias"][0] = math.nan
    ours[2]["loss"]["mean"].fill_(math.inf)
    ours[3]["weight"]["body.weight"][0, :2] = torch.tensor([math.inf, -math.inf])
    for tolerance in (0.0, 1e-3):
        expect_answer(
            answer, ours, copy.deepcopy(ours), tolerance, None, "two equal recordings, with a NaN and infinities"
        )
    expect_answer(answer, [], [], 0.0, None, "two recordings without steps")


def expect_found(answer: Any, ours: Recording, place: Place) -> None:
    step, stage, name = place
    theirs = copy.deepcopy(ours)
    theirs[step][stage][name].view(-1)[-1] += 2
    spoil_after(theirs, place)
    expect_answer(
        answer, ours, theirs, 0.1, place, f"the {stage} {name} differs in step {step}, and all that is computed later"
    )
    expect_answer(
        answer, theirs, ours, 0.1, place, f"the {stage} {name} differs in step {step}, and all that is computed later"
    )


def expect_tolerance(answer: Any, ours: Recording) -> None:
    place = (1, "gradient", "body.weight")
    for large in (0.0, 1000.0):  # of the number itself: the tolerance is not relative
        for sign in (1, -1):
            theirs = copy.deepcopy(ours)
            for recording in (ours, theirs):
                recording[1]["gradient"]["body.weight"][2, 1] = large
            theirs[1]["gradient"]["body.weight"][2, 1] += sign * 0.25
            for tolerance, right in ((0.0, place), (0.125, place), (0.25, None), (0.5, None)):
                what = f"a number of a gradient is {large:g} in ours and {large + sign * 0.25:g} in theirs, tolerance {tolerance}"
                expect_answer(answer, ours, theirs, tolerance, right, what)


def expect_kinds(answer: Any, ours: Recording) -> None:
    place = (2, "gradient", "out.bias")

    def spoilt(change: Callable[[torch.Tensor], torch.Tensor], what: str) -> None:
        for in_ours in (False, True):
            theirs = copy.deepcopy(ours)
            theirs[2]["gradient"]["out.bias"] = change(theirs[2]["gradient"]["out.bias"].clone())
            pair = (theirs, ours) if in_ours else (ours, theirs)
            expect_answer(
                answer, *pair, 0.5, place, f"a gradient {what} in {'ours' if in_ours else 'theirs'} only, tolerance 0.5"
            )

    ours[2]["gradient"]["out.bias"].zero_()
    spoilt(lambda x: x.index_fill(0, torch.tensor([1]), math.nan), "has a NaN")
    spoilt(lambda x: x.index_fill(0, torch.tensor([1]), math.inf), "has an infinity")
    spoilt(lambda x: x[:, None], "has the shape (2, 1)")
    spoilt(lambda x: x[:1], "has the shape (1,)")
    spoilt(lambda x: x.bfloat16(), "is in bfloat16")
    ours[2]["gradient"]["out.bias"].fill_(-math.inf)
    spoilt(lambda x: -x, "has an infinity of the other sign")


def expect_order_of_names(answer: Any, ours: Recording) -> None:
    theirs = copy.deepcopy(ours)
    del theirs[1]["gradient"]["out.bias"]
    expect_answer(
        answer, ours, theirs, 0.1, (1, "gradient", "out.bias"), "in step 1 theirs has no gradient of out.bias"
    )
    expect_answer(answer, theirs, ours, 0.1, (1, "gradient", "out.bias"), "in step 1 ours has no gradient of out.bias")
    theirs[1]["gradient"]["body.weight"] = theirs[1]["gradient"]["body.weight"] + 1
    expect_answer(answer, theirs, ours, 0.1, (1, "gradient", "body.weight"), "in step 1 body.weight differs, and ours has no "
                  "out.bias: names of ours come first")  # fmt: skip
    turned = [{stage: dict(reversed(step[stage].items())) for stage in reversed(STAGES)} for step in ours]
    expect_answer(answer, ours, turned, 0.1, None, "theirs has stages and names in another order")
    for tensors in turned[3].values():
        for name in tensors:
            tensors[name] = tensors[name] + 1
    expect_answer(answer, turned, ours, 0.1, (3, "batch", "labels"), "all of step 3 differs, and ours has stages and names in "
                  "another order")  # fmt: skip
    expect_answer(answer, ours, turned, 0.1, (3, "batch", "images"), "all of step 3 differs")


def expect_lengths(answer: Any, ours: Recording) -> None:
    for shorter in (0, 1, 3):
        theirs = copy.deepcopy(ours[:shorter])
        what = f"one recording ends after {shorter} of 4 steps"
        expect_answer(answer, ours, theirs, 0.0, (shorter, "", ""), what)
        expect_answer(answer, theirs, ours, 0.0, (shorter, "", ""), what)
    theirs = copy.deepcopy(ours[:3])
    theirs[2]["loss"]["mean"] += 1
    expect_answer(
        answer, ours, theirs, 0.0, (2, "loss", "mean"), "the loss of step 2 differs, and theirs ends after it"
    )


Compare = Callable[[torch.Tensor, torch.Tensor, float], bool]


def alike(x: torch.Tensor, y: torch.Tensor, tolerance: float) -> bool:
    kinds = (x.shape, x.dtype) == (y.shape, y.dtype)
    return kinds and torch.allclose(x, y, rtol=0.0, atol=tolerance, equal_nan=True)


def by(compare: Compare = alike, stages_first: bool = False, own_names_only: bool = False,
       own_stages: bool = False, lengths: bool = True) -> dict[str, object]:  # fmt: skip
    """A search with the named faults."""

    def first_difference(ours: Recording, theirs: Recording, tolerance: float) -> Place | None:
        steps = range(min(len(ours), len(theirs)))
        stages = list(ours[0]) if own_stages and ours else list(STAGES)
        places = [(i, s) for s in stages for i in steps] if stages_first else [(i, s) for i in steps for s in stages]
        for i, s in places:
            own, other = ours[i][s], theirs[i][s]
            names = [name for name in own if name in other] if own_names_only else list(dict.fromkeys([*own, *other]))
            for name in names:
                if name not in own or name not in other or not compare(own[name], other[name], tolerance):
                    return i, s, name
        if lengths and len(ours) != len(theirs):
            return min(len(ours), len(theirs)), "", ""
        return None

    return {"first_difference": first_difference}


def by_largest(x: torch.Tensor, y: torch.Tensor, tolerance: float) -> bool:
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    return not (x - y).abs().max() > tolerance


def broadcasting(x: torch.Tensor, y: torch.Tensor, tolerance: float) -> bool:
    return torch.allclose(x.double(), y.double(), rtol=0.0, atol=tolerance, equal_nan=True)


def relative(x: torch.Tensor, y: torch.Tensor, tolerance: float) -> bool:
    return (x.shape, x.dtype) == (y.shape, y.dtype) and torch.allclose(
        x, y, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def without_nan(x: torch.Tensor, y: torch.Tensor, tolerance: float) -> bool:
    return (x.shape, x.dtype) == (y.shape, y.dtype) and torch.allclose(x, y, rtol=0.0, atol=tolerance)


def with_usual_tolerance(x: torch.Tensor, y: torch.Tensor, tolerance: float) -> bool:
    return (x.shape, x.dtype) == (y.shape, y.dtype) and torch.allclose(x, y, atol=tolerance, equal_nan=True)


WRONG = {
    "stage after stage": (by(stages_first=True), "and all that is computed later"),
    "the largest difference": (by(by_largest), "has a NaN"),
    "broadcasts": (by(broadcasting), "has the shape (2, 1)"),
    "a relative tolerance": (by(relative), "it should be (1, 'gradient', 'body.weight')"),
    "two NaNs differ": (by(without_nan), "two equal recordings, with a NaN"),
    "only names that both have": (by(own_names_only=True), "has no gradient of out.bias"),
    "the stages as they come": (by(own_stages=True), "another order"),
    "no look at the lengths": (by(lengths=False), "one recording ends after 0"),
    "signs do not matter": (by(lambda x, y, t: alike(x.abs(), y.abs(), t)), "an infinity of the other sign"),
}
