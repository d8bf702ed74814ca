"""Two tasks with opposite diseases: letters, whose shapes are hard to find, and clouds, whose labels are partly wrong."""

import math
from dataclasses import dataclass, replace

from pytorch_02_training_optimization.src.letters import rows as letters

import torch
import torch.nn.functional as F

CLASSES, SIDE = 10, 16  # pixels along each side of a letter
DIMENSIONS, SPREAD, WRONG = 32, 0.6, 0.3  # of the clouds: axes, distance of the centres, share of wrong labels


@dataclass(frozen=True)
class Samples:
    """x (N, D) float32 and y (N,) int64."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> "Samples":
        return Samples(self.x.to(device), self.y.to(device))

    def split(self, count: int) -> tuple["Samples", "Samples"]:
        """The first `count`, and the rest."""
        return Samples(self.x[:count], self.y[:count]), Samples(self.x[count:], self.y[count:])


@dataclass(frozen=True)
class Task:
    """`pool` is what training sets are drawn from; the limits are those of the best rule, where it is known."""

    name: str
    pool: Samples
    validation: Samples
    test: Samples
    limit: float | None = None  # test accuracy
    limit_loss: float | None = None


@dataclass(frozen=True)
class Sizes:
    pool: int
    validation: int
    test: int


def load_letters(sizes: Sizes, device: torch.device) -> Task:
    """Letters in grey, 16 x 16 as rows of 256, each with mean 0 and spread 1."""
    parts = []
    for train, count in ((True, sizes.pool + sizes.validation), (False, sizes.test)):
        rows = letters.load_letters(count, device, train=train)
        parts.append(Samples(rows.x, rows.y))
    pool, validation = parts[0].split(sizes.pool)
    return Task("letters", pool, validation, parts[1])


def with_wrong_labels(samples: Samples, share: float, generator: torch.Generator) -> Samples:
    """`samples` with another label, drawn by lot, for that share of them."""
    others = (
        samples.y + torch.randint(1, CLASSES, samples.y.shape, generator=generator).to(samples.y.device)
    ) % CLASSES
    is_wrong = torch.rand(len(samples), generator=generator).to(samples.y.device) < share
    return Samples(samples.x, torch.where(is_wrong, others, samples.y))


def draw_clouds(sizes: Sizes, seed: int, device: torch.device, wrong: float = WRONG) -> Task:
    """Ten round clouds of points in 32 dimensions; the pool has a share of wrong labels, validation and test have none.

    Each cloud's density is known, and so are the best possible answers and probabilities: accuracy and loss of that rule
    on the test set are the limit.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = SPREAD * torch.randn(CLASSES, DIMENSIONS, generator=generator)

    def draw(count: int) -> Samples:
        y = torch.randint(CLASSES, (count,), generator=generator)
        return Samples(centres[y] + torch.randn(count, DIMENSIONS, generator=generator), y)

    pool, validation, test = (draw(count) for count in (sizes.pool, sizes.validation, sizes.test))
    log_density = -(torch.cdist(test.x, centres) ** 2) / 2
    limit = (log_density.argmax(dim=1) == test.y).float().mean().item()
    limit_loss = F.cross_entropy(log_density, test.y).item()
    if wrong:
        pool = with_wrong_labels(pool, wrong, generator)
    return Task("clouds", pool.to(device), validation.to(device), test.to(device), limit, limit_loss)


def labels_by_lot(task: Task, share: float, seed: int) -> Task:
    """`task` with that share of its pool's labels replaced by wrong ones; a share of 0.9 leaves nothing to learn."""
    return replace(task, pool=with_wrong_labels(task.pool, share, torch.Generator().manual_seed(seed)))


def accuracy_error(accuracy: float, count: int) -> float:
    """The standard error of an accuracy that was measured on `count` samples: of a coin that shows heads so often."""
    return math.sqrt(accuracy * (1 - accuracy) / count)
