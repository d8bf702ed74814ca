"""The generator was saved as it stood in the middle of the epoch; the order that it had drawn at the beginning was not.

A generator knows what comes next and not what it gave before. The loaded run finds no order, draws a new one, and goes on
at the same place in it: some samples of the epoch come twice, some never, and every later number of the generator is
shifted. No error and no jump of the loss tells. At the end of an epoch there is nothing left of the order, so a test that
pauses there passes. Either the order belongs to the state, as here, or an order that is a function of seed and epoch
(drawn by a generator of its own), so that it can be made again. The test for any checkpoint: pause at every step of an
epoch, load into a run of another seed, go on, and compare bits.
"""

from collections.abc import Mapping
from typing import Any

import torch


class Training:
    def __init__(self, samples: torch.Tensor, batch_size: int, seed: int) -> None:
        self.samples, self.batch_size = samples, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.weight = samples.new_zeros(samples.shape[1])
        self.momentum = torch.zeros_like(self.weight)
        self.order = None  # drawn at the beginning of each epoch
        self.step = 0

    def train_step(self) -> None:
        place = self.step * self.batch_size % len(self.samples)
        if place == 0:
            self.order = torch.randperm(len(self.samples), generator=self.generator)
        batch = self.samples[self.order[place : place + self.batch_size]]
        noise = torch.randn(batch.shape, generator=self.generator, dtype=batch.dtype)
        self.momentum = 0.9 * self.momentum + self.weight - (batch + noise).mean(dim=0)
        self.weight = self.weight - 0.1 / (1 + self.step) * self.momentum
        self.step += 1

    def state(self) -> dict[str, Any]:
        return {
            "weight": self.weight,
            "momentum": self.momentum,
            "step": self.step,
            "order": self.order,
            "generator": self.generator.get_state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.weight = state["weight"]
        self.momentum = state["momentum"]
        self.step = state["step"]
        self.order = state["order"]
        self.generator.set_state(state["generator"])
