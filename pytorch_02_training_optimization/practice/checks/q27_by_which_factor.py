"""Every factor is measured on a small network; nothing is taken from the solution."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from shared.practice import expect
from shared.traps import expect_number, expect_predictions
from shared.units import significant

import torch
import torch.nn.functional as F
from torch import nn


def network() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    x = torch.randn(64, 6, generator=generator, dtype=torch.float64)
    return model, x, torch.randint(3, (64,), generator=generator)


def flat_gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def accumulated(parts: int, divisor: int, repeat: bool = False, clear: bool = False) -> torch.Tensor:
    """The gradient after a loop over parts; `repeat`: every part is the first one."""
    model, x, y = network()
    for some_x, some_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        if clear:
            model.zero_grad()
        data = (x[: len(some_x)], y[: len(some_y)]) if repeat else (some_x, some_y)
        (F.cross_entropy(model(data[0]), data[1]) / divisor).backward()
    return flat_gradient(model)


def adams_first_step(gradient: torch.Tensor) -> torch.Tensor:
    mean, square = 0.1 * gradient / (1 - 0.9), 0.001 * gradient.square() / (1 - 0.999)
    return mean / (square.sqrt() + 1e-8)


def length_over(found: torch.Tensor, right: torch.Tensor) -> float:
    return float(found.norm() / right.norm())


def old_mean_left() -> float:
    means = []
    for start in (0.0, 1.0):
        norm = nn.BatchNorm1d(2, momentum=0.5)
        assert norm.running_mean is not None
        norm.running_mean.fill_(start)
        for part in torch.arange(24.0).view(12, 2).chunk(3):
            norm(part)
        means.append(norm.running_mean[0].item())
    return means[1] - means[0]


def token_against_token() -> float:
    weights = [torch.ones(tokens, requires_grad=True) for tokens in (2, 10)]
    (sum(part.mean() for part in weights) / 2).backward()  # type: ignore[union-attr]
    first, second = (part.grad for part in weights)
    assert first is not None
    assert second is not None
    return (first[0] / second[0]).item()


class Alive(torch.autograd.graph.saved_tensors_hooks):
    """Bytes that autograd keeps, each storage once and those of `known` not at all, while its graphs live."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        self.now, self.most = 0, 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._holders: dict[int, int] = {}
        super().__init__(lambda tensor: _Held(tensor.detach(), self), lambda held: held.tensor)

    def change(self, tensor: torch.Tensor, by: int) -> None:
        address = tensor.untyped_storage().data_ptr()
        if address not in self._known:
            before = self._holders.get(address, 0)
            self._holders[address] = before + by
            if before + by == (by > 0):
                self.now += by * tensor.untyped_storage().nbytes()
                self.most = max(self.most, self.now)


class _Held:
    def __init__(self, tensor: torch.Tensor, counter: Alive) -> None:
        self.tensor, self.counter = tensor, counter
        counter.change(tensor, 1)

    def __del__(self) -> None:
        self.counter.change(self.tensor, -1)


def most_saved(parts: int, at_the_end: bool = False) -> int:
    model, x, y = network()
    counter = Alive([*model.parameters(), x, y])
    with counter:
        losses = []
        for some_x, some_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
            losses.append(F.cross_entropy(model(some_x), some_y) / parts)
            if not at_the_end:
                losses.pop().backward()
        if losses:
            torch.stack(losses).sum().backward()
    return counter.most


def clipped(clip: Callable[[list[nn.Parameter]], object]) -> tuple[object, torch.Tensor]:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    returned = clip([weight])
    assert weight.grad is not None
    return returned, weight.grad


def clipped_after_each() -> float:
    weight = nn.Parameter(torch.zeros(2))
    for slope in (torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])):
        (weight * slope).sum().backward()
        nn.utils.clip_grad_norm_([weight], 1.0)
    assert weight.grad is not None
    return (weight.grad[1] / weight.grad[0]).item()


MEASURES: dict[str, Callable[[], float]] = {
    "SGD, 8 parts, not divided: length of the step, of the right one's": lambda: length_over(
        accumulated(8, 1), accumulated(1, 1)
    ),
    "Adam, 8 parts, not divided: length of the first step, of the right one's": lambda: length_over(
        adams_first_step(accumulated(8, 1)), adams_first_step(accumulated(1, 1))
    ),
    "4 parts with the same data, divided, zero_grad() before each: length of the gradient, of the right one's": (
        lambda: length_over(accumulated(4, 4, repeat=True, clear=True), accumulated(4, 4, repeat=True))
    ),
    "BatchNorm1d(momentum=0.5), 3 parts: share of the old running mean after one step": old_mean_left,
    "parts with 2 and 10 tokens, mean of means: a token of the first, in tokens of the second": token_against_token,
    "saved activations, 8 parts, backward() for each: most bytes at once, of the whole batch's": (
        lambda: most_saved(8) / most_saved(1)
    ),
    "saved activations, 8 parts, losses added and one backward(): most bytes at once, of the whole batch's": (
        lambda: most_saved(8, at_the_end=True) / most_saved(1)
    ),
    "gradient [3, 4], clip_grad_norm_ at 1: what it returns": lambda: float(
        clipped(lambda weights: nn.utils.clip_grad_norm_(weights, 1.0))[0]  # type: ignore[arg-type]
    ),
    "gradient [3, 4], clip_grad_value_ at 1: length of the gradient afterwards": lambda: float(
        clipped(lambda weights: nn.utils.clip_grad_value_(weights, 1.0))[1].norm()
    ),
    "gradient [3, 4], clip_grad_norm_ at 10: length of the gradient afterwards": lambda: float(
        clipped(lambda weights: nn.utils.clip_grad_norm_(weights, 10.0))[1].norm()
    ),
    "2 parts with gradients [3, 0] and [0, 4], not divided, clip_grad_norm_ at 1 after each: second number over first": (
        clipped_after_each
    ),
}


@cache
def measured(line: str) -> float:
    return MEASURES[line]()


def check(answer: Any, seed: int) -> None:
    predictions = answer.FACTOR
    expect_predictions(predictions, "FACTOR", MEASURES, "a number")
    for line, prediction in predictions.items():
        expect_number(prediction, f"FACTOR, `{line}`,", "a number")
    missed = [line for line in MEASURES if not math.isclose(predictions[line], measured(line), rel_tol=0.02)]
    if missed:
        expect(False, f"{len(missed)} of {len(MEASURES)} did not come true; the first: `{missed[0]}` is "
                      f"{significant(measured(missed[0]))}, and you wrote {predictions[missed[0]]:g}. Why?")  # fmt: skip


def predict(**changed: float) -> dict[str, object]:
    """What is measured, but for the lines whose number is named, such as _1=8."""
    right = {line: measured(line) for line in MEASURES}
    return {"FACTOR": right | {list(MEASURES)[int(number[1:])]: value for number, value in changed.items()}}


WRONG = {
    "Adam follows the length": (predict(_1=8), "of the first step, of the right one's` is 1.00"),
    "cleared gradients are whole": (predict(_2=1), "zero_grad() before each"),
    "BatchNorm counts steps": (predict(_3=0.5), "share of the old running mean after one step` is 0.125"),
    "all tokens count alike": (predict(_4=1), "in tokens of the second` is 5.00"),
    "adding losses saves as much": (predict(_6=0.125), "losses added and one backward()"),
    "the norm after clipping is returned": (predict(_7=1), "what it returns` is 5.00"),
    "by value the length is the limit": (predict(_8=1), "length of the gradient afterwards` is 1.41"),
    "clipping stretches": (predict(_9=10), "clip_grad_norm_ at 10"),
    "clipped parts keep their proportion": (predict(_10=4 / 3), "second number over first` is 4.00"),
}
