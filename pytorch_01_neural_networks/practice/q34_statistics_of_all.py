"""Mean and variance of everything, one batch at a time.

BatchNorm's running averages know little more than the last twenty batches. After fine-tuning on new data, or after weights
were averaged, they are computed anew from the whole training set; so are the mean and spread by which inputs are normalised.
This function is exact, and it needs the whole training set in memory.
"""

from collections.abc import Iterable

import torch


@torch.no_grad()
def mean_and_variance(batches: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (torch.var: divided by n - 1) of each channel, over all numbers of all batches.

    batches: float32 tensors (B, C, ...) with 1 or more sample each and the same C; B differs from batch to batch, and so may
        what follows C. They come one at a time, can be read only once, and may have a graph, as the outputs of a layer do.
    Returns two tensors (C,), float32, on the device of the batches, without a graph.

    Wanted: the same to three digits of the variance, also where the mean is 10,000 times the standard deviation, while

        no batch is kept: when the next one is read, at most the last one is still in memory
        a batch costs at most 20 operations, whatever its size
        no tensor is float64, which Apple's GPUs do not have, and most others compute at a small part of their speed

    Example: batches [[0.], [2.]] and [[7.]] of one channel have the mean 3 and the variance (9 + 1 + 16) / 2 = 13.
    """
    # TODO: which three numbers of each batch are enough?
    channels = [batch.transpose(0, 1).flatten(1) for batch in batches]  # (C, numbers) each
    whole = torch.cat(channels, dim=1)
    return whole.mean(dim=1), whole.var(dim=1)
