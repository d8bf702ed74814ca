"""Right first, against the whole Hessian and a closed form; then operations and the largest tensor are counted."""

from collections.abc import Callable
from typing import Any

from shared.practice import expect
from shared.traps import expect_close, expect_tensor, largest_made, operations

import torch

Loss = Callable[[torch.Tensor], torch.Tensor]


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    example = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    expect_product(answer, "the loss x[0]² x[1] at [1, 2]", lambda x: x[0] ** 2 * x[1], *example)
    matrix, data = draw(7, 7), draw(9, 5)
    labels, offset = (draw(9) > 0).double(), draw(1).requires_grad_()

    def logistic(weights: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(data @ weights + offset, labels)

    cases: list[tuple[str, Loss, torch.Tensor, torch.Tensor]] = [
        ("a quadratic form", lambda x: x @ matrix @ x, draw(7), draw(7)),
        ("a sum of fourth powers", lambda x: x.pow(4).sum(), draw(11), draw(11)),
        ("a logistic regression, with an offset that requires a gradient too", logistic, draw(5), draw(5)),
        ("neighbours that pull each other, at a strided view", neighbours, draw(13, 2)[:, 1], draw(26)[::2]),
        ("one weight", lambda x: x.exp().sum(), draw(1), draw(1)),
        (
            "a point and a direction that require gradients",
            neighbours,
            draw(6).requires_grad_(),
            draw(6).requires_grad_(),
        ),
    ]
    for case in cases:
        expect_product(answer, *case)
    expect(
        offset.grad is None,
        "hessian_vector_product filled the .grad of a tensor that the loss uses; torch.autograd.grad returns a gradient and "
        "touches none",
    )
    expect_steep(answer, 1 + draw(10, 3).abs())
    expect_lean(answer, draw)


def neighbours(x: torch.Tensor) -> torch.Tensor:
    return ((x[1:] - x[:-1].square()).square() + x[1:].sin()).sum()


def expect_product(answer: Any, case: str, loss_of: Loss, point: torch.Tensor, direction: torch.Tensor) -> None:
    call = f"hessian_vector_product for {case}, n = {len(point)}"
    right = torch.autograd.functional.hessian(loss_of, point.detach()) @ direction.detach()
    kept, required = (point.detach().clone(), direction.detach().clone()), point.requires_grad
    found = answer.hessian_vector_product(loss_of, point, direction)
    expect_tensor(found, call, tuple(point.shape), point.dtype)
    expect(not found.requires_grad, f"{call} returned a tensor with a graph; in a loop these graphs would grow")
    expect(point.requires_grad == required, f"{call} changed point.requires_grad; work on a leaf of your own")
    expect(
        point.grad is None and direction.grad is None, f"{call} filled a .grad; return the product and touch no other"
    )
    is_kept = torch.equal(point, kept[0]) and torch.equal(direction, kept[1])
    expect(is_kept, f"{call} changed the numbers of point or direction; the caller still needs them")
    expect_close(found, right, f"{call}: the result", 1e-6)


def expect_steep(answer: Any, drawn: torch.Tensor) -> None:
    """A slope of about 10,000 with little curvature, in float32: a difference of gradients loses all digits here."""
    point, direction, slope = (column.float().contiguous() for column in drawn.unbind(1))
    found = answer.hessian_vector_product(lambda x: (x.pow(4) / 12 + 1e4 * slope * x).sum(), point, direction)
    call = "hessian_vector_product for a steep loss in float32, where the difference of two gradients is rounding: the result"
    expect_tensor(found, call, tuple(point.shape), point.dtype)
    expect_close(found, point.square() * direction, call, 1e-4)


def expect_lean(answer: Any, draw: Callable[..., torch.Tensor]) -> None:
    few, many = 20, 200
    counts = [len(operations(answer.hessian_vector_product, neighbours, draw(n), draw(n))) for n in (few, many)]
    expect(
        counts[0] == counts[1],
        f"right, but {counts[0]} operations for n = {few} and {counts[1]} for n = {many}: it still goes through the weights",
    )
    largest = largest_made(answer.hessian_vector_product, neighbours, draw(many), draw(many))
    expect(
        largest <= 10 * many,
        f"right, but for n = {many} it makes a tensor of {largest:,} numbers, and n² is the Hessian again",
    )
    n = 10_000
    point, direction, axis = draw(n), draw(n), draw(n)
    found = answer.hessian_vector_product(lambda x: x.pow(4).sum() / 12 + (axis @ x).square() / 2, point, direction)
    right = point.square() * direction + axis * (axis @ direction)
    expect_close(found, right, f"hessian_vector_product with n = {n:,}: the result", 1e-6)


def along(loss_of: Loss, point: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A leaf at the point and the gradient there, with its graph."""
    leaf = point.detach().requires_grad_()
    return leaf, torch.autograd.grad(loss_of(leaf), leaf, create_graph=True)[0]


def goes_row_by_row(loss_of: Loss, point: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    leaf, gradient = along(loss_of, point)
    rows = [torch.autograd.grad(entry, leaf, retain_graph=True)[0] for entry in gradient]
    return torch.stack(rows) @ direction.detach()


def asks_for_all_rows_at_once(loss_of: Loss, point: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    leaf, gradient = along(loss_of, point)
    each = torch.eye(len(point), dtype=point.dtype)
    return torch.autograd.grad(gradient, leaf, each, is_grads_batched=True)[0] @ direction.detach()


def multiplies_afterwards(loss_of: Loss, point: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    leaf, gradient = along(loss_of, point)
    return torch.autograd.grad(gradient.sum(), leaf)[0] * direction.detach()


@torch.no_grad()
def takes_a_difference(loss_of: Loss, point: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    step = 1e-3 if point.dtype == torch.float32 else 1e-6
    with torch.enable_grad():
        ahead, behind = (along(loss_of, point + side * step * direction)[1] for side in (1, -1))
    return (ahead - behind) / (2 * step)


def calls_backward(loss_of: Loss, point: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    leaf, gradient = along(loss_of, point)
    (gradient @ direction.detach()).backward()
    assert leaf.grad is not None
    return leaf.grad


def keeps_the_graph(loss_of: Loss, point: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    leaf, gradient = along(loss_of, point)
    return torch.autograd.grad(gradient, leaf, direction, create_graph=True)[0]


WRONG = {
    "goes row by row": ({"hessian_vector_product": goes_row_by_row}, "it still goes through the weights"),
    "asks for all rows at once": ({"hessian_vector_product": asks_for_all_rows_at_once}, "tensor of 40,000 numbers"),
    "multiplies afterwards": ({"hessian_vector_product": multiplies_afterwards}, "[0] is 6 and should be 4"),
    "takes a difference of gradients": ({"hessian_vector_product": takes_a_difference}, "two gradients is rounding"),
    "calls backward": ({"hessian_vector_product": calls_backward}, "filled the .grad of a tensor that the loss uses"),
    "keeps the graph": ({"hessian_vector_product": keeps_the_graph}, "returned a tensor with a graph"),
}
