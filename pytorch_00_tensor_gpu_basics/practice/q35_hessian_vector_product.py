"""Curvature without the matrix.

How sharply does the loss bend in one direction? That takes the Hessian, all second derivatives, times a vector. The
function below is right. Its Hessian has n² numbers and costs n backward passes: with ten thousand weights 800 MB in
float64, with a million 8 TB. The product alone has n numbers.
"""

from collections.abc import Callable

import torch


def hessian_vector_product(
    loss_of: Callable[[torch.Tensor], torch.Tensor], point: torch.Tensor, direction: torch.Tensor
) -> torch.Tensor:
    """H v: the Hessian H of the loss at `point`, times v = `direction`.

    loss_of: takes a tensor of shape (n,) and returns a scalar, by operations that can be differentiated twice; it may
        use other tensors that require gradients
    point, direction: (n,) float32 or float64; views, and tensors that require a gradient, are welcome; not changed
    Returns (n,), without a graph. No .grad of any tensor is touched.

    Wanted: the same numbers up to rounding (so no differences of two gradients), with a number of operations that does
    not depend on n, and no tensor of more than a few times n numbers.

    Example: the loss x[0]² x[1] has at [1, 2] the Hessian [[4, 2], [2, 0]], so the direction [1, 0] gives [4, 2].
    """
    # TODO: never make the Hessian.
    hessian = torch.autograd.functional.hessian(loss_of, point)
    return hessian @ direction.detach()
