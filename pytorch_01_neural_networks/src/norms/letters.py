"""Three letters to tell apart, a small convolutional network with a normalisation of your choice, and plain SGD."""

from collections.abc import Callable
from dataclasses import dataclass

from shared.datasets import load_images
from shared.lesson import Lesson

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 3  # A, B and C, the first of the ten letters in shared.datasets' glyphs
WIDTHS = (32, 64, 64, 64)
MAP_SIZES = (8, 4, 2, 1)  # rows and columns after each convolution
LR_PER_SAMPLE = 1 / 320  # lr grows with the batch (Goyal et al. 2017), so that equal numbers of samples go equally far
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm": nn.BatchNorm2d,
    "GroupNorm": lambda channels: nn.GroupNorm(8, channels),
    "none": lambda channels: nn.Identity(),
}


@dataclass(frozen=True)
class Letters:
    """Images (N, 3, 32, 32), about -2 to 2, and their labels (N,), on the device of the lesson."""

    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


def load_letters(lesson: Lesson) -> Letters:
    """Some 640 images to train on and 448 to test, multiples of 32 so that no batch is short; a tenth under --quick.

    Raises CannotRun without matplotlib, whose fonts the letters come from.
    """
    parts = []
    for train, count in ((True, lesson.pick(full=2200, quick=260)), (False, lesson.pick(full=1500, quick=150))):
        data = load_images("glyphs", train=train, count=count)
        wanted = (data.labels < CLASSES).nonzero().squeeze(1)
        wanted = wanted[: len(wanted) // 32 * 32]
        images = data.images[wanted].float() / 255
        parts += [((images - 0.5) / 0.25).to(lesson.device), data.labels[wanted].to(lesson.device)]
    return Letters(*parts)


def make_network(norm: str, device: torch.device) -> nn.Sequential:
    """Four convolutions, 32 x 32 pixels down to one, each with its normalisation and ReLU; then a linear layer."""
    layers: list[nn.Module] = []
    channels = 3
    for depth, width in enumerate(WIDTHS):
        kernel, stride = (5, 4) if depth == 0 else (3, 2)
        bias = norm != "BatchNorm"  # it would subtract the bias again
        layers += [
            nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=bias),
            NORMS[norm](width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, CLASSES)).to(device)


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, batch_size: int, epochs: int) -> None:
    """Plain SGD over all samples, in a new random order each epoch."""
    parameters = list(model.parameters())
    lr = LR_PER_SAMPLE * batch_size
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).to(x.device).split(batch_size):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in parameters:
                    assert parameter.grad is not None
                    parameter -= lr * parameter.grad


@torch.no_grad()
def predict(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The logits (N, classes), as a model should be asked: in eval mode, recording nothing."""
    model.eval()
    return model(x)


def accuracy(logits: torch.Tensor, y: torch.Tensor) -> float:
    return (logits.argmax(1) == y).float().mean().item()
