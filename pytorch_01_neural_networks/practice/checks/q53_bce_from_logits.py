"""The oracle is PyTorch's own loss in float64, in value and gradient; what it is made of is watched at the end."""

from typing import Any

from shared.practice import expect
from shared.traps import expect_tensor, operations

import torch
import torch.nn.functional as F

FINISHED = ("softplus", "log_sigmoid", "binary_cross_entropy", "cross_entropy")
FORMATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def share(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    one, three = torch.tensor(1.0), torch.tensor(3.0)
    hard = torch.tensor([1.0, 0.0, 0.0, 1.0])
    expect_right(answer, "the example", torch.tensor([0.0, 0.0, 100.0, -100.0]), hard, three)
    expect_right(answer, "ordinary logits", 3 * normal(5, 4), share(5, 4).round(), one.double())
    expect_right(answer, "targets between 0 and 1", 3 * normal(5, 4), share(5, 4), one.double())
    expect_right(answer, "one pos_weight for each class", 3 * normal(5, 4), share(5, 4), normal(4).exp())
    expect_right(answer, "one pos_weight for all", normal(2, 3, 4), share(2, 3, 4), 2.5 * one.double())
    expect_right(answer, "a transposed view", normal(4, 5).t(), share(5, 4), normal(4).exp())
    expect_right(answer, "a single logit", normal(), share(), one.double())
    expect_right(answer, "no logit", normal(0, 3), share(0, 3), normal(3).exp())
    edges = torch.tensor([-1000.0, -100.0, -60.0, -17.0, -9.0, -1.0, 0.0, 1.0, 9.0, 17.0, 60.0, 100.0, 1000.0])
    for dtype in FORMATS:
        name = str(dtype).removeprefix("torch.")
        for kind, y in (
            ("a no", torch.zeros(13)),
            ("a yes", torch.ones(13)),
            ("a target of 0.25", torch.full((13,), 0.25)),
        ):
            expect_right(answer, f"{kind} in {name}", edges.to(dtype), y.to(dtype), three.to(dtype))
    with torch.no_grad():
        used = [
            name
            for name in operations(answer.bce_with_logits, edges, torch.ones(13), three)
            if name.startswith(FINISHED)
        ]
    expect(not used, f"right, but {', '.join(used)} does the work; write out what it computes")


def expect_right(answer: Any, case: str, z: torch.Tensor, y: torch.Tensor, pos_weight: torch.Tensor) -> None:
    call = f"bce_with_logits of {case}, shape {tuple(z.shape)}"
    leaf = z.clone().requires_grad_()
    kept = [x.clone() for x in (y, pos_weight)]
    losses = answer.bce_with_logits(leaf, y, pos_weight)
    expect_tensor(losses, call, tuple(z.shape), z.dtype)
    for name, x, before in zip(("z", "y", "pos_weight"), (leaf, y, pos_weight), (z, *kept), strict=True):
        expect(torch.equal(x.detach(), before), f"{call} changed {name}; others still read that tensor")
    right, right_slopes = by_library(z, *kept)
    expect_near(losses.detach(), right, z, y, pos_weight, f"{call}: the loss")
    expect(losses.requires_grad, f"{call} has lost the graph: the losses do not require a gradient")
    (slopes,) = torch.autograd.grad(losses.sum(), leaf, allow_unused=True)
    expect(slopes is not None, f"{call}: no gradient reaches z")
    expect_near(slopes, right_slopes, z, y, pos_weight, f"{call}: the value is right, but the slope")


def by_library(z: torch.Tensor, y: torch.Tensor, pos_weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = z.detach().double().requires_grad_()
    losses = F.binary_cross_entropy_with_logits(
        leaf, y.double(), pos_weight=pos_weight.double().expand(z.shape), reduction="none"
    )
    (slopes,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), slopes


def expect_near(
    found: torch.Tensor, right: torch.Tensor, z: torch.Tensor, y: torch.Tensor, pos_weight: torch.Tensor, what: str
) -> None:
    """Within a few roundings in the dtype of z, of the largest part of the sum."""
    parts = pos_weight.double() * y.double() + (1 - y.double())
    allowed = 8 * max(torch.finfo(z.dtype).eps, 1e-12) * (right.abs() + parts)
    apart = ~((found.double() - right).abs() <= allowed)  # NaN is apart too
    if apart.any():
        at = tuple(apart.nonzero()[0].tolist())
        place = f"at z = {z[at].item():.5g}, y = {y[at].item():.3g}, pos_weight = {pos_weight.expand(z.shape)[at].item():.3g}"
        expect(False, f"{what} {place} is {found[at].item():.6g} and should be {right[at].item():.6g}")


def as_in_the_book(z: torch.Tensor, y: torch.Tensor, pos_weight: torch.Tensor) -> torch.Tensor:
    p = torch.sigmoid(z)
    return -pos_weight * y * p.log() - (1 - y) * (1 - p).log()


def clamps_the_probability(z: torch.Tensor, y: torch.Tensor, pos_weight: torch.Tensor) -> torch.Tensor:
    p = torch.sigmoid(z).clamp(1e-7, 1 - 1e-7)
    return -pos_weight * y * p.log() - (1 - y) * (1 - p).log()


def softplus_with_a_kink(z: torch.Tensor) -> torch.Tensor:
    return torch.relu(z) + torch.log1p(torch.exp(-z.abs()))


def has_a_kink(z: torch.Tensor, y: torch.Tensor, pos_weight: torch.Tensor) -> torch.Tensor:
    return pos_weight * y * softplus_with_a_kink(-z) + (1 - y) * softplus_with_a_kink(z)


def softplus_of_two_branches(z: torch.Tensor) -> torch.Tensor:
    return torch.where(z > 0, z + torch.log1p(torch.exp(-z)), torch.log1p(torch.exp(z)))


def chooses_between_formulas(z: torch.Tensor, y: torch.Tensor, pos_weight: torch.Tensor) -> torch.Tensor:
    return pos_weight * y * softplus_of_two_branches(-z) + (1 - y) * softplus_of_two_branches(z)


def smooth_softplus(z: torch.Tensor) -> torch.Tensor:
    return torch.logaddexp(z, torch.zeros_like(z))


def rounds_the_targets(z: torch.Tensor, y: torch.Tensor, pos_weight: torch.Tensor) -> torch.Tensor:
    return torch.where(y > 0.5, pos_weight * smooth_softplus(-z), smooth_softplus(z))


def weighs_both(z: torch.Tensor, y: torch.Tensor, pos_weight: torch.Tensor) -> torch.Tensor:
    return pos_weight * (y * smooth_softplus(-z) + (1 - y) * smooth_softplus(z))


def leaves_half_precision(z: torch.Tensor, y: torch.Tensor, pos_weight: torch.Tensor) -> torch.Tensor:
    z, y, pos_weight = z.double(), y.double(), pos_weight.double()
    return pos_weight * y * smooth_softplus(-z) + (1 - y) * smooth_softplus(z)


def takes_the_mean(z: torch.Tensor, y: torch.Tensor, pos_weight: torch.Tensor) -> torch.Tensor:
    return (pos_weight * y * smooth_softplus(-z) + (1 - y) * smooth_softplus(z)).mean()


def calls_the_library(z: torch.Tensor, y: torch.Tensor, pos_weight: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(z, y, pos_weight=pos_weight, reduction="none")


WRONG = {
    "is written as in the book": ({"bce_with_logits": as_in_the_book}, "at z = 100, y = 0, pos_weight = 3 is "),
    "clamps the probability": ({"bce_with_logits": clamps_the_probability}, "and should be 100"),
    "has a kink at 0": ({"bce_with_logits": has_a_kink}, "the slope at z = 0, y = 1, pos_weight = 3 is 0"),
    "chooses between two finished formulas": ({"bce_with_logits": chooses_between_formulas}, "is nan and should be "),
    "rounds the targets": ({"bce_with_logits": rounds_the_targets}, "targets between 0 and 1"),
    "weighs yes and no alike": ({"bce_with_logits": weighs_both}, "y = 0, pos_weight = 3"),
    "leaves half precision": ({"bce_with_logits": leaves_half_precision}, "dtype float32"),
    "takes the mean": ({"bce_with_logits": takes_the_mean}, "shape ()"),
    "calls the library": ({"bce_with_logits": calls_the_library}, "write out what it computes"),
}
