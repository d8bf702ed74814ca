"""Seven layers of torch.nn written out, each from its documentation page, without torch.nn.functional.

Parameters, buffers and their names are the library's, so each loads the other's state dict. The gradients are
autograd's. B batch, C channels, H and W height and width; G groups.
"""

from collections.abc import Sequence

import torch
from torch import nn

Pair = int | tuple[int, int]


def pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """Numbers between -1/sqrt(fan_in) and 1/sqrt(fan_in): how Linear and Conv2d of torch.nn begin."""
    bound = fan_in**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class Linear(nn.Module):
    """y = x Wᵀ + b along the last axis: (..., in_features) → (..., out_features)."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = uniform(out_features, in_features, fan_in=in_features)
        self.register_parameter("bias", uniform(out_features, fan_in=in_features) if bias else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.weight.mT
        return y if self.bias is None else y + self.bias


def windows(
    x: torch.Tensor, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> torch.Tensor:
    """All windows of x as a view, nothing is copied: (B, C, H, W) → (B, C, H', W', kernel rows, kernel columns).

    Raises RuntimeError where the kernel is larger than the image.
    """
    for axis in (0, 1):
        reach = dilation[axis] * (kernel_size[axis] - 1) + 1
        x = x.unfold(2 + axis, reach, stride[axis])[..., :: dilation[axis]]
    return x


def surround_with_zeros(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(B, C, H, W) → (B, C, H + 2 rows, W + 2 columns)."""
    *outer, height, width = x.shape
    padded = x.new_zeros(*outer, height + 2 * rows, width + 2 * columns)
    padded[..., rows : rows + height, columns : columns + width] = x
    return padded


class Conv2d(nn.Module):
    """(B, in_channels, H, W) → (B, out_channels, H', W'): one matrix product for each group of channels."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Pair, stride: Pair = 1, padding: Pair = 0,
                 dilation: Pair = 1, groups: int = 1, bias: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.kernel_size, self.stride = pair(kernel_size), pair(stride)
        self.padding, self.dilation, self.groups = pair(padding), pair(dilation), groups
        rows, columns = self.kernel_size
        fan_in = in_channels // groups * rows * columns
        self.weight = uniform(out_channels, in_channels // groups, rows, columns, fan_in=fan_in)
        self.register_parameter("bias", uniform(out_channels, fan_in=fan_in) if bias else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = surround_with_zeros(x, *self.padding)
        seen = windows(x, self.kernel_size, self.stride, self.dilation)
        batch, _, height, width = seen.shape[:4]
        seen = seen.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 4, 2, 5, 6)  # (G, B, H', W', C/G, kernel, kernel)
        rows = seen.flatten(4).flatten(1, 3)  # (G, B·H'·W', C/G·kernel·kernel): here the numbers are copied
        kernels = self.weight.unflatten(0, (self.groups, -1)).flatten(2)  # (G, out/G, C/G·kernel·kernel)
        y: torch.Tensor = rows @ kernels.mT  # (G, B·H'·W', out/G)
        y = y.unflatten(1, (batch, height, width)).permute(1, 0, 4, 2, 3).flatten(1, 2)  # (B, out, H', W')
        return y if self.bias is None else y + self.bias[:, None, None]


class BatchNorm2d(nn.Module):
    """Each channel of (B, C, H, W) to mean 0 and variance 1 over B, H and W, then scaled and shifted.

    In training by the batch's own mean and variance, in evaluation by running ones (Ioffe and Szegedy 2015). Raises
    ValueError in training with one number per channel, where a variance makes no sense.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None
    num_batches_tracked: torch.Tensor | None

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
                 track_running_stats: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.register_parameter("weight", nn.Parameter(torch.ones(num_features)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features)) if affine else None)
        self.register_buffer("running_mean", torch.zeros(num_features) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones(num_features) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if track_running_stats else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training or mean is None or variance is None:
            count = x.numel() // x.shape[1]
            if self.training and count == 1:
                raise ValueError(f"a variance needs more than one number per channel, and x is {tuple(x.shape)}")
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            if self.training:
                self.update(mean.detach(), variance.detach(), count)
        y = (x - mean[:, None, None]) / (variance[:, None, None] + self.eps).sqrt()
        if self.weight is not None and self.bias is not None:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y

    def update(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """Moves the running statistics towards the batch's; momentum None makes them the plain mean of all batches."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        # The batch was divided by its biased variance; what is kept is the unbiased one, a fair guess for other data.
        self.running_var.lerp_(variance * count / (count - 1), share)


class LayerNorm(nn.Module):
    """The last axes to mean 0 and variance 1, each sample by its own numbers (Ba, Kiros and Hinton 2016)."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, normalized_shape: int | Sequence[int], eps: float = 1e-5, elementwise_affine: bool = True,
                 bias: bool = True) -> None:  # fmt: skip
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.axes, self.eps = tuple(range(-len(shape), 0)), eps
        self.register_parameter("weight", nn.Parameter(torch.ones(shape)) if elementwise_affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(shape)) if elementwise_affine and bias else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, variance = x.mean(self.axes, keepdim=True), x.var(self.axes, correction=0, keepdim=True)
        y = (x - mean) / (variance + self.eps).sqrt()
        if self.weight is not None:
            y = y * self.weight
        return y if self.bias is None else y + self.bias


class RMSNorm(nn.Module):
    """The last axes divided by their root mean square; no mean is taken away (Zhang and Sennrich 2019, eq. 4).

    eps None is the smallest step above 1 in the dtype of x, as in torch.nn.
    """

    weight: nn.Parameter | None

    def __init__(self, normalized_shape: int | Sequence[int], eps: float | None = None,
                 elementwise_affine: bool = True) -> None:  # fmt: skip
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.axes, self.eps = tuple(range(-len(shape), 0)), eps
        self.register_parameter("weight", nn.Parameter(torch.ones(shape)) if elementwise_affine else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        y = x / (x.square().mean(self.axes, keepdim=True) + eps).sqrt()
        return y if self.weight is None else y * self.weight


def drop(x: torch.Tensor, keep: torch.Tensor, p: float) -> torch.Tensor:
    """x where `keep` is 1, larger by 1 / (1 - p) so that its expectation stays; 0 where it is 0."""
    return x * (keep if p == 1 else keep / (1 - p))


class Dropout(nn.Module):
    """Each number becomes 0 with probability p, in training only (Srivastava et al. 2014, inverted)."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        return drop(x, torch.empty_like(x).bernoulli_(1 - self.p), self.p)


class Embedding(nn.Module):
    """Row numbers to rows of a table: (...) integers → (..., embedding_dim). The row padding_idx never learns."""

    weight: nn.Parameter

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_embeddings, embedding_dim))
        self.padding_idx = padding_idx if padding_idx is None or padding_idx >= 0 else num_embeddings + padding_idx
        if self.padding_idx is not None:
            self.weight.data[self.padding_idx] = 0

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        rows = self.weight[index]
        if self.padding_idx is None:
            return rows
        return torch.where((index == self.padding_idx)[..., None], rows.detach(), rows)
