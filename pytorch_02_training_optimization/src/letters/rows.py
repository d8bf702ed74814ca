"""Drawn letters in grey as rows of 256 numbers: real enough to be learned badly, small enough for hundreds of trainings."""

from dataclasses import dataclass
from functools import cache

from shared.datasets import load_images

import torch
import torch.nn.functional as F

PIXELS, CLASSES = 16 * 16, 10
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Letters:
    """x (N, 256), each letter with mean 0 and standard deviation 1, and y (N,) from 0 to 9, on one device."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, part: slice) -> "Letters":
        return Letters(self.x[part], self.y[part])

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "Letters":
        return Letters(self.x.to(device, dtype), self.y.to(device))

    def batch(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Drawn with replacement, so that all batches of a size are alike; on the CPU, the same on every device."""
        index = torch.randint(len(self), (size,), generator=generator).to(self.y.device)
        return self.x[index], self.y[index]


@cache
def load_letters(count: int, device: torch.device = CPU, *, train: bool = True) -> Letters:
    """The first `count` letters, drawn once for all chapters of a lesson."""
    data = load_images("glyphs", train=train, count=count)
    grey = F.avg_pool2d(data.images.float().mean(dim=1, keepdim=True), 2).flatten(1)  # (N, 3, 32, 32) to (N, 256)
    rows = (grey - grey.mean(dim=1, keepdim=True)) / grey.std(dim=1, keepdim=True)
    return Letters(rows.to(device), data.labels.to(device))
