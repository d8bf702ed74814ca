"""The step that needs more memory than the model has left.

Training fits until the optimizer steps: forward and backward are done, and then AdamW, written as in the paper, asks
for half a dozen new tensors for each parameter. For an embedding of 100,000 words by 4,096 in float32 each of them takes
1.6 GB.
"""

from collections.abc import Sequence

import torch


@torch.no_grad()
def adamw_step(
    parameters: Sequence[torch.Tensor],
    averages: Sequence[torch.Tensor],
    squares: Sequence[torch.Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """One step of AdamW, number `step` counted from 1, in place.

    parameters: one or more floating-point tensors of any shape, with gradients in .grad; where .grad is None, parameter
        and state stay as they are
    averages, squares: for each parameter a tensor of its shape, the running average of gradients and of their squares
    All three are changed in place, the gradients are not.

    Wanted: the same numbers up to rounding, while at no moment the new tensors together are larger than the largest
    parameter.

    Example: parameter [1.0] with gradient [4.0], both states 0, step 1, lr 0.1 and weight_decay 0: the parameter becomes
    0.9, since the first step has length lr whatever the gradient.
    """
    # TODO: count the tensors of parameter size that are alive in the last line.
    for parameter, average, square in zip(parameters, averages, squares, strict=True):
        if parameter.grad is None:
            continue
        average.copy_(beta1 * average + (1 - beta1) * parameter.grad)
        square.copy_(beta2 * square + (1 - beta2) * parameter.grad * parameter.grad)
        corrected_average = average / (1 - beta1**step)
        corrected_square = square / (1 - beta2**step)
        direction = corrected_average / (corrected_square.sqrt() + 1e-8)
        parameter.copy_(parameter - lr * (direction + weight_decay * parameter))
