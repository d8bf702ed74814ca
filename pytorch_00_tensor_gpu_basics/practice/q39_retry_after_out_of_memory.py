"""The retry that runs out of memory as well.

Now and then a batch of long documents does not fit. This function catches the error and tries both halves. In practice
it fails again with half of the batch, with a quarter, and gives up at a single sample, which fits easily on any other
day. The two calls that everybody adds, gc.collect() and empty_cache(), change nothing.
"""

import gc
from collections.abc import Callable

import torch


def run_in_parts(step: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> list[torch.Tensor]:
    """Runs `step` on the batch, in parts where it does not fit, and returns the results in the order of the samples.

    step: takes a tensor of n samples, n at least 1, and returns a tensor; where memory does not suffice it raises
        torch.OutOfMemoryError
    batch: (N, …), N at least 1; where it does not fit, both its halves are tried, and their halves where they do not
        fit; of an odd number the first half has one more
    Raises what `step` raises where a single sample does not fit, and every other error of `step` at once.

    Example: where 2 samples fit, a batch of 5 is tried as 5, 3, 2, 1 and 2 samples; three results come back, of the
    last three.
    """
    # TODO: at the second attempt, who still holds the tensors of the first?
    try:
        return [step(batch)]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        gc.collect()
        torch.cuda.empty_cache()
        first, second = batch.tensor_split(2)
        return run_in_parts(step, first) + run_in_parts(step, second)
