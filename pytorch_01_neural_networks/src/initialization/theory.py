"""What a wide random network does to its signal, predicted layer by layer before anything is drawn.

In a wide layer each sum h = w·x has so many terms that it is Gaussian, whatever the weights' distribution. One number
then describes a layer, q = E[h²], and one integral leads from it to the next (Poole et al. 2016, equation 3; backwards
Schoenholz et al. 2017, equation 5).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Function = Callable[[torch.Tensor], torch.Tensor]

STEP = 0.001
# Half a step beside 0, where ReLU has its kink and its slope no value. The sum over such a grid is an integral to
# rounding for smooth functions; Gauss-Hermite nodes would be too sparse for a tanh of large numbers.
GRID = torch.arange(-12 + STEP / 2, 12, STEP, dtype=torch.float64)
WEIGHTS = torch.exp(-(GRID**2) / 2) * (STEP / math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class Activation:
    name: str
    function: Function
    slope: Function


TANH = Activation("tanh", torch.tanh, lambda h: 1 - torch.tanh(h) ** 2)
RELU = Activation("ReLU", torch.relu, lambda h: (h > 0).to(h.dtype))


def gaussian_mean(function: Function, q: float) -> float:
    """The mean of function(h) over Gaussian h of second moment `q`: ∫ function(√q z) Dz."""
    return (function(math.sqrt(q) * GRID) * WEIGHTS).sum().item()


def predict_signal(activation: Activation, scale: float, depth: int, bias_variance: float = 0.0) -> list[float]:
    """q in each of `depth` layers, from an input of second moment 1; `scale` is fan_in times the weights' variance."""
    signal = [scale + bias_variance]
    while len(signal) < depth:
        passed = gaussian_mean(lambda h: activation.function(h) ** 2, signal[-1])
        signal.append(scale * passed + bias_variance)
    return signal


def slope_factor(activation: Activation, scale: float, q: float) -> float:
    """χ: what one layer back multiplies the second moment of a gradient by; `scale` is fan_out times the variance."""
    return scale * gaussian_mean(lambda h: activation.slope(h) ** 2, q)


def predict_gradient(activation: Activation, scale: float, signal: Sequence[float]) -> list[float]:
    """The second moment of d loss / d h in each layer, where it is 1 in the last."""
    gradient = [1.0]
    for q in reversed(signal[:-1]):
        gradient.append(gradient[-1] * slope_factor(activation, scale, q))
    return gradient[::-1]


def forward_wander(activation: Activation, q: float, *, orthogonal: bool = False) -> float:
    """How much one layer's factor forwards differs from network to network: its relative variance, times the width.

    The factor is a mean over the units of φ(h)², and a mean over n terms t varies by (E[t²] / E[t]² - 1) / n: 5 / n for
    ReLU (Hanin & Nica 2020). An orthogonal matrix keeps the length of what it multiplies, so the part of it that the
    sum of the h² explains drops out.
    """

    def mean(function: Function) -> float:
        return gaussian_mean(function, q)

    passed = mean(lambda h: activation.function(h) ** 2)
    explained = mean(lambda h: activation.function(h) ** 2 * (h * h / q - 1)) ** 2 / 2 if orthogonal else 0.0
    return (mean(lambda h: activation.function(h) ** 4) - explained) / passed**2 - 1


def backward_wander(activation: Activation, q: float, *, orthogonal: bool = False) -> float:
    """The same backwards, where the terms are (φ'(h) u)² with a Gaussian u."""
    second, fourth = (gaussian_mean(lambda h: activation.slope(h) ** power, q) for power in (2, 4))
    return 3 * fourth / second**2 - 1 - (2 if orthogonal else 0)
