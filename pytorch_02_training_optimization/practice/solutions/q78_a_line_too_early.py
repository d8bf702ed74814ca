"""What belongs to a step stands under one condition, and what belongs to a batch beside it.

Clipped after each piece, the sum of three pieces is a sum of three shortened ones: long gradients count no more than short
ones, and the sum is never clipped itself. The norm that was logged was that of a clipped gradient, at most the limit, always
healthy. A schedule that moves with each batch is at its end after half of the training, or a third. And number % accumulate
is 1 for the first batch of a step, but for accumulate=1, where no remainder is ever 1: gradients of all batches add up, and
one step per training does not show it, since the first is right. Count from 0 and ask for the remainder 0.
"""

from collections.abc import Iterable
from typing import Any


class Trainer:
    def __init__(self, accumulate: int, limit: float) -> None:
        self.accumulate, self.limit = accumulate, limit
        self.global_step = 0

    def fit(self, module: Any, batches: Iterable[Any]) -> None:
        optimizer, schedule = module.configure_optimizers()
        for number, batch in enumerate(batches):
            loss = module.training_step(batch)
            if number % self.accumulate == 0:
                optimizer.zero_grad()
            module.backward(loss / self.accumulate)
            if number % self.accumulate == self.accumulate - 1:
                module.on_before_optimizer_step()
                module.clip_gradients(self.limit)
                optimizer.step()
                schedule.step()
                self.global_step += 1
            module.on_train_batch_end()
