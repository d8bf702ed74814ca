"""A gradient norm that is infinite on good days and zero on quiet ones.

Clipping divides all gradients by their common norm when it is too large. In float16 this one sends a healthy model
to zero: gradients / inf. And when the gradients are small, it reports that there are none.
"""

from collections.abc import Sequence

import torch


def gradient_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The square root of the sum of all squares, over all tensors together.

    gradients: at least one tensor of any shape in float16, bfloat16 or float32, not all of one dtype; all on one
        device; they are not changed
    Returns a float32 tensor of no dimension on that device (a Python float would make the GPU wait), right to 0.1 %.

    Example: [3.0] and [[4.0]] have the norm 5.0.
    """
    # TODO: try [300.0] and [0.0001] in float16, and 1,000 times [1.0] in bfloat16; repair it.
    total = torch.zeros((), dtype=gradients[0].dtype, device=gradients[0].device)
    for gradient in gradients:
        total += (gradient * gradient).sum()
    return total.sqrt().float()
