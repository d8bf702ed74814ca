"""The oracle is torch.softmax in float64, with zeros where everything is masked; then gradients, then what was called."""

from typing import Any

from shared.practice import expect
from shared.traps import expect_tensor, operations

import torch

INF = float("inf")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
HIGH = "exp(10000) is inf, so the largest score has to become 0 first"
OWN = "far below the maximum of the whole tensor every exp is 0, and 0 / 0 is nan: each row needs its own"
MASKED = "-inf - -inf is nan, and where nothing is left to look at the weights are 0"
WIDEN = "bfloat16 has three digits: widen the scores first, and round once, at the end"
HALF = "float16 ends at 65,504, and so does a sum in float16"


def oracle(scores: torch.Tensor, dim: int) -> torch.Tensor:
    is_masked = (scores == -INF).all(dim, keepdim=True)
    return scores.double().masked_fill(is_masked, 0).softmax(dim).masked_fill(is_masked, 0)


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    apart = torch.tensor([1e4, -1e4, 0.0])[:, None]
    causal = draw(5, 5).masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -INF)
    padded = draw(3, 4)
    padded[1] = -INF
    batch = 3 * draw(2, 3, 5, 7)
    batch[1, :, :, 4] = -INF
    cases = [
        ("[1, 2, 3]", "the weights add up to 1", torch.tensor([1.0, 2, 3]), 0),
        ("a matrix", "along its rows", draw(3, 4), 1),
        ("a matrix", "along its columns", draw(3, 3), 0),
        ("[10000, 9999]", HIGH, torch.tensor([1e4, 9999]), 0),
        ("[10000, -10000]", HIGH, torch.tensor([1e4, -1e4]), 0),
        ("rows around 1e4, -1e4 and 0", OWN, draw(3, 4) + apart, 1),
        ("columns around 1e4, -1e4 and 0", OWN, (draw(3, 4) + apart).t(), -2),
        ("a row around -1e10", "these scores are low and not masked", torch.full((1, 4), -1e10), 1),
        ("a causal mask", "a score of -inf has the weight 0", causal, -1),
        ("a batch whose second row is masked", MASKED, padded, 1),
        ("four axes, one column masked along the third", MASKED, batch, 2),
        ("a batch that is masked entirely", MASKED, torch.full((2, 3), -INF), 0),
        ("one score", "it has the weight 1", torch.tensor([[-5.0], [-INF]]), 1),
        ("no row", "there is nothing to do", draw(0, 4), 1),
        ("float64 scores", "float64 has 16 digits", 9 * draw(4, 6).double(), -1),
        ("bfloat16 scores", WIDEN, (9 * draw(4, 6)).bfloat16(), 1),
        ("float16 scores around 1e4", HALF, (3 * draw(3, 5) + 1e4).half(), 1),
        ("70,000 float16 scores of 0", HALF, torch.zeros(70_000, dtype=torch.float16), 0),
    ]
    for case, reason, scores, dim in cases:
        expect_weights(answer, case, reason, scores, dim)
    expect_gradient(answer, padded, causal[:3, :4] + apart)
    called = [name for name in operations(answer.softmax, draw(3, 4), 1) if "softmax" in name or "logsumexp" in name]
    expect(not called, f"right, but it calls {', '.join(called)}; write it out in exp, max and sum")


def expect_weights(answer: Any, case: str, reason: str, scores: torch.Tensor, dim: int) -> None:
    call = f"softmax of {case}, dim {dim}"
    kept = scores.clone()
    right = oracle(kept, dim)
    found = answer.softmax(scores, dim)
    expect_tensor(found, call, tuple(right.shape), kept.dtype)
    expect(torch.equal(scores, kept), f"{call} changed the scores; the caller still needs them")
    limits = torch.finfo(kept.dtype)
    smallest = 4 * limits.tiny * limits.eps  # a few steps of the numbers nearest to zero
    apart = ~torch.isclose(found.detach().double(), right, rtol=TOLERANCE[kept.dtype], atol=smallest)
    if apart.any():
        index = tuple(apart.nonzero()[0].tolist())
        digits = 10 if kept.dtype == torch.float64 else 5
        is_, should = (f"{weights[index].item():.{digits}g}" for weights in (found, right))
        place = f"[{', '.join(map(str, index))}]"
        expect(False, f"{call}: the weight at {place} is {is_} and should be {should}; {reason}")


def expect_gradient(answer: Any, padded: torch.Tensor, apart: torch.Tensor) -> None:
    for case, scores in (("a batch whose second row is masked", padded), ("rows around 1e4, -1e4 and 0", apart)):
        upstream = torch.arange(1.0, 1 + scores.numel()).reshape(scores.shape)
        leaf, exact = scores.clone().requires_grad_(), scores.double().requires_grad_()
        found = answer.softmax(leaf, 1)
        expect(found.requires_grad, "the weights do not know that they come from the scores: no gradient can flow back")
        (gradient,) = torch.autograd.grad((found * upstream).sum(), leaf)
        (right,) = torch.autograd.grad((oracle(exact, 1) * upstream).sum(), exact)
        wrong = ~torch.isclose(gradient.double(), right, rtol=1e-4, atol=1e-5)
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            value = gradient[row, column].item()
            late = "; a nan that is replaced at the end still meets the gradient, and 0 x nan is nan"
            expect(
                False,
                f"softmax of {case}: the weights are right, but the gradient at [{row}, {column}] is {value:.5g} and "
                f"should be {right[row, column].item():.5g}{late if value != value else ''}",
            )


def exponentiates(scores: torch.Tensor, dim: int) -> torch.Tensor:
    weights = scores.exp()
    return weights / weights.sum(dim, keepdim=True)


def subtracts_the_maximum_of_all(scores: torch.Tensor, dim: int) -> torch.Tensor:
    weights = (scores - (scores.max() if scores.numel() else 0)).exp()
    return weights / weights.sum(dim, keepdim=True)


def forgets_masked_rows(scores: torch.Tensor, dim: int) -> torch.Tensor:
    weights = (scores.double() - scores.double().amax(dim, keepdim=True)).exp()
    return (weights / weights.sum(dim, keepdim=True)).to(scores.dtype)


def replaces_the_nan(scores: torch.Tensor, dim: int) -> torch.Tensor:
    return forgets_masked_rows(scores, dim).nan_to_num(0)


def stays_in_half_precision(scores: torch.Tensor, dim: int) -> torch.Tensor:
    weights = (scores - scores.amax(dim, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)).exp()
    return weights / weights.sum(dim, keepdim=True).clamp(min=1)


def adds_up_in_half_precision(scores: torch.Tensor, dim: int) -> torch.Tensor:
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    weights = (wide - wide.amax(dim, keepdim=True).clamp(min=torch.finfo(wide.dtype).min)).exp().to(scores.dtype)
    return weights / weights.sum(dim, keepdim=True).clamp(min=1)


def calls_the_library(scores: torch.Tensor, dim: int) -> torch.Tensor:
    is_masked = (scores == -INF).all(dim, keepdim=True)
    return scores.masked_fill(is_masked, 0).softmax(dim).masked_fill(is_masked, 0)


WRONG = {
    "exponentiates the scores themselves": ({"softmax": exponentiates}, "exp(10000) is inf"),
    "subtracts the maximum of all": ({"softmax": subtracts_the_maximum_of_all}, "each row needs its own"),
    "forgets rows that are masked": ({"softmax": forgets_masked_rows}, "nothing is left to look at the weights are 0"),
    "replaces the nan at the end": ({"softmax": replaces_the_nan}, "a nan that is replaced at the end still meets"),
    "stays in half precision": ({"softmax": stays_in_half_precision}, "widen the scores first"),
    "adds up in half precision": ({"softmax": adds_up_in_half_precision}, "so does a sum in float16"),
    "calls the library": ({"softmax": calls_the_library}, "write it out in exp, max and sum"),
}
