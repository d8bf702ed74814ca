"""The initialisers of torch.nn.init in a few lines each: a fan, a gain, and a distribution with that variance."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

Fan = Literal["fan_in", "fan_out"]
Initialize = Callable[[torch.Tensor], torch.Tensor]  # fills a weight in place and returns it


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """fan_in and fan_out of a weight (out, in, *kernel): the products in each sum, forwards and backwards.

    Raises ValueError for fewer than two axes: a bias has no fans.
    """
    if len(shape) < 2:
        raise ValueError(f"a weight of shape {tuple(shape)} has no fans; they need two axes, (out, in)")
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


@torch.no_grad()
def normal_(weight: torch.Tensor, std: float) -> torch.Tensor:
    return weight.normal_(0, std)


@torch.no_grad()
def uniform_(weight: torch.Tensor, std: float) -> torch.Tensor:
    """Uniform numbers with this standard deviation: U(-a, a) has the variance a²/3, so a = √3 std."""
    bound = math.sqrt(3) * std
    return weight.uniform_(-bound, bound)


def xavier_std(shape: Sequence[int], gain: float = 1.0) -> float:
    """Glorot & Bengio 2010, equation 16: between what the forward and what the backward pass asks for."""
    fan_in, fan_out = fans(shape)
    return gain * math.sqrt(2 / (fan_in + fan_out))


def kaiming_std(shape: Sequence[int], mode: Fan = "fan_in", gain: float = math.sqrt(2)) -> float:
    """He et al. 2015, equations 10 and 14: the gain √2 pays for the half that ReLU takes away."""
    fan_in, fan_out = fans(shape)
    return gain / math.sqrt(fan_in if mode == "fan_in" else fan_out)


def xavier_normal_(weight: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    return normal_(weight, xavier_std(weight.shape, gain))


def xavier_uniform_(weight: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    return uniform_(weight, xavier_std(weight.shape, gain))


def kaiming_normal_(weight: torch.Tensor, mode: Fan = "fan_in", gain: float = math.sqrt(2)) -> torch.Tensor:
    return normal_(weight, kaiming_std(weight.shape, mode, gain))


def kaiming_uniform_(weight: torch.Tensor, mode: Fan = "fan_in", gain: float = math.sqrt(2)) -> torch.Tensor:
    return uniform_(weight, kaiming_std(weight.shape, mode, gain))


def linear_default_(weight: torch.Tensor) -> torch.Tensor:
    """What nn.Linear and nn.Conv2d call kaiming_uniform_(a=√5): U(±1/√fan_in), of variance 1 / (3 fan_in)."""
    return uniform_(weight, math.sqrt(1 / (3 * fans(weight.shape)[0])))


@torch.no_grad()
def orthogonal_(weight: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    """Orthonormal rows, or columns where there are fewer of them, times `gain`; a kernel is flattened (Saxe et al. 2014).

    QR of a Gaussian matrix leaves the signs of Q to the algorithm. With a positive diagonal in R the decomposition is
    unique, and Q is as likely to point anywhere as anywhere else (Mezzadri 2007).
    """
    rows, columns = len(weight), weight[0].numel()
    gaussian = torch.randn(rows, columns, dtype=weight.dtype)  # on the CPU: MPS has no QR
    q, r = torch.linalg.qr(gaussian if rows >= columns else gaussian.T)
    q = q * r.diagonal().sign()
    return weight.copy_((q if rows >= columns else q.T).reshape(weight.shape)).mul_(gain)
