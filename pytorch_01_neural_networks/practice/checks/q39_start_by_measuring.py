"""Each layer's output is measured on the batch; 1 % is no matter of luck, because the batch itself sets the scale."""

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from shared.practice import expect
from shared.units import significant

import torch
from torch import nn

Layers = Sequence[nn.Module]
TOLERANCE = 0.01
SIGMAS = 7.0  # of a mean over random weights; a right answer is refused once in 10^11


def dense() -> list[nn.Module]:
    """A hundred Linear of unequal widths, with activations that treat the signal differently."""
    widths = [24, 40, 32, 28]
    activations = [nn.ReLU, nn.Tanh, nn.GELU, nn.PReLU]
    layers: list[nn.Module] = []
    for n in range(100):
        layers += [nn.Linear(widths[n % 4], widths[(n + 1) % 4], bias=n % 3 > 0), activations[n * 7 // 5 % 4]()]
    return layers


def images() -> list[nn.Module]:
    """Down and up again: strides, groups, borders, and transposed convolutions whose outputs sum few products."""
    return [
        nn.Conv2d(3, 12, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, padding=2, dilation=2, groups=4, bias=False),
        nn.GroupNorm(6, 24),
        nn.Tanh(),
        nn.ConvTranspose2d(24, 8, 4, stride=4),
        nn.LeakyReLU(),
        nn.ConvTranspose2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    ]


def has_matrix(layer: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in layer.parameters())


def check(answer: Any, seed: int) -> None:
    torch.manual_seed(seed)
    pair: list[nn.Module] = [nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 30)]
    expect_started(answer, pair, torch.randn(16, 40), "initialise of Linear(40, 50), ReLU, Linear(50, 30)")
    pixels = torch.randint(0, 256, (4, 3, 8, 8)).float()
    expect_started(answer, images(), pixels, "initialise of a small image network, on pixels from 0 to 255")
    quiet = 1e-3 * torch.randn(5, 24, dtype=torch.float64)
    layers = [layer.double() for layer in dense()]
    expect_started(answer, layers, quiet, "initialise of a hundred Linear, on numbers of size 0.001")


def expect_started(answer: Any, layers: list[nn.Module], x: torch.Tensor, call: str) -> None:
    kept = x.clone()
    before = [list(layer.parameters()) for layer in layers]
    with torch.no_grad():
        for layer in filter(has_matrix, layers):
            for parameter in layer.parameters():
                parameter.fill_(0.7)  # as good as any start that is not random
    values = [[parameter.detach().clone() for parameter in parameters] for parameters in before]
    answer.initialise(layers, x)
    expect(torch.equal(x, kept), f"{call} changed the batch x; the training step still needs it")
    for n, layer in enumerate(layers):
        what = f"{call}: layers[{n}], {type(layer).__name__},"
        now = list(layer.parameters())
        same = len(now) == len(before[n]) and all(a is b for a, b in zip(now, before[n], strict=True))
        expect(same, f"{what} has new parameter objects; an optimizer that holds the old ones would train nothing")
        if has_matrix(layer):
            expect_drawn(layer, what)
        else:
            as_it_was = all(torch.equal(a, b) for a, b in zip(now, values[n], strict=True))
            expect(as_it_was, f"{what} has other parameters than before; it has no matrix, so it stays as it is")
    expect_different([layer for layer in layers if has_matrix(layer)], call)
    expect_loud_enough(layers, x, call)


def expect_drawn(layer: Any, what: str) -> None:
    weight = layer.weight
    trains = all(p.requires_grad and p.is_leaf and p.grad is None for p in layer.parameters())
    expect(trains, f"{what} is not ready for training: its parameters should require gradients, without graph or .grad")
    w = weight.detach().double()
    expect(bool(w.isfinite().all()), f"{what} has weights that are not finite")
    expect(not bool((w == 0.7).all()), f"{what} still has the weights that it came with, all 0.7; draw them anew")
    matrix = w.flatten(1)
    rows, rank = min(matrix.shape), int(torch.linalg.matrix_rank(matrix))
    expect(
        rank == rows,
        f"{what} has a weight of rank {rank}, where random rows give {rows}: units that compute the same stay the same",
    )
    rms = w.square().mean().sqrt().item()
    lean = abs(w.mean().item()) / rms * math.sqrt(w.numel())
    expect(
        lean < SIGMAS,
        f"{what} has weights with mean {significant(w.mean().item())} and root mean square {significant(rms)}; draw them "
        "symmetric around 0, or every input gives nearly the same output",
    )
    if layer.bias is not None:
        expect(not layer.bias.any(), f"{what} has a bias that is not 0")


def expect_different(layers: Sequence[Any], call: str) -> None:
    """No two weights of one shape are the same numbers, up to a factor."""
    flat = [layer.weight.detach().double().flatten() for layer in layers]
    for (i, a), (j, b) in combinations(enumerate(flat), 2):
        if layers[i].weight.shape == layers[j].weight.shape and a.numel() > 50:
            cosine = abs((a @ b / (a.norm() * b.norm())).item())
            expect(cosine < 0.99, f"{call}: of the layers with a matrix, number {i} and number {j} hold the same weights up "
                   "to a factor; what does a seed do inside a loop?")  # fmt: skip


@torch.no_grad()
def expect_loud_enough(layers: Layers, x: torch.Tensor, call: str) -> None:
    found = {}
    for n, layer in enumerate(layers):
        x = layer(x)
        if has_matrix(layer):
            found[n] = (x.square().mean().item(), x.mean().item(), x.var(correction=0).item())
    off = [n for n, (moment, _, _) in found.items() if not abs(moment - 1) <= TOLERANCE]
    if off:
        moment, mean, variance = found[off[0]]
        listed = ", ".join(significant(found[n][0], 2) for n in off[:5]) + (" …" if len(off) > 5 else "")
        is_spread = abs(variance - 1) <= TOLERANCE
        why = f": its variance is 1, but its mean is {significant(mean, 2)}, which counts too" if is_spread else ""
        expect(False, f"{call}: the mean of h² is off 1 in {len(off)} of {len(found)} layers with a matrix, the first of them "
               f"layers[{off[0]}], {type(layers[off[0]]).__name__}, with {significant(moment)}{why}. Theirs: "
               f"{listed}")  # fmt: skip


Draw = Callable[[torch.Tensor], object]


def one_by_one(draw: Draw = nn.init.normal_, size: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Any:
    """The right way, with another draw or another measure of size."""
    measure = size or (lambda h: h.square().mean().sqrt())

    @torch.no_grad()
    def initialise(layers: Sequence[Any], x: torch.Tensor) -> None:
        for layer in layers:
            if has_matrix(layer):
                draw(layer.weight)
                if layer.bias is not None:
                    layer.bias.zero_()
                layer.weight /= measure(layer(x))
            x = layer(x)

    return initialise


def trusts_the_formula(layers: Sequence[Any], x: torch.Tensor) -> None:
    for layer in filter(has_matrix, layers):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def measures_all_at_once(layers: Sequence[Any], x: torch.Tensor) -> None:
    trusts_the_formula(layers, x)
    sizes = []
    for layer in layers:
        x = layer(x)
        sizes.append(x.square().mean().sqrt())
    for layer, size in zip(layers, sizes, strict=True):
        if has_matrix(layer):
            layer.weight /= size


@torch.no_grad()
def passes_on_the_old_output(layers: Sequence[Any], x: torch.Tensor) -> None:
    trusts_the_formula(layers, x)
    for layer in layers:
        x = layer(x)
        if has_matrix(layer):
            layer.weight /= x.square().mean().sqrt()


@torch.no_grad()
def scales_every_weight(layers: Sequence[Any], x: torch.Tensor) -> None:
    for layer in layers:
        if hasattr(layer, "weight"):
            nn.init.normal_(layer.weight)
            if getattr(layer, "bias", None) is not None:
                layer.bias.zero_()
            layer.weight /= layer(x).square().mean().sqrt()
        x = layer(x)


@torch.no_grad()
def leaves_the_biases(layers: Sequence[Any], x: torch.Tensor) -> None:
    for layer in layers:
        if has_matrix(layer):
            nn.init.normal_(layer.weight)
            layer.weight /= layer(x).square().mean().sqrt()
        x = layer(x)


@torch.no_grad()
def makes_new_parameters(layers: Sequence[Any], x: torch.Tensor) -> None:
    one_by_one()(layers, x)
    for layer in filter(has_matrix, layers):
        layer.weight = nn.Parameter(layer.weight.clone())


def draw_with_one_seed(weight: torch.Tensor) -> None:
    nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))


WRONG = {
    "trusts the formula": ({"initialise": trusts_the_formula}, "the mean of h² is off 1 in"),
    "measures all layers before it scales one": ({"initialise": measures_all_at_once}, "the first of them layers[2]"),
    "passes on what came before the scaling": (
        {"initialise": passes_on_the_old_output},
        "the first of them layers[2]",
    ),
    "scales the spread": (
        {"initialise": one_by_one(size=lambda h: h.std(correction=0))},
        "its variance is 1, but its mean is",
    ),
    "scales what is there": ({"initialise": one_by_one(draw=lambda weight: None)}, "has a weight of rank 1"),
    "draws positive numbers": ({"initialise": one_by_one(draw=nn.init.uniform_)}, "symmetric around 0"),
    "draws with one seed": ({"initialise": one_by_one(draw=draw_with_one_seed)}, "what does a seed do inside a loop"),
    "scales every weight": ({"initialise": scales_every_weight}, "it has no matrix, so it stays as it is"),
    "leaves the biases": ({"initialise": leaves_the_biases}, "has a bias that is not 0"),
    "makes new parameters": ({"initialise": makes_new_parameters}, "an optimizer that holds the old ones"),
}
