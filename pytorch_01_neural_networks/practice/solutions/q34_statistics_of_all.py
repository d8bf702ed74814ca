"""Count, mean and sum of squared distances of two parts give those of the whole (Chan, Golub and LeVeque 1979).

The whole is wider than its parts: besides what each varies around its own mean, the two means differ by delta, and that adds
delta² * n * m / (n + m). A mean of variances leaves it out, and so does BatchNorm with momentum=None, which in addition gives
each batch the same weight. Adding up x and x² and subtracting at the end is the textbook's other formula; where the mean is
10,000 times the spread it takes the difference of two numbers that agree in eight digits, and float32 has seven. Here only
distances are squared. Parts may be merged in any order and grouping: two GPUs can merge what they have, which is how
SyncBatchNorm gets the statistics of a batch that no GPU has as a whole.
"""

from collections.abc import Iterable

import torch


@torch.no_grad()
def mean_and_variance(batches: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    count = mean = squares = 0  # squares: the sum of squared distances from the mean
    for batch in batches:
        variance, batch_mean = torch.var_mean(batch, dim=[0, *range(2, batch.ndim)], correction=0)
        n, delta = batch.numel() // batch.shape[1], batch_mean - mean
        squares = squares + n * variance + n * count / (n + count) * delta**2
        mean = mean + n / (n + count) * delta
        count += n
    return mean, squares / (count - 1)
