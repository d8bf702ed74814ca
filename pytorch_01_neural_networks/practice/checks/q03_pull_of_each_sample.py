"""Right first, against autograd sample by sample; then operations and the largest tensor are counted, no clock needed."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from shared.practice import expect
from shared.traps import expect_close, expect_tensor, largest_made, operations

import torch
import torch.nn.functional as F

Layer = tuple[torch.Tensor, torch.Tensor]


def forward(layers: Sequence[Layer], x: torch.Tensor) -> torch.Tensor:
    for number, (weight, bias) in enumerate(layers):
        x = (torch.relu(x) if number > 0 else x) @ weight.T + bias
    return x


def gradients_of(layers: Sequence[Layer], x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """Of the mean loss, in each weight and bias."""
    leaves = [(weight.detach().requires_grad_(), bias.detach().requires_grad_()) for weight, bias in layers]
    loss = F.cross_entropy(forward(leaves, x), y)
    return list(torch.autograd.grad(loss, [tensor for layer in leaves for tensor in layer]))


def one_by_one(layers: Sequence[Layer], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    rows = [gradients_of(layers, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    return torch.stack([torch.cat([gradient.flatten() for gradient in row]).norm() for row in rows])


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def draw(batch: int, *sizes: int) -> tuple[list[Layer], torch.Tensor, torch.Tensor]:
        layers = [(normal(b, a) / a**0.5, normal(b)) for a, b in pairwise(sizes)]
        return layers, normal(batch, sizes[0]), torch.randint(sizes[-1], (batch,), generator=generator)

    nothing = [(torch.zeros(2, 1).double(), torch.zeros(2).double())]
    expect_right(answer, "the example", nothing, torch.tensor([[2.0]]).double(), torch.tensor([0]))
    expect_right(answer, "one layer, of each sample's own loss", *draw(5, 4, 3))
    expect_right(answer, "two layers, whose gradients together are one vector", *draw(6, 4, 7, 3))
    expect_right(answer, "one sample", *draw(1, 4, 7, 3))
    expect_right(answer, "four layers", *draw(5, 3, 8, 6, 5, 4))
    expect_right(answer, "layers of one width", *draw(5, 4, 4, 4, 4))
    layers, x, y = draw(5, 3, 6, 4, 2)
    x[2] = 0
    still = [(weight, torch.zeros_like(bias)) for weight, bias in layers]
    expect_right(answer, "a sample of zeros and biases of 0, so sums of exactly 0", still, x, y)
    learning = [(weight.requires_grad_(), bias.requires_grad_()) for weight, bias in layers]
    expect_right(answer, "weights that require gradients", learning, x, y)
    layers, _, y = draw(6, 5, 4, 3)
    expect_right(answer, "a transposed x", layers, normal(5, 6).t(), y)
    layers, x, y = draw(40, 20, 30, 10)
    narrow = [(weight.float(), bias.float()) for weight, bias in layers]
    expect_right(answer, "float32", narrow, x.float(), y, 1e-4)
    expect_lean(answer, draw(3, 60, 50, 40), draw(96, 60, 50, 40))


def expect_right(
    answer: Any, case: str, layers: list[Layer], x: torch.Tensor, y: torch.Tensor, tolerance: float = 1e-6
) -> None:
    call = f"gradient_lengths with {case} (layers: {len(layers)}, samples: {len(x)})"
    kept = x.clone(), y.clone()
    found = answer.gradient_lengths(list(layers), x, y)
    expect_tensor(found, call, (len(x),), x.dtype)
    expect(torch.equal(x, kept[0]) and torch.equal(y, kept[1]), f"{call} changed x or y")
    expect(not found.requires_grad, f"{call} returned a tensor with a graph; nobody differentiates it again")
    expect_close(found, one_by_one(layers, *kept), call, tolerance)


def expect_lean(answer: Any, few: tuple[Any, ...], many: tuple[Any, ...]) -> None:
    counts = [len(operations(answer.gradient_lengths, *case)) for case in (few, many)]
    sizes = [len(case[1]) for case in (few, many)]
    expect(
        counts[1] <= counts[0] + 2,
        f"right, but {counts[0]} operations for {sizes[0]} samples and {counts[1]} for {sizes[1]}; all samples can go through "
        "each operation together",
    )
    layers, x, _ = many
    widest = max(x.shape[1], *(len(weight) for weight, _ in layers))
    largest = largest_made(answer.gradient_lengths, *many)
    allowed = 4 * len(x) * widest
    expect(
        largest <= allowed,
        f"right, but a tensor of {largest:,} numbers is made for {len(x)} samples and a largest weight of "
        f"{max(weight.numel() for weight, _ in layers):,}; {allowed:,} are allowed. The length can be had without the gradient",
    )


def deltas_and_inputs(layers: Any, x: torch.Tensor, y: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    inputs, sums = [x], []
    for weight, bias in layers:
        sums.append(inputs[-1] @ weight.detach().T + bias.detach())
        inputs.append(sums[-1].relu())
    delta = sums[-1].softmax(1) - F.one_hot(y, sums[-1].shape[1])
    found = []
    for i in reversed(range(len(layers))):
        found.append((delta, inputs[i]))
        if i > 0:
            delta = (delta @ layers[i][0].detach()) * (sums[i - 1] > 0)
    return found


def keeps_every_gradient(layers: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    squares = x.new_zeros(len(x))
    for delta, h in deltas_and_inputs(layers, x, y):
        squares += (delta[:, :, None] * h[:, None, :]).square().sum((1, 2)) + delta.square().sum(1)
    return squares.sqrt()


def forgets_the_biases(layers: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    squares = [delta.square().sum(1) * h.square().sum(1) for delta, h in deltas_and_inputs(layers, x, y)]
    return torch.stack(squares).sum(0).sqrt()


def adds_lengths(layers: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    lengths = [(delta.square().sum(1) * (h.square().sum(1) + 1)).sqrt() for delta, h in deltas_and_inputs(layers, x, y)]
    return torch.stack(lengths).sum(0)


def takes_its_share_of_the_mean(layers: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return one_by_one(layers, x, y) / len(x)


def takes_the_last_layer(layers: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    delta, h = deltas_and_inputs(layers, x, y)[0]
    return (delta.square().sum(1) * (h.square().sum(1) + 1)).sqrt()


WRONG = {
    "goes one by one": ({"gradient_lengths": one_by_one}, "together"),
    "keeps every gradient": ({"gradient_lengths": keeps_every_gradient}, "a tensor of 288,000 numbers"),
    "forgets the biases": ({"gradient_lengths": forgets_the_biases}, "is 1.41421 and should be 1.58114"),
    "adds the lengths of the layers": ({"gradient_lengths": adds_lengths}, "together are one vector"),
    "takes the share of the mean loss": ({"gradient_lengths": takes_its_share_of_the_mean}, "each sample's own loss"),
    "takes the last layer only": ({"gradient_lengths": takes_the_last_layer}, "together are one vector"),
}
