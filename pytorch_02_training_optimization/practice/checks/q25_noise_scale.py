"""Every batch that can be drawn from a few samples is drawn once, so the average is exact and V / |G|² is known."""

import itertools
import math
from typing import Any

from shared.practice import expect
from shared.traps import shown
from shared.units import significant

import torch


def norms_of_all_batches(samples: torch.Tensor, part_size: int, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(S, K) and (S,) for all S batches that can be drawn, with replacement, from samples (N, D)."""
    batches = torch.tensor(list(itertools.product(range(len(samples)), repeat=part_size * parts)))
    rows = samples[batches].view(len(batches), parts, part_size, -1).mean(2)
    return rows.norm(dim=2).float(), rows.mean(1).norm(dim=1).float()


def true_scale(samples: torch.Tensor) -> float:
    return (samples.var(0, correction=0).sum() / samples.mean(0).square().sum()).item()


def expect_scale(answer: Any, part_norms: torch.Tensor, step_norms: torch.Tensor, part_size: int, wanted: float,
                 call: str, reason: str) -> None:  # fmt: skip
    found = answer.noise_scale(part_norms.clone(), step_norms.clone(), part_size)
    expect(isinstance(found, float), f"{call} returned {shown(found)}; return a float")
    close = found == wanted or math.isclose(found, wanted, rel_tol=1e-3)
    expect(close, f"{call} is {significant(found) if math.isfinite(found) else found} and should be "
                  f"{significant(wanted) if math.isfinite(wanted) else wanted}: {reason}")  # fmt: skip


def check(answer: Any, seed: int) -> None:
    pairs = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    expect_scale(
        answer, *norms_of_all_batches(pairs, 1, 2), 1, 1.0, "noise_scale of the example", "V is 1 and |G| is 1"
    )
    generator = torch.Generator().manual_seed(seed)
    for part_size, parts in ((1, 2), (2, 2), (1, 4), (3, 2), (2, 3)):
        size = part_size * parts
        samples = torch.randn(3, 5, generator=generator, dtype=torch.float64) + 1
        call = f"noise_scale of {parts} parts of {part_size}, all {3**size} batches of 3 samples,"
        norms = norms_of_all_batches(samples, part_size, parts)
        expect_scale(answer, *norms, part_size, true_scale(samples), call,
                     f"|G|² + V / {part_size} is what a part's square is on average, |G|² + V / {size} a step's")  # fmt: skip
        for factor in (1e-3, 1e28):
            scaled = [norm * factor for norm in norms]
            expect_scale(answer, scaled[0], scaled[1], part_size, true_scale(samples),
                         f"noise_scale with all lengths times {factor:g}",
                         "the factor cancels; think of the squares of large numbers in float32")  # fmt: skip
    expect_scale(answer, torch.tensor([[2.0, 0.0]]), torch.tensor([1.0]), 1, math.inf, "noise_scale where |G|² is 0",
                 "no gradient can be seen in the noise")  # fmt: skip
    expect_scale(answer, torch.tensor([[2.0, 2.0]]), torch.tensor([0.5]), 1, math.inf,
                 "noise_scale where |G|² comes out negative", "no gradient can be seen in the noise")  # fmt: skip
    expect_scale(answer, torch.tensor([[0.5, 0.5]]), torch.tensor([0.5]), 1, 0.0, "noise_scale of parts that are all alike",
                 "there is no noise")  # fmt: skip


def with_squares(part_norms: torch.Tensor, step_norms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return part_norms.double().square().mean(1), step_norms.double().square()


def solved(small: Any, large: Any, part_size: int, batch_size: int) -> tuple[Any, Any]:
    return (
        (batch_size * large - part_size * small) / (batch_size - part_size),
        (small - large) / (1 / part_size - 1 / batch_size),
    )


def takes_the_mean_of_quotients(part_norms: Any, step_norms: Any, part_size: int) -> float:
    signal, variance = solved(*with_squares(part_norms, step_norms), part_size, part_size * part_norms.shape[1])
    return (variance / signal).mean().item()


def squares_the_mean_norm(part_norms: Any, step_norms: Any, part_size: int) -> float:
    small, large = part_norms.double().mean().item() ** 2, step_norms.double().mean().item() ** 2
    signal, variance = solved(small, large, part_size, part_size * part_norms.shape[1])
    return variance / signal if signal > 0 else math.inf


def trusts_the_step(part_norms: Any, step_norms: Any, part_size: int) -> float:
    small, large = (square.mean().item() for square in with_squares(part_norms, step_norms))
    _, variance = solved(small, large, part_size, part_size * part_norms.shape[1])
    return variance / large


def forgets_the_size_of_a_part(part_norms: Any, step_norms: Any, part_size: int) -> float:
    small, large = (square.mean().item() for square in with_squares(part_norms, step_norms))
    signal, variance = solved(small, large, 1, part_norms.shape[1])
    return variance / signal if signal > 0 else math.inf


def stays_in_float32(part_norms: Any, step_norms: Any, part_size: int) -> float:
    small, large = part_norms.square().mean().item(), step_norms.square().mean().item()
    signal, variance = solved(small, large, part_size, part_size * part_norms.shape[1])
    return variance / signal if signal > 0 else math.inf


def may_be_negative(part_norms: Any, step_norms: Any, part_size: int) -> float:
    small, large = (square.mean().item() for square in with_squares(part_norms, step_norms))
    signal, variance = solved(small, large, part_size, part_size * part_norms.shape[1])
    return variance / signal if signal else math.inf


WRONG = {
    "the mean of quotients": ({"noise_scale": takes_the_mean_of_quotients}, "noise_scale of the example is"),
    "squares the mean norm": ({"noise_scale": squares_the_mean_norm}, "noise_scale of the example is"),
    "takes the step's gradient for G": ({"noise_scale": trusts_the_step}, "noise_scale of the example is 0.667"),
    "forgets the size of a part": ({"noise_scale": forgets_the_size_of_a_part}, "2 parts of 2"),
    "stays in float32": ({"noise_scale": stays_in_float32}, "think of the squares of large numbers"),
    "returns a negative scale": ({"noise_scale": may_be_negative}, "comes out negative"),
}
