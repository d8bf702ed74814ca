"""Everything in sight is linear, and convolutions of one shape can be added: first make three of one shape, then add.

In eval mode a norm multiplies output channel o by s = weight / sqrt(running_var + eps) and adds bias - running_mean * s. So s
goes into the kernels of channel o, and s * (b - running_mean) + bias is the new bias. A 1x1 kernel is a 3x3 kernel with zeros
around it. x itself is a convolution too: 1 in the middle of the kernel that leads from a channel to itself, which in a
grouped convolution is input channel o modulo the channels of a group; nn.init.dirac_ writes exactly this. The order is safe:
each norm comes after its convolution, so no zero of the padding meets a shift before it. (With a norm in front of a padded
convolution the border would come out wrong.) Three convolutions and three norms become one, with the numbers of the trained
model to rounding. The norms of the three branches are the reason why the trained network is not this one all along: each
branch had a scale of its own to learn with.
"""

import torch
from torch import nn
from torch.nn import functional as F


def fold(kernel: torch.Tensor, bias: torch.Tensor | None, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    if norm.training or norm.running_mean is None or norm.running_var is None:
        raise ValueError("a norm that computes with the batch cannot be folded; call eval() on the model first")
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = -norm.running_mean if bias is None else bias - norm.running_mean
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = shift * scale
    return kernel * scale[:, None, None, None], shift if norm.bias is None else shift + norm.bias


@torch.no_grad()
def merge(
    conv3: nn.Conv2d, norm3: nn.BatchNorm2d, conv1: nn.Conv2d, norm1: nn.BatchNorm2d, norm0: nn.BatchNorm2d | None
) -> nn.Conv2d:
    branches = [fold(conv3.weight, conv3.bias, norm3), fold(F.pad(conv1.weight, (1, 1, 1, 1)), conv1.bias, norm1)]
    if norm0 is not None:
        branches.append(fold(nn.init.dirac_(torch.empty_like(conv3.weight), conv3.groups), None, norm0))
    like = {"device": conv3.weight.device, "dtype": conv3.weight.dtype}
    merged = nn.Conv2d(conv3.in_channels, conv3.out_channels, 3, conv3.stride, padding=1, groups=conv3.groups, **like)
    merged.weight.copy_(torch.stack([kernel for kernel, _ in branches]).sum(dim=0))
    merged.bias.copy_(torch.stack([shift for _, shift in branches]).sum(dim=0))
    return merged
