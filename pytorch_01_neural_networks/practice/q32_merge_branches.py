"""Three branches in training, one convolution in use.

Some networks for phones are trained with three branches in each block: a 3x3 convolution, a 1x1 convolution and x itself,
each with a BatchNorm, added up. That trains better than one convolution, and would be slow in use. So before the network is
shipped, each block becomes a single 3x3 convolution with the same answers (RepVGG, Ding et al. 2021).
"""

import torch
from torch import nn


@torch.no_grad()
def merge(
    conv3: nn.Conv2d, norm3: nn.BatchNorm2d, conv1: nn.Conv2d, norm1: nn.BatchNorm2d, norm0: nn.BatchNorm2d | None
) -> nn.Conv2d:
    """One convolution that computes norm3(conv3(x)) + norm1(conv1(x)) + norm0(x), with all norms in eval mode.

    conv3: 3x3 with padding 1; conv1: 1x1 without padding. Both have the same channels, stride and groups, and either may be
        with or without a bias (then its bias is None).
    norm0: None if the block has no third branch, as where the stride is 2 or the channels change. Each norm has an eps of its
        own, and weight and bias, or neither (affine=False: both are None).

    Returns a new Conv2d: kernel size 3, padding 1, stride and groups of conv3, its dtype and device, and a bias. What was
    given stays as it is, and shares no memory with the result.
    Raises ValueError if a norm is in train mode, or keeps no running averages (track_running_stats=False: then running_mean
    is None): both compute with the batch, for which no fixed weights can stand.

    Example: where all weights of conv3 and conv1 are 0 and the norms are new, only x itself is left: the kernels of the result
    are 0 except for 1 / sqrt(1 + eps) in the middle of the kernel that takes a channel to itself.
    """
    # TODO
    raise NotImplementedError
