"""Every line in place, and one temporary that dies before the next is made.

lerp_ and addcmul_ update the states, mul_ decays the weight, addcdiv_ divides and adds without storing the quotient.
The corrections by 1 - beta**step are numbers: they are moved to where a number is taken anyway. Only the root needs a
tensor of its own, since `square` must survive. It has no name: a name in a loop keeps its tensor until the next turn has
made a new one, so two would be alive. With torch.optim the same choice is yours: foreach=True, its default on a GPU,
takes all parameters at once and needs temporaries for all of them; foreach=False goes one by one as here; fused=True
keeps the root in registers and needs none.
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
    step_size = lr / (1 - beta1**step)
    root_correction = (1 - beta2**step) ** 0.5
    for parameter, average, square in zip(parameters, averages, squares, strict=True):
        if parameter.grad is None:
            continue
        average.lerp_(parameter.grad, 1 - beta1)
        square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        parameter.mul_(1 - lr * weight_decay)
        parameter.addcdiv_(average, square.sqrt().div_(root_correction).add_(1e-8), value=-step_size)
