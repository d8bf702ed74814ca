"""A graph needs shapes that are known and decisions that are numbers, so everything that varies stays inside tensors.

Picking rows by a mask makes a tensor whose length only the data knows. Zeros in the place of the unused rows keep the
shape, and add nothing to a sum; torch.where does it, since a product with 0 would leave NaN where NaN is. The mean has to
count the used rows itself. The if becomes a clamp: limit / max(largest, limit) is 1 where nothing is too large. The
.item() did one thing more that is easily lost: a Python number has no gradient, so the tensor in its place is detached.
Multiplying by a factor that carries a gradient would train another loss, of the same value. What was printed is returned,
and the caller may look at it as seldom as it likes.
"""

import torch


def bounded_loss(
    prediction: torch.Tensor, target: torch.Tensor, used: torch.Tensor, limit: float
) -> tuple[torch.Tensor, torch.Tensor]:
    error = torch.where(used[:, None], prediction - target, 0)
    largest = error.detach().abs().max()
    factor = limit / largest.clamp(min=limit)
    return (error * factor).square().sum() / (used.sum() * error.shape[1]), factor
