"""Copies on the way in, copies on the way out, and a warm-up of the decay that forgets the random start.

The average is a second set of numbers, so each of them is a clone, and swapping copies numbers into the tensors that are
there: new parameters would leave the optimizer with the old ones. BatchNorm's running statistics belong to the weights they
were measured with, so they are averaged as well; its counter is a whole number, which has no mean. The min() takes 2 / 11
at first and reaches 0.999 after nine thousand steps: until then the average looks back over about a tenth of the training.
The finally matters on the day an evaluation runs out of memory: the training would go on from the average, and nobody
would know.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class Average:
    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.tensors = [x.detach() for x in (*model.parameters(), *model.buffers()) if x.is_floating_point()]
        self.averages = [x.clone() for x in self.tensors]

    def follow(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, now in zip(self.averages, self.tensors, strict=True):
            average.lerp_(now, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        own = [x.clone() for x in self.tensors]
        try:
            for x, average in zip(self.tensors, self.averages, strict=True):
                x.copy_(average)
            yield
        finally:
            for x, kept in zip(self.tensors, own, strict=True):
                x.copy_(kept)
