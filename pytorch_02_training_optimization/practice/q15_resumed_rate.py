"""A training was stopped, resumed, and ended worse than the one that was left alone.

The weights are restored to the bit, and the first loss after the resume fits. But in the log the learning rate falls too
slowly after the resume, and ends far from 0. When somebody resumed with more steps than planned, it was wrong in another
way.
"""

import math
from typing import Any


class CosineSchedule:
    """Half a cosine from the rate that the optimizer has when this is made, down to 0 at step `total`; 0 after it."""

    def __init__(self, optimizer: Any, total: int) -> None:
        self.optimizer, self.total = optimizer, total
        self.peak = optimizer.param_groups[0]["lr"]
        self.steps_done = 0

    def step(self) -> None:
        """To be called after each step of the optimizer: sets the rate of the next one."""
        self.steps_done += 1
        share = min(self.steps_done, self.total) / self.total
        self.optimizer.param_groups[0]["lr"] = self.peak * (1 + math.cos(math.pi * share)) / 2


def save(optimizer: Any, schedule: Any) -> dict[str, Any]:
    """What a checkpoint keeps of a CosineSchedule, as a dict of numbers. Changes nothing."""
    return {"lr": optimizer.param_groups[0]["lr"], "total": schedule.total}


def resume(optimizer: Any, saved: dict[str, Any], total: int) -> Any:
    """The CosineSchedule of a training that goes on. The class is right; leave it as it is.

    optimizer: newly made from the settings, so that its rate is the peak
    saved: what save() returned, in this run or in one that had been resumed itself
    total: of the settings; may be more than the training was planned with before

    Wanted: from the next step on, each step is made with the rate that a training of `total` steps, never stopped, has at
    that step. The very next step counts: its rate is read before schedule.step() is called.
    """
    # TODO: which three things does a rate depend on, and where does each of them come from here?
    optimizer.param_groups[0]["lr"] = saved["lr"]
    return CosineSchedule(optimizer, saved["total"])
