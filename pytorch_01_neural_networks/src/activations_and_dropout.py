"""What does an activation do to numbers and to gradients, and what does dropout do to both?

Seven activations are written from their formulas and held against PyTorch's, with their curves and slopes in one
picture. Then they are watched at work: where they saturate, how ReLUs die and of what (activations/dead_units.py), how
softmax overflows (activations/softmax.py). Dropout is measured against its theory, and caught being left on
(activations/dropout.py).

    python src/activations_and_dropout.py            about 25 seconds
    python src/activations_and_dropout.py --quick    the same path with tiny sizes, a few seconds
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_01_neural_networks.src.activations.dead_units import show_dead_units_by_depth, show_how_units_die
from pytorch_01_neural_networks.src.activations.dropout import (
    show_dropout_as_penalty,
    show_dropout_as_regulariser,
    show_forgotten_mode,
    show_mean_and_variance,
)
from pytorch_01_neural_networks.src.activations.softmax import show_softmax_overflow, show_temperature
from shared.agreement import agreement, deviation
from shared.hardware import memory_bandwidth
from shared.lesson import Lesson
from shared.timing import compare, ratio
from shared.traps import operations
from shared.units import percent, significant

import torch
import torch.nn.functional as F

CPU = torch.device("cpu")


# Six curves, from their formulas. Softmax, which is none, has a chapter of its own.


def relu(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, 0.0)


def leaky_relu(x: torch.Tensor, slope: float = 0.01) -> torch.Tensor:
    return torch.where(x > 0, x, slope * x)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """1 / (1 + e⁻ˣ) as e to the power of -log(e⁰ + e⁻ˣ), a logarithm that torch takes without an overflow."""
    return torch.exp(-torch.logaddexp(torch.zeros_like(x), -x))


def tanh(x: torch.Tensor) -> torch.Tensor:
    return 2 * sigmoid(2 * x) - 1


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x times the probability that a standard normal number is below x (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def silu(x: torch.Tensor) -> torch.Tensor:
    """x · sigmoid(x), also called swish (Elfwing et al. 2017, arXiv 1702.03118)."""
    return x * sigmoid(x)


def gelu_slope(x: torch.Tensor) -> torch.Tensor:
    below = (1 + torch.erf(x / math.sqrt(2))) / 2
    return below + x * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def silu_slope(x: torch.Tensor) -> torch.Tensor:
    return sigmoid(x) * (1 + x * (1 - sigmoid(x)))


Curve = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Activation:
    """A curve, its slope by formula, and PyTorch's version of it."""

    own: Curve
    slope: Curve
    library: Curve
    formula: str
    used: str


ACTIVATIONS = {
    "ReLU": Activation(relu, lambda x: (x > 0).to(x.dtype), F.relu, "max(0, x)", "most conv nets"),
    "LeakyReLU": Activation(leaky_relu, lambda x: torch.where(x > 0, torch.ones_like(x), 0.01), F.leaky_relu,
                            "x, below 0 0.01 x", "GANs"),
    "GELU": Activation(gelu, gelu_slope, F.gelu, "x P(normal < x)", "BERT, GPT-2, ViT"),
    "SiLU": Activation(silu, silu_slope, F.silu, "x sigmoid(x)", "Llama, in SwiGLU"),
    "Tanh": Activation(tanh, lambda x: 1 - tanh(x) ** 2, torch.tanh, "2 sigmoid(2x) - 1", "LSTM and GRU"),
    "Sigmoid": Activation(sigmoid, lambda x: sigmoid(x) * (1 - sigmoid(x)), torch.sigmoid, "1 / (1 + e^-x)",
                          "gates, yes or no"),
}  # fmt: skip


def show_why_a_network_bends(lesson: Lesson) -> None:
    lesson.section(
        "Without an activation there is one layer",
        "A Linear layer turns, stretches and shifts. Two in a row do the same thing as one: the product of their "
        "matrices. An activation bends each number on its own in between, and only that makes depth worth anything. "
        "Take |x|, which no line fits: a line through it, and two bent units.",
    )
    x = torch.randn(64, 5, dtype=torch.float64)
    first, second = torch.randn(7, 5, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    apart = deviation((x @ first.T) @ second.T, x @ (second @ first).T)
    lesson.check("two Linear layers are one Linear layer", apart < 1e-12, f"65 numbers a matrix, equal to {apart:.0e}")
    line = torch.linspace(-1, 1, 201, dtype=torch.float64)
    design = torch.stack([line, torch.ones_like(line)], dim=1)
    best = design @ torch.linalg.lstsq(design, line.abs()).solution
    bent = relu(line) + relu(-line)
    lesson.check("the best line misses |x|", (best - line.abs()).abs().max() > 0.4,
                 f"by {(best - line.abs()).abs().max():.2f} at worst")  # fmt: skip
    lesson.check("two ReLUs are |x|", torch.equal(bent, line.abs()), f"relu(x) + relu(-x), off by "
                 f"{(bent - line.abs()).abs().max():g}")  # fmt: skip
    lesson.shows(
        f"two ReLU units hit what the best of all lines misses by {(best - line.abs()).abs().max():.2f}. Every ReLU "
        "adds one bend, so a ReLU network is made of flat pieces; smooth activations round the edges."
    )


def sigmoid_by_the_formula(x: torch.Tensor) -> torch.Tensor:
    """The mistake: e⁻ˣ overflows below -88. The value survives as 1/inf, the gradient becomes inf/inf."""
    return 1 / (1 + torch.exp(-x))


def show_curves(lesson: Lesson) -> None:
    lesson.section(
        "Six curves and their slopes",
        "Forward, an activation is its curve. Backward, it multiplies each gradient by its slope at the number that went "
        "in, and that is what decides whether a deep network learns. All six are written out at the top of this "
        "script, with their slopes.",
    )
    x = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    rows, worst, worst_slope = [], 0.0, 0.0
    for name, activation in ACTIVATIONS.items():
        y, slope = activation.own(x), activation.slope(x)
        at = {point: activation.slope(torch.tensor(float(point), dtype=torch.float64)).item() for point in (-5, 0)}
        rows.append(
            {
                "activation": name,
                "formula": activation.formula,
                "lowest": f"{y.min():.2f}" if y.min() > -1 else f"-> {'-1' if name == 'Tanh' else '-inf'}",
                "slope at -5": f"{round(at[-5], 3) + 0:.3f}",  # + 0 turns -0.0 into 0.0
                "at 0": f"{at[0]:.3f}",
                "largest": f"{slope.max():.2f}",
                "used in": activation.used,
            }
        )
        for dtype in (torch.float32, torch.float64):
            points = (10 * torch.randn(37, 11, device=CPU)).to(dtype)
            found = agreement(activation.own, activation.library, points.T)
            worst = max(worst, found.value, found.gradient) if dtype is torch.float32 else worst
        inputs = x.clone().requires_grad_()
        (recorded,) = torch.autograd.grad(activation.library(inputs).sum(), inputs)
        worst_slope = max(worst_slope, deviation(slope, recorded))
    lesson.table(rows)
    lesson.check("own and PyTorch's agree, forwards and backwards", worst < 1e-5, f"float32, to {worst:.0e}")
    lesson.check("the slopes by formula are what backward() uses", worst_slope < 1e-10,
                 f"float64, to {worst_slope:.0e}")  # fmt: skip
    far = torch.tensor(-100.0, requires_grad=True)
    values, gradients = [], []
    for function in (sigmoid_by_the_formula, sigmoid):
        y = function(far)
        values.append(y.item())
        gradients.append(torch.autograd.grad(y, far)[0].item())
    lesson.check("1 / (1 + e^-x) as written loses its gradient at -100",
                 math.isnan(gradients[0]) and gradients[1] == values[1], f"{gradients[0]}, and {gradients[1]:.1e}")  # fmt: skip
    dip = x[gelu(x).argmin()].item()
    lesson.check("GELU and SiLU dip below zero before they rise", gelu(x).min() < -0.16 and silu(x).min() < -0.27,
                 f"to {gelu(x).min():.2f} at {dip:.2f} and {silu(x).min():.2f} at {x[silu(x).argmin()]:.2f}")  # fmt: skip
    quick_gelu = (F.gelu(x, approximate="tanh") - gelu(x)).abs().max().item()
    lesson.check("GELU's tanh form (GPT-2) is an approximation", 1e-5 < quick_gelu < 1e-3,
                 f"off by up to {quick_gelu:.0e}: load weights with the form they had")  # fmt: skip
    lesson.figure("activations", lambda *axes: draw_curves(x, *axes), columns=2)
    largest = {name: activation.slope(x).max().item() for name, activation in ACTIVATIONS.items()}
    lesson.shows(
        f"sigmoid never passes on more than {largest['Sigmoid']:.2f} of a gradient: ten layers of it leave at most "
        f"{largest['Sigmoid'] ** 10:.0e}. ReLU passes all or nothing, and nothing on the whole left side; LeakyReLU "
        f"keeps 0.01 there. GELU and SiLU exceed 1 a little, by {percent(largest['GELU'] - 1)} and "
        f"{percent(largest['SiLU'] - 1)}."
    )


def draw_curves(x: torch.Tensor, values: Any, slopes: Any) -> None:
    for name, activation in ACTIVATIONS.items():
        style = {"label": name, "markevery": 100}
        values.plot(x, activation.own(x), **style)
        slopes.plot(x, activation.slope(x), **style)
    values.set(title="activation", xlabel="x", ylabel="f(x)", xlim=(-4, 4), ylim=(-1.2, 3))
    slopes.set(title="slope: the share of the gradient that passes", xlabel="x", ylabel="f'(x)", xlim=(-4, 4))
    values.legend()


# Saturation

SATURATED = 0.01  # a unit that passes on less than a hundredth of its gradient


def where_sigmoid_becomes_one(dtype: torch.dtype) -> tuple[float, float]:
    """1 + e⁻ˣ is stored as 1 once e⁻ˣ is half a step above 1, eps / 2; and 1 - e⁻ˣ, which sigmoid then is, once e⁻ˣ is
    half a step below 1, eps / 4. The first decides in float32; the short formats are computed in it, and rounded last.
    """
    eps = torch.finfo(dtype).eps
    return math.log(2 / eps), math.log(4 / eps)


def first_exactly_one(dtype: torch.dtype, device: torch.device) -> float:
    """The smallest x, in steps of 1/64, from which sigmoid(x) is 1 and its slope therefore 0."""
    x = torch.arange(0, 25, 1 / 64, dtype=torch.float64).to(torch.float32)
    y = torch.sigmoid(x.to(device, dtype))
    return x[(y == 1).cpu()][0].item()


def show_saturation(lesson: Lesson) -> None:
    lesson.section(
        "Saturation: where the gradient stops",
        "Far out, sigmoid and tanh are flat. A unit there still answers, and no longer learns. You will see the share of "
        "such units as their inputs spread, and the point from which the gradient is not small but exactly zero.",
    )
    spreads = (0.5, 1.0, 2.0, 5.0, 10.0)
    n = lesson.pick(full=1_000_000, quick=100_000)
    normal = torch.randn(n, device=lesson.device)
    flat = {
        name: [(activation.slope(spread * normal) < SATURATED).float().mean().item() for spread in spreads]
        for name, activation in ACTIVATIONS.items()
    }
    lesson.table(
        [
            {"spread of the inputs": spread} | {name: percent(shares[i]) for name, shares in flat.items()}
            for i, spread in enumerate(spreads)
        ]
    )
    lesson.text(
        f"Share of the units that pass on less than {percent(SATURATED)} of their gradient, inputs N(0, spread²)."
    )
    edge = math.acosh(SATURATED**-0.5)  # tanh' = 1 / cosh², so it is below the limit beyond this point
    predicted = [math.erfc(edge / spread / math.sqrt(2)) for spread in spreads]
    errors = [
        abs(share - p) / math.sqrt(max(p * (1 - p), 1 / n) / n)
        for share, p in zip(flat["Tanh"], predicted, strict=True)
    ]
    lesson.check("tanh saturates as the normal distribution predicts", max(errors) < 5,
                 f"beyond ±{edge:.2f}; worst {max(errors):.1f} standard errors")  # fmt: skip
    halves = flat["ReLU"]
    bound = 5 * 0.5 / math.sqrt(n)
    lesson.check("ReLU stops half, whatever the spread", all(abs(share - 0.5) < bound for share in halves),
                 f"{percent(min(halves))} to {percent(max(halves))}")  # fmt: skip
    formats = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    points = {name: first_exactly_one(dtype, lesson.device) for name, dtype in formats.items()}
    between = []
    for name, dtype in formats.items():
        low, high = where_sigmoid_becomes_one(dtype)
        step = 1 / 32 + 8 * torch.finfo(dtype).eps  # of the inputs, which are numbers of the format too
        between.append(low - step <= points[name] <= high + step)
    lesson.check("sigmoid is exactly 1 from between ln(2/eps) and ln(4/eps) on", all(between),
                 ", ".join(f"{name} {point:.1f}" for name, point in points.items()))  # fmt: skip
    at = torch.tensor(points["float32"], device=lesson.device, requires_grad=True)
    (gradient,) = torch.autograd.grad(torch.sigmoid(at), at)
    lesson.check(
        "from there on its gradient is exactly 0", gradient == 0, f"{gradient.item():g} at x = {at.item():.2f}"
    )
    lesson.shows(
        f"at a spread of 5, {percent(flat['Sigmoid'][3])} of the sigmoids and {percent(flat['Tanh'][3])} of the tanhs no "
        f"longer learn, and in bfloat16 a sigmoid is out of reach of any gradient from "
        f"x = {points['bfloat16']:.1f}. Keep the inputs of an activation near a spread of 1: that is what "
        "initialisation and normalisation layers are for."
    )


def show_what_a_curve_costs(lesson: Lesson) -> None:
    lesson.section(
        "What a curve costs",
        "An activation reads each number once and writes it once. Where arithmetic is plentiful, as on a GPU, memory is "
        "then its limit and the formula hardly matters. Written by hand it becomes a row of operations, and each of "
        "them reads and writes everything again.",
    )
    n = lesson.pick(full=2**26, cpu=2**23, quick=2**18)
    x = torch.randn(n, device=lesson.device)
    functions: dict[str, Callable[[], object]] = {
        name: (lambda library=activation.library: library(x)) for name, activation in ACTIVATIONS.items()
    }
    functions["GELU by hand"] = lambda: gelu(x)
    timings = compare(functions, lesson.device, rounds=lesson.pick(full=9, cpu=5, quick=5),
                      budget_s=lesson.pick(full=2.0, quick=0.3))  # fmt: skip
    limit = memory_bandwidth(lesson.device)
    rows = []
    for name, timing in timings.items():
        gb_s = lesson.record("activation", 2 * x.nbytes / timing.median_s / 1e9, "GB/s", timing, limit, curve=name, n=n)
        rows.append(
            {
                "activation": name,
                "operations": len(operations(functions[name])),
                "GB/s": gb_s,
                "of the memory's": percent(gb_s * 1e9 / limit.value) if limit else "unknown",
                "time / ReLU": f"{ratio(timing, timings['ReLU']).median:.1f}x",
            }
        )
    lesson.table(rows)
    fused, by_hand = (len(operations(functions[name])) for name in ("GELU", "GELU by hand"))
    lesson.check("each of PyTorch's is one operation, by hand it is more", fused == 1 and by_hand >= 4,
                 f"GELU: {fused} and {by_hand}")  # fmt: skip
    slower = ratio(timings["GELU by hand"], timings["GELU"]).median
    ratios = {name: ratio(timings[name], timings["ReLU"]).median for name in ACTIVATIONS}
    slowest = max(ratios, key=lambda name: ratios[name])
    lesson.shows(
        f"GELU by hand takes {significant(slower)} times as long, with {by_hand} trips through memory for one; joining such "
        f"rows into one kernel is what torch.compile is for. Among PyTorch's own {slowest} is the slowest here, at "
        f"{significant(ratios[slowest])} times ReLU: "
        + ("arithmetic decides on this device." if ratios[slowest] > 2 else "memory decides, and the curve is free.")
    )


def main(argv: list[str] | None = None) -> int:
    title = "Activations and dropout: curves, slopes, saturation, dead units, softmax; noise and what it is good for."
    with Lesson(__file__, argv, title=title) as lesson:
        show_why_a_network_bends(lesson)
        show_curves(lesson)
        show_saturation(lesson)
        show_what_a_curve_costs(lesson)
        show_dead_units_by_depth(lesson)
        show_how_units_die(lesson)
        show_softmax_overflow(lesson)
        show_temperature(lesson)
        show_mean_and_variance(lesson)
        show_dropout_as_penalty(lesson)
        show_forgotten_mode(lesson)
        show_dropout_as_regulariser(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
