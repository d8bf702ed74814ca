"""Units that are off for every input: how depth alone makes them, and how a training kills them."""

import itertools
import math
from collections.abc import Callable
from typing import Any

from shared.datasets import load_images
from shared.lesson import Lesson
from shared.units import percent

import torch
import torch.nn.functional as F

DEPTH = 50


def next_angle(angle: float) -> float:
    """The angle between two inputs after one wide ReLU layer (Cho & Saul 2009, the arc-cosine kernel of order 1)."""
    cosine = (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi
    return math.acos(min(1.0, cosine))


def both_off(angle: float) -> float:
    """The chance that a random unit is off for two inputs at this angle: both must lie behind the same plane."""
    return (math.pi - angle) / (2 * math.pi)


def share_of_units_off(x: torch.Tensor, width: int) -> tuple[list[float], list[float]]:
    """For each of DEPTH layers with He's initialisation: how many units are off for both x[i] and x[i + N/2], the mean
    over pairs, and how many are off for every row of x (N, C).
    """
    pairs, everywhere = [], []
    for _ in range(DEPTH):
        weight = torch.randn(width, x.shape[1], device=x.device) * math.sqrt(2 / x.shape[1])
        x = torch.relu(x @ weight.T)
        off = x == 0
        first, second = off.chunk(2)
        pairs.append((first & second).float().mean().item())
        everywhere.append(off.all(dim=0).float().mean().item())
    return pairs, everywhere


def show_dead_units_by_depth(lesson: Lesson) -> None:
    lesson.section(
        "Units that are off for everything, by depth",
        "A ReLU unit splits the inputs by a plane: on behind, off before. Each layer also turns all inputs towards one "
        "direction, because relu never answers with a negative number. So the deeper a layer lies, the more often "
        "all inputs fall on one side of a unit's plane: before any training, it says nothing, or never bends.",
    )
    width = lesson.pick(full=1024, cpu=512, quick=256)
    nets = lesson.pick(full=8, cpu=4, quick=2)
    data = load_images("glyphs", train=True, count=lesson.pick(full=256, quick=128))
    x = data.images.to(lesson.device).float().flatten(1)
    x = (x - x.mean()) / x.std()
    x = x[torch.randperm(len(x), device=x.device)]
    angles = torch.acos(F.cosine_similarity(*x.chunk(2)).clamp(-1, 1)).tolist()
    theory = []
    for _ in range(DEPTH):
        theory.append(sum(map(both_off, angles)) / len(angles))
        angles = [next_angle(angle) for angle in angles]
    runs = [share_of_units_off(x, width) for _ in lesson.progress(range(nets), "networks")]
    pairs, everywhere = (
        [sum(layer) / nets for layer in zip(*shares, strict=True)] for shares in zip(*runs, strict=True)
    )
    shown = [0, 4, 9, 19, 29, 39, 49]
    lesson.table(
        [
            {
                "layer": i + 1,
                "off for two images": percent(pairs[i]),
                "theory": percent(theory[i]),
                f"off for all {len(x)}": percent(everywhere[i]),
            }
            for i in shown
        ]
    )
    worst = max(abs(p - q) for p, q in zip(pairs, theory, strict=True))
    lesson.check("the angle between inputs predicts how many are off", worst < lesson.pick(full=0.1, quick=0.16),
                 f"worst deviation {worst:.3f}, {nets} nets {width} wide")  # fmt: skip
    lesson.check("the first layer has hardly a unit that is always off", everywhere[0] < 0.02, percent(everywhere[0]))
    lesson.check("the last of fifty has many", everywhere[-1] > 0.15, percent(everywhere[-1]))

    def draw(ax: Any) -> None:
        layers = range(1, DEPTH + 1)
        ax.plot(layers, [100 * share for share in pairs], label="off for two images", markevery=5)
        ax.plot(layers, [100 * share for share in theory], color="black", marker="", linestyle="-", linewidth=0.8,
                label="theory for two")  # fmt: skip
        ax.plot(layers, [100 * share for share in everywhere], label=f"off for all {len(x)}", markevery=5)
        ax.axhline(50, color="#525252", linewidth=0.8, linestyle=":", marker="")
        ax.set(
            title="ReLU units that answer 0, before training",
            xlabel="layer",
            ylabel="share of units in %",
            ylim=(0, 55),
        )
        ax.legend()

    lesson.figure("dead_units", draw)
    lesson.shows(
        f"in layer {DEPTH} {percent(everywhere[-1])} of the units are off for all {len(x)} images, and nothing has been "
        "learned yet. The limit is one half: all images in one direction, and each unit's plane passes it on one side "
        "or the other. Normalisation layers and skip connections keep the directions apart, which is why deep nets have them."
    )


# How a training kills

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "ReLU": F.relu,
    "LeakyReLU": F.leaky_relu,
    "GELU": F.gelu,
    "Tanh": torch.tanh,
}


def train(x: torch.Tensor, labels: torch.Tensor, activation: Callable[[torch.Tensor], torch.Tensor], lr: float,
          steps: int, seed: int) -> tuple[float, float]:  # fmt: skip
    """Trains two hidden layers of 128 units by SGD. Returns the loss on all of `x` (N, C), and the share of units in
    the first layer that are dead: the gradient of all their weights is exactly 0, over all of `x`.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [x.shape[1], 128, 128, 10]
    weights = [
        (torch.randn(wide, narrow, generator=generator) * math.sqrt(2 / narrow)).to(x.device).requires_grad_()
        for narrow, wide in itertools.pairwise(sizes)
    ]
    biases = [torch.zeros(wide, device=x.device, requires_grad=True) for wide in sizes[1:]]

    def loss_on(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = activation(x @ weight.T + bias)
        return F.cross_entropy(x @ weights[-1].T + biases[-1], labels)

    for _ in range(steps):
        batch = torch.randint(len(x), (100,), generator=generator).to(x.device)
        loss_on(x[batch], labels[batch]).backward()
        with torch.no_grad():
            for parameter in (*weights, *biases):
                assert parameter.grad is not None
                parameter -= lr * parameter.grad
                parameter.grad = None
    loss = loss_on(x, labels)
    (gradient,) = torch.autograd.grad(loss, weights[:1])
    return loss.item(), (gradient.abs().amax(dim=1) == 0).float().mean().item()


def show_how_units_die(lesson: Lesson) -> None:
    lesson.section(
        "How ReLUs die, and of what",
        "A unit that is off for every input has no gradient, so nothing moves it any more: it is dead. The usual killer "
        "is a step too far along the mean of the inputs, and pixels, which are all positive, have a large mean. The same "
        "network is trained on the same images three times, in three units.",
    )
    data = load_images("glyphs", train=True, count=lesson.pick(full=1000, quick=500))
    labels = data.labels.to(lesson.device)
    pixels = data.images.to(lesson.device).float().flatten(1)
    inputs = {
        "pixels, 0 to 255": pixels,
        "pixels, 0 to 1": pixels / 255,
        "mean 0, spread 1": (pixels - pixels.mean()) / pixels.std(),
    }
    steps = lesson.pick(full=100, quick=40)
    trials = [(unit, name) for unit in inputs for name in ACTIVATIONS]
    found = {
        (unit, name): train(inputs[unit], labels, ACTIVATIONS[name], 0.1, steps, lesson.options.seed)
        for unit, name in lesson.progress(trials, "trainings")
    }
    lesson.table(
        [
            {"inputs": unit}
            | {name: f"{percent(found[unit, name][1])}, {found[unit, name][0]:.2f}" for name in ACTIVATIONS}
            for unit in inputs
        ]
    )
    lesson.text(f"Dead units of the first layer, and the loss, after {steps} steps with a learning rate of 0.1.")
    raw, centred = (found[unit, "ReLU"] for unit in ("pixels, 0 to 255", "mean 0, spread 1"))
    guessing = math.log(10)
    lesson.check("raw pixels kill the first layer of ReLUs", raw[1] > 0.9, f"{percent(raw[1])} of them")
    lesson.check("what is left learns nothing: the loss is ln 10 or worse", not raw[0] < guessing - 0.02,
                 f"{raw[0]:.3f}, ln 10 = {guessing:.3f}")  # fmt: skip
    lesson.check("centred inputs kill hardly any, and it learns", centred[1] < 0.05 and centred[0] < guessing - 0.3,
                 f"{percent(centred[1])} dead, loss {centred[0]:.2f}")  # fmt: skip
    leaky = found["pixels, 0 to 255", "LeakyReLU"]
    lesson.check("no LeakyReLU dies of raw pixels, and none learns", leaky[1] == 0 and not leaky[0] < guessing - 0.1,
                 f"loss {leaky[0]:.2f}")  # fmt: skip
    lesson.shows(
        f"a loss that stands at {guessing:.2f} = ln 10, where there are ten classes, means that nothing arrives at the "
        f"output: look for dead units. On raw pixels {percent(raw[1])} of the first layer died, on centred ones "
        f"{percent(centred[1])}. LeakyReLU keeps units alive without curing what killed them; centred inputs do."
    )
