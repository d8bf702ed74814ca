"""Down at once, up slowly: a scale that is too large costs a step each time, one that is too small only digits.

The rule always steps back over the edge it has found, and tries it again after growth_interval good steps. So at rest one
step in growth_interval + 1 is left out, 0.05 % with PyTorch's 2000. Counting has to begin anew after a bad step: otherwise
the scale would be doubled while it is still searching its way down. The limit of float32 looks like pedantry until a
model's gradients become zero, after which no scale is ever too large: each 2000 steps it doubles, and a scale of inf would
turn zeros into NaN. torch.amp.GradScaler.update() does exactly this, on the device, without a wait.
"""

import torch


def next_scale(scale: float, good_steps: int, found_inf: bool, growth_interval: int) -> tuple[float, int]:
    if found_inf:
        return scale / 2, 0
    if good_steps + 1 < growth_interval:
        return scale, good_steps + 1
    fits = 2 * scale <= torch.finfo(torch.float32).max
    return (2 * scale if fits else scale), 0
