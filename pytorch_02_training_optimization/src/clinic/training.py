"""A training as six parts that can be exchanged one by one. The defaults are healthy; a patient differs in one part."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, Self

from shared.datasets import load_images

import torch
import torch.nn.functional as F
from torch import nn

BATCH_SIZE = 50
PIXELS, WIDTH, CLASSES, HIDDEN_LAYERS = 256, 64, 10, 4
LN_C = math.log(CLASSES)  # the cross-entropy of knowing nothing


@dataclass(frozen=True)
class Data:
    """Letters to learn from and to test on: images (N, 256), 16 x 16 grey levels as bytes, and labels (N,)."""

    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    @classmethod
    def load(cls, train_count: int, test_count: int, device: torch.device) -> Self:
        train = load_images("glyphs", train=True, count=train_count)
        test = load_images("glyphs", train=False, count=test_count)
        parts = grey_levels(train.images), train.labels, grey_levels(test.images), test.labels
        return cls(*(part.to(device) for part in parts))


def grey_levels(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, 32, 32) bytes → (N, 256) bytes: the mean of the colours, and of each square of four pixels."""
    return F.avg_pool2d(images.float().mean(1, keepdim=True), 2).flatten(1).to(torch.uint8)


class Momentum:
    """torch.optim.SGD(weights, lr, momentum=0.9), without its options; optimizer_comparison writes the others."""

    def __init__(self, weights: Iterable[torch.Tensor], lr: float, momentum: float = 0.9) -> None:
        self.weights, self.lr, self.momentum = list(weights), lr, momentum
        self.velocities = [torch.zeros_like(weight) for weight in self.weights]

    def zero_grad(self) -> None:
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for weight, velocity in zip(self.weights, self.velocities, strict=True):
            if weight.grad is not None:
                weight.sub_(velocity.mul_(self.momentum).add_(weight.grad), alpha=self.lr)


class Optimizer(Protocol):
    """What a training calls; every optimizer of torch.optim has it, too."""

    def zero_grad(self) -> None: ...

    def step(self) -> object: ...


# The six parts


def read_normalised(images: torch.Tensor) -> torch.Tensor:
    """(N, 256) bytes → (N, 256) numbers, of each image with mean 0 and standard deviation 1."""
    x = images.float()
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def stack_layers(activation: type[nn.Module]) -> nn.Sequential:
    """256 → 64 → 64 → 64 → 64 → 10, with PyTorch's default initialisation."""
    layers: list[nn.Module] = []
    for layer in range(HIDDEN_LAYERS):
        layers += [nn.Linear(WIDTH if layer else PIXELS, WIDTH), activation()]
    return nn.Sequential(*layers, nn.Dropout(0.1), nn.Linear(WIDTH, CLASSES))


def build_network() -> nn.Sequential:
    """ReLU, and Kaiming's weights in front of each; the last layer keeps the default, so the first scores are small."""
    network = stack_layers(nn.ReLU)
    *hidden, _ = (layer for layer in network if isinstance(layer, nn.Linear))
    for layer in hidden:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return network


Build = Callable[[], nn.Module]


def set_up(build: Build, lr: float, device: torch.device) -> tuple[nn.Module, Optimizer]:
    model = build().to(device)
    return model, Momentum(model.parameters(), lr)


def draw_pairs(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Which images the next batch has, and which labels: both (BATCH_SIZE,), numbers below `count`."""
    chosen = torch.randperm(count, generator=generator)[:BATCH_SIZE]
    return chosen, chosen


def take_step(model: nn.Module, optimizer: Optimizer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """One step on the batch; returns its loss from before."""
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def score(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """(B, 256) → (B, 10): what the trained model says."""
    model.eval()
    scores: torch.Tensor = model(x)
    return scores


@dataclass(frozen=True)
class Training:
    """The parts of one training. Exchange one with dataclasses.replace."""

    read: Callable[[torch.Tensor], torch.Tensor] = read_normalised
    build: Build = build_network
    set_up: Callable[[Build, float, torch.device], tuple[nn.Module, Optimizer]] = set_up
    draw: Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]] = draw_pairs
    step: Callable[[nn.Module, Optimizer, torch.Tensor, torch.Tensor], torch.Tensor] = take_step
    score: Callable[[nn.Module, torch.Tensor], torch.Tensor] = score
    lr: float = 0.03


# A training that runs


class Session:
    """A training begun afresh on `data`: its own weights and its own order of batches, both from `seed`."""

    def __init__(self, training: Training, data: Data, seed: int) -> None:
        torch.manual_seed(seed)  # for the weights, and for dropout
        self.training, self.data = training, data
        self.x = training.read(data.images)
        self.model, self.optimizer = training.set_up(training.build, training.lr, self.x.device)
        self._order = torch.Generator().manual_seed(seed)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        of_images, of_labels = self.training.draw(len(self.x), self._order)
        return self.x[of_images.to(self.x.device)], self.data.labels[of_labels.to(self.x.device)]

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.training.step(self.model, self.optimizer, x, y)

    def train(self, steps: int) -> torch.Tensor:
        """The losses of `steps` steps on new batches, (steps,), each from before its step, on the CPU."""
        return torch.stack([self.step(*self.batch()) for _ in range(steps)]).cpu()

    def accuracy(self) -> float:
        """The share of test images that are named rightly."""
        scores = self.training.score(self.model, self.training.read(self.data.test_images))
        return (scores.argmax(1) == self.data.test_labels).float().mean().item()
