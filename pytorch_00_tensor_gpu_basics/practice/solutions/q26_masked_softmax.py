"""Each row needs its own maximum, a row of -inf needs a number to subtract, and a sum needs more range than its terms.

With the row's maximum m the largest term is exp(0) = 1: nothing overflows, and the sum is at least 1. With the maximum
of the whole batch, a row far below it becomes 0 / 0. In a masked row m is -inf, and -inf - -inf is nan; with the
lowest finite number in its place the difference stays -inf and exp makes it 0. Such a sum of 0 is the only one below
1, so clamp(min=1) touches nothing else. Repairing the nan at the end (nan_to_num, where) is too late: the values look
right, and the backward pass multiplies by the nan all the same, since 0 x nan is nan. float16 ends at 65,504, so a
sum of more equal terms is inf; half precision is widened first and rounded last. In a model you would call
torch.softmax on rows that are filled with 0 where they are masked entirely, and set those weights to 0 afterwards.
"""

import torch


def softmax(scores: torch.Tensor, dim: int) -> torch.Tensor:
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    highest = wide.amax(dim, keepdim=True).clamp(min=torch.finfo(wide.dtype).min)
    weights = (wide - highest).exp()
    total = weights.sum(dim, keepdim=True).clamp(min=1)
    return (weights / total).to(scores.dtype)
