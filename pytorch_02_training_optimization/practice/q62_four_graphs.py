"""Compiled, this loss is four graphs, and the compiled training is slower than the plain one.

The batches come in a buffer of fixed size, of which only some rows are used; what the others hold is left over from
earlier batches, NaN included. So that one wild row cannot rule the step, all errors are shrunk by one factor until the
largest is `limit`. The factor goes into the log.
"""

import torch


def bounded_loss(
    prediction: torch.Tensor, target: torch.Tensor, used: torch.Tensor, limit: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean squared error of the used rows, shrunk to `limit`, and the factor by which they were shrunk.

    prediction, target: (B, C), floating point
    used: (B,), bool, True for one row at least; the other rows may hold anything
    limit: more than 0
    Returns two tensors without dimensions, of prediction's dtype. The factor is 1 where no error is above the limit; to
    the gradient it is a constant. Prints nothing: the caller does that.

    Wanted: the numbers and gradients of the lines below, in one graph that serves every batch of the same shape.
    """
    # TODO: which lines want a number, or a shape, that is not there yet?
    error = (prediction - target)[used]
    largest = error.abs().max().item()
    factor = 1.0
    if largest > limit:
        factor = limit / largest
    print(f"{len(error)} rows, shrunk by {factor:.3f}")
    return (error * factor).square().mean(), factor
