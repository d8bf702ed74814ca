"""Eight blocks that are one, and skips that carry half of what they should.

The decoder of an image compressor is a stack of residual blocks. It trains, it compresses, and it is not as good as the
paper's. Somebody counts its parameters and finds as many with eight blocks as with one. Somebody else prints the batch that
went in, after the call, and finds no negative number left in it.
"""

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """x + inner(x), where inner is ReLU, a 3x3 convolution, ReLU, a 1x1 convolution: (B, channels, H, W) → the same."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class ResidualStack(nn.Module):
    """`depth` residual blocks, each with weights of its own and a random start of its own, and a ReLU at the end.

    forward: (B, channels, H, W) → the same shape. x is the caller's, who may use it again, and may ask for its gradient.
    state_dict() has blocks.0.inner.1.weight, blocks.0.inner.3.weight, blocks.1.inner.1.weight and so on.

    Example: where all weights of the last convolutions are 0, every block is x + 0, and the stack is relu(x).
    """

    def __init__(self, channels: int, hidden: int, depth: int) -> None:
        super().__init__()
        # TODO: two mistakes, one here and one in the block above.
        self.blocks = nn.ModuleList([ResidualBlock(channels, hidden)] * depth)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return torch.relu(x)
