"""Fifty layers of random weights: the signal forwards and the gradient backwards, measured against their prediction."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from pytorch_01_neural_networks.src.initialization.initialisers import (
    Initialize,
    kaiming_uniform_,
    linear_default_,
    normal_,
    orthogonal_,
    xavier_uniform_,
)
from pytorch_01_neural_networks.src.initialization.theory import (
    RELU,
    TANH,
    Activation,
    forward_wander,
    predict_gradient,
    predict_signal,
    slope_factor,
)
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
from torch import nn

SQRT_2 = math.sqrt(2)
TOLERANCE = 0.10  # of measured against predicted; the standard error is kept to a fifth of it
NETWORKS = 512  # in one batch


@dataclass(frozen=True)
class Scheme:
    """An initialiser for square layers; `scale(width)` is fan_in, which is fan_out, times the variance of a weight."""

    name: str
    initialize: Initialize
    scale: Callable[[int], float]
    has_bias: bool = False
    is_orthogonal: bool = False

    def bias_variance(self, width: int) -> float:
        return 1 / (3 * width) if self.has_bias else 0.0


FIXED = Scheme("normal, std 0.1", partial(normal_, std=0.1), lambda width: 0.01 * width)
DEFAULT = Scheme("PyTorch's Linear", linear_default_, lambda width: 1 / 3, has_bias=True)
XAVIER = Scheme("Xavier", xavier_uniform_, lambda width: 1.0)
KAIMING = Scheme("Kaiming", kaiming_uniform_, lambda width: 2.0)
SCHEMES = {  # in one order, so that each keeps its colour in all pictures
    TANH: (
        FIXED,
        DEFAULT,
        XAVIER,
        KAIMING,
        Scheme("orthogonal, gain 1", orthogonal_, lambda width: 1.0, is_orthogonal=True),
        Scheme("Xavier, gain 5/3", partial(xavier_uniform_, gain=5 / 3), lambda width: 25 / 9),
    ),
    RELU: (
        FIXED,
        DEFAULT,
        XAVIER,
        KAIMING,
        Scheme("orthogonal, gain 1.41", partial(orthogonal_, gain=SQRT_2), lambda width: 2.0, is_orthogonal=True),
    ),
}


def log_second_moment(x: torch.Tensor) -> torch.Tensor:
    """log of the mean square of each row, (B, C) -> (B,) in float64: 10^-40 and 10^40 have no squares in float32."""
    largest = x.abs().amax(dim=1, keepdim=True)
    return 2 * largest.squeeze(1).cpu().double().log() + (x / largest).square().mean(dim=1).cpu().double().log()


def random_signs(shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    return torch.randint(2, shape, device=device).mul_(2).sub_(1).float()


def send_through(scheme: Scheme, activation: Activation, sizes: Sequence[int],
                 device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """log of the second moments of h and of d loss / d h by layer and network, twice (layers, NETWORKS).

    `sizes` are the widths from the input to the last layer. Each row of the batch has a network of its own: the weights
    of all are one draw, with the signs of its columns flipped at random for each. That is as good as a draw of its own,
    since w and -w are equally likely, and many products of a matrix with a vector become one product of matrices.
    Biases are drawn for each.
    """
    x = torch.randn(NETWORKS, sizes[0], device=device, requires_grad=True)  # second moment 1
    sums = []
    for fan_in, fan_out in pairwise(sizes):
        weight = scheme.initialize(torch.empty(fan_out, fan_in, device=device))
        h = (x * random_signs((NETWORKS, fan_in), device)) @ weight.T
        if scheme.has_bias:
            h = h + (torch.rand(NETWORKS, fan_out, device=device) * 2 - 1) / math.sqrt(fan_in)
        h.retain_grad()
        sums.append(h)
        x = activation.function(h)
    (h * torch.randn_like(h)).sum().backward()  # sends a gradient of second moment 1 back from the last layer
    gradients = [h.grad for h in sums if h.grad is not None]
    return torch.stack([log_second_moment(h.detach()) for h in sums]), torch.stack(
        [log_second_moment(gradient) for gradient in gradients]
    )


def draws_needed(activation: Activation, signal: Sequence[float], sizes: Sequence[int], *, orthogonal: bool) -> int:
    """How many draws of all weights, each for NETWORKS networks, keep the signal's standard error at TOLERANCE / 5.

    The wander of each layer, over its width, adds up to the variance v of the log of one network's signal. A log-normal
    has the relative variance e^v - 1, and a mean over m networks 1/m of it. What the networks of one draw share is the
    length of each matrix: its square has the relative variance 2 / (fan_in fan_out), or none where it is orthogonal.
    """
    hidden = zip(signal[:-1], sizes[1:-1], strict=True)
    log_variance = sum(forward_wander(activation, q, orthogonal=orthogonal) / width for q, width in hidden)
    shared = 0.0 if orthogonal else sum(2 / (fan_in * fan_out) for fan_in, fan_out in pairwise(sizes))
    return math.ceil((math.expm1(log_variance) / NETWORKS + shared) / (TOLERANCE / 5) ** 2)


@dataclass(frozen=True, eq=False)
class Run:
    """One scheme with one activation: what was predicted for each layer, and what was measured in each network."""

    scheme: Scheme
    activation: Activation
    signal: list[float]
    gradient: list[float]
    log_signals: torch.Tensor  # (depth, networks)
    log_gradients: torch.Tensor

    @property
    def networks(self) -> int:
        return self.log_signals.shape[1]


def run_scheme(scheme: Scheme, activation: Activation, depth: int, width: int, device: torch.device) -> Run:
    scale, sizes = scheme.scale(width), [width] * (depth + 1)
    signal = predict_signal(activation, scale, depth, scheme.bias_variance(width))
    draws = draws_needed(activation, signal, sizes, orthogonal=scheme.is_orthogonal)
    logs = [send_through(scheme, activation, sizes, device) for _ in range(draws)]
    log_signals, log_gradients = (torch.cat(parts, dim=1) for parts in zip(*logs, strict=True))
    return Run(scheme, activation, signal, predict_gradient(activation, scale, signal), log_signals, log_gradients)


def log_mean(logs: torch.Tensor) -> torch.Tensor:
    """log of the mean over networks, (depth, networks) -> (depth,)."""
    return logs.logsumexp(dim=1) - math.log(logs.shape[1])


def worst_value(logs: torch.Tensor, predicted: Sequence[float]) -> float:
    """How far the mean over networks is from its prediction: the largest relative deviation of all layers."""
    expected = torch.tensor(predicted, dtype=torch.float64).log()
    return (log_mean(logs) - expected).expm1().abs().max().item()


def worst_factor(logs: torch.Tensor, predicted: Sequence[float]) -> float:
    """The same for the factor from layer to layer, in the mean over each network's own."""
    expected = torch.tensor(predicted, dtype=torch.float64).log().diff()
    return (log_mean(logs.diff(dim=0)) - expected).expm1().abs().max().item()


def named(runs: Sequence[Run], activation: Activation, name: str) -> Run:
    return next(run for run in runs if run.activation is activation and run.scheme.name == name)


def show_signal(lesson: Lesson) -> list[Run]:
    """Runs every scheme and shows what comes out in front; what comes back is for `show_gradient`."""
    depth, width = lesson.pick(full=50, quick=16), lesson.pick(full=512, quick=256)
    lesson.section(
        "Many layers forwards: the signal",
        "One layer takes q, the second moment of its sums h, to the next by one integral: q' = scale x mean of f(h)² "
        "over Gaussian h, f the activation, plus the variance of the bias. The scale is fan_in x Var(w). For ReLU the "
        "mean is q/2, for tanh it is a numerical integral, and so the whole curve is known before a weight is drawn. "
        f"Here it is for {depth} layers of width {width}, beside the mean over many networks (weights that are drawn, "
        f"with signs of their own for each): as many as bring its standard error to {percent(TOLERANCE / 5)}, which the "
        "width decides.",
    )
    pairs = [(activation, scheme) for activation, schemes in SCHEMES.items() for scheme in schemes]
    runs = [
        run_scheme(scheme, activation, depth, width, lesson.device)
        for activation, scheme in lesson.progress(pairs, "networks")
    ]
    worst = {run: worst_value(run.log_signals, run.signal) for run in runs}
    for activation in SCHEMES:
        lesson.table(
            [
                {
                    activation.name: run.scheme.name,
                    "scale": run.scheme.scale(width),
                    "layer 1": scientific(run.signal[0]),
                    f"layer {depth}": scientific(run.signal[-1]),
                    "measured": scientific(last_mean(run.log_signals)),
                    "worst layer off by": percent(worst[run]),
                    "networks": run.log_signals.shape[1],
                }
                for run in runs
                if run.activation is activation
            ]
        )
    for activation, schemes in SCHEMES.items():
        off = max(worst[run] for run in runs if run.activation is activation)
        lesson.check(f"{activation.name}: the signal of every layer, to 10 %", off < TOLERANCE,
                     f"{len(schemes)} schemes, {depth} layers: {percent(off)} off at worst")  # fmt: skip
    for run in runs:
        lesson.record("signal in the last layer", last_mean(run.log_signals), "1", depth=depth, width=width,
                      scheme=run.scheme.name, activation=run.activation.name, predicted=run.signal[-1])  # fmt: skip
    xavier = named(runs, RELU, "Xavier")
    fallen = log_mean(xavier.log_signals)
    halvings = ((fallen[0] - fallen[-1]) / math.log(2)).item()
    lesson.check("Xavier before ReLU: every layer halves the signal", abs(halvings - (depth - 1)) < 0.2,
                 f"{depth - 1} halvings predicted, {halvings:.2f} measured")  # fmt: skip
    faded = last_mean(named(runs, TANH, "Xavier").log_signals) * 2 * depth
    lesson.check("Xavier before tanh: it fades as 1 / (2 x layer)", 0.75 < faded < 1.35,
                 f"times 2 x {depth}: {faded:.2f}, on its way to 1")  # fmt: skip
    found, expected = first_infinite_layer(width, lesson.device), predicted_infinite_layer(width)
    lesson.check("torch.randn(n, n) for weights ends in inf", abs(found - expected) <= 1,
                 f"in layer {found}, foreseen for {expected}: {math.sqrt(width / 2):.0f}x a layer")  # fmt: skip
    lesson.figure("signal_by_depth", lambda *axes: draw_signals(axes, runs), columns=2)
    lesson.shows(
        "the scale and the activation decide over the whole depth. Under ReLU it is a plain product: only scale 2 "
        f"stays where it is, and Xavier's 1 leaves {scientific(xavier.signal[-1])}. tanh forgives, because it "
        "saturates: every scale above 1 runs into a fixed point, and 1 itself fades slowly, as 1 / (2 x layer). "
        "Picture: signal_by_depth.png."
    )
    return runs


def scientific(value: float) -> str:
    """As usual between 0.001 and 10,000, and as a power of ten outside."""
    return significant(value) if value == 0 or 1e-3 <= value < 1e4 else f"{value:.1e}"


def last_mean(logs: torch.Tensor) -> float:
    return log_mean(logs)[-1].exp().item()


def first_infinite_layer(width: int, device: torch.device) -> int:
    """The mistake: torch.randn(n, n) for weights, here under ReLU. Returns the layer where float32 has no number left."""
    x, layer = torch.randn(1, width, device=device), 0
    while x.isfinite().all():
        x = torch.relu(x @ torch.randn(width, width, device=device).T)
        layer += 1
    return layer


def predicted_infinite_layer(width: int) -> int:
    """Where the largest sum, some 3 standard deviations, passes the end of float32: q is width x (width / 2)^(l - 1)."""
    log_limit = math.log(torch.finfo(torch.float32).max / 3)
    return 1 + math.ceil((2 * log_limit - math.log(width)) / math.log(width / 2))


def draw_signals(axes: Sequence[Any], runs: Sequence[Run]) -> None:
    for axis, activation in zip(axes, SCHEMES, strict=True):
        chosen = [run for run in runs if run.activation is activation]
        draw_lines(axis, [(run.scheme.name, run.log_signals, run.signal) for run in chosen])
        axis.set(title=f"{activation.name}: the signal", ylabel="second moment of h, mean over networks")


def draw_gradients(axes: Sequence[Any], runs: Sequence[Run]) -> None:
    for axis, activation in zip(axes, SCHEMES, strict=True):
        chosen = [run for run in runs if run.activation is activation]
        draw_lines(axis, [(run.scheme.name, run.log_gradients, run.gradient) for run in chosen])
        axis.set(title=f"{activation.name}: the gradient", ylabel="second moment of d loss / d h")


def draw_lines(axis: Any, lines: Sequence[tuple[str, torch.Tensor, Sequence[float]]]) -> None:
    depth = len(lines[0][2])
    layers, step = range(1, depth + 1), max(1, depth // 8)
    for i, (name, logs, predicted) in enumerate(lines):
        marks = range(i * step // len(lines), depth, step)  # not on top of one another where two lines agree
        axis.plot(layers, log_mean(logs).exp(), label=name, markevery=list(marks), linewidth=2)
        label = "predicted" if name == lines[-1][0] else None
        axis.plot(layers, predicted, color="black", linestyle="-", linewidth=0.8, marker="", label=label)
    axis.set(yscale="log", xlabel="layer")
    axis.legend(fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def show_gradient(lesson: Lesson, runs: Sequence[Run]) -> None:
    depth = len(runs[0].signal)
    lesson.section(
        "Many layers backwards: the gradient",
        "A gradient goes back through the transposed weights and is multiplied by the slopes f'(h). One layer "
        "multiplies its second moment by chi = fan_out x Var(w) x mean of f'(h)². Under ReLU half of the slopes are 1: "
        "chi is scale / 2, as forwards. Under tanh a slope depends on how far the unit is saturated. With chi below 1 "
        "gradients vanish, above 1 they explode. The loss sends 1 into the last layer; what reaches layer 1 of the "
        "same networks:",
    )
    off = {run: worst_factor(run.log_gradients, run.gradient) for run in runs}
    arrived = {run: log_mean(run.log_gradients)[0].exp().item() for run in runs}
    for activation in SCHEMES:
        lesson.table(
            [
                {
                    activation.name: run.scheme.name,
                    "chi": slope_factor(activation, run.scheme.scale(lesson.pick(full=512, quick=256)), run.signal[-1]),
                    "layer 1": scientific(run.gradient[0]),
                    "measured": scientific(arrived[run]),
                    "worst chi off by": percent(off[run]),
                }
                for run in runs
                if run.activation is activation
            ]
        )
    for activation, schemes in SCHEMES.items():
        worst = max(off[run] for run in runs if run.activation is activation)
        lesson.check(f"{activation.name}: chi of every layer, to 10 %", worst < TOLERANCE,
                     f"{len(schemes)} schemes, {depth - 1} factors: {percent(worst)} off at worst")  # fmt: skip
    whole = max(abs(arrived[run] / run.gradient[0] - 1) for run in runs)
    lesson.check("all factors together, to a quarter", whole < 0.25,
                 f"{percent(whole)} off at worst: errors multiply, too")  # fmt: skip
    for run in runs:
        lesson.record("gradient in the first layer", arrived[run], "1", depth=depth, scheme=run.scheme.name,
                      activation=run.activation.name, predicted=run.gradient[0])  # fmt: skip
    default, gain = named(runs, RELU, DEFAULT.name), named(runs, TANH, "Xavier, gain 5/3")
    expected = 6.0 ** (1 - depth)
    lesson.check("PyTorch's Linear and ReLU: a sixth is left per layer", abs(arrived[default] / expected - 1) < 0.25,
                 f"6^-{depth - 1} = {scientific(expected)}, measured {scientific(arrived[default])}")  # fmt: skip
    lesson.check("gain 5/3 keeps tanh's signal and lets gradients grow",
                 abs(gain.signal[-1] / gain.signal[-2] - 1) < 0.01 and arrived[gain] > 2,
                 f"chi = {gain.gradient[-2]:.2f}: {significant(arrived[gain])} times in {depth} layers")  # fmt: skip
    lesson.figure("gradient_by_depth", lambda *axes: draw_gradients(axes, runs), columns=2)
    kaiming = named(runs, RELU, "Kaiming")
    lesson.shows(
        "under ReLU one choice serves both ways: with scale 2 the gradient arrives as "
        f"{significant(arrived[kaiming])}. Under tanh none does: scale 1 lets both fade slowly, more than 1 keeps the "
        "signal and lets the gradient grow. That border, chi = 1, is called the edge of chaos, and good initialisation "
        "means to start near it. Picture: gradient_by_depth.png."
    )


def show_wander(lesson: Lesson) -> None:
    depth = lesson.pick(full=50, quick=16)
    widths = lesson.pick(full=[64, 128, 256, 512], quick=[64, 128, 256])
    lesson.section(
        "One network is not the mean",
        "You train one network, and the predictions are for the mean of many. A layer's factor is itself a mean over "
        "its units, so it varies from draw to draw by 5 / width (relative variance, ReLU), and the factors multiply: "
        "the logarithm of the signal wanders like a random walk. An orthogonal matrix keeps lengths, which leaves 3 / "
        f"width. The standard deviation of log q after {depth} layers with ReLU:",
    )
    orthogonal = SCHEMES[RELU][-1]
    table, ratios, single = [], {}, {}
    for scheme in (KAIMING, orthogonal):
        for width in widths if scheme is KAIMING else widths[-2:-1]:
            sizes = [width] * (depth + 1)
            logs = torch.cat([send_through(scheme, RELU, sizes, lesson.device)[0] for _ in range(3)], dim=1)
            per_layer = forward_wander(RELU, 1.0, orthogonal=scheme.is_orthogonal)
            predicted = math.sqrt((depth - 1) * per_layer / width + (0 if scheme.is_orthogonal else 2 / width))
            found = logs[-1].std().item()
            ratios[scheme.name, width] = found / predicted
            if not scheme.is_orthogonal:
                single[width] = logs
            far = ((logs[-1] - math.log(2)).abs() > math.log(2)).float().mean().item()  # the prediction is q = 2
            table.append({"init": scheme.name, "width": width, "depth / width": depth / width, "wander": predicted,
                          "measured": found, "median / mean": math.exp(logs[-1].median().item()) / 2,
                          "beyond 2x": percent(far)})  # fmt: skip
            lesson.record("wander of the log signal", found, "1", depth=depth, width=width, scheme=scheme.name)
    lesson.table(table)
    worst = max(abs(ratio - 1) for ratio in ratios.values())
    lesson.check(
        "its square is 5 depth / width, orthogonal 3 depth / width", worst < 0.25, f"{percent(worst)} off at worst"
    )
    lesson.figure("single_networks", lambda *axes: draw_single(axes, single, (widths[0], widths[-1])), columns=2)
    lesson.shows(
        f"{table[0]['beyond 2x']} of the networks with width {widths[0]} end more than a factor 2 away from the mean, "
        f"and their median lies at {significant(table[0]['median / mean'])} of it. What counts is depth / width: a "
        "deep narrow network can start dead or exploded with the right initialiser, and another seed starts elsewhere. "
        "Normalisation layers measure instead of trusting a mean. Picture: single_networks.png."
    )


def draw_single(axes: Sequence[Any], single: Mapping[int, torch.Tensor], widths: Sequence[int]) -> None:
    for axis, width in zip(axes, widths, strict=True):
        logs = single[width]
        layers = range(1, len(logs) + 1)
        for network in range(30):
            label = "single networks" if network == 0 else None
            axis.plot(
                layers, logs[:, network].exp(), color="grey", linestyle="-", linewidth=0.6, marker="", label=label
            )
        axis.plot(layers, log_mean(logs).exp(), linewidth=2.5, marker="", label=f"mean of {logs.shape[1]:,}")
        axis.axhline(2, color="black", linestyle="--", linewidth=1.2, marker="", label="predicted")
        axis.set(yscale="log", xlabel="layer", ylabel="second moment of h", ylim=(0.003, 100),
                 title=f"Kaiming, ReLU, width {width}")  # fmt: skip
        axis.legend(fontsize=8, loc="lower left")


def show_default_bias(lesson: Lesson) -> None:
    depth, width = lesson.pick(full=50, quick=30), lesson.pick(full=512, quick=128)
    lesson.section(
        "A signal that says nothing",
        "PyTorch's Linear divides the signal by 6 under ReLU, and yet the table above shows it settle. What keeps it "
        "up is the bias, which is drawn as well, between -b and b, b = 1/sqrt(fan_in). Two different inputs tell what "
        f"such a signal is worth: here two random vectors go through one stack of {depth} nn.Linear(…) + ReLU, and "
        "through one with Kaiming's weights and no bias.",
    )
    x = torch.randn(2, width, device=lesson.device)
    apart: dict[str, list[float]] = {}
    for name in ("nn.Linear as it comes", "Kaiming, no bias"):
        h, distances = x, []
        for _ in range(depth):
            layer = nn.Linear(width, width, bias=name != "Kaiming, no bias", device=lesson.device)
            if name == "Kaiming, no bias":
                kaiming_uniform_(layer.weight)
            with torch.no_grad():
                h = torch.relu(layer(h))
            distances.append(((h[0] - h[1]).norm() / h[0].norm()).item())
        apart[name] = distances
    shown = [layer for layer in (1, 2, 5, 10, 15, 20, 30, 50) if layer <= depth]
    lesson.table(
        [{"layer": layer, **{f"apart, {name}": distances[layer - 1] for name, distances in apart.items()}}
         for layer in shown]
    )  # fmt: skip
    default, kaiming = (distances[-1] for distances in apart.values())
    lesson.check("two inputs start far apart", min(distances[0] for distances in apart.values()) > 0.3,
                 "of the length of one: " + ", ".join(f"{distances[0]:.2f}" for distances in apart.values()))  # fmt: skip
    lesson.check(
        "as it comes: both give the same output", default < 1e-5, f"apart by {scientific(default)} of its length"
    )
    lesson.check("Kaiming: they can still be told apart", kaiming > 1e-3, f"by {percent(kaiming)} of its length")
    lesson.shows(
        f"after {depth} default layers the output is the same whatever goes in: it is made of biases alone. A healthy "
        "variance is not yet information. Look at the distance between the outputs of two inputs as well; even with "
        "Kaiming it shrinks, slowly."
    )
