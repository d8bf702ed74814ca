"""uint8 has no negative numbers: 10 - 12 is -2, stored as 254, and abs() comes too late to know.

Integers in PyTorch wrap around without a word, and .float() after the subtraction converts the damage. Convert
before. The target must hold -255 to 255 and a mean to a hundredth: int8 ends at 127, float16 has 11 bits, so
around 128 it can only say every eighth of a level. It also works without negative numbers: torch.maximum(a, b) -
torch.minimum(a, b) never leaves uint8, a quarter of the size.
"""

import torch


def mean_difference(before: torch.Tensor, after: torch.Tensor) -> float:
    difference = (after.float() - before).abs()  # one float is enough: promotion converts the other
    return difference.mean().item()
