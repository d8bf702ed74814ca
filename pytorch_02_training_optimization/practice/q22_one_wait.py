"""Two hundred waits in every step, to find out whether one number is infinite.

A GradScaler divides every gradient by the scale and looks whether all of them are finite. Written as a loop, the answer
for each tensor goes to Python before the next one is looked at: the GPU finishes, waits for Python, and starts again, as
often as the model has parameters.
"""

from collections.abc import Sequence

import torch


def unscale(gradients: Sequence[torch.Tensor], scale: float) -> bool:
    """Divides each gradient by the scale in place, and returns whether all their numbers were finite.

    gradients: at least one; floating point, all of one dtype, on one device, of any shape and layout, some perhaps
        without elements
    scale: a power of two
    All gradients are divided, whatever is found.

    Wanted: the same, with at most one tensor read by Python (.item(), bool(...), `if tensor`), and no new tensor with
    more numbers than the largest gradient.

    Example: gradients [[8.0, inf]] and [4.0] with scale 4.0 become [[2.0, inf]] and [1.0], and the answer is False.
    """
    # TODO: who needs each of these answers before the end?
    all_finite = True
    for gradient in gradients:
        gradient /= scale
        if not torch.isfinite(gradient).all():
            all_finite = False
    return all_finite
