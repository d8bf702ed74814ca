"""Three kinds of network for images of any size: what is trained, so that `train` can be about how."""

import torch
from torch import nn

Shape = tuple[int, int, int]  # channels, height, width


def build_model(kind: str, shape: Shape, classes: int, width: int, dropout: float) -> nn.Module:
    """A network from images (B, *shape) to logits (B, classes). Its parts are in `blocks`, first to last."""
    channels, height, size = shape
    head = [nn.Dropout(dropout)] if dropout else []
    if kind == "mlp":
        hidden = 8 * width
        return Blocks(
            nn.Sequential(nn.Flatten(), nn.Linear(channels * height * size, hidden), nn.ReLU()),
            nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU()),
            nn.Sequential(*head, nn.Linear(hidden, classes)),
        )
    top = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head, nn.Linear(4 * width, classes))
    stem = convolution(channels, width)
    if kind == "cnn":
        return Blocks(
            nn.Sequential(stem, nn.MaxPool2d(2)),
            nn.Sequential(convolution(width, 2 * width), nn.MaxPool2d(2)),
            nn.Sequential(convolution(2 * width, 4 * width), nn.MaxPool2d(2)),
            top,
        )
    stages = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]  # channels in and out, stride
    blocks = [
        block for c_in, c_out, stride in stages for block in (Residual(c_in, c_out, stride), Residual(c_out, c_out, 1))
    ]
    return Blocks(stem, *blocks, top)


class Blocks(nn.Module):
    """Parts in a row, under a name that the first and the last can be found by."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def convolution(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """(B, c_in, H, W) to (B, c_out, H / stride, W / stride)."""
    # No bias: BatchNorm takes the mean away and adds a bias of its own.
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions and a way around them (He et al. 2015, section 3.3, with a projection where the shape changes)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(c_in, c_out, stride)
        self.second = nn.Sequential(nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out))
        self.around: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.around = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(self.first(x)) + self.around(x))
