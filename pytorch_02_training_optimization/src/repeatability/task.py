"""What the chapters train: letters in 16 x 16 grey values, and a network small enough to be trained many times."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from shared.datasets import load_images

import torch
import torch.nn.functional as F
from torch import nn

PIXELS, HIDDEN, CLASSES = 16 * 16, 32, 10
BATCH_SIZE, LR = 32, 0.1


@dataclass(frozen=True)
class Letters:
    """x (N, 256) of mean 0 and spread 1, y (N,), on one device."""

    x: torch.Tensor
    y: torch.Tensor


@cache
def load_letters(count: int, device: torch.device, *, train: bool = True) -> Letters:
    """The first `count` letters, drawn once for all chapters."""
    data = load_images("glyphs", train=train, count=count)
    x = F.avg_pool2d(data.images.float().mean(dim=1, keepdim=True), 2).flatten(1)
    x = (x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, keepdim=True)
    return Letters(x.to(device), data.labels.to(device))


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
