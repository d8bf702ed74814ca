"""A small network with a batch norm changes in place between measurements; a full copy of each state is the oracle."""

import copy
import math
from typing import Any

from shared.practice import expect
from shared.traps import expect_bool, shown

import torch
from torch import nn

State = dict[str, torch.Tensor]

EXAMPLE = [3.0, 2.0, 2.0, 5.0, 2.0]
CURVES = {
    "the losses of the example": EXAMPLE,
    "the first loss is the lowest": [1.0, 2.0, 3.0, 4.0, 5.0],
    "a new lowest loss after bad ones": [5.0, 6.0, 7.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    "always lower": [5.0, 4.0, 3.0, 2.0, 1.0],
    "a loss that is NaN": [3.0, math.nan, 2.0, math.nan, 4.0, math.nan],
    "the first loss is NaN": [math.nan, 3.0, 4.0, 5.0, 6.0],
}


def train_a_little(model: nn.Module, generator: torch.Generator) -> None:
    """As an optimizer and a batch norm do it: every number changes, every tensor stays where it is."""
    with torch.no_grad():
        for value in model.state_dict().values():
            change = torch.rand(value.shape, generator=generator) + 0.5
            value.add_(change.to(value.dtype) if value.is_floating_point() else 1)


def state_of(model: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def make_stopper(answer: Any, model: nn.Module, patience: int) -> Any:
    stopper = answer.Stopper(model, patience)
    has_both = all(callable(getattr(stopper, name, None)) for name in ("update", "restore"))
    expect(has_both, f"Stopper(model, {patience}) is {shown(stopper)}; it needs the methods update and restore")
    return stopper


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for patience in (2, 0, 1, 9):
        for why, losses in CURVES.items():
            expect_curve(answer, patience, losses, why, generator)
    random = torch.randint(10, (4, 30), generator=generator).double().tolist()
    for losses in random:
        expect_curve(answer, 3, losses, "random losses", generator)
    expect_nothing_without_a_number(answer, generator)
    expect_restored_twice(answer, generator)


def expect_curve(answer: Any, patience: int, losses: list[float], why: str, generator: torch.Generator) -> None:
    model = make_model()
    held = {name: id(value) for name, value in model.named_parameters()}
    stopper = make_stopper(answer, model, patience)
    best, lowest, bad, states = 0, math.inf, 0, []
    for place, loss in enumerate(losses):
        train_a_little(model, generator)
        states.append(state_of(model))
        call = f"with patience {patience}, update({loss:g}) as number {place + 1} of {[*losses[: place + 1]]}"
        stops = stopper.update(loss)
        expect_bool(stops, call)
        if loss < lowest:
            best, lowest, bad = place, loss, 0
        else:
            bad += 1
        expect(stops == (bad > patience), f"{call} returned {stops} and should return {bad > patience}: {why}; "
               f"{bad} in a row were no improvement")  # fmt: skip
        same = all(torch.equal(value, states[-1][name]) for name, value in model.state_dict().items())
        expect(same, f"{call} changed the model; only restore() may")
        if stops:
            break
    stopper.restore()
    expect_state(model, states, best, f"after {len(states)} measurements restore()")
    same_objects = {name: id(value) for name, value in model.named_parameters()} == held
    expect(
        same_objects,
        "restore() put new parameters into the model; its optimizer holds the old ones and would train those",
    )


def expect_state(model: nn.Module, states: list[State], best: int, call: str) -> None:
    found = model.state_dict()
    for name, right in states[best].items():
        if torch.equal(found[name], right):
            continue
        kind = "weights" if name in dict(model.named_parameters()) else "running statistics (buffers)"
        place = [i + 1 for i, state in enumerate(states) if torch.equal(found[name], state[name])]
        where = f"those of measurement {place[0]}" if place else "of no measurement"
        expect(False, f"{call} leaves {kind}, such as {name}, that are {where}; the lowest loss was at {best + 1}")


def expect_nothing_without_a_number(answer: Any, generator: torch.Generator) -> None:
    model = make_model()
    stopper = make_stopper(answer, model, 5)
    for _ in range(2):
        train_a_little(model, generator)
        stopper.update(math.nan)
    before = state_of(model)
    stopper.restore()
    same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    expect(same, "where every loss was NaN, restore() changed the model; there are no best weights")


def expect_restored_twice(answer: Any, generator: torch.Generator) -> None:
    model = make_model()
    stopper = make_stopper(answer, model, 5)
    states = []
    for loss in (2.0, 1.0, 3.0):
        train_a_little(model, generator)
        states.append(state_of(model))
        stopper.update(loss)
    for number in ("first", "second"):
        stopper.restore()
        expect_state(model, states, 1, f"the {number} restore(), with training before it,")
        train_a_little(model, generator)


class Right:
    def __init__(self, model: nn.Module, patience: int) -> None:
        self.model, self.patience = model, patience
        self.lowest, self.bad = math.inf, 0
        self.best: Any = None

    def keep(self) -> Any:
        return copy.deepcopy(self.model.state_dict())

    def is_better(self, loss: float) -> bool:
        return loss < self.lowest

    def update(self, loss: float) -> bool:
        if self.is_better(loss):
            self.lowest, self.bad, self.best = loss, 0, self.keep()
        else:
            self.bad += 1
        return self.bad > self.patience

    def restore(self) -> None:
        if self.best is not None:
            self.model.load_state_dict(self.best)


class KeepsTheTensors(Right):
    def keep(self) -> Any:
        return self.model.state_dict()


class CopiesTheDictionary(Right):
    def keep(self) -> Any:
        return dict(self.model.state_dict())


class ForgetsBuffers(Right):
    def keep(self) -> Any:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    def restore(self) -> None:
        with torch.no_grad():
            for parameter, kept in zip(self.model.parameters(), self.best or [], strict=False):
                parameter.copy_(kept)


class TakesTies(Right):
    def is_better(self, loss: float) -> bool:
        return loss <= self.lowest


class StopsAtNaN(Right):
    def is_better(self, loss: float) -> bool:
        return not loss >= self.lowest


class StopsOneTooSoon(Right):
    def update(self, loss: float) -> bool:
        return super().update(loss) or self.bad >= max(1, self.patience)


class MakesNewParameters(Right):
    def restore(self) -> None:
        if self.best is not None:
            self.model.load_state_dict(self.best, assign=True)


class MovesBackTheTensors(Right):
    def restore(self) -> None:
        if self.best is not None:
            self.model.load_state_dict(self.best)
            for name, parameter in self.model.named_parameters():
                parameter.data = self.best[name]


WRONG = {
    "keeps the tensors": ({"Stopper": KeepsTheTensors}, "those of measurement 5; the lowest loss was at 2"),
    "copies the dictionary": ({"Stopper": CopiesTheDictionary}, "those of measurement 5; the lowest loss was at 2"),
    "forgets the buffers": ({"Stopper": ForgetsBuffers}, "running statistics (buffers)"),
    "takes a tie for an improvement": ({"Stopper": TakesTies}, "returned False and should return True"),
    "takes NaN for an improvement": ({"Stopper": StopsAtNaN}, "a loss that is NaN"),
    "stops one too soon": ({"Stopper": StopsOneTooSoon}, "returned True and should return False"),
    "makes new parameters": ({"Stopper": MakesNewParameters}, "its optimizer holds the old ones"),
    "puts the kept tensors into the model": ({"Stopper": MovesBackTheTensors}, "the second restore()"),
}
