"""Augmentation that says no number twice, until the loader gets workers.

With num_workers=0 every image is brightened by an amount of its own. With two workers the same run learns worse, with
eight worse still. The data set was tested without workers, and nobody looked at the numbers again.
"""

import numpy as np
import torch
from torch.utils.data import Dataset


class Brightened(Dataset[torch.Tensor]):
    """Images (N, C, H, W) of float32, each times 1 + amount, where amount is uniform from -strength to strength.

    The amount belongs to the sample: it depends on seed, epoch and index, and on nothing else. So it is another one for
    every index and, after set_epoch, in every epoch (before it, epoch 0); it is the same however often and in whatever order
    samples are fetched, and whatever the number of workers. A DataLoader sends each of its workers a copy of this object,
    pickled or forked, after set_epoch was called and before a sample is fetched. The images are not changed, and no
    generator of the whole program (torch, random, np.random) is used or seeded.

    Example: Brightened(torch.ones(2, 1, 1, 1), strength=0.5, seed=0)[1] is a tensor (1, 1, 1) from 0.5 to 1.5.
    """

    def __init__(self, images: torch.Tensor, strength: float, seed: int) -> None:
        self.images, self.strength = images, strength
        self.random = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop before epoch 0, 1, 2, …"""

    def __getitem__(self, index: int) -> torch.Tensor:
        # TODO: in which state is self.random in the second worker when it fetches its first sample?
        return self.images[index] * (1 + self.random.uniform(-self.strength, self.strength))
