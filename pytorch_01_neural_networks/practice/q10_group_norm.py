"""A normalisation that does not ask how large the batch is.

Image generators and detectors train with one or two images per GPU, where a batch says little about its mean and
variance. GroupNorm takes both from one image: from a few of its channels at all their places (Wu and He 2018). Write it
as a module that could take the place of torch.nn.GroupNorm in a model that is already trained.
"""

import torch
from torch import nn


class GroupNorm(nn.Module):
    """Each group of channels of each sample to mean 0 and variance 1, then each channel scaled and shifted.

    num_groups: how many groups, at least 1; the first holds the first num_channels / num_groups channels, and so on
    num_channels: the size of axis 1 of the input
    eps: added to the variance, under the root; the variance is that of the numbers at hand, divided by n and not n - 1
    affine: whether there are `weight` and `bias`, each (num_channels,), that learn; 1 and 0 at the start

    forward: (B, num_channels, ...) → the same shape and dtype, with any number of axes behind the channels, also none.
    float16 and bfloat16 are widened to float32 inside. x is not changed.
    state_dict() is that of torch.nn.GroupNorm, so that each loads what the other saved. Written without
    torch.nn.functional and without a layer of torch.nn.
    Raises ValueError where num_channels is no multiple of num_groups, and where x has another number of channels.

    Example: GroupNorm(2, 4) makes [[1, 3, 10, 20]] (one sample, two groups of two channels) [[-1, 1, -1, 1]], almost:
    eps keeps the numbers a little smaller.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        # TODO: here, and in forward.
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError
