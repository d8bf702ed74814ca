"""Two equations with two unknowns: |G|² + V / b for a part of b samples, |G|² + V / B for the B of a step.

Their difference is V times (1 / b - 1 / B), and B times the second minus b times the first leaves (B - b) |G|². Both are
right on average, for any number of steps. Their quotient is not: so average first, over steps and parts, and divide
once. The mean of the quotients of single steps may be anything, since now and then one of them divides by nearly 0.
In float32 a length of 1e30 has no square, so the squares are taken in float64.
"""

import math

import torch


def noise_scale(part_norms: torch.Tensor, step_norms: torch.Tensor, part_size: int) -> float:
    batch_size = part_size * part_norms.shape[1]
    small = part_norms.double().square().mean().item()
    large = step_norms.double().square().mean().item()
    signal = (batch_size * large - part_size * small) / (batch_size - part_size)
    variance = (small - large) / (1 / part_size - 1 / batch_size)
    return variance / signal if signal > 0 else math.inf
