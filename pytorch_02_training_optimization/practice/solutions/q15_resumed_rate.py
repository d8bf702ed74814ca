"""A rate is a function of peak, step and total. The step is the only one of the three that a checkpoint has to bring.

The broken version kept the result of the function, the current rate, and took it for the peak of a new cosine that begins
at step 0: the second half of the training was a whole cosine from half the height. Peak and total belong to the settings,
which may change on purpose; a total from the checkpoint undoes that, as load_state_dict does with the T_max of
torch.optim.lr_scheduler.CosineAnnealingLR. The rate has to be set at once, since the next optimizer step comes before the
next schedule step, and the peak must be read before that, while the optimizer still has it.
"""

import math
from typing import Any


class CosineSchedule:
    def __init__(self, optimizer: Any, total: int) -> None:
        self.optimizer, self.total = optimizer, total
        self.peak = optimizer.param_groups[0]["lr"]
        self.steps_done = 0

    def step(self) -> None:
        self.steps_done += 1
        share = min(self.steps_done, self.total) / self.total
        self.optimizer.param_groups[0]["lr"] = self.peak * (1 + math.cos(math.pi * share)) / 2


def save(optimizer: Any, schedule: Any) -> dict[str, Any]:
    return {"steps_done": schedule.steps_done}


def resume(optimizer: Any, saved: dict[str, Any], total: int) -> Any:
    schedule = CosineSchedule(optimizer, total)
    for _ in range(saved["steps_done"]):
        schedule.step()
    return schedule
