"""A generator that lives in the data set is copied with it, and copies of a generator say the same.

Two workers each draw the first number, then the second: every amount is dealt twice, with eight workers eight times, and
when new workers are started for the next epoch they begin with the old copy again. A generator made afresh from (seed,
epoch, index) has no state that could be copied wrongly. NumPy's SeedSequence mixes the three well; seed + epoch + index
would not do, since index 1 of epoch 0 and index 0 of epoch 1 would be twins. Making a generator takes some ten
microseconds. Workers that persist keep their copy of the epoch as well: give them the epoch in a tensor in shared memory.
"""

import numpy as np
import torch
from torch.utils.data import Dataset


class Brightened(Dataset[torch.Tensor]):
    def __init__(self, images: torch.Tensor, strength: float, seed: int) -> None:
        self.images, self.strength = images, strength
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> torch.Tensor:
        random = np.random.default_rng([self.seed, self.epoch, index])
        return self.images[index] * random.uniform(1 - self.strength, 1 + self.strength)
