"""Can you train a network without autograd, and do you get the same numbers as torch.nn?

Two layers, a softmax and a handful of lines for the gradients: you will see each delta as a matrix, check them against
finite differences and autograd, and watch three builds (plain tensors, autograd, torch.nn with an optimizer) agree at
every step, and learn why their last digits part. Then that network bends around two spirals and reads letters, where
no straight line can follow. At the end, the mistakes that raise no error, and what a step costs.

    python src/network_from_scratch.py            about 25 seconds
    python src/network_from_scratch.py --quick    the same path with tiny sizes, a few seconds
"""

import inspect
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_01_neural_networks.src.scratch.cost import show_cost
from pytorch_01_neural_networks.src.scratch.drift import show_drift
from pytorch_01_neural_networks.src.scratch.letters import show_letters
from pytorch_01_neural_networks.src.scratch.mistakes import show_mistakes, show_refusals
from pytorch_01_neural_networks.src.scratch.network import (
    RELU,
    TANH,
    Activation,
    Layer,
    Parameters,
    cross_entropy,
    forward,
    initial_layers,
    initial_parameters,
    loss_and_gradients,
    loss_and_gradients_of_layers,
)
from pytorch_01_neural_networks.src.scratch.spirals import show_spirals, show_width
from pytorch_01_neural_networks.src.scratch.three_builds import show_three_builds
from pytorch_01_neural_networks.src.scratch.wording import gap_text
from shared.agreement import agreement, deviation
from shared.drawing import beside, grid
from shared.lesson import Lesson
from shared.units import percent

import torch
from torch.nn import functional as F

# Small enough to follow with a pencil: 4 samples of 2 numbers, 3 hidden units, 2 classes.
TINY_X = torch.tensor([[1.0, 2.0], [-1.0, 1.0], [2.0, -1.0], [1.0, -1.0]])
TINY_Y = torch.tensor([1, 1, 0, 1])
TINY = Parameters(
    w1=torch.tensor([[1.0, 0.0], [-1.0, 1.0], [1.0, 1.0]]),
    b1=torch.tensor([0.0, 0.0, -2.0]),
    w2=torch.tensor([[1.0, -1.0, 0.5], [-1.0, 0.5, 1.0]]),
    b2=torch.zeros(2),
)


# Forward


def show_forward(lesson: Lesson) -> None:
    lesson.section(
        "The network and its shapes",
        "A two-layer classifier is four lines: a weighted sum, a bend, another weighted sum, and a softmax that turns "
        "scores (logits) into probabilities. Here they are for 4 samples (B) of 2 numbers (D), 3 hidden units (H) and "
        "2 classes (K). The bend is ReLU, which makes negative numbers 0; the probability of the right class stands in "
        "brackets.",
    )
    lesson.items(
        {
            "z1 = x @ w1.T + b1": "(B, D) @ (D, H) + (H,) gives (B, H): each hidden unit weighs the inputs",
            "h  = f(z1)": "(B, H): without the bend, two layers would be one",
            "z2 = h @ w2.T + b2": "(B, H) @ (H, K) + (K,) gives (B, K): the logits",
            "p  = softmax(z2)": "(B, K): exp(z2), each row divided by its sum",
            "loss": "one number: the mean of -log(p of the right class)",
        }
    )
    z1 = TINY_X @ TINY.w1.T + TINY.b1
    logits = forward(TINY, TINY_X, RELU)
    p = logits.softmax(1)
    right = F.one_hot(TINY_Y, 2).bool()
    lesson.drawing(
        beside(grid(TINY_X, "x"), "→", grid(z1, "z1"), "→", grid(z1.relu(), "h"), "→", grid(logits, "z2"), "→",
               grid(p, "p", right))
    )  # fmt: skip
    loss = cross_entropy(logits, TINY_Y)
    terms = [-math.log(value) for value in p[right].tolist()]
    lesson.check("the loss is the mean of -log of the bracketed", abs(sum(terms) / 4 - loss.item()) < 1e-6,
                 f"({' + '.join(f'{term:.3f}' for term in terms)}) / 4 = {loss.item():.3f}")  # fmt: skip
    scores = 10 * torch.randn(64, 10, device=lesson.device)
    classes = torch.randint(0, 10, (64,), device=lesson.device)
    same = agreement(lambda z: cross_entropy(z, classes), lambda z: F.cross_entropy(z, classes), scores)
    lesson.check("our cross_entropy is PyTorch's, and so is its gradient", same.within(1e-5), same)
    merged = TINY_X @ (TINY.w2 @ TINY.w1).T + TINY.w2 @ TINY.b1 + TINY.b2
    unbent = (TINY_X @ TINY.w1.T + TINY.b1) @ TINY.w2.T + TINY.b2
    lesson.check("leave out the bend, and one layer does the same", torch.allclose(merged, unbent),
                 "with the weight w2 @ w1 and the bias w2 @ b1 + b2")  # fmt: skip
    count, guess = lesson.pick(full=1000, quick=200), initial_parameters(20, 50, 10, torch.Generator().manual_seed(0))
    x, y = torch.randn(count, 20), torch.randint(0, 10, (count,))
    start = cross_entropy(forward(guess, x, RELU), y).item()
    lesson.check("an untrained network starts near the loss of a guess", abs(start - math.log(10)) < 0.3,
                 f"{start:.3f} for 10 classes; log(10) is {math.log(10):.3f}")  # fmt: skip
    worst = max(range(4), key=lambda i: terms[i])
    lesson.shows(
        f"sample {worst} makes {percent(terms[worst] / sum(terms))} of this loss: its right class has p = "
        f"{p[right][worst].item():.3f}. A first loss far from log(K) tells of a bug before any training: labels of "
        "another batch, inputs that were never scaled, a softmax too many."
    )


# Backward


def show_deltas(lesson: Lesson) -> None:
    lesson.section(
        "The deltas: from the loss back to each weight",
        "Backpropagation in one idea: for each layer, find delta, the slope of the loss in its sums z. One delta gives "
        "the gradients of that layer's weights, and the delta of the layer before. Start at the end, where the softmax "
        "and the logarithm together have a slope that you can write down.",
    )
    lesson.items(
        {
            "delta2 = (p - onehot(y)) / B": "(B, K). log p[right] = z2[right] - log(sum of exp(z2)), whose slope in z2[k] "
            "is 1 for the right class and 0 for others, minus p[k]. The loss has the other sign, and its mean over the "
            "batch divides by B.",
            "grad w2 = delta2.T @ h": "(K, B) @ (B, H) gives (K, H). A nudge of w2[k, j] moves z2[k] of every sample by "
            "its h[j]: multiply by its delta2[k] and add over the batch. For one sample that is an outer product.",
            "grad b2 = delta2.sum(0)": "(K,). A nudge of b2[k] moves z2[k] of every sample by as much.",
            "delta1 = (delta2 @ w2) * f'(z1)": "(B, K) @ (K, H) gives (B, H). Unit j reaches the loss through every "
            "z2[k], with the weight w2[k, j]: add over k. Then through the bend, whose slope is 1 or 0 for ReLU.",
            "grad w1 = delta1.T @ x": "(H, D). As above with x in the place of h: from here everything repeats.",
            "grad b1 = delta1.sum(0)": "(H,).",
        }
    )
    z1 = TINY_X @ TINY.w1.T + TINY.b1
    h, p = z1.relu(), forward(TINY, TINY_X, RELU).softmax(1)
    delta2 = (p - F.one_hot(TINY_Y, 2)) / len(TINY_X)
    delta1 = (delta2 @ TINY.w2) * (z1 > 0)
    lesson.text(
        "With the numbers from above, read from right to left. The entries of delta1 where z1 > 0 are in brackets:"
    )
    lesson.drawing(beside(grid(delta1 + 0.0, "delta1", z1 > 0), "◀", grid(TINY.w2, "w2"), "◀", grid(delta2, "delta2")))
    loss, gradients = loss_and_gradients(TINY, TINY_X, TINY_Y, RELU)
    lesson.text("The gradient of w2 is one product, delta2.T @ h:")
    lesson.drawing(beside(grid(delta2.T, "delta2.T"), "@", grid(h, "h"), "=", grid(gradients.w2, "grad w2")))
    outer = torch.stack([torch.outer(delta, unit) for delta, unit in zip(delta2, h, strict=True)]).sum(0)
    lesson.check("it is the sum of the samples' outer products", torch.allclose(outer, gradients.w2),
                 f"{len(TINY_X)} of them, of shape {tuple(outer.shape)}")  # fmt: skip
    lesson.check("what delta2 gives one class, it takes from the other", delta2.sum(1).abs().max() < 1e-6,
                 f"its rows sum to 0, to {gap_text(delta2.sum(1).abs().max().item())}")  # fmt: skip
    most = int(delta2.abs().sum(1).argmax())
    lesson.check("the sample that is most wrong pulls hardest", p[range(4), TINY_Y].argmin() == most,
                 f"sample {most}: p of its class {p[most, TINY_Y[most]].item():.3f}")  # fmt: skip
    blocked = ~(z1 > 0)
    lesson.check("no gradient passes a ReLU that gave 0", (delta1[blocked] == 0).all() and blocked.any(),
                 f"{int(blocked.sum())} of {blocked.numel()} entries of delta1")  # fmt: skip
    lesson.text("That is all there is to it. This is the function that trains the networks below:")
    lesson.drawing(inspect.getsource(loss_and_gradients))
    step = Parameters(*(w - 0.5 * gradient for w, gradient in zip(TINY, gradients, strict=True)))
    after = cross_entropy(forward(step, TINY_X, RELU), TINY_Y).item()
    lesson.check("a step against the gradient makes the loss smaller", after < loss.item(),
                 f"{loss.item():.3f} to {after:.3f} with lr = 0.5")  # fmt: skip
    lesson.shows(
        f"five matrix products gave {sum(gradient.numel() for gradient in gradients)} slopes: two forward (z1 and z2) and "
        f"three back (grad w2, delta1 and grad w1). At the output the delta is the error p - y over B, so sample {most} "
        f"with p = {p[most, TINY_Y[most]].item():.3f} says most about where to go, and one that is certain and right "
        "says nearly nothing."
    )


# Is it right?


def difference_gradients(loss_of: Callable[[Parameters], torch.Tensor], net: Parameters, h: float = 1e-6) -> Parameters:
    """The gradients by central differences: one weight at a time, two forward passes for each. Use it in float64."""
    gradients = {}
    for name, tensor in net._asdict().items():
        gradient = torch.empty_like(tensor)
        for index in itertools.product(*map(range, tensor.shape)):
            losses = []
            for step in (h, -h):
                moved = tensor.clone()
                moved[index] += step
                losses.append(loss_of(net._replace(**{name: moved})))
            gradient[index] = (losses[0] - losses[1]) / (2 * h)
        gradients[name] = gradient
    return Parameters(**gradients)


def autograd_gradients(net: Parameters, x: torch.Tensor, y: torch.Tensor, f: Activation) -> Parameters:
    """The oracle: PyTorch's own gradients of the same loss."""
    net = Parameters(*(tensor.detach().requires_grad_() for tensor in net))
    return Parameters(*torch.autograd.grad(cross_entropy(forward(net, x, f), y), list(net)))


def clear_of_the_kink(net: Parameters, x: torch.Tensor, count: int, margin: float = 1e-3) -> torch.Tensor:
    """The first `count` samples of which no sum z1 is within `margin` of 0, where ReLU has two slopes."""
    return x[((x @ net.w1.T + net.b1).abs() > margin).all(1)][:count]


def layers_apart(layers: list[Layer], x: torch.Tensor, y: torch.Tensor, f: Activation) -> float:
    """How far the recursion for any number of layers is from autograd, relative to the largest gradient."""
    leaves = [(w.detach().requires_grad_(), b.detach().requires_grad_()) for w, b in layers]
    out = x
    for i, (w, b) in enumerate(leaves):
        out = out @ w.T + b if i == len(leaves) - 1 else f.value(out @ w.T + b)
    oracle = torch.autograd.grad(cross_entropy(out, y), [tensor for layer in leaves for tensor in layer])
    found = [tensor for layer in loss_and_gradients_of_layers(layers, x, y, f)[1] for tensor in layer]
    scale = max(gradient.abs().max().item() for gradient in oracle)
    return max((a - b).abs().max().item() for a, b in zip(found, oracle, strict=True)) / scale


def show_referees(lesson: Lesson) -> None:
    lesson.section(
        "Two referees, and any depth",
        "A gradient written by hand is wrong until it is checked. Finite differences know nothing of calculus: they move "
        "one weight by 1e-6 and look at the loss. Autograd knows the rules but not your formulas. Both in float64, on "
        "the CPU, for a network that was drawn at random:",
    )
    generator = torch.Generator().manual_seed(lesson.options.seed)
    net = initial_parameters(4, 6, 3, generator).to(torch.float64)
    x = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    x, y = clear_of_the_kink(net, x, 32), torch.randint(0, 3, (32,), generator=generator)
    worst: dict[str, list[float]] = {"differences": [], "autograd": []}
    for f in (RELU, TANH):
        gradients = loss_and_gradients(net, x, y, f)[1]
        referees = {
            "differences": difference_gradients(lambda moved: cross_entropy(forward(moved, x, f), y), net),
            "autograd": autograd_gradients(net, x, y, f),
        }
        apart = {name: [deviation(ours, theirs) for ours, theirs in zip(gradients, oracle, strict=True)]
                 for name, oracle in referees.items()}  # fmt: skip
        lesson.table(
            [
                {f"{f.name}, gradient of": name, "shape": tuple(ours.shape), "largest entry": ours.abs().max().item(),
                 "differences, off by": gap_text(apart["differences"][i]), "autograd, off by": gap_text(apart["autograd"][i])}
                for i, (name, ours) in enumerate(zip(Parameters._fields, gradients, strict=True))
            ]
        )  # fmt: skip
        for name in worst:
            worst[name] += apart[name]
    lesson.check("finite differences confirm all four gradients", max(worst["differences"]) < 1e-8,
                 f"at most {max(worst['differences']):.0e} off")  # fmt: skip
    lesson.check("autograd confirms them to the last digits", max(worst["autograd"]) < 1e-14,
                 f"at most {gap_text(max(worst['autograd']))} off")  # fmt: skip
    lesson.text(
        "Nothing in the recursion knows that there are two layers. As a loop from the last layer to the first, it is the "
        "same two lines for any depth, and one layer alone is the linear classifier that you will meet as a baseline:"
    )
    lesson.drawing(recursion_source())
    table, off = [], list[float]()
    for depth in lesson.pick(full=(1, 2, 3, 5, 10, 20), quick=(1, 2, 3, 5)):
        layers = [(2 * w.double(), b.double()) for w, b in initial_layers([4] + [16] * (depth - 1) + [3], generator)]
        off_of = {f.name: layers_apart(layers, x, y, f) for f in (RELU, TANH)}
        off += off_of.values()
        count = sum(w.numel() + b.numel() for w, b in layers)
        table.append(
            {
                "layers": depth,
                "parameters": count,
                **{f"{name}, off by": gap_text(value) for name, value in off_of.items()},
            }
        )
    lesson.table(table)
    lesson.check("the loop agrees with autograd at every depth", max(off) < 1e-12,
                 f"at most {gap_text(max(off))} of the largest gradient")  # fmt: skip
    lesson.shows(
        f"two independent answers stand behind the formulas: differences to {max(worst['differences']):.0e} and autograd to "
        f"{gap_text(max(worst['autograd']))}. Differences are slower (two forward passes a weight) and blunter, but they need no "
        "trust in anybody's calculus. Use them in float64, on a network of a few weights, away from kinks."
    )


def recursion_source() -> str:
    """The loop of loss_and_gradients_of_layers as it stands in the file."""
    lines = inspect.getsource(loss_and_gradients_of_layers).splitlines()
    first = next(i for i, line in enumerate(lines) if line.lstrip().startswith("delta ="))
    return inspect.cleandoc("\n".join(["", *lines[first:]]))


def main(argv: list[str] | None = None) -> int:
    title = "A network from plain tensors: forward, gradients by hand, the same numbers with autograd and torch.nn."
    with Lesson(__file__, argv, title=title) as lesson:
        show_forward(lesson)
        show_deltas(lesson)
        show_referees(lesson)
        show_three_builds(lesson)
        show_drift(lesson)
        show_spirals(lesson)
        show_width(lesson)
        show_letters(lesson)
        show_mistakes(lesson)
        show_refusals(lesson)
        show_cost(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
