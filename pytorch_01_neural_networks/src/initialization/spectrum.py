"""Orthogonal and Gaussian weights keep the same variance on average; what they do to single directions differs."""

import math
from collections.abc import Sequence
from typing import Any

from pytorch_01_neural_networks.src.initialization.initialisers import normal_, orthogonal_
from shared.lesson import Lesson
from shared.units import significant

import torch

DEPTHS = (1, 2, 5, 10, 20, 50)
WIDTH = 64


def lyapunov_exponents(width: int) -> torch.Tensor:
    """By how much the log of each singular value of a product of Gaussian matrices grows with a factor, largest first.

    The length of the part of a Gaussian column that k others have not explained is chi-distributed with width - k
    degrees of freedom (Newman 1986); weights have the variance 1 / width.
    """
    freedom = torch.arange(width, 0, -1, dtype=torch.float64)
    return 0.5 * (torch.digamma(freedom / 2) + math.log(2 / width))


def singular_values(orthogonal: bool, width: int, depths: Sequence[int]) -> dict[int, torch.Tensor]:
    """Of products of that many random matrices, largest first, in float64."""
    product, values = torch.eye(width, dtype=torch.float64), {}
    for depth in range(1, max(depths) + 1):
        weight = torch.empty(width, width, dtype=torch.float64)
        product = (orthogonal_(weight) if orthogonal else normal_(weight, 1 / math.sqrt(width))) @ product
        if depth in depths:
            values[depth] = torch.linalg.svdvals(product)
    return values


def show_spectrum(lesson: Lesson) -> None:
    lesson.section(
        "Orthogonal: the same variance, another spectrum",
        "Scale 1 keeps the mean square of a signal, whether the weights are Gaussian or orthogonal. A mean can hide a "
        f"lot. Multiply matrices of {WIDTH} x {WIDTH}, as in a deep network without activations, and ask by how much "
        "the product stretches single directions: those are its singular values. Saxe et al. (2014) showed that a deep "
        "linear network learns each direction at a pace that its singular value sets.",
    )
    gaussian, orthogonal = (singular_values(kind, WIDTH, DEPTHS) for kind in (False, True))
    exponents = lyapunov_exponents(WIDTH)
    table = []
    for depth in DEPTHS:
        values = gaussian[depth]
        table.append({"factors": depth, "Gaussian: largest": values[0].item(), "upper quarter": values[WIDTH // 4].item(),
                      "median": values[WIDTH // 2].item(),
                      "median, theory": math.exp(depth * exponents[WIDTH // 2].item()),
                      "orthogonal, all": orthogonal[depth].mean().item()})  # fmt: skip
    lesson.table(table)
    away = max((values - 1).abs().max().item() for values in orthogonal.values())
    lesson.check(
        "orthogonal: no direction is stretched or shrunk", away < 1e-10, f"{significant(away, 2)} off 1 at most"
    )
    deepest = DEPTHS[-1]
    found, theory = gaussian[deepest][WIDTH // 2].log().item(), deepest * exponents[WIDTH // 2].item()
    lesson.check("Gaussian: half of all directions are lost", found < math.log(1e-4),
                 f"{math.exp(found):.0e} or less is left after {deepest} factors")  # fmt: skip
    lesson.check("the median falls as theory says, by about 0.7 a factor", abs(found / theory - 1) < 0.4,
                 f"{math.exp(found / deepest):.3f} a factor, predicted {math.exp(theory / deepest):.3f}")  # fmt: skip
    lesson.figure("spectrum", lambda axis: draw_spectrum(axis, gaussian, orthogonal))
    lesson.shows(
        f"with Gaussian weights the mean square survives in ever fewer directions: after {deepest} factors the median "
        f"one has {math.exp(found):.0e} of its length, a rounding error beside the largest. Orthogonal weights keep "
        f"all {WIDTH} at full length, which no choice of variance can do. Picture: spectrum.png."
    )


def draw_spectrum(axis: Any, gaussian: dict[int, torch.Tensor], orthogonal: dict[int, torch.Tensor]) -> None:
    for depth in (1, 5, 20, 50):
        axis.plot(range(1, WIDTH + 1), gaussian[depth].clamp(min=1e-12), label=f"Gaussian, {depth} factor" + "s" * (depth > 1),
                  markevery=8)  # fmt: skip
    axis.plot(range(1, WIDTH + 1), orthogonal[50], color="black", linestyle="-", marker="", linewidth=2,
              label="orthogonal, 50 factors")  # fmt: skip
    axis.set(yscale="log", ylim=(1e-10, 100), xlabel="direction, from the most stretched to the most shrunken",
             ylabel="singular value of the product", title="What is left of each direction")  # fmt: skip
    axis.legend(fontsize=9, loc="lower left")
