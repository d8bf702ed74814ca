"""Who else reads the tensor that is written over, and how many objects does a list really hold?

Both mistakes stand in published image compressors (VQ-VAE) and in what was copied from them. The first ReLU of a block
works in place on x itself, and the addition reads x afterwards: the block computes relu(x) + inner(x), so nothing negative
ever passes a skip, and the caller's batch is changed too. Autograd does not object, since an addition keeps neither of its
inputs. Computing shortcut and inner in another order is no cure, because the shortcut is x, not a copy of it. A ReLU may
work in place where it is the only reader, as the second one is: what comes from a convolution is read by nobody else. With
a BatchNorm in front, as in the paper that introduced this order (He et al. 2016), the first would be safe as well. And
[block] * depth is a list of one object: registered under eight names, counted once, trained by the sum of eight gradients.
deepcopy gives eight objects with the same start; make each one.
"""

import torch
from torch import nn


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class ResidualStack(nn.Module):
    def __init__(self, channels: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(channels, hidden) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return torch.relu(x)
