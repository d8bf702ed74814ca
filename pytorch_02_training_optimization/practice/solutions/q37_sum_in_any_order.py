"""Rounding after each addition makes the order matter; math.fsum rounds once, at the end.

It keeps the sum as several floats that do not overlap, so nothing is lost before the last step, and the exact sum is the
same in any order (Shewchuk, 1997). float64 alone is not enough: 1e30 + 1 has no room for the 1 in 53 bits either; it makes
other bits rare, which is worse for a test than frequent. Sorting first does give one result for all orders, and not the
right one. Whole numbers in fixed point are the way for a GPU, where the range is known in advance.
"""

import math

import torch


def sum_in_any_order(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(math.fsum(x.tolist()), dtype=torch.float32)
