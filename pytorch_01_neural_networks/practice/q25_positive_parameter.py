"""A number that must stay positive, and starts where you want it.

A standard deviation, a rate, the step size inside a state space model: all are learned, and none may reach zero. The usual
way is to learn any number x and to use softplus(x) = log(1 + e^x), a ReLU with a round corner. To start at y = 0.01 you need
the way back. Both formulas are one line, and as they stand in the book both break.
"""

import torch


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + e^x) for each number: any shape, float32 or float64 → the same shape and dtype.

    Right to the rounding of the dtype, in relative terms, for every x from -80 up to the largest number, and so is the
    gradient that autograd finds through it, 1 / (1 + e^-x). x is not changed.

    Example: softplus(torch.tensor([-50.0, 0.0, 100.0])) is [1.93e-22, 0.6931, 100], with gradients [1.93e-22, 0.5, 1].
    """
    # TODO: here, and in the inverse below.
    raise NotImplementedError


def inverse_softplus(y: torch.Tensor) -> torch.Tensor:
    """The x with softplus(x) = y, for each y from 1e-30 up to the largest number: the same shape and dtype.

    Right to the rounding of the dtype, of x or of 1, whichever is larger, and so is its gradient, 1 / (1 - e^-y).

    Example: inverse_softplus(torch.tensor([0.01, 100.0])) is [-4.6002, 100].
    """
    raise NotImplementedError
