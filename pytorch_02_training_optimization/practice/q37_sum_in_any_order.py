"""One sum, whoever comes first.

Sixteen workers send a number each, and they are added as they arrive. The log shows another last digit every day, so the
test that compares two runs was made tolerant, and then a real mistake went through it.
"""

import torch


def sum_in_any_order(x: torch.Tensor) -> torch.Tensor:
    """The exact sum of x, rounded to float64 once, and that to float32: the same bits for every order of x.

    x: (N,) float32, finite, also empty (then 0); numbers of any size, also such as cancel. The exact sum is within
        float32's range.
    Returns a float32 tensor without axes. In at most 10 tensor operations, whatever N is.

    Example: sum_in_any_order(torch.tensor([1e30, 1.0, -1e30])) is 1, and so is that of any other order of the three.
    """
    # TODO
    raise NotImplementedError
