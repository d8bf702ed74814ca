"""A resumed run whose loss looks right, and whose weights are not.

Weight, momentum, step and generator are in the checkpoint, and a run that was paused at the end of an epoch goes on to the
same bits. This one was killed at three in the morning, in the middle of an epoch.
"""

from collections.abc import Mapping
from typing import Any

import torch


class Training:
    """Moves a weight to the mean of noisy samples, in steps over shuffled batches.

    samples: (N, F) float64, N a multiple of batch_size. All random numbers come from one generator, seeded at the start.

    state() describes the training between two steps; it survives torch.save and torch.load(weights_only=True), and does
    not change when the training goes on. load(state) makes any Training on the same samples, of whatever seed, go on from
    there: after as many more steps all is as if nothing had happened, to the last bit, wherever the pause was.
    What train_step() computes is right and stays as it is.
    """

    def __init__(self, samples: torch.Tensor, batch_size: int, seed: int) -> None:
        self.samples, self.batch_size = samples, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.weight = samples.new_zeros(samples.shape[1])
        self.momentum = torch.zeros_like(self.weight)
        self.order = None  # drawn at the beginning of each epoch
        self.step = 0

    def train_step(self) -> None:
        place = self.step * self.batch_size % len(self.samples)
        if place == 0 or self.order is None:
            self.order = torch.randperm(len(self.samples), generator=self.generator)
        batch = self.samples[self.order[place : place + self.batch_size]]
        noise = torch.randn(batch.shape, generator=self.generator, dtype=batch.dtype)
        self.momentum = 0.9 * self.momentum + self.weight - (batch + noise).mean(dim=0)
        self.weight = self.weight - 0.1 / (1 + self.step) * self.momentum
        self.step += 1

    # TODO: pause after the first of three steps. Which samples does the second step see, and which did it see before?
    def state(self) -> dict[str, Any]:
        return {
            "weight": self.weight,
            "momentum": self.momentum,
            "step": self.step,
            "generator": self.generator.get_state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.weight = state["weight"]
        self.momentum = state["momentum"]
        self.step = state["step"]
        self.generator.set_state(state["generator"])
