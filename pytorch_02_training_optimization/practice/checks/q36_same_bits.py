"""Each change is made to the training, which runs here on one thread; its weights are compared bit by bit."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shared.practice import expect
from shared.traps import expect_predictions, shown

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, N = 3, 64


def nothing(*_: object) -> None:
    pass


def draw(*_: object) -> None:
    torch.rand(1)


def draw_elsewhere(*_: object) -> None:
    np.random.rand()
    random.random()


def read_loss(loss: torch.Tensor) -> None:
    str(loss.item())


def look(model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        model(x)


def look_in_eval(model: nn.Module, x: torch.Tensor) -> None:
    model.eval()
    look(model, x)
    model.train()


def loop(model: nn.Module, x: torch.Tensor, generator: torch.Generator | None = None) -> None:
    for _ in DataLoader(TensorDataset(x), batch_size=16, generator=generator):
        pass


def loop_with_generator(model: nn.Module, x: torch.Tensor) -> None:
    loop(model, x, torch.Generator())


def seed_in_a_fork(model: nn.Module, x: torch.Tensor) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # of the CPU alone: this check never wakes a GPU


def in_order() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 3))


def dropout_first() -> nn.Sequential:
    dropout = nn.Dropout(0.5)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), dropout, nn.Linear(16, 3))


def last_layer_first() -> nn.Sequential:
    last = nn.Linear(16, 3)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.5), last)


@dataclass(frozen=True)
class Change:
    first: Callable[..., None] = nothing
    make: Callable[[], nn.Sequential] = in_order
    after_step: Callable[..., None] = nothing
    between: Callable[..., None] = nothing
    last: Callable[..., None] = nothing
    scale: float = 1.0


CHANGES = {
    "torch.rand(1) before the model is made": Change(first=draw),
    "torch.rand(1) after the last step": Change(last=draw),
    "np.random.rand() and random.random() before the model is made": Change(first=draw_elsewhere),
    "loss.item() is printed after each step": Change(after_step=read_loss),
    "between epochs: model.eval(), model(x), model.train()": Change(between=look_in_eval),
    "between epochs: model(x) under no_grad, without eval()": Change(between=look),
    "between epochs: a loop over DataLoader(data, shuffle=False)": Change(between=loop),
    "the same loop, DataLoader(..., generator=torch.Generator())": Change(between=loop_with_generator),
    "between epochs: torch.manual_seed(0) inside torch.random.fork_rng()": Change(between=seed_in_a_fork),
    "Dropout(0.5) is made before the two Linear, and placed as before": Change(make=dropout_first),
    "the second Linear is made first, and placed as before": Change(make=last_layer_first),
    "the loss times 1024, the learning rate divided by 1024": Change(scale=1024.0),
    "the loss times 10, the learning rate divided by 10": Change(scale=10.0),
}


def trained(change: Change, seed: int) -> torch.Tensor:
    """All weights in one row, after the training; every global generator is left as it was."""
    generator = torch.Generator().manual_seed(seed + 100)
    x, y = torch.randn(N, 8, generator=generator), torch.randint(3, (N,), generator=generator)
    states, threads = (random.getstate(), np.random.get_state()), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            change.first()
            model = change.make()
            for epoch in range(EPOCHS):
                if epoch:
                    change.between(model, x)
                for batch in torch.randperm(N).split(32):
                    loss = change.scale * F.cross_entropy(model(x[batch]), y[batch])
                    gradients = torch.autograd.grad(loss, list(model.parameters()))
                    with torch.no_grad():
                        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                            parameter -= 0.1 / change.scale * gradient
                    change.after_step(loss)
            change.last()
    finally:
        torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def changed(name: str, seed: int) -> int:
    """How many weights come out with other bits."""
    return int((trained(CHANGES[name], seed).view(torch.int32) != trained(Change(), seed).view(torch.int32)).sum())


def check(answer: Any, seed: int) -> None:
    predictions = answer.SAME_BITS
    expect_predictions(predictions, "SAME_BITS", CHANGES, "True or False")
    for name, prediction in predictions.items():
        expect(isinstance(prediction, bool), f"`{name}` is {shown(prediction)}; write True or False")
    counts = {name: changed(name, seed) for name in CHANGES}
    missed = [name for name in CHANGES if predictions[name] is not (counts[name] == 0)]
    if missed:
        total = len(trained(Change(), seed))
        truth = f"changes {counts[missed[0]]} of {total} weights" if counts[missed[0]] else "changes no bit"
        count = f"{len(missed)} of {len(CHANGES)} predictions"
        expect(False, f"{count} did not come true; the first: `{missed[0]}` {truth}. Who draws, and what is rounded?")


def predict(*flipped: str, **_: object) -> dict[str, object]:
    """The truth, but for some."""
    truth = {name: changed(name, 0) == 0 for name in CHANGES}
    return {"SAME_BITS": {name: same != (name in flipped) for name, same in truth.items()}}


NAMES = tuple(CHANGES)

WRONG = {
    "thinks that only shuffling draws": (predict(NAMES[6]), "shuffle=False)` changes"),
    "takes no_grad for eval": (predict(NAMES[5]), "without eval()` changes"),
    "believes in one generator for all libraries": (
        predict(NAMES[2]),
        "random.random() before the model is made` changes no",
    ),
    "believes that every layer draws": (predict(NAMES[9]), "and placed as before` changes no bit"),
    "takes all scaling for rounding": (predict(NAMES[11]), "divided by 1024` changes no bit"),
    "takes no scaling for rounding": (predict(NAMES[12]), "divided by 10` changes"),
    "trusts that nothing matters": ({"SAME_BITS": dict.fromkeys(NAMES, True)}, "5 of 13 predictions"),
}
