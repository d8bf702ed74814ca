"""What all chapters train: letters in 16 x 16 grey values, a small network, and plain gradient descent."""

from collections.abc import Callable, Iterable
from typing import Any

from pytorch_02_training_optimization.src.letters import rows
from pytorch_02_training_optimization.src.letters.rows import CLASSES, PIXELS, Letters

import torch
import torch.nn.functional as F
from torch import nn

LR = 0.2


def load_letters(count: int, device: torch.device, *, train: bool = True) -> Letters:
    """The first `count` of the letters as images (N, 1, 16, 16), for convolutions."""
    letters = rows.load_letters(count, device, train=train)
    return Letters(letters.x.unflatten(1, (1, 16, 16)), letters.y)


def make_mlp(width: int, device: torch.device) -> nn.Sequential:
    layers = (nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))
    return nn.Sequential(nn.Flatten(), *layers).to(device)


class GradientDescent:
    """All that a GradScaler asks of an optimizer: `param_groups` and `step()`. torch.optim.SGD does as well."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": lr}]

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter -= group["lr"] * parameter.grad


def logits_by_hand(model: nn.Sequential, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Mixed precision without autocast: each Linear multiplies 16-bit copies; the weights themselves stay float32.

    The cast is part of the graph, so backward() turns the gradient of the copy into one of the float32 weight.
    """
    for layer in model:
        if isinstance(layer, nn.Linear):
            x = F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
        else:
            x = layer(x)
    return x


def gradients_of(loss: torch.Tensor, model: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


Forward = Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def accuracy(forward: Forward, letters: Letters) -> float:
    return (forward(letters.x).argmax(1) == letters.y).float().mean().item()
