"""A motion detector that sees motion in a still picture.

A camera delivers grey frames as uint8. The detector reports the mean absolute difference of two frames and raises
the alarm above 20 grey levels. It has cried wolf all night: the sensor's noise is one or two levels.
"""

import torch


def mean_difference(before: torch.Tensor, after: torch.Tensor) -> float:
    """The mean of |after - before| over all pixels, in grey levels from 0 to 255, exact to a hundredth.

    before, after: uint8 tensors of the same shape, with at least one pixel; they are not changed

    Example: between [10, 200] and [12, 190] the pixels differ by 2 and 10, so the mean is 6.0.
    """
    # TODO: find out what this returns for the example, and repair it.
    difference = (before - after).abs()
    return difference.float().mean().item()
