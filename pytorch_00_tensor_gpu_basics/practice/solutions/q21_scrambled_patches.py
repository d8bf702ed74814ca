"""reshape never moves a number past another: it cuts the same row of numbers into other lengths.

So it may split an axis, and it may merge neighbours, but it cannot bring together what lies apart. A patch lies apart:
after `patch` pixels of one row come pixels of the next patch. Three steps do it, and they do every such job (heads
of attention, pixel shuffle, image grids): split the axes, permute so that what belongs together stands together,
merge. Only the last step copies. A right shape says nothing about the order; try it once with torch.arange, where
each number says where it came from.
"""

import torch


def cut_into_patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    n, c, h, w = images.shape
    split = images.reshape(n, c, h // patch, patch, w // patch, patch)
    patches = split.permute(0, 2, 4, 1, 3, 5)  # (N, down, across, C, row, column)
    return patches.flatten(3).flatten(1, 2)
