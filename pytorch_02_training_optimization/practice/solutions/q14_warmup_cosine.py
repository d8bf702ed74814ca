"""Count the gaps between steps, not the steps: from step a to step b there are b - a of them.

The wave begins at the step with the peak, warmup - 1, and ends at total - 1, so it is total - warmup gaps long. Divide by
total - warmup + 1 or begin at `warmup` and the last step is not at the floor, or the peak is used twice. With step / warmup
in place of (step + 1) / warmup the first step is made with a rate of 0: a batch is computed for nothing. After its end a
cosine goes up again, which is why a training that is made longer has to be held at the floor. The edges, no warm-up and
nothing but warm-up, are where a division by 0 waits.
"""

import math


def rate_at(step: int, total: int, warmup: int, peak: float, floor: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    if step >= total:
        return floor
    top = max(warmup - 1, 0)
    if step <= top:
        return peak
    share = (step - top) / (total - 1 - top)
    return floor + (peak - floor) * (1 + math.cos(math.pi * share)) / 2
