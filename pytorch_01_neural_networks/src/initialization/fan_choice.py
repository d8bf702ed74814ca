"""fan_in or fan_out: what the choice does to a network that tapers."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from pytorch_01_neural_networks.src.initialization.depth import (
    TOLERANCE,
    Scheme,
    draws_needed,
    send_through,
    worst_value,
)
from pytorch_01_neural_networks.src.initialization.initialisers import kaiming_std, normal_, xavier_std
from pytorch_01_neural_networks.src.initialization.theory import RELU
from shared.lesson import Lesson
from shared.units import percent, significant

import torch

StdOf = Callable[[Sequence[int]], float]  # of a weight's shape (out, in)

CHOICES: dict[str, StdOf] = {
    "Kaiming, fan_in": lambda shape: kaiming_std(shape, "fan_in"),
    "Kaiming, fan_out": lambda shape: kaiming_std(shape, "fan_out"),
    "Xavier, gain 1.41": lambda shape: xavier_std(shape, math.sqrt(2)),
}


def taper(widest: int, narrowest: int, layers: int) -> list[int]:
    """Widths from the input to the last layer, each smaller than the one before by the same factor."""
    return [round(widest * (narrowest / widest) ** (layer / layers)) for layer in range(layers + 1)]


def predict_taper(sizes: Sequence[int], std_of: StdOf) -> tuple[list[float], list[float]]:
    """Second moments of h and of d loss / d h by layer, under ReLU: products of fan x Var(w) / 2."""
    variances = [std_of((fan_out, fan_in)) ** 2 for fan_in, fan_out in pairwise(sizes)]
    signal, gradient = [sizes[0] * variances[0]], [1.0]
    for fan_in, variance in zip(sizes[1:-1], variances[1:], strict=True):
        signal.append(signal[-1] * fan_in * variance / 2)
    for fan_out, variance in zip(sizes[:1:-1], variances[:0:-1], strict=True):
        gradient.append(gradient[-1] * fan_out * variance / 2)
    return signal, gradient[::-1]


def show_fans(lesson: Lesson) -> None:
    sizes = lesson.pick(full=taper(1024, 128, 16), quick=taper(512, 64, 8))
    lesson.section(
        "fan_in or fan_out",
        "In a square layer the two are the same. In a layer that narrows, one choice of variance cannot keep both: "
        "fan_in keeps the signal on its way forwards, fan_out the gradient on its way back, and Xavier lies between. "
        "How much does it matter? The fans of neighbouring layers cancel in the product, so only the ends are left. A "
        f"network of {len(sizes) - 1} layers with ReLU, from {sizes[0]} units down to {sizes[-1]}:",
    )
    table, off, measured = [], [], {}
    for name, std_of in CHOICES.items():
        signal, gradient = predict_taper(sizes, std_of)
        scheme = Scheme(name, lambda weight: normal_(weight, std_of(weight.shape)), lambda width: 2.0)
        draws = draws_needed(RELU, signal, sizes, orthogonal=False)
        logs = [send_through(scheme, RELU, sizes, lesson.device) for _ in range(draws)]
        signals, gradients = (torch.cat(parts, dim=1) for parts in zip(*logs, strict=True))
        off += [worst_value(signals, signal), worst_value(gradients, gradient)]
        measured[name] = (signals[-1].exp().mean() / signals[0].exp().mean()).item(), gradients[0].exp().mean().item()
        table.append({"init": name, "signal, last / first": signal[-1] / signal[0], "measured": measured[name][0],
                      "gradient, first / last": gradient[0], "measured ": measured[name][1]})  # fmt: skip
    lesson.table(table)
    lesson.check(
        "signal and gradient of every layer, to 10 %", max(off) < TOLERANCE, f"{percent(max(off))} off at worst"
    )
    whole = sizes[1] / sizes[-1]
    by_in, by_out = measured["Kaiming, fan_in"], measured["Kaiming, fan_out"]
    lesson.check("fan_in keeps the signal, fan_out the gradient", max(abs(by_in[0] - 1), abs(by_out[1] - 1)) < TOLERANCE,
                 f"{by_in[0]:.3f} and {by_out[1]:.3f} of it")  # fmt: skip
    lesson.check("the price at the other end is widest / narrowest, once",
                 abs(by_out[0] / whole - 1) < 0.15 and abs(by_in[1] * whole - 1) < 0.15,
                 f"{significant(by_out[0])} and 1/{significant(1 / by_in[1])}, foreseen {significant(whole)}")  # fmt: skip
    lesson.shows(
        f"either choice is off by {significant(whole)} at one end, however many layers lie between: nothing that grows "
        "with depth. A wrong gain does. Take fan_in, as PyTorch does, and spend your care on the gain."
    )
