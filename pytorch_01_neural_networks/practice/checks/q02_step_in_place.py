"""The oracle is autograd; several steps in a row, on the same four tensors."""

import math
from typing import Any

from shared.practice import expect
from shared.traps import expect_number, shown

import torch
import torch.nn.functional as F

NAMES = ("w1", "b1", "w2", "b2")
Tensors = list[torch.Tensor]


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def network(d: int, h: int, k: int) -> Tensors:
        return [normal(h, d), normal(h), normal(k, h), normal(k)]

    numbers = [[[1.0]], [0.0], [[1.0], [0.0]], [0.0, 0.0]]
    example = [torch.tensor(each, dtype=torch.float64) for each in numbers]
    one, still = torch.full((1, 1), 2.0, dtype=torch.float64), "the example"
    expect_step(answer, example, one, torch.tensor([0]), 1.0, still)
    for d, h, k, batch in ((2, 8, 2, 10), (5, 7, 4, 3), (3, 6, 5, 1), (4, 20, 3, 50)):
        parameters, y = network(d, h, k), torch.randint(k, (batch,), generator=generator)
        for step in ("first", "second", "third"):
            case = f"the {step} step with {batch} samples of {d} numbers, {h} hidden units and {k} classes"
            expect_step(answer, parameters, normal(batch, d), y, 0.3, case)
    parameters = [torch.zeros_like(parameter) if i < 2 else parameter for i, parameter in enumerate(network(3, 4, 3))]
    expect_step(
        answer, parameters, normal(5, 3), torch.tensor([0, 1, 2, 0, 1]), 0.3, "hidden units that are all exactly 0"
    )
    parameters = [100 * parameter for parameter in network(3, 4, 3)]
    expect_step(answer, parameters, normal(5, 3), torch.tensor([0, 1, 2, 0, 1]), 0.01, "logits in the thousands")


def expect_step(answer: Any, parameters: Tensors, x: torch.Tensor, y: torch.Tensor, lr: float, case: str) -> None:
    call = f"train_step, {case}, lr {lr:g}"
    before, kept = [parameter.clone() for parameter in parameters], (x.clone(), y.clone())
    loss, accuracy, gradients = by_autograd(before, *kept)
    found = answer.train_step(*parameters, x, y, lr)
    is_pair = isinstance(found, tuple | list) and len(found) == 2
    expect(is_pair, f"{call} returned {shown(found)}; return (loss, accuracy)")
    for value, name in zip(found, ("loss", "accuracy"), strict=True):
        expect_number(value, f"{call}: for the {name} it", "a float")
    expect(
        torch.equal(x, kept[0]) and torch.equal(y, kept[1]), f"{call} changed x or y; the next epoch reads them again"
    )
    expect(
        math.isclose(found[0], loss, rel_tol=1e-6, abs_tol=1e-9),
        f"{call} returned the loss {found[0]:.6g}; before the step it is {loss:.6g}",
    )
    expect(
        abs(found[1] - accuracy) < 1e-6,
        f"{call} returned the accuracy {found[1]:.3g}; before the step the network is right about {accuracy:.3g} of the "
        "samples. Print what argmax is taken of",
    )
    for name, now, was, gradient in zip(NAMES, parameters, before, gradients, strict=True):
        should = was - lr * gradient
        apart = ~((now - should).abs() <= 1e-7 * (1 + should.abs()))
        if apart.any():
            at = tuple(apart.nonzero()[0].tolist())
            moved, wanted = (now - was)[at].item(), (should - was)[at].item()
            why = "its gradient is one of the weights before the step"
            if moved == 0:
                why = "the tensor itself must change"
            elif torch.allclose(now - was, len(y) * (should - was), rtol=1e-6):
                why = "the loss is a mean over the samples"
            expect(
                False,
                f"{call}: {name}[{', '.join(map(str, at))}] moved by {moved:.5g} and should move by {wanted:.5g}; {why}",
            )


def by_autograd(parameters: Tensors, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float, tuple[torch.Tensor, ...]]:
    w1, b1, w2, b2 = leaves = [parameter.clone().requires_grad_() for parameter in parameters]
    logits = torch.relu(x @ w1.T + b1) @ w2.T + b2
    loss = F.cross_entropy(logits, y)
    accuracy = (logits.argmax(1) == y).double().mean().item()
    return loss.item(), accuracy, torch.autograd.grad(loss, leaves)


def written(
    copies_p: bool = True, old_w2: Any = torch.clone, divides: bool = True, in_place: bool = True, late: bool = False
) -> dict[str, object]:
    """The step with one mistake; old_w2 says what delta1 goes back through."""

    def train_step(w1: Any, b1: Any, w2: Any, b2: Any, x: Any, y: Any, lr: float) -> tuple[float, float]:
        w1, b1, w2, b2 = (w1, b1, w2, b2) if in_place else (w1.clone(), b1.clone(), w2.clone(), b2.clone())
        h = (x @ w1.T + b1).relu()
        logits = h @ w2.T + b2
        loss = F.cross_entropy(logits, y)
        p = logits.softmax(1)
        delta2 = p.clone() if copies_p else p
        delta2[torch.arange(len(y)), y] -= 1
        if divides:
            delta2 /= len(y)
        through = old_w2(w2)
        w2 -= lr * delta2.T @ h
        b2 -= lr * delta2.sum(0)
        delta1 = (delta2 @ through) * (h > 0)
        w1 -= lr * delta1.T @ x
        b1 -= lr * delta1.sum(0)
        if late:
            p = (x @ w1.T + b1).relu() @ w2.T + b2
        return loss.item(), (p.argmax(1) == y).double().mean().item()

    return {"train_step": train_step}


WRONG = {
    "repairs only the step": (written(copies_p=False), "Print what argmax is taken of"),
    "repairs only the accuracy": (written(old_w2=lambda w2: w2.view_as(w2)), "one of the weights before the step"),
    "gives the old weights a second name": (written(old_w2=lambda w2: w2.detach()), "w1[0, 0] moved by"),
    "measures after the step": (written(late=True), "before the step the network is right about"),
    "forgets the mean": (written(divides=False), "the loss is a mean over the samples"),
    "changes copies": (written(in_place=False), "the tensor itself must change"),
}
