"""Softmax: where each number format overflows, the axis it sums over, and what temperature does."""

import math

from shared.agreement import agreement
from shared.lesson import Lesson

import torch


def softmax_that_overflows(x: torch.Tensor) -> torch.Tensor:
    """The mistake: the formula as it stands in the book. e to the power of a large score is inf, and inf / inf is NaN."""
    return x.exp() / x.exp().sum(dim=-1, keepdim=True)


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Of the last axis. Subtracting the largest score cancels out, and leaves nothing above e⁰ = 1."""
    powers = (x - x.amax(dim=-1, keepdim=True)).exp()
    return powers / powers.sum(dim=-1, keepdim=True)


def softmax_over_the_batch(x: torch.Tensor) -> torch.Tensor:
    """The mistake: the first axis is the batch, so the samples compete for each class."""
    return x.softmax(dim=0)


def first_overflow(dtype: torch.dtype, device: torch.device) -> float:
    """The smallest score, in steps of 1/64, at which softmax by the book is not finite for one score alone."""
    scores = torch.arange(0, 128, 1 / 64).to(device, dtype)
    lost = ~softmax_that_overflows(scores[:, None]).isfinite().flatten()
    return scores[lost][0].item()


def show_softmax_overflow(lesson: Lesson) -> None:
    lesson.section(
        "Softmax: where it overflows, and over which axis",
        "Softmax turns scores into shares: e to the power of each, divided by their sum. The formula as it stands "
        "works until a score passes the logarithm of the largest number of its format; after that it is NaN. And it "
        "needs an axis, which no error message will choose for you.",
    )
    formats = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    rows, apart = [], []
    for name, dtype in formats.items():
        predicted, found = math.log(torch.finfo(dtype).max), first_overflow(dtype, lesson.device)
        rows.append({"format": name, "largest number": f"{torch.finfo(dtype).max:.3g}",
                     "its logarithm": f"{predicted:.2f}", "first NaN at a score of": f"{found:.2f}"})  # fmt: skip
        apart.append(abs(found - predicted) / (1 / 64 + predicted * torch.finfo(dtype).eps))
    lesson.table(rows)
    lesson.check("softmax by the book ends at the logarithm of the largest", max(apart) <= 1.5,
                 f"all three, within {max(apart):.1f} steps")  # fmt: skip
    x = 1000 * torch.randn(37, 11)
    found_agreement = agreement(softmax, lambda x: x.softmax(-1), x)
    lesson.check("without the largest score it is PyTorch's, for any scores", found_agreement.within(1e-5),
                 f"up to {x.abs().max():.0f}: {found_agreement}")  # fmt: skip
    scores = torch.randn(32, 10, device=lesson.device)
    sums = softmax_over_the_batch(scores).sum(dim=1)
    lesson.check("over the wrong axis it still looks like shares", ((sums - 1).abs() > 1e-3).any(),
                 f"but a sample's sum is anything from {sums.min():.2f} to {sums.max():.2f}")  # fmt: skip
    p = softmax(torch.randn(7, dtype=torch.float64))
    jacobian = torch.diag(p) - torch.outer(p, p)
    logits = p.log().requires_grad_()
    rows_of = [torch.autograd.grad(logits.softmax(0)[i], logits)[0] for i in range(len(p))]
    lesson.check("its slopes are diag(p) - p p^T, and sum to zero",
                 torch.allclose(torch.stack(rows_of), jacobian) and jacobian.sum(dim=1).abs().max() < 1e-12,
                 f"largest sum {jacobian.sum(dim=1).abs().max():.0e}")  # fmt: skip
    lesson.shows(
        f"float16 holds no score above {rows[0]['its logarithm']} without the subtraction, and a network's scores pass "
        "that early. A score that wins takes from the others what it gains: the slopes of each output sum to zero, so "
        "only differences between scores count. Write dim=-1, always, and mean it."
    )


def entropy(p: torch.Tensor) -> float:
    """In bits: 0 where one share is everything, log2(n) where all are equal."""
    return -(p * p.clamp_min(1e-300).log2()).sum().item()


def show_temperature(lesson: Lesson) -> None:
    lesson.section(
        "Temperature: how sure the same scores are",
        "Divide the scores by T before softmax. A small T lets the best take everything, a large one makes all equal; "
        "the order never changes. Language models sample with it, distillation softens with it, calibration fits it.",
    )
    scores = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0], dtype=torch.float64)
    temperatures = (0.1, 0.5, 1.0, 2.0, 10.0)
    shares = {t: softmax(scores / t) for t in temperatures}
    lesson.table(
        [
            {"T": t}
            | {f"score {score:g}": f"{p:.3f}" for score, p in zip(scores.tolist(), shares[t].tolist(), strict=True)}
            | {"entropy (bits)": f"{entropy(shares[t]):.2f}"}
            for t in temperatures
        ]
    )
    bits = [entropy(p) for p in shares.values()]
    lesson.check("the order of the scores stays", all(p.argsort().equal(scores.argsort()) for p in shares.values()),
                 f"at T from {temperatures[0]:g} to {temperatures[-1]:g}")  # fmt: skip
    lesson.check("entropy grows with T, towards log2(5)", bits == sorted(bits) and bits[-1] < math.log2(5),
                 f"{bits[0]:.3f} to {bits[-1]:.2f}, of {math.log2(5):.2f} bits")  # fmt: skip
    half, double = shares[0.5], softmax(scores) ** 2
    lesson.check("T = 1/2 squares the shares and rescales them", torch.allclose(half, double / double.sum()),
                 f"{half[0]:.3f} for the best")  # fmt: skip
    n = lesson.pick(full=100_000, quick=20_000)
    noise = -torch.log(-torch.log(torch.rand(n, len(scores), dtype=torch.float64).clamp_min(1e-300)))
    drawn = torch.bincount((scores / 2 + noise).argmax(dim=1), minlength=len(scores)) / n
    errors = (drawn - shares[2.0]).abs() / (shares[2.0] * (1 - shares[2.0]) / n).sqrt()
    lesson.check("the largest of score/T + Gumbel noise is a draw from it", errors.max() < 5,
                 f"{n:,} draws at T = 2, within {errors.max():.1f} standard errors")  # fmt: skip
    lesson.shows(
        f"the same five scores give the best one {shares[0.1][0]:.3f} at T = 0.1 and {shares[10.0][0]:.3f} at T = 10. "
        "So a softmax output is a share and not a measure of trust: it is as sure as the scores are large, and "
        "training makes them large."
    )
