"""Each step is compared with one on the whole batch; hooks on saved tensors tell how many graphs are in memory."""

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

from shared.practice import expect
from shared.traps import SavedTensors, expect_number

import torch

MicroBatches = Sequence[tuple[torch.Tensor, torch.Tensor]]
FEATURES, OUTPUTS, LR = 3, 2, 0.1


class Descent:
    """Plain gradient descent; torch.optim imports the whole compiler when its first optimizer is made (4 s)."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.steps = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight in self.parameters:
            weight.grad = None if set_to_none or weight.grad is None else torch.zeros_like(weight)

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        for weight in self.parameters:
            if weight.grad is not None:
                weight.sub_(LR * weight.grad)


class Watched(torch.nn.Module):
    """A small network that notes, whenever it is called, the samples it is given and how much of earlier calls lives."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 5), torch.nn.Tanh(), torch.nn.Linear(5, OUTPUTS)
        ).double()
        self.saved = SavedTensors()
        self.calls: list[tuple[int, int]] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls.append((len(inputs), self.saved.alive()))
        output = self.layers(inputs)
        assert isinstance(output, torch.Tensor)
        return output


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def draw(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(normal(n, FEATURES), normal(n, OUTPUTS)) for n in sizes]

    model = Watched()
    for weight in model.parameters():
        weight.data = normal(*weight.shape)
    optimizer = Descent(model.parameters())
    alike = "each sample must count the same, however many share its micro-batch"
    unlike = "its gradient is not that of the 8 samples together"
    expect_step(answer, model, optimizer, "train_step, the first step, micro-batches of 4 and 4", draw(4, 4), unlike)
    left = "have the gradients of the step before gone from .grad?"
    expect_step(answer, model, optimizer, "train_step, the second step, again 4 and 4", draw(4, 4), left)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    late = "clear .grad before the first backward(), since others may have left something there"
    expect_step(answer, model, optimizer, "train_step, when .grad is full of ones before", draw(3, 3), late)
    steps = [
        ("micro-batches of 5, 5 and 1", draw(5, 5, 1), alike),
        ("micro-batches of 1 and 6", draw(1, 6), alike),
        ("one micro-batch", draw(3), alike),
        ("micro-batches of 3, 0 and 2", draw(3, 0, 2), "an empty micro-batch adds nothing; its mean is 0 / 0"),
        ("six micro-batches", draw(2, 2, 3, 2, 2, 1), alike),
    ]
    for case, micro_batches, reason in steps:
        expect_step(answer, model, optimizer, f"train_step, {case}", micro_batches, reason)


def expect_step(
    answer: Any, model: Watched, optimizer: Descent, call: str, micro_batches: MicroBatches, reason: str
) -> None:
    before, right_loss = copy.deepcopy(model.layers), whole_batch(model, micro_batches)
    right = [weight.detach() - LR * cast(torch.Tensor, weight.grad) for weight in right_loss[0].parameters()]
    model.calls, model.saved, optimizer.steps = [], SavedTensors(), 0
    with model.saved:
        loss = answer.train_step(model, optimizer, micro_batches)

    expect(not isinstance(loss, float) or not math.isnan(loss), f"{call} returned nan: {reason}")
    expect_number(loss, call, "the mean squared error, a float")
    expect(
        optimizer.steps == 1,
        f"{call}: the optimizer stepped {optimizer.steps} times; it steps once, after the last backward()",
    )
    largest = max(len(inputs) for inputs, _ in micro_batches)
    asked = max((samples for samples, _ in model.calls), default=0)
    expect(asked <= largest, f"{call}: the model was given {asked} samples at once; {largest} are all that fit")
    alive = max((alive for _, alive in model.calls), default=0)
    expect(
        alive == 0,
        f"{call}: as the model is called again, {alive} tensors of earlier graphs are still in memory; call backward() on "
        "the loss of each micro-batch, which frees its graph",
    )
    names = [name for name, _ in model.layers.named_parameters()]
    for name, now, was, should in zip(names, model.layers.parameters(), before.parameters(), right, strict=True):
        apart = ~torch.isclose(now, should, rtol=1e-9, atol=1e-12)
        if apart.any():
            index = tuple(apart.nonzero()[0].tolist())
            moved, wanted = ((weight.detach() - was.detach())[index].item() for weight in (now, should))
            place = ", ".join(map(str, index))
            expect(
                False, f"{call}: layers.{name}[{place}] moved by {moved:.4g} and should move by {wanted:.4g}: {reason}"
            )
    expect(
        math.isclose(loss, right_loss[1], rel_tol=1e-9),
        f"{call} returned {loss:.6g}; the mean squared error over all samples is {right_loss[1]:.6g}",
    )


def whole_batch(model: Watched, micro_batches: MicroBatches) -> tuple[torch.nn.Module, float]:
    """A copy of the network with the gradient of all samples in .grad, and their mean squared error."""
    twin = copy.deepcopy(model.layers)
    twin.zero_grad()
    inputs, targets = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    loss = (twin(inputs) - targets).square().mean()
    loss.backward()
    return twin, loss.item()


def squared_errors(model: Any, micro_batches: MicroBatches) -> list[torch.Tensor]:
    return [(model(inputs) - targets).square() for inputs, targets in micro_batches]


def never_clears(model: Any, optimizer: Any, micro_batches: MicroBatches) -> float:
    mean = 0.0
    for inputs, targets in micro_batches:
        loss = (model(inputs) - targets).square().sum() / sum(targets.numel() for _, targets in micro_batches)
        loss.backward()
        mean += loss.item()
    optimizer.step()
    return mean


def averages_the_means(model: Any, optimizer: Any, micro_batches: MicroBatches) -> float:
    optimizer.zero_grad()
    mean = 0.0
    for inputs, targets in micro_batches:
        loss = (model(inputs) - targets).square().mean() / len(micro_batches)
        loss.backward()
        mean += loss.item()
    optimizer.step()
    return mean


def weighs_the_means(model: Any, optimizer: Any, micro_batches: MicroBatches) -> float:
    optimizer.zero_grad()
    mean = 0.0
    for inputs, targets in micro_batches:
        share = len(targets) / sum(len(targets) for _, targets in micro_batches)
        loss = (model(inputs) - targets).square().mean() * share
        loss.backward()
        mean += loss.item()
    optimizer.step()
    return mean


def sums_the_losses_first(model: Any, optimizer: Any, micro_batches: MicroBatches) -> float:
    optimizer.zero_grad()
    loss = torch.cat(squared_errors(model, micro_batches)).mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def clears_each_time(model: Any, optimizer: Any, micro_batches: MicroBatches) -> float:
    mean = 0.0
    for inputs, targets in micro_batches:
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().sum() / sum(targets.numel() for _, targets in micro_batches)
        loss.backward()
        mean += loss.item()
    optimizer.step()
    return mean


def clears_after_the_step(model: Any, optimizer: Any, micro_batches: MicroBatches) -> float:
    mean = never_clears(model, optimizer, micro_batches)
    optimizer.zero_grad()
    return mean


WRONG = {
    "never clears the gradients": ({"train_step": never_clears}, "the second step, again 4 and 4"),
    "clears them before each micro-batch": ({"train_step": clears_each_time}, "not that of the 8 samples together"),
    "clears them after the step": ({"train_step": clears_after_the_step}, "clear .grad before the first backward()"),
    "averages the means": ({"train_step": averages_the_means}, "5, 5 and 1: layers.0.weight"),
    "weighs the means, that of nothing too": ({"train_step": weighs_the_means}, "an empty micro-batch adds nothing"),
    "sums the losses first": ({"train_step": sums_the_losses_first}, "call backward() on the loss of each"),
}
