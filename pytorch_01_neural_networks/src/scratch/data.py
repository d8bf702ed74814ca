"""What the networks of this lesson learn from: two spirals made here, and drawn letters."""

import math
from collections.abc import Iterator
from functools import cache

from pytorch_01_neural_networks.src.scratch.network import Batch
from shared.datasets import load_images

import torch
from torch.nn import functional as F

NOISE = 0.02  # standard deviation; the arms are 0.4 apart


def make_spirals(count: int, generator: torch.Generator) -> Batch:
    """`count` points on two interleaved arms of one turn each: x (count, 2), and y (count,) says which arm."""
    y = torch.arange(count) % 2
    way = torch.rand(count, generator=generator)  # along the arm, from the inside out
    angle, radius = 2 * math.pi * way + math.pi * y, 0.1 + 0.9 * way
    x = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return x + NOISE * torch.randn(count, 2, generator=generator), y


@cache  # two chapters read the same letters
def read_letters(train: bool, count: int) -> Batch:
    """`count` of the glyphs as 16 x 16 grey pixels: x (count, 256), each image with mean 0 and variance 1, and y."""
    data = load_images("glyphs", train=train, count=count)
    grey = data.images.float().mean(1, keepdim=True)  # (count, 1, 32, 32)
    x = F.avg_pool2d(grey, 2).flatten(1)  # (count, 256)
    x = x - x.mean(1, keepdim=True)
    return x / x.std(1, keepdim=True).clamp(min=1.0), data.labels  # an image of one colour stays 0


def shuffled(data: Batch, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[Batch]:
    """Batches of `data` in a new random order for each epoch; of a remainder, a smaller batch."""
    x, y = data
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch_size):
            yield x[rows.to(x.device)], y[rows.to(y.device)]
