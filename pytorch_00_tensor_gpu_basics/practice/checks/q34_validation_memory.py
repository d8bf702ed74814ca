"""Hooks on saved tensors tell what is kept for a backward pass; afterwards the same model is trained one step."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from shared.practice import expect
from shared.traps import SavedTensors, expect_number

import torch

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
FEATURES, OUTPUTS = 4, 2


class KeepsATable(torch.nn.Module):
    """A network that computes a table when it is first called and keeps it, as models keep their position encodings."""

    table: torch.Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 5), torch.nn.Tanh(), torch.nn.Linear(5, OUTPUTS)
        ).double()
        self.saved = SavedTensors()
        self.alive: list[int] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.alive.append(self.saved.alive())
        if self.table is None:
            self.table = torch.linspace(0.5, 1.5, OUTPUTS, dtype=torch.float64)
        output = self.layers(inputs) * self.table
        assert isinstance(output, torch.Tensor)
        return output


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def draw(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(normal(n, FEATURES), normal(n, OUTPUTS)) for n in sizes]

    for sizes in ((3, 3, 3, 3), (6, 6, 1), (5,), (1, 4, 2, 7, 3)):
        model = KeepsATable()
        for weight in model.parameters():
            weight.data = normal(*weight.shape)
            weight.grad = torch.ones_like(weight)
        call = f"validation_error of {len(sizes)} batches with {', '.join(map(str, sizes))} samples"
        expect_evaluated(answer, model, draw(*sizes), call)
        expect_as_before(model, draw(2)[0], call)


def expect_evaluated(
    answer: Any, model: KeepsATable, batches: list[tuple[torch.Tensor, torch.Tensor]], call: str
) -> None:
    def read_once() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number, batch in enumerate(batches):
            ahead = number - len(model.alive)
            expect(
                ahead <= 1,
                f"{call}: {ahead} batches were read before the model had seen one of them; take each as it comes",
            )
            yield batch

    try:
        with model.saved:
            error = answer.validation_error(model, read_once())
        is_recording = torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
    kept, alive = len(model.saved), max(model.alive, default=0)
    expect(
        kept == 0,
        f"{call}: autograd saved {kept} tensors for a backward pass that never comes, and as the last batch begins {alive} of "
        "them are still in memory",
    )
    expect_number(error, call, "the mean squared error, a float")
    expect(is_recording, f"{call} leaves gradients switched off for the rest of the program")
    with torch.no_grad():
        errors = [(model(inputs) - targets).square() for inputs, targets in batches]
    right = torch.cat(errors).mean().item()
    unequal = (
        "" if len({len(inputs) for inputs, _ in batches}) == 1 else "; each sample counts the same, not each batch"
    )
    is_right = math.isclose(error, right, rel_tol=1e-9)
    expect(is_right, f"{call} returned {error:.6g} and should return {right:.6g}{unequal}")


def expect_as_before(model: KeepsATable, batch: tuple[torch.Tensor, torch.Tensor], call: str) -> None:
    inputs, targets = batch
    for name, weight in model.named_parameters():
        expect(
            weight.requires_grad, f"{call}: afterwards {name} does not require a gradient any more; the model trains on"
        )
        untouched = weight.grad is not None and bool((weight.grad == 1).all())
        expect(untouched, f"{call} changed the .grad of {name}; leave what the caller has collected there")
    expect(model.training, f"{call} left the model in another mode than it came in")
    try:
        (model(inputs) - targets).square().mean().backward()
    except RuntimeError as error:
        reason = str(error).partition(".")[0]
        expect(False, f"{call}: then the model was trained and stopped with {reason!r}: it uses a tensor that it made during "
               "validation, so validate in a mode whose tensors stay ordinary ones")  # fmt: skip


def mean_over(model: Any, batches: Batches, weighted: bool = True) -> float:
    total, count = 0.0, 0
    for inputs, targets in batches:
        weight = len(inputs) if weighted else 1
        total += (model(inputs) - targets).square().mean().item() * weight
        count += weight
    return total / count


def takes_the_number_at_the_end(model: Any, batches: Batches) -> float:
    total, count = torch.zeros(()), 0
    for inputs, targets in batches:
        total = total + (model(inputs) - targets).square().mean() * len(inputs)
        count += len(inputs)
    return (total / count).item()


def takes_the_number_of_each_batch(model: Any, batches: Batches) -> float:
    total, count = 0.0, 0
    for inputs, targets in batches:
        total += (model(inputs) - targets).square().mean().item() * len(inputs)
        count += len(inputs)
    return total / count


def uses_inference_mode(model: Any, batches: Batches) -> float:
    with torch.inference_mode():
        return mean_over(model, batches)


def switches_gradients_off(model: Any, batches: Batches) -> float:
    torch.set_grad_enabled(False)
    return mean_over(model, batches)


def freezes_the_model(model: Any, batches: Batches) -> float:
    model.requires_grad_(False)
    return mean_over(model, batches)


def reads_all_first(model: Any, batches: Batches) -> float:
    with torch.no_grad():
        return mean_over(model, list(batches))


@torch.no_grad()
def averages_the_batches(model: Any, batches: Batches) -> float:
    return mean_over(model, batches, weighted=False)


WRONG = {
    "takes the number at the end": (
        {"validation_error": takes_the_number_at_the_end},
        "18 of them are still in memory",
    ),
    "takes the number of each batch": (
        {"validation_error": takes_the_number_of_each_batch},
        "as the last batch begins 0 of them are still in memory",
    ),
    "uses inference_mode": ({"validation_error": uses_inference_mode}, "then the model was trained and stopped"),
    "switches gradients off for good": ({"validation_error": switches_gradients_off}, "leaves gradients switched off"),
    "freezes the model": ({"validation_error": freezes_the_model}, "does not require a gradient any more"),
    "reads all batches first": ({"validation_error": reads_all_first}, "take each as it comes"),
    "averages the batches": ({"validation_error": averages_the_batches}, "each sample counts the same"),
}
