"""A loader that keeps the GPU waiting, with nothing slow in it.

The images lie in memory, there is no disk and nothing to decode, and yet an epoch of 50,000 small images takes half a
minute. The work is a few nanoseconds for each pixel; the rest is the price of calls, paid for each image.
"""

from collections.abc import Iterable

import torch
from torch.utils.data import DataLoader, Dataset

Sample = tuple[torch.Tensor, torch.Tensor]


class Images(Dataset[Sample]):
    def __init__(self, images: torch.Tensor, labels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> None:
        self.images, self.labels, self.mean, self.std = images, labels, mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index].float() / 255
        return (image - self.mean[:, None, None]) / self.std[:, None, None], self.labels[index]


def make_loader(images: torch.Tensor, labels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, batch_size: int,
                generator: torch.Generator) -> Iterable[Sample]:  # fmt: skip
    """Something that can be iterated again and again: each time one epoch in a new random order, in batches.

    images: (N, C, H, W) uint8; labels: (N,) int64; mean, std: (C,) float32, of pixels from 0 to 1. None of them is changed.
    A batch is (x, y): x (B, C, H, W) float32, normalised with mean and std of its channel, and y (B,). The last batch of an
    epoch has what is left. The order comes from `generator`. No workers: they would divide the price, not lower it.

    Wanted: the same with at most 20 tensor operations for each batch, whatever its size, where this loader takes some
    hundreds. And no tensor with more than one batch of pixels is made: the whole set as float32 would take four times its
    memory.

    Example: for 10 images and batch_size 4 the batches have 4, 4 and 2 samples, and together each image once.
    """
    # TODO: which of these calls could be made once for a whole batch?
    return DataLoader(Images(images, labels, mean, std), batch_size, shuffle=True, generator=generator)
