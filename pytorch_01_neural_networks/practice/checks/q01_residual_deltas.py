"""The oracle is autograd on the forward of the question, in float64; nothing of it is left for the answer to use."""

from collections.abc import Sequence
from typing import Any

from shared.practice import expect
from shared.traps import expect_tensor, shown

import torch
import torch.nn.functional as F

Layer = tuple[torch.Tensor, torch.Tensor]


def forward(layers: Sequence[Layer], x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    inputs, sums = [x], []
    for number, (weight, bias) in enumerate(layers):
        sums.append(inputs[-1] @ weight.T + bias)
        if number == 0:
            inputs.append(sums[-1].relu())
        elif number < len(layers) - 1:
            inputs.append(inputs[-1] + sums[-1].relu())
    return inputs, sums


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def network(d: int, h: int, k: int, blocks: int) -> list[Layer]:
        sizes = [(h, d), *[(h, h)] * blocks, (k, h)]
        return [(normal(*size) / size[1] ** 0.5, normal(size[0])) for size in sizes]

    def classes(count: int, k: int) -> torch.Tensor:
        return torch.randint(k, (count,), generator=generator)

    numbers = [[[2.0]], [[1.0]], [[1.0], [0.0]]]
    tiny = [(torch.tensor(w).double(), torch.zeros(len(w)).double()) for w in numbers]
    expect_right(answer, "the example", tiny, torch.ones(1, 1).double(), torch.tensor([1]))
    expect_right(answer, "no block, one sample", network(3, 5, 4, 0), normal(1, 3), classes(1, 4))
    expect_right(answer, "no block", network(3, 5, 4, 0), normal(7, 3), classes(7, 4))
    expect_right(answer, "one block", network(3, 5, 4, 1), normal(7, 3), classes(7, 4))
    expect_right(answer, "three blocks", network(4, 6, 3, 3), normal(5, 4), classes(5, 3))
    expect_right(answer, "as many inputs as hidden units and classes", network(4, 4, 4, 2), normal(6, 4), classes(6, 4))
    expect_right(answer, "ten blocks", network(2, 8, 5, 10), normal(9, 2), classes(9, 5))
    still = [(weight, torch.zeros_like(bias)) for weight, bias in network(3, 5, 4, 2)]
    x = normal(6, 3)
    x[2] = 0
    expect_right(answer, "a sample of zeros and biases of 0, so sums of exactly 0", still, x, classes(6, 4))
    expect_right(answer, "a transposed x", network(5, 4, 3, 1), normal(5, 6).t(), classes(6, 3))
    narrow = [(weight.float(), bias.float()) for weight, bias in network(3, 5, 4, 1)]
    expect_right(answer, "float32", narrow, normal(7, 3).float(), classes(7, 4), 1e-5)


def expect_right(
    answer: Any, case: str, layers: list[Layer], x: torch.Tensor, y: torch.Tensor, tolerance: float = 1e-6
) -> None:
    call = f"gradients with {case} (layers: {len(layers)}, samples: {len(x)})"
    inputs, sums = forward(layers, x)
    given = [*inputs, *sums, y, *(tensor for layer in layers for tensor in layer)]
    kept = [tensor.clone() for tensor in given]
    found = answer.gradients(list(layers), list(inputs), list(sums), y)
    is_list = isinstance(found, list | tuple) and len(found) == len(layers)
    expect(is_list, f"{call} returned {shown(found)}; return {len(layers)} pairs, of the first layer first")
    unchanged = all(torch.equal(tensor, before) for tensor, before in zip(given, kept, strict=True))
    expect(unchanged, f"{call} changed a tensor that it was given; the caller still needs all of them")
    for number, (pair, layer) in enumerate(zip(found, layers, strict=True)):
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        expect(is_pair, f"{call}: of layer {number} it is {shown(pair)}; return the pair for weight and bias")
        for name, gradient, parameter in zip(("weight", "bias"), pair, layer, strict=True):
            expect_tensor(
                gradient, f"{call}, for the {name} of layer {number},", tuple(parameter.shape), parameter.dtype
            )
    right = by_autograd(layers, x, y)
    for number in reversed(range(len(layers))):  # a delta that is wrong makes all that come behind it wrong
        for name, gradient, wanted in zip(("weight", "bias"), found[number], right[number], strict=True):
            apart = ~((gradient - wanted).abs() <= tolerance * (1 + wanted.abs()))
            if apart.any():
                at = tuple(apart.nonzero()[0].tolist())
                expect(False, f"{call}: the gradient of the {name} of layer {number} at [{', '.join(map(str, at))}] is "
                       f"{gradient[at].item():.5g} and should be {wanted[at].item():.5g}; the layers after it are right. "
                       f"{question_for(name, number, len(layers))}")  # fmt: skip
    with torch.inference_mode():
        try:
            answer.gradients([(w.clone(), b.clone()) for w, b in layers], *forward(layers, x), y)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            expect(
                False,
                f"{call}: it needs autograd and stops where that is switched off ({reason}); write the deltas out",
            )


def question_for(name: str, number: int, count: int) -> str:
    if name == "bias":
        return "The weight of this layer is right too. To how many samples was its bias added?"
    if number == count - 1:
        return "What is the slope of the mean loss in the logits?"
    if number == count - 2:
        return "What reaches its sums, and where was its ReLU shut?"
    return "On how many ways does its output reach the loss?"


def by_autograd(layers: Sequence[Layer], x: torch.Tensor, y: torch.Tensor) -> list[Layer]:
    leaves = [(w.detach().requires_grad_(), b.detach().requires_grad_()) for w, b in layers]
    loss = F.cross_entropy(forward(leaves, x)[1][-1], y)
    flat = torch.autograd.grad(loss, [tensor for layer in leaves for tensor in layer])
    return list(zip(flat[::2], flat[1::2], strict=True))


def written(
    skips: bool = True, mean: bool = True, slope_of: str = "sums", bias: Any = torch.sum, way: str = "past"
) -> Any:
    """The recursion with one mistake."""

    def gradients(layers: Any, inputs: Any, sums: Any, y: torch.Tensor) -> list[Layer]:
        delta = sums[-1].softmax(1) - F.one_hot(y, sums[-1].shape[1])
        delta = delta / len(y) if mean else delta
        found = [(delta.T @ inputs[-1], bias(delta, 0))]
        upstream = delta @ layers[-1][0]
        for i in reversed(range(len(layers) - 1)):
            is_open = (sums[i] if slope_of == "sums" else inputs[i + 1]) > 0
            delta = upstream * is_open
            found.insert(0, (delta.T @ inputs[i], bias(delta, 0)))
            if i > 0:
                past = upstream if way == "past" else delta
                upstream = delta @ layers[i][0] + (past if skips else 0)
        return found

    return {"gradients": gradients}


def leaves_it_to_autograd(layers: Any, inputs: Any, sums: Any, y: torch.Tensor) -> list[Layer]:
    return by_autograd(layers, inputs[0], y)


def divides_in_place(layers: Any, inputs: Any, sums: Any, y: torch.Tensor) -> list[Layer]:
    found = by_autograd(layers, inputs[0], y)
    sums[-1].sub_(sums[-1].logsumexp(1, keepdim=True)).exp_()
    return found


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "knows one way only": (written(skips=False), "On how many ways"),
    "lets ReLU stand on both ways": (written(way="through"), "On how many ways"),
    "asks the outputs where ReLU was shut": (written(slope_of="outputs"), "where was its ReLU shut"),
    "forgets the mean": (written(mean=False), "the slope of the mean loss"),
    "averages the bias": (written(bias=torch.mean), "To how many samples was its bias added"),
    "leaves it to autograd": ({"gradients": leaves_it_to_autograd}, "write the deltas out"),
    "works in the logits": ({"gradients": divides_in_place}, "changed a tensor"),
}
