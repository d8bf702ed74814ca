"""unflatten names the groups, flatten makes each of them one row of numbers, and a row has a mean and a variance.

Whatever comes behind the channels is in the row too, so images, sequences and plain vectors need no case of their own. A
reshape to (B, groups, -1) would do but for an empty batch, where -1 could be anything. The variance is the mean of the
squared centred numbers. The shorter mean of squares minus square of the mean subtracts two large numbers where the mean is
large, and in float32 nothing of a variance of 1 is left beside a mean of 10,000. Mean and variance stay in the graph: they
depend on x, and each number's gradient has a part that goes through them. register_parameter with None keeps the name
without a tensor, as torch.nn does, so state_dict() is empty and code may still ask whether layer.weight is None. There is
no running mean, hence no buffer, and train() and eval() are the same: one cause of trouble less than in BatchNorm.
"""

import torch
from torch import nn


class GroupNorm(nn.Module):
    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        if num_channels % num_groups:
            raise ValueError(f"{num_channels} channels cannot be split into {num_groups} equal groups")
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.register_parameter("weight", nn.Parameter(torch.ones(num_channels)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_channels)) if affine else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != self.num_channels:
            raise ValueError(f"made for {self.num_channels} channels, and x has the shape {tuple(x.shape)}")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        groups = wide.unflatten(1, (self.num_groups, -1)).flatten(2)  # (B, groups, numbers of a group)
        centred = groups - groups.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        y = (centred / (variance + self.eps).sqrt()).reshape(x.shape)
        if self.weight is not None:
            each_channel = (-1, *[1] * (x.ndim - 2))  # (C,) beside (B, C, H, W) becomes (C, 1, 1)
            y = y * self.weight.reshape(each_channel) + self.bias.reshape(each_channel)
        return y.to(x.dtype)
