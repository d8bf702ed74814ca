"""What the runs of experiment_tracking train: a small network that reads letters, and says what it did to a tracker."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pytorch_02_training_optimization.src.letters.rows import CLASSES, PIXELS, Letters

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Config:
    """All that decides what a run computes, apart from code and data."""

    lr: float = 0.03
    width: int = 32
    batch_size: int = 64
    momentum: float = 0.9
    steps: int = 200
    log_every: int = 10  # steps
    validate_every: int = 20  # steps
    seed: int = 0


class Tracker(Protocol):
    """What a training needs of any tool that keeps its numbers."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Task:
    """The letters that train and those that choose."""

    training: Letters
    validation: Letters


class Reader(nn.Module):
    """(B, 256) → (B, 10)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(PIXELS, width)
        self.second = nn.Linear(width, width)
        self.scores = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(torch.relu(self.second(torch.relu(self.first(x)))))


def build(config: Config, device: torch.device) -> Reader:
    """Drawn on the CPU, so that a seed means the same weights on every device."""
    generator = torch.Generator().manual_seed(config.seed)
    model = Reader(config.width)
    for layer in (model.first, model.second, model.scores):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(layer.bias)
    return model.to(device)


@torch.no_grad()
def evaluate(model: Reader, letters: Letters) -> dict[str, float]:
    """Loss and accuracy, each letter counted once."""
    scores = model(letters.x)
    right = (scores.argmax(dim=1) == letters.y).float().mean()
    loss, accuracy = torch.stack([F.cross_entropy(scores, letters.y), right]).tolist()
    return {"validation/loss": loss, "validation/accuracy": accuracy}


def descend(model: Reader, velocities: list[torch.Tensor], lr: float, momentum: float) -> None:
    """SGD with momentum, as torch.optim.SGD does it."""
    with torch.no_grad():
        for parameter, velocity in zip(model.parameters(), velocities, strict=True):
            velocity.mul_(momentum).add_(parameter.grad)  # type: ignore[arg-type]  # backward has just filled it
            parameter.sub_(lr * velocity)
            parameter.grad = None


def train(config: Config, task: Task, tracker: Tracker) -> Reader:
    """The model after `config.steps` steps; the tracker hears the mean loss of each `log_every` steps in one wait."""
    model = build(config, task.training.x.device)
    velocities = [torch.zeros_like(parameter) for parameter in model.parameters()]
    generator = torch.Generator().manual_seed(config.seed + 1)
    batches = torch.randint(len(task.training), (config.steps, config.batch_size), generator=generator)
    recent: list[torch.Tensor] = []
    for step, rows in enumerate(batches.to(task.training.x.device), 1):
        loss = F.cross_entropy(model(task.training.x[rows]), task.training.y[rows])
        loss.backward()
        descend(model, velocities, config.lr, config.momentum)
        recent.append(loss.detach())
        if step % config.log_every == 0:
            tracker.log(step, {"train/loss": torch.stack(recent).mean().item()})
            recent.clear()
        if step % config.validate_every == 0 or step == config.steps:
            tracker.log(step, evaluate(model, task.validation))
    return model


def digest(*tensors: torch.Tensor) -> str:
    """SHA-256 over type, shape and bytes: equal for equal bits, wherever the tensors lie."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def data_digest(task: Task) -> str:
    return digest(task.training.x, task.training.y, task.validation.x, task.validation.y)


def weights_digest(model: nn.Module) -> str:
    return digest(*model.state_dict().values())
