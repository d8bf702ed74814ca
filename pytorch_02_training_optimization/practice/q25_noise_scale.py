"""How large a batch is worth it? The norms in your log know.

A batch's mean gradient is the true gradient G plus noise, and the noise has the variance V / batch size, summed over all
weights. V / |G|² is the gradient noise scale (McCandlish et al. 2018): far below it a larger batch saves steps, far
above it only time is lost. One batch size cannot tell G from noise. Two can, and whoever accumulates has two.
"""

import torch


def noise_scale(part_norms: torch.Tensor, step_norms: torch.Tensor, part_size: int) -> float:
    """V / |G|², estimated from the gradient norms of S steps, each accumulated over K parts.

    part_norms: (S, K) float32, the length of each part's gradient, that of the mean loss of its part_size samples
    step_norms: (S,) float32, the length of the mean of these K gradients; K is 2 or more
    part_size: samples in a part, 1 or more

    The expected squared length of a gradient is |G|² + V / (its samples). Average over steps before you divide by
    anything that was measured: a single step's |G|² is often negative. Where the averaged |G|² is not above 0, the batches
    are too small to see G at all: return infinity. Lengths may be as large as 1e30.

    Example: samples whose gradient is 0 or 2, equally often, so G is 1, V is 1 and the noise scale 1. All pairs of them,
    in parts of one sample:

        noise_scale(torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]]), torch.tensor([0.0, 1.0, 1.0, 2.0]), 1)
        returns 1.0
    """
    # TODO
    raise NotImplementedError
