"""Inside `except` the error is alive, and with it everything that the failed attempt had made.

An error carries its traceback, the traceback every frame that it went through, and a frame its local variables: here
all activations that were made before memory ran out. Python drops the error when the except block ends, not before.
So leave the block first and try again after it. In the block each retry runs with the dead tensors of all attempts
before it, and no collector may touch what is still reachable. `except ... as error` drops the name at the end for the
same reason; `failure = error` inside brings the leak back, and so does a list of failures to be looked at later.
empty_cache() is not needed: PyTorch calls it by itself before it reports that memory is out.
"""

from collections.abc import Callable

import torch


def run_in_parts(step: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> list[torch.Tensor]:
    try:
        return [step(batch)]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    first, second = batch.tensor_split(2)  # the error and its frames are gone here
    return run_in_parts(step, first) + run_in_parts(step, second)
