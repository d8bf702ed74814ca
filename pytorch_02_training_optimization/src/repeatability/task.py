"""What the chapters train: letters in 16 x 16 grey values, and a network small enough to be trained many times."""

from collections.abc import Sequence

from pytorch_02_training_optimization.src.letters.rows import CLASSES, PIXELS, Letters

import torch
import torch.nn.functional as F
from torch import nn

HIDDEN = 32
BATCH_SIZE, LR = 32, 0.1


def make_model(device: torch.device, dropout: float = 0.0) -> nn.Sequential:
    """Drawn on the CPU by the global generator, so that every device starts from the same weights."""
    layers: list[nn.Module] = [nn.Linear(PIXELS, HIDDEN), nn.Tanh()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(HIDDEN, CLASSES)).to(device)


def gradients_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of the mean loss over the batch x (B, 256), y (B,)."""
    return torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))


@torch.no_grad()
def descend(model: nn.Module, gradients: Sequence[torch.Tensor], lr: float = LR) -> None:
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter -= lr * gradient


@torch.no_grad()
def accuracy(model: nn.Module, letters: Letters) -> float:
    """The share that is read right. Draws no random number; the caller chooses train() or eval()."""
    return (model(letters.x).argmax(dim=1) == letters.y).float().mean().item()
