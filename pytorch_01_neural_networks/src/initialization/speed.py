"""What the start does to training: one deep network, one task, one learning rate, every initialiser."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_01_neural_networks.src.initialization.depth import SCHEMES, Scheme, scientific
from pytorch_01_neural_networks.src.initialization.initialisers import Initialize
from pytorch_01_neural_networks.src.initialization.theory import (
    TANH,
    Activation,
    predict_gradient,
    predict_signal,
)
from shared.lesson import Lesson

import torch
import torch.nn.functional as F
from torch import nn

CLASSES, FEATURES = 10, 64
LR, ARRIVES = 0.01, 1e-3  # a gradient whose second moment falls below this part counts as not arrived


def make_clusters(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Points in two clusters for each class, x (count, FEATURES) of second moment 1 and y (count,)."""
    centers = torch.randn(2 * CLASSES, FEATURES, device=device)
    cluster = torch.randint(len(centers), (count,), device=device)
    x = centers[cluster] + 0.5 * torch.randn(count, FEATURES, device=device)
    return x / math.sqrt(1.25), cluster // 2


def make_network(initialize: Initialize, activation: Activation, depth: int, width: int, device: torch.device,
                 *, has_bias: bool = False) -> nn.Sequential:  # fmt: skip
    """`depth` hidden layers; biases start at 0, or as PyTorch draws them where `has_bias`."""
    sizes = [FEATURES, *[width] * depth]
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(sizes, [*sizes[1:], CLASSES], strict=True):
        linear = nn.Linear(fan_in, fan_out, device=device)
        initialize(linear.weight)
        if not has_bias:
            nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh() if activation is TANH else nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, batch_size: int, lr: float = LR
) -> list[float]:
    """Plain stochastic gradient descent; the loss of every step."""
    losses = []
    for _ in range(steps):
        batch = torch.randint(len(x), (batch_size,), device=x.device)
        loss = F.cross_entropy(model(x[batch]), y[batch])
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= lr * parameter.grad
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def show_speed(lesson: Lesson) -> None:
    depth, width = lesson.pick(full=15, quick=12), lesson.pick(full=160, quick=96)
    steps, batch_size = lesson.pick(full=150, quick=60), lesson.pick(full=64, quick=32)
    x, y = make_clusters(2048, lesson.device)
    zeros = Scheme("zeros", nn.init.zeros_, lambda width: 0.0)
    lesson.section(
        "What it does to training",
        f"Now train: {depth} hidden layers of {width}, ten classes of points, {steps} steps of plain gradient descent "
        f"with one learning rate for all. A network that knows nothing has the loss ln 10 = {math.log(CLASSES):.2f}. "
        "The column in the middle is the prediction from above, made before the first step: the share of the "
        f"gradient's second moment that reaches layer 1. Say that less than {ARRIVES:g} means no learning, and see.",
    )
    losses: dict[tuple[Activation, str], list[float]] = {}
    arrives, ends, table = {}, {}, []
    pairs = [(activation, scheme) for activation in SCHEMES for scheme in (zeros, *SCHEMES[activation])]
    for activation, scheme in lesson.progress(pairs, "training"):
        scale = scheme.scale(width)
        share = 0.0
        if scale:
            signal = predict_signal(activation, scale, depth, scheme.bias_variance(width))
            share = predict_gradient(activation, scale, signal)[0]
        model = make_network(scheme.initialize, activation, depth, width, lesson.device, has_bias=scheme.has_bias)
        key = activation, scheme.name
        losses[key] = train(model, x, y, steps, batch_size)
        arrives[key], ends[key] = share > ARRIVES, sum(losses[key][-10:]) / 10
        lesson.record("loss at the end", ends[key], "nat", activation=activation.name, scheme=scheme.name, steps=steps)
        table.append({"activation": activation.name, "init": scheme.name, "gradient at layer 1": scientific(share),
                      "so it": "learns" if arrives[key] else "does not", "first loss": losses[key][0],
                      "last 10": ends[key]})  # fmt: skip
    lesson.table(table)
    learned = [ends[key] for key in ends if arrives[key]]
    stuck = [ends[key] for key in ends if not arrives[key]]
    lesson.check("where a gradient was predicted to arrive, it learns", max(learned) < 2,
                 f"{len(learned)} of them, loss {min(learned):.3f} to {max(learned):.2f}")  # fmt: skip
    lesson.check("where not, it stays at ln 10", all(abs(end - math.log(CLASSES)) < 0.1 for end in stuck),
                 f"{len(stuck)} of them, loss {min(stuck):.2f} to {max(stuck):.2f}")  # fmt: skip
    lesson.figure("training_by_init", lambda *axes: draw_training(axes, losses), columns=2)
    foreseen = sum((end < 2) == arrives[key] for key, end in ends.items())
    lesson.shows(
        f"{foreseen} of {len(ends)} runs ended as one number had said before they began. nn.Linear's default is among "
        f"the {len(stuck)} that learned nothing in {depth} layers. It knows nothing of the activation that follows; "
        "where nothing normalises the signal again, choose the gain yourself. Picture: training_by_init.png."
    )


def draw_training(axes: Sequence[Any], losses: Mapping[tuple[Activation, str], Sequence[float]]) -> None:
    for axis, shown in zip(axes, SCHEMES, strict=True):
        lines = [(scheme.name, losses[shown, scheme.name]) for scheme in SCHEMES[shown]]
        for i, (name, values) in enumerate(lines):
            step = max(1, len(values) // 8)
            smooth = [sum(values[max(0, at - 4) : at + 1]) / len(values[max(0, at - 4) : at + 1])
                      for at in range(len(values))]  # fmt: skip
            axis.plot(smooth, label=name, markevery=list(range(i * step // len(lines), len(values), step)))
        axis.axhline(math.log(CLASSES), color="black", linestyle="--", linewidth=0.8, marker="")
        axis.annotate("ln 10: knows nothing", (len(lines[0][1]) * 0.55, math.log(CLASSES) + 0.06), fontsize=9)
        axis.set(xlabel="step", ylabel="loss, mean of 5 steps", title=shown.name, ylim=(0, 3.5))
        axis.legend(fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
