"""Each schedule as a function of the step: what the rate of step 0, 1, 2 … is, as a multiple of the peak.

Step 0 is the first that the optimizer makes, so a training of `total` steps ends with step total - 1.
"""

import math
from collections.abc import Collection

Curve = list[float]


def step_decay(step: int, every: int, gamma: float = 0.1) -> float:
    return gamma ** (step // every)


def multi_step(step: int, milestones: Collection[int], gamma: float = 0.1) -> float:
    return gamma ** sum(step >= milestone for milestone in milestones)


def exponential(step: int, gamma: float) -> float:
    return gamma**step


def polynomial(step: int, over: int, power: float = 1.0) -> float:
    """Down to 0 at step `over`, and 0 after it; in a straight line where power is 1."""
    return (1 - min(step, over) / over) ** power


def warmup(step: int, over: int, first: float) -> float:
    """From `first` at step 0 in a straight line to 1 at step `over`."""
    return first + (1 - first) * min(step, over) / over


def cosine(step: int, over: int, floor: float = 0.0) -> float:
    """Half a wave from 1 down to `floor` at step `over`; after it the wave goes up again (Loshchilov & Hutter 2017)."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * step / over)) / 2


def warm_restarts(step: int, first: int, times: int = 1, floor: float = 0.0) -> float:
    """Cosines one after another, the first over `first` steps, each `times` as long as the one before."""
    length = first
    while step >= length:
        step, length = step - length, times * length
    return cosine(step, length, floor)


def warmup_then_cosine(step: int, over: int, total: int, first: float) -> float:
    """`warmup` until step `over`, then a cosine that would be 0 at step `total`, the first after the last."""
    return warmup(step, over, first) if step < over else cosine(step - over, total - over)


def glide(start: float, end: float, share: float) -> float:
    """From `start` to `end` along half a wave, `share` of the way."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def one_cycle(step: int, total: int, low: float = 1 / 25, high: float = 1.0, end: float = 1 / 25e4,
              rise: float = 0.3) -> float:  # fmt: skip
    """From `low` up to `high` at step rise x total - 1, then down to `end` at step total - 1 (Smith & Topin 2018)."""
    top = rise * total - 1
    return glide(low, high, step / top) if step <= top else glide(high, end, (step - top) / (total - 1 - top))


def inverse_root(step: int, over: int) -> float:
    """Up in a line over `over` steps, then down with 1 / sqrt(step); needs no end (Vaswani 2017, equation 3)."""
    return min((step + 1) / over, math.sqrt(over / (step + 1)))


def warmup_stable_decay(step: int, over: int, total: int, decay: int) -> float:
    """Up over `over` steps, 1 for as long as you like, down to 0 in a line over the last `decay` (Hu 2024)."""
    return min((step + 1) / over, 1.0, (total - step) / decay)


class Plateau:
    """A schedule of the loss: after more than `patience` losses in a row that are no new best, the rate is multiplied.

    New best is what is below the best so far by more than the share `threshold`. `cooldown` losses after a cut are not
    counted. The rules of torch.optim.lr_scheduler.ReduceLROnPlateau with mode="min", threshold_mode="rel".
    """

    def __init__(self, rate: float, factor: float = 0.1, patience: int = 10, threshold: float = 1e-4,
                 cooldown: int = 0, lowest: float = 0.0) -> None:  # fmt: skip
        self.rate, self.factor, self.patience, self.threshold = rate, factor, patience, threshold
        self.cooldown, self.lowest = cooldown, lowest
        self.best, self.waited, self.resting = math.inf, 0, 0

    def step(self, loss: float) -> float:
        """The rate after this loss."""
        if loss < self.best * (1 - self.threshold):
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        if self.resting > 0:
            self.resting -= 1
            self.waited = 0
        if self.waited > self.patience:
            lower = max(self.rate * self.factor, self.lowest)
            if self.rate - lower > 1e-8:  # the library's eps: no cut smaller than that
                self.rate = lower
            self.waited, self.resting = 0, self.cooldown
        return self.rate
