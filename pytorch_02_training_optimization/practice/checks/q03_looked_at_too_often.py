"""A model with dropout and two norms, one of them asleep, is looked at; afterwards everything is compared with before.

The oracle evaluates a deep copy at once. One model raises an error in its second batch, and the training goes on.
"""

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from shared.practice import expect
from shared.traps import SavedTensors, expect_number, shown

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 6, 3
Asleep = tuple[int, ...]


class OutOfMemory(RuntimeError):
    """What the model of a check raises."""


class Model(nn.Module):
    """Counts what is asked of it. `asleep`: of its layers, those that the training keeps in eval mode."""

    def __init__(self, generator: torch.Generator, asleep: Asleep, fails_at: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8),
                                    nn.BatchNorm1d(8), nn.Linear(8, CLASSES))  # fmt: skip
        self.fails_at, self.sizes, self.with_graph = fails_at, [], False
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            for layer in (self.layers[1], self.layers[4]):
                layer.running_mean.copy_(torch.randn(8, generator=generator))
        for parameter in self.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.train()
        for place in asleep:
            self.layers[place].eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        self.with_graph |= torch.is_grad_enabled()
        if len(self.sizes) == self.fails_at:
            raise OutOfMemory
        return self.layers(x)


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for count, batch_size, asleep in (
        (20, 8, (1,)),
        (20, 8, ()),
        (21, 7, (1, 2)),
        (1, 4, (4,)),
        (9, 9, (0, 1, 2, 3, 4, 5)),
    ):
        expect_right(answer, generator, count, batch_size, asleep)
    expect_no_graph(answer, generator)
    expect_put_back_after_an_error(answer, generator)
    model = Model(generator, ())
    model.eval()
    x, y = samples(generator, 10)
    answer.evaluate(model, x, y, 4)
    woken = sum(module.training for module in model.modules())
    expect(not woken, f"a model that was in eval mode before evaluate() has {woken} modules in train mode after it")


def samples(generator: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, FEATURES, generator=generator), torch.randint(CLASSES, (count,), generator=generator)


def modes_of(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def expect_right(answer: Any, generator: torch.Generator, count: int, batch_size: int, asleep: Asleep) -> None:
    model, (x, y) = Model(generator, asleep), samples(generator, count)
    oracle = copy.deepcopy(model).eval()
    with torch.no_grad():
        scores = oracle(x)
    right_loss = F.cross_entropy(scores, y).item()
    right_share = (scores.argmax(dim=1) == y).double().mean().item()
    call = f"evaluate(model, x, y, {batch_size}) with {count} samples"
    modes, random, numbers = modes_of(model), torch.get_rng_state(), copy.deepcopy(model.state_dict())
    found = answer.evaluate(model, x, y, batch_size)
    random_after = torch.get_rng_state()
    torch.set_rng_state(random)
    is_pair = isinstance(found, tuple) and len(found) == 2
    expect(is_pair, f"{call} returned {shown(found)}; return (loss, share of right answers)")
    for value, right, name in zip(
        found, (right_loss, right_share), ("the mean loss", "the share of right"), strict=True
    ):
        expect(not isinstance(value, torch.Tensor), f"{call}: {name} is {shown(value)}; return plain numbers")
        expect_number(value, call, "(loss, share of right answers), two numbers")
        expect(
            abs(value - right) <= 1e-5 * max(1.0, abs(right)),
            f"{call}: {name} is {value:.5f}; the model as it is used after training has {right:.5f}",
        )
    wanted = [batch_size] * (count // batch_size) + [count % batch_size] * (count % batch_size > 0)
    expect(model.sizes == wanted, f"{call} gave the model batches of {model.sizes}; {wanted} were asked for")
    moved = [name for name, x in model.state_dict().items() if not torch.equal(x, numbers[name])]
    expect(not moved, f"{call} changed {', '.join(moved)} of the model")
    changed = [name for name, x in model.named_parameters() if x.grad is None or not (x.grad == 1).all()]
    expect(
        not changed,
        f"{call} changed the gradients of {', '.join(changed)}; the training may be in the middle of a step",
    )
    woken = sum(now and not before for now, before in zip(modes_of(model), modes, strict=True))
    expect(not woken, f"{call}: {woken} of {len(modes)} modules had been kept in eval mode by the training; now they are in "
           "train mode, and a norm among them will follow the batches again")  # fmt: skip
    expect(modes_of(model) == modes, f"{call} left {modes_of(model).count(False)} of {len(modes)} modules in eval mode; before, "
           f"{modes.count(False)} were")  # fmt: skip
    expect(
        torch.equal(random, random_after),
        f"{call}: the global random generator was drawn from or seeded, so the training's next dropout mask is another one",
    )


def expect_no_graph(answer: Any, generator: torch.Generator) -> None:
    model, (x, y) = Model(generator, ()), samples(generator, 40)
    saved = SavedTensors()
    with saved:
        answer.evaluate(model, x, y, 8)
    expect(
        not model.with_graph and not len(saved),
        f"in evaluate() with 5 batches autograd kept {len(saved)} tensors for a backward pass that never comes",
    )
    expect(torch.is_grad_enabled(), "after evaluate() gradients are switched off, for the training as well")


def expect_put_back_after_an_error(answer: Any, generator: torch.Generator) -> None:
    for asleep in ((), (1,)):
        model, (x, y) = Model(generator, asleep, fails_at=2), samples(generator, 20)
        modes, random = modes_of(model), torch.get_rng_state()
        with suppress(OutOfMemory):
            answer.evaluate(model, x, y, 8)
            expect(False, "the model raised an error in its second batch, and evaluate() returned as if all were well")
        expect(
            modes_of(model) == modes,
            f"the model raised an error in its second batch, its caller went on, and {modes_of(model).count(False)} of "
            f"{len(modes)} modules are in eval mode; before, {modes.count(False)} were",
        )
        expect(torch.is_grad_enabled(), "the model raised an error, and gradients are switched off for ever")
        expect(torch.equal(random, torch.get_rng_state()), "where the model raises an error, the generator has moved")


Loaded = Callable[[torch.Tensor, torch.Tensor, int], Any]


def by_loader(x: torch.Tensor, y: torch.Tensor, batch_size: int) -> Any:
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def by_slices(x: torch.Tensor, y: torch.Tensor, batch_size: int) -> Any:
    return zip(x.split(batch_size), y.split(batch_size), strict=True)


def evaluation(batches: Loaded = by_slices, *, eval_mode: bool = True, graph: bool = False, wake: str = "as it was",
               in_finally: bool = True, seeds: bool = False, mean_of_means: bool = False) -> dict[str, object]:  # fmt: skip
    """An evaluation with the named faults."""

    def put_back(model: nn.Module, modes: list[tuple[nn.Module, bool]]) -> None:
        if wake == "all":
            model.train()
        elif wake == "as the model":
            model.train(modes[0][1])
        elif wake == "as it was":
            for module, mode in modes:
                module.training = mode

    def evaluate(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch_size: int) -> tuple[float, float]:
        if seeds:
            torch.manual_seed(0)
        modes = [(module, module.training) for module in model.modules()]
        loss, right, number = torch.zeros(()), 0, 0
        if eval_mode:
            model.eval()
        try:
            with torch.set_grad_enabled(graph):
                for inputs, labels in batches(x, y, batch_size):
                    scores = model(inputs)
                    kind = "mean" if mean_of_means else "sum"
                    loss = loss + F.cross_entropy(scores, labels, reduction=kind)
                    right += int((scores.argmax(dim=1) == labels).sum())
                    number += 1
        finally:
            if in_finally:
                put_back(model, modes)
        put_back(model, modes)
        return loss.item() / (number if mean_of_means else len(y)), right / len(y)

    return {"evaluate": evaluate}


WRONG = {
    "as it was shipped": (
        evaluation(by_loader, graph=True, wake="all", in_finally=False),
        "kept in eval mode by the training",
    ),
    "leaves the train mode on": (evaluation(eval_mode=False), "as it is used after training"),
    "wakes what was asleep": (evaluation(wake="all"), "kept in eval mode by the training"),
    "puts back the mode of the whole": (evaluation(wake="as the model"), "kept in eval mode by the training"),
    "never puts back": (evaluation(wake="never"), "modules in eval mode"),
    "a loader without a generator": (evaluation(by_loader), "the global random generator"),
    "seeds the generator": (evaluation(seeds=True), "the global random generator"),
    "keeps the graphs": (evaluation(graph=True), "for a backward pass that never comes"),
    "puts nothing back after an error": (evaluation(in_finally=False), "raised an error in its second batch"),
    "a mean of means": (evaluation(mean_of_means=True), "the mean loss is"),
}
