"""A vision transformer that never sees a square.

It reads an image as a row of words: patches of, say, 16 x 16 pixels, each flattened to one vector. The function
below returns the right shape, so everything runs, the loss even falls, and the accuracy stays poor: its patches are
strips of single pixel rows, all of one colour.
"""

import torch


def cut_into_patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    """Cuts each image into squares of patch x patch pixels and flattens every square.

    images: (N, C, H, W) of any dtype and layout; H and W are multiples of `patch`
    Returns (N, (H // patch) * (W // patch), C * patch * patch), same dtype. The patches of an image come from left to
    right, then from top to bottom; the numbers within a patch in the order channel, row, column.

    Example: one grey image of 4 x 4 pixels, torch.arange(16).reshape(1, 1, 4, 4), has with patch 2 the four patches
    [0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13] and [10, 11, 14, 15].
    """
    # TODO: look at the first patch of the example, and repair it.
    n, c, h, w = images.shape
    return images.reshape(n, (h // patch) * (w // patch), c * patch * patch)
