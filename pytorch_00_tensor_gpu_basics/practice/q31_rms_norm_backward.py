"""The backward of a layer, by hand.

Language models normalise with the root of the mean square: each vector is divided by its own size and multiplied by a
learned scale. Written as a row of PyTorch operations it keeps another tensor of the size of x until backward() comes;
one operation with a backward of its own keeps nothing but its two inputs. The forward is there. The backward is yours.
"""

from typing import Any

import torch

EPSILON = 1e-6


def rms_norm(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """y = x * r * scale with r = 1 / sqrt(mean of x² over the last dimension + EPSILON), one r for each vector."""
    r = (x.square().mean(dim=-1, keepdim=True) + EPSILON).rsqrt()
    return x * r * scale


def rms_norm_backward(
    x: torch.Tensor, scale: torch.Tensor, upstream: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of the loss with respect to x and to scale, without autograd.

    x: (..., D) floating point, with one dimension or more
    scale: any shape that broadcasts to the shape of x: (D,) for one layer, (B, 1, D) where each sample has its own
    upstream: the gradient of the loss with respect to y, in the shape of x; it may be a view, and is not changed
    Returns two tensors of the shapes of x and of scale. Computed from the three inputs by operations of PyTorch, they
    can be differentiated once more.

    Example: for x = [[3, 4]], scale = [1, 1] and upstream = [[1, 0]]

        rms_norm_backward(x, scale, upstream) is ([[0.1810, -0.1358]], [0.8485, 0])
    """
    # TODO
    raise NotImplementedError


class RmsNorm(torch.autograd.Function):
    """Both as one operation: RmsNorm.apply(x, scale). Nothing to do here.

    To see for yourself: torch.autograd.gradcheck(RmsNorm.apply, (x, scale)), with float64 inputs that require
    gradients, compares your backward with small steps of the forward.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, scale)
        return rms_norm(x, scale)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rms_norm_backward(*ctx.saved_tensors, upstream)
