"""Seed, epoch and position are enough, because the order of an epoch is made from the first two each time it is needed.

A generator's state would not do: in the middle of an epoch it says what comes after this epoch and not what this one was.
The order itself would, and a checkpoint would hold a billion numbers. The position moves before the batch is handed out,
not behind the yield: that line runs when the next batch is asked for, so a state that is taken while the training works on
batch 5 would still say 5, and the resumed run would train on it twice. For the same reason the epoch moves on together with
its last batch; otherwise a training that was stopped there would resume into an epoch without batches. Lightning takes this
loader as it is: stopped at any batch, the last of an epoch as well, it goes on with the next one.
"""

import random
from collections.abc import Iterator
from typing import Any


class Loader:
    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epoch, self.position = 0, 0

    def __len__(self) -> int:
        return len(range(0, self.count, self.batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(range(self.count))
        random.Random(f"{self.seed} {self.epoch}").shuffle(rows)
        for place in range(self.position, len(self)):
            self.position = place + 1
            if self.position == len(self):
                self.epoch, self.position = self.epoch + 1, 0
            yield rows[place * self.batch_size :][: self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
