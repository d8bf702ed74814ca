"""What the chapters train: letters as rows of 256 numbers, a small network, momentum and Adam in a few lines."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from pytorch_02_training_optimization.src.letters.rows import CLASSES, PIXELS, Letters

import torch
from torch import nn

CPU = torch.device("cpu")
BATCH_SIZE, PARTS = 64, 8


def make_model(width: int, seed: int, device: torch.device, dtype: torch.dtype = torch.float32,
               activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:  # fmt: skip
    """256 → width → width → 10. tanh has no corner, at which a rounding error could decide between two gradients."""
    torch.manual_seed(seed)
    first, second = nn.Linear(PIXELS, width), nn.Linear(width, width)
    layers = (first, activation(), second, activation(), nn.Linear(width, CLASSES))
    return nn.Sequential(*layers).to(device, dtype)


def gradients_of(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def joined(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """All of them as one vector, a copy in float64 on the CPU: for comparisons."""
    return torch.cat([tensor.detach().flatten().cpu().double() for tensor in tensors])


def off_by(found: torch.Tensor, right: torch.Tensor) -> float:
    """The length of the difference over the length of what is right."""
    return float((found - right).norm() / right.norm())


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


class Rule(Protocol):
    """A step from the gradients that are there, and nothing else; what torch.optim.Optimizer.step does."""

    lr: float

    def step(self) -> None: ...


class Momentum:
    """torch.optim.SGD(lr, momentum)."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float, momentum: float = 0.9) -> None:
        self.parameters, self.lr, self.momentum = list(parameters), lr, momentum
        self.velocity = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        for parameter, velocity in zip(self.parameters, self.velocity, strict=True):
            if parameter.grad is not None:
                velocity.mul_(self.momentum).add_(parameter.grad)
                parameter.sub_(self.lr * velocity)


class Adam:
    """torch.optim.Adam(lr), beta 0.9 and 0.999, eps 1e-8. Without weight decay AdamW is the same."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float) -> None:
        self.parameters, self.lr, self.steps = list(parameters), lr, 0
        self.mean = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.square = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        for parameter, mean, square in zip(self.parameters, self.mean, self.square, strict=True):
            if parameter.grad is not None:
                mean.lerp_(parameter.grad, 0.1)
                square.mul_(0.999).addcmul_(parameter.grad, parameter.grad, value=0.001)
                root = (square / (1 - 0.999**self.steps)).sqrt() + 1e-8
                parameter.sub_(self.lr / (1 - 0.9**self.steps) * mean / root)


RULES: dict[str, tuple[type[Momentum] | type[Adam], float]] = {"momentum": (Momentum, 0.02), "Adam": (Adam, 2e-3)}


def draw_batches(letters: Letters, steps: int, seed: int, size: int = BATCH_SIZE
                 ) -> Sequence[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    return [letters.batch(size, generator) for _ in range(steps)]
