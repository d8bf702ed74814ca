"""The one formula behind every normalisation layer, and each layer of PyTorch beside it.

Everything here is of shape (N, C, P): N samples, C channels, P positions. For an image P is H x W, row after row; for a
sentence it is the number of tokens, T.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

EPS = 1e-5  # the default of all of PyTorch's layers but RMSNorm, whose default is the dtype's own eps
Function = Callable[[torch.Tensor], torch.Tensor]


def normalise(x: torch.Tensor, axes: tuple[int, ...], *, subtract_mean: bool = True, eps: float = EPS) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps), mean and var over `axes`; eps keeps a set of equal numbers from 0 / 0."""
    if subtract_mean:
        x = x - x.mean(axes, keepdim=True)
    return x / torch.sqrt((x * x).mean(axes, keepdim=True) + eps)


def normalise_groups(x: torch.Tensor, groups: int) -> torch.Tensor:
    """The same over each of `groups` equal parts of a sample's channels. Raises RuntimeError where they are not equal."""
    parts = x.unflatten(1, (groups, -1))  # (N, C, P) to (N, groups, C / groups, P)
    return normalise(parts, tuple(range(2, parts.ndim))).reshape(x.shape)


@dataclass(frozen=True)
class Layer:
    """A layer of PyTorch: the formula for it, and the library's own function of x, weight and (but for RMSNorm) bias."""

    averages: str  # what one mean is taken over
    formula: Function
    library: Callable[..., torch.Tensor]
    reference: str
    per_position: bool = False  # whether weight and bias have a number for each position too
    has_bias: bool = True

    def parameters(self, x: torch.Tensor) -> list[torch.Tensor]:
        """A random weight and bias of the shapes that the layer learns, in the dtype of `x`."""
        shape = x.shape[1:] if self.per_position else x.shape[1:2]
        return [torch.randn(shape, dtype=x.dtype) for _ in range(2 if self.has_bias else 1)]

    def own(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The formula, then weight and bias."""
        scaled = self.formula(x) * _for_each_position(weight)
        return scaled if bias is None else scaled + _for_each_position(bias)


def _for_each_position(parameter: torch.Tensor) -> torch.Tensor:
    return parameter[:, None] if parameter.ndim == 1 else parameter


def _library_layer_norm(x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None
                        ) -> torch.Tensor:  # fmt: skip
    return F.layer_norm(x, x.shape[1:], weight, bias, EPS)


def _library_token_layer_norm(x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None
                              ) -> torch.Tensor:  # fmt: skip
    return F.layer_norm(x.mT, x.shape[1:2], weight, bias, EPS).mT  # it normalises the last axes, so C goes there


def _library_rms_norm(x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    return F.rms_norm(x.mT, x.shape[1:2], weight, EPS).mT


LAYERS = {
    "BatchNorm": Layer(
        "N, P",
        lambda x: normalise(x, (0, 2)),
        lambda x, weight=None, bias=None: F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS),
        "Ioffe & Szegedy 2015",
    ),
    "InstanceNorm": Layer(
        "P",
        lambda x: normalise(x, (2,)),
        lambda x, weight=None, bias=None: F.instance_norm(x, weight=weight, bias=bias, eps=EPS),
        "Ulyanov et al. 2016",
    ),
    "GroupNorm(2)": Layer(
        "C/2, P",
        lambda x: normalise_groups(x, 2),
        lambda x, weight=None, bias=None: F.group_norm(x, 2, weight, bias, EPS),
        "Wu & He 2018",
    ),
    "LayerNorm": Layer(
        "C, P", lambda x: normalise(x, (1, 2)), _library_layer_norm, "Ba et al. 2016", per_position=True
    ),
    "token LayerNorm": Layer(
        "C", lambda x: normalise(x, (1,)), _library_token_layer_norm, "Vaswani et al. 2017"
    ),
    "token RMSNorm": Layer(
        "C", lambda x: normalise(x, (1,), subtract_mean=False), _library_rms_norm, "Zhang & Sennrich 2019", has_bias=False
    ),
}  # fmt: skip


def sets_by_moving(function: Function, shape: tuple[int, ...]) -> torch.Tensor:
    """Which numbers share their statistics, found by trying: the set of each, counted from 0, in a tensor of `shape`.

    One number of a random x is moved; all outputs that change with it belong to its set.
    """
    x = torch.randn(shape, dtype=torch.float64)
    before, sets, count = function(x), torch.full(shape, -1), 0
    for i in range(x.numel()):
        if sets.view(-1)[i] < 0:
            moved = x.clone()
            moved.view(-1)[i] += 1
            sets[(function(moved) - before).abs() > 1e-12] = count
            count += 1
    return sets
