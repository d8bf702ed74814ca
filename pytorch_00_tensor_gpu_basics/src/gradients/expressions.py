"""Random expressions that run on tensors of PyTorch and of our engine alike, for comparing the two."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

LARGEST = 500  # numbers in one value; a product of columns and rows would otherwise outgrow the rest

# Kept where the function is smooth and moderate: the logarithm of what is at least 1, division by what is at least 1.
# Each with the fewest axes that it needs; the last group makes numbers larger and is given moderate ones only.
OF_ONE: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "negative": (0, lambda x: -x),
    "tanh": (0, lambda x: x.tanh()),
    "sin": (0, lambda x: x.sin()),
    "relu": (0, lambda x: x.relu()),
    "exp": (0, lambda x: x.tanh().exp()),
    "log": (0, lambda x: (x * x + 1).log()),
    "inverse": (0, lambda x: 1 / (1 + x * x)),
    "root": (0, lambda x: (x * x + 0.5) ** 0.5),
    "sum": (1, lambda x: x.sum(dim=0)),
    "row sums": (1, lambda x: x.sum(dim=-1, keepdim=True)),
    "total": (0, lambda x: x.sum()),
    "mean": (1, lambda x: x.mean(dim=-1)),
    "flatten": (2, lambda x: x.reshape(-1)),
    "add an axis": (1, lambda x: x.reshape(-1, 1)),
    "transpose": (2, lambda x: x.transpose(0, -1)),
    "first": (1, lambda x: x[0]),
    "every other": (1, lambda x: x[..., ::2]),
    "one row twice": (1, lambda x: x[torch.tensor([0, -1, 0])]),
    "square": (0, lambda x: x**2),
    "cube": (0, lambda x: x**3),
}
OF_TWO: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "/": lambda a, b: a / (1 + b * b),
    "*": lambda a, b: a * b,
    "@": lambda a, b: a @ b,
}
GROWING = ("square", "cube", "*", "@")


@dataclass(frozen=True)
class Step:
    """One operation and the numbers of the values that it reads: first the leaves, then the results so far."""

    name: str
    inputs: tuple[int, ...]

    def run(self, values: Sequence[Any]) -> Any:
        read = [values[number] for number in self.inputs]
        return OF_TWO[self.name](*read) if self.name in OF_TWO else OF_ONE[self.name][1](*read)


@dataclass(frozen=True)
class Expression:
    """Leaves of float64, on the CPU, and what is computed from them."""

    leaves: list[torch.Tensor]
    steps: list[Step]

    def run(self, leaves: Sequence[Any]) -> Any:
        """One number: the sum of the means of all values that no step reads, so that every leaf counts."""
        values = list(leaves)
        for step in self.steps:
            values.append(step.run(values))
        read = {number for step in self.steps for number in step.inputs}
        return sum(value.mean() for number, value in enumerate(values) if number not in read)


def random_expression(generator: random.Random) -> Expression:
    """Two to four leaves whose shapes broadcast, six to fourteen steps; values are read once, often or never."""
    base = [generator.randint(1, 4) for _ in range(generator.randint(1, 3))]
    noise = torch.Generator().manual_seed(generator.getrandbits(32))
    leaves = []
    for _ in range(generator.randint(2, 4)):
        shape = [1 if generator.random() < 0.2 else size for size in base]
        if generator.random() < 0.3:
            shape = shape[generator.randint(1, len(shape)) :]  # fewer axes, perhaps none
        leaves.append(torch.randn(shape, dtype=torch.float64, generator=noise))
    values, steps = list(leaves), []
    for _ in range(generator.randint(6, 14)):
        step = generator.choice(possible_steps(values, generator))
        steps.append(step)
        values.append(step.run(values))
    return Expression(leaves, steps)


def possible_steps(values: Sequence[torch.Tensor], generator: random.Random) -> list[Step]:
    """What can be done with two of the values, picked at random; half of the choices read both where their shapes fit."""
    numbers = generator.choices(range(len(values)), k=2)  # may be the same one twice
    a, b = (values[number] for number in numbers)
    moderate = [bool(value.abs().max() < 10) for value in (a, b)]
    of_one = [
        Step(name, (numbers[0],))
        for name, (axes, _) in OF_ONE.items()
        if a.ndim >= axes and (moderate[0] or name not in GROWING)
    ]
    of_two = [
        Step(name, tuple(numbers)) for name in OF_TWO if fit(name, a, b) and (all(moderate) or name not in GROWING)
    ]
    return of_two if of_two and generator.random() < 0.5 else of_one


def fit(name: str, a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the operation takes these shapes and its result stays small."""
    shapes = a.shape, b.shape
    if name == "@":
        if min(a.ndim, b.ndim) < 2 or a.shape[-1] != b.shape[-2]:
            return False
        shapes = a.shape[:-2], b.shape[:-2]
    try:
        shape = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return False
    size: int = shape.numel()
    return size * (a.shape[-2] * b.shape[-1] if name == "@" else 1) <= LARGEST
