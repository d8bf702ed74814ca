"""Every step is compared with a float64 average by the formula; the optimizer of the model is a loop that writes in place."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from shared.practice import expect
from shared.traps import shown

import torch
from torch import nn

METHODS = ("follow", "in_place")
Numbers = dict[str, torch.Tensor]


class Tied(nn.Module):
    """A norm with a counter, a table that two layers share, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.scores = nn.Linear(4, 5, bias=False)
        self.scores.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.scores(self.frozen(self.norm(self.table(tokens))))


def make_model(generator: torch.Generator) -> Tied:
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        return Tied()


def take_step(model: nn.Module, generator: torch.Generator) -> None:
    """As a forward pass, a backward pass and an optimizer would leave it; the table is large, the statistics are small."""
    with torch.no_grad():
        for x in (*model.parameters(), *model.buffers()):
            if x.is_floating_point():
                x.add_(torch.randn(x.shape, generator=generator))
            else:
                x.add_(1)


def numbers_of(model: nn.Module) -> Numbers:
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def make_average(answer: Any, model: nn.Module, decay: float) -> Any:
    average = answer.Average(model, decay)
    is_whole = all(callable(getattr(average, name, None)) for name in METHODS)
    expect(is_whole, f"Average(model, {decay}) is {shown(average)}; it needs the methods {' and '.join(METHODS)}")
    return average


def inside(average: Any, model: nn.Module) -> Numbers:
    """The numbers that the model has within in_place()."""
    manager = average.in_place()
    expect(hasattr(manager, "__enter__"), f"in_place() returned {shown(manager)}; `with` needs a context manager")
    with manager:
        return numbers_of(model)


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    expect_example(answer)
    for decay, steps in ((0.9, 30), (0.5, 12), (0.999, 20), (0.0, 3)):
        expect_formula(answer, generator, decay, steps)
    expect_model_untouched(answer, generator)
    expect_put_back(answer, generator)
    expect_trained_inside(answer, generator)


def expect_example(answer: Any) -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average = make_average(answer, model, 0.999)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average.follow()
    found = inside(average, model)["weight"].item()
    expect(math.isclose(found, 9 / 11, rel_tol=1e-5), f"a weight of 0, followed once at 1 with decay 0.999, is {found:.5f} in "
           f"the average; (1 + n) / (10 + n) is 2 / 11 at the first step, so it should be {9 / 11:.5f}")  # fmt: skip


def expect_formula(answer: Any, generator: torch.Generator, decay: float, steps: int) -> None:
    model = make_model(generator)
    average = make_average(answer, model, decay)
    right = {name: x.double() for name, x in numbers_of(model).items() if x.is_floating_point()}
    for n in range(steps + 1):
        if n:
            take_step(model, generator)
            average.follow()
            d = min(decay, (1 + n) / (10 + n))
            right = {name: d * x + (1 - d) * numbers_of(model)[name].double() for name, x in right.items()}
        if n in (0, 1, 2, steps):
            expect_numbers(inside(average, model), right, f"decay {decay}, follow() called {n} x")


def expect_numbers(found: Numbers, right: Numbers, when: str) -> None:
    for name, x in right.items():
        gap = (found[name].double() - x).abs().max().item()
        kind = "buffer" if name.startswith("norm.running") else "weight"
        expect(gap <= 1e-4, f"{when}: the average of the {kind} {name} is off by {gap:.2g}")


def expect_model_untouched(answer: Any, generator: torch.Generator) -> None:
    model = make_model(generator)
    held = [id(x) for x in (*model.parameters(), *model.buffers())]
    asked = [x.requires_grad for x in model.parameters()]
    average = make_average(answer, model, 0.9)
    for _ in range(3):
        take_step(model, generator)
        before = numbers_of(model)
        average.follow()
        expect(same(before, numbers_of(model)), "follow() changed the model; it only looks at it")
    counter = numbers_of(model)["norm.num_batches_tracked"].item()
    found = inside(average, model)["norm.num_batches_tracked"].item()
    expect(found == counter, f"inside of in_place() the counter norm.num_batches_tracked is {found}, and it was {counter}; "
           "a whole number has no average")  # fmt: skip
    expect([id(x) for x in (*model.parameters(), *model.buffers())] == held, "the model has other parameters or buffers now; "
           "its optimizer holds the old ones")  # fmt: skip
    expect(
        [x.requires_grad for x in model.parameters()] == asked, "requires_grad of the model's parameters has changed"
    )
    expect(all(x.grad_fn is None for x in model.parameters()), "autograd has seen how numbers came into the parameters")


def same(a: Numbers, b: Numbers) -> bool:
    return all(torch.equal(x, b[name]) for name, x in a.items())


def expect_put_back(answer: Any, generator: torch.Generator) -> None:
    model = make_model(generator)
    average = make_average(answer, model, 0.9)
    for _ in range(2):
        take_step(model, generator)
        average.follow()
    before, held = numbers_of(model), [id(x) for x in model.parameters()]
    first = inside(average, model)
    expect(same(before, numbers_of(model)), "after in_place() the model does not have the numbers that it had before")
    with suppress(KeyboardInterrupt), average.in_place():
        expect([id(x) for x in model.parameters()] == held, "inside of in_place() the model has other parameters")
        raise KeyboardInterrupt
    expect(
        same(before, numbers_of(model)),
        "an exception inside of in_place(): the model goes on with the average's numbers",
    )
    for _ in range(2):
        expect(same(first, inside(average, model)), "in_place() a second time shows other numbers than the first")


def expect_trained_inside(answer: Any, generator: torch.Generator) -> None:
    """Statistics may move within (somebody measures them anew for the average): the average must not follow."""
    model = make_model(generator)
    average = make_average(answer, model, 0.9)
    take_step(model, generator)
    average.follow()
    right = inside(average, model)
    before = numbers_of(model)
    with average.in_place():
        take_step(model, generator)
    found, now = inside(average, model), numbers_of(model)
    names = [name for name, x in right.items() if x.is_floating_point()]
    expect(
        all(torch.equal(now[name], before[name]) for name in names),
        "what was changed inside of in_place() stayed changed",
    )
    expect(all(torch.equal(found[name], right[name]) for name in names), "what was changed inside of in_place() has changed "
           "the average")  # fmt: skip


class Right:
    """Subclasses have one fault each."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self.averages = self.copied()

    def tensors(self) -> list[torch.Tensor]:
        both = (*self.model.parameters(), *self.model.buffers())
        return [x.detach() for x in both if x.is_floating_point()]

    def copied(self) -> list[torch.Tensor]:
        return [x.clone() for x in self.tensors()]

    def decay_now(self) -> float:
        return min(self.decay, (1 + self.steps) / (10 + self.steps))

    def follow(self) -> None:
        self.steps += 1
        for average, now in zip(self.averages, self.tensors(), strict=True):
            average.copy_(
                (self.decay_now() * average.double() + (1 - self.decay_now()) * now.double()).to(average.dtype)
            )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        own = [x.clone() for x in self.tensors()]
        self.write(self.averages)
        try:
            yield
        finally:
            self.write(own)

    def write(self, numbers: list[torch.Tensor]) -> None:
        for x, number in zip(self.tensors(), numbers, strict=True):
            x.copy_(number)


class WithoutWarmUp(Right):
    def decay_now(self) -> float:
        return self.decay


class CountsFromZero(Right):
    def decay_now(self) -> float:
        return min(self.decay, self.steps / (9 + self.steps))


class ForgetsBuffers(Right):
    def tensors(self) -> list[torch.Tensor]:
        return [x.detach() for x in self.model.parameters()]


class ForgetsTheFrozen(Right):
    def tensors(self) -> list[torch.Tensor]:
        both = (*self.model.parameters(), *self.model.buffers())
        return [x.detach() for x in both if x.is_floating_point() and (x.requires_grad or x.ndim < 2)]


class AveragesCounters(Right):
    def tensors(self) -> list[torch.Tensor]:
        return [x.detach() for x in (*self.model.parameters(), *self.model.buffers())]


class KeepsTheTensors(Right):
    def copied(self) -> list[torch.Tensor]:
        return self.tensors()


class NeverPutsBack(Right):
    @contextmanager
    def in_place(self) -> Iterator[None]:
        self.write(self.averages)
        yield


class PutsBackWhereAllIsWell(Right):
    @contextmanager
    def in_place(self) -> Iterator[None]:
        own = [x.clone() for x in self.tensors()]
        self.write(self.averages)
        yield
        self.write(own)


class PutsTheTensorsIn(Right):
    def write(self, numbers: list[torch.Tensor]) -> None:
        both = (*self.model.parameters(), *self.model.buffers())
        for x, number in zip((x for x in both if x.is_floating_point()), numbers, strict=True):
            x.data = number


class FollowsAtEachLook(Right):
    @contextmanager
    def in_place(self) -> Iterator[None]:
        self.follow()
        with super().in_place():
            yield


class SwapsTheModel(Right):
    """A deep copy of the model with other parameters, put into the old one's place."""

    @contextmanager
    def in_place(self) -> Iterator[None]:
        own = dict(self.model.__dict__)
        self.model.__dict__ = copy.deepcopy(own)
        self.write(self.averages)
        yield
        self.model.__dict__ = own


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "without warm-up": ({"Average": WithoutWarmUp}, "so it should be 0.81818"),
    "counts from zero": ({"Average": CountsFromZero}, "so it should be 0.81818"),
    "forgets the buffers": ({"Average": ForgetsBuffers}, "average of the buffer norm.running_mean"),
    "forgets what is frozen": ({"Average": ForgetsTheFrozen}, "average of the weight frozen.weight"),
    "averages counters": ({"Average": AveragesCounters}, "a whole number has no average"),
    "keeps the tensors": ({"Average": KeepsTheTensors}, "so it should be 0.81818"),
    "never puts back": ({"Average": NeverPutsBack}, "after in_place()"),
    "puts back where all is well": ({"Average": PutsBackWhereAllIsWell}, "an exception inside"),
    "puts its tensors into the model": ({"Average": PutsTheTensorsIn}, "changed the average"),
    "follows at each look": ({"Average": FollowsAtEachLook}, "it should be"),
    "swaps the model": ({"Average": SwapsTheModel}, "has other parameters"),
}
