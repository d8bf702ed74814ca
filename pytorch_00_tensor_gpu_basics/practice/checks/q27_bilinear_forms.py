"""Whole numbers in floats, so that every order of summation gives the same; then the largest tensor in between is counted."""

import random
from typing import Any

from shared.practice import expect
from shared.traps import expect_tensor, largest_made, operations

import torch

ROWS = "x goes with the rows of the matrix, z with its columns"
Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape: int) -> torch.Tensor:
        return torch.randint(-3, 4, shape, generator=generator).float()

    def operands(b: int, o: int, i: int, j: int) -> Operands:
        return whole(b, i), whole(o, i, j), whole(b, j)

    b, o, i, j = (draw.randint(2, 7) for _ in range(4))
    x, weight, z = operands(b, o, i, j)
    example = torch.tensor([[1.0, 2]]), torch.tensor([[[1.0, 0], [0, 1]], [[0, 1], [0, 0]]]), torch.tensor([[3.0, 4]])
    one_entry = torch.tensor([[1.0, 2]]), torch.tensor([[[0.0, 10], [0, 0]]]), torch.tensor([[3.0, 5]])
    cases = [
        ("the example", ROWS, example),
        ("one matrix with a single 10 at [0, 1]", ROWS, one_entry),
        ("as many samples as relations", "each sample meets its own z only", operands(3, 3, 2, 2)),
        ("square matrices", ROWS, operands(3, 2, 4, 4)),
        ("odd sizes", "", (x, weight, z)),
        ("one of everything", "", operands(1, 1, 1, 1)),
        ("no sample", "", operands(0, o, i, j)),
        ("transposed views", "", (whole(i, b).t(), whole(j, i, o).permute(2, 1, 0), whole(j, b).t())),
        ("float64 numbers", "", (x.double() / 3, weight.double(), z.double())),
    ]
    for case, reason, arguments in cases:
        expect_scores(answer, case, reason, arguments)
    expect_gradients(answer, (x, weight, z))
    hidden = [name for name in operations(answer.bilinear_forms, *example) if "trilinear" in name]
    expect(not hidden, f"right, but {', '.join(hidden)} chooses the order for you; write it as products of two tensors")
    for sizes in ((64, 7, 3, 5), (64, 7, 5, 3), (64, 3, 7, 5), (64, 5, 7, 3), (64, 3, 5, 7), (64, 5, 3, 7)):
        expect_small(answer, operands(*sizes))
    few = operands(12, 7, 3, 5)
    expect_same_work(answer, "samples", few, operands(15, 7, 3, 5))
    expect_same_work(answer, "relations", few, operands(12, 9, 3, 5))


def oracle(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Everything at once: the definition, with all B * O * I * J products in memory."""
    return (x[:, None, :, None] * weight * z[:, None, None, :]).sum((2, 3))


def sizes_of(x: torch.Tensor, weight: torch.Tensor) -> str:
    return ", ".join(f"{name} = {size}" for name, size in zip("BOIJ", (len(x), *weight.shape), strict=True))


def expect_scores(answer: Any, case: str, reason: str, arguments: Operands) -> None:
    x, weight, _ = arguments
    call = f"bilinear_forms of {case} ({sizes_of(x, weight)})"
    kept = [operand.clone() for operand in arguments]
    right = oracle(*arguments)
    found = answer.bilinear_forms(*arguments)
    expect_tensor(found, call, (len(x), len(weight)), x.dtype)
    unchanged = all(torch.equal(operand, before) for operand, before in zip(arguments, kept, strict=True))
    expect(unchanged, f"{call} changed an operand; the caller still needs it")
    if not torch.allclose(found, right, rtol=1e-12, atol=1e-12):
        sample, relation = (~torch.isclose(found, right, rtol=1e-12, atol=1e-12)).nonzero()[0].tolist()
        values = f"{found[sample, relation].item():.6g} and should be {right[sample, relation].item():.6g}"
        expect(False, f"{call}: y[{sample}, {relation}] is {values}{reason and '; '}{reason}")


def expect_gradients(answer: Any, arguments: Operands) -> None:
    mine, theirs = ([operand.clone().requires_grad_() for operand in arguments] for _ in range(2))
    found = answer.bilinear_forms(*mine)
    expect(found.requires_grad, "the scores do not know what they come from: no gradient can flow back")
    gradients = torch.autograd.grad(found.square().sum(), mine, allow_unused=True)
    right = torch.autograd.grad(oracle(*theirs).square().sum(), theirs)
    for name, gradient, wanted in zip(("x", "weight", "z"), gradients, right, strict=True):
        is_right = gradient is not None and torch.allclose(gradient, wanted, rtol=1e-4, atol=1e-3)
        expect(is_right, f"the scores are right, but the gradient with respect to {name} is not")


def expect_small(answer: Any, arguments: Operands) -> None:
    x, weight, _ = arguments
    o, i, j = weight.shape
    products = {"O * I": o * i, "O * J": o * j, "I * J": i * j}
    smallest = min(products, key=lambda name: products[name])
    most = max(weight.numel(), len(x) * products[smallest])
    largest = largest_made(answer.bilinear_forms, *arguments)
    expect(
        largest <= most,
        f"right, but with {sizes_of(x, weight)} a tensor of {largest:,} numbers stands in between; "
        f"{smallest} is the smallest product, and B times that is {most:,}",
    )


def expect_same_work(answer: Any, of_what: str, few: Operands, many: Operands) -> None:
    less, more = (len(operations(answer.bilinear_forms, *arguments)) for arguments in (few, many))
    sizes = [sizes_of(x, weight) for x, weight, _ in (few, many)]
    expect(
        less == more,
        f"right, but {less} operations with {sizes[0]} and {more} with {sizes[1]}: it goes through the {of_what} one by one",
    )


def in_order(first: str, second: str, *positions: int) -> dict[str, object]:
    """Two operands by the formula `first`, then the third by `second`."""

    def bilinear_forms(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        a, b, c = ((x, weight, z)[position] for position in positions)
        return torch.einsum(second, torch.einsum(first, a, b), c)

    return {"bilinear_forms": bilinear_forms}


def multiplies_everything(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return (x[:, None, :, None] * weight[None] * z[:, None, None, :]).sum((2, 3))


def turns_the_matrices(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bi,oij,bj->bo", x, weight if weight.shape[1] != weight.shape[2] else weight.mT, z)


def mixes_the_samples(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bi,oij,cj->bo", x, weight, z)


def goes_through_the_relations(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return torch.stack([((x @ matrix) * z).sum(1) for matrix in weight], dim=1)


def calls_the_library(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.bilinear(x, z, weight)


WRONG = {
    "multiplies everything first": ({"bilinear_forms": multiplies_everything}, "a tensor of 6,720 numbers"),
    "always starts with x and the weight": (in_order("bi,oij->boj", "boj,bj->bo", 0, 1, 2), "I * J is the smallest"),
    "always starts with z and the weight": (in_order("oij,bj->boi", "boi,bi->bo", 1, 2, 0), "I * J is the smallest"),
    "always makes all pairs": (in_order("bi,bj->bij", "bij,oij->bo", 0, 2, 1), "O * J is the smallest"),
    "goes through the relations": (
        {"bilinear_forms": goes_through_the_relations},
        "it goes through the relations one by one",
    ),
    "calls the library": ({"bilinear_forms": calls_the_library}, "chooses the order for you"),
    "turns the matrices": ({"bilinear_forms": turns_the_matrices}, "x goes with the rows"),
    "mixes the samples of a batch": ({"bilinear_forms": mixes_the_samples}, "each sample meets its own z"),
}
