"""Sixty all-reduces of a few hundred bytes, and every one of them waits for the slowest rank.

A call costs tens of microseconds before its first byte moves, whatever it carries. A network of many small tensors, biases
and norms, spends its step in calls. The averages below are right; send them in fewer pieces.
"""

from collections.abc import Callable, Sequence

import torch


def average_gradients(
    parameters: Sequence[torch.Tensor],
    all_reduce: Callable[[torch.Tensor], None],
    world_size: int,
    bucket_bytes: int,
) -> None:
    """Puts the mean over all ranks into every .grad, in place. Each rank runs this after backward().

    parameters: in the same order in every rank, perhaps none; of several dtypes, and not all with contiguous gradients. Where
        .grad is None it is so in every rank, and stays so
    all_reduce(x): writes the sum of x over all ranks into x, a contiguous tensor, when every rank has called it

    Wanted: the same means in the tensors that .grad has now, from fewer calls. No call carries more than bucket_bytes, but for
    a gradient that alone is larger and goes by itself. No byte is sent that no gradient has. And no more calls than you need
    when you go through the parameters from one end to the other and, for each dtype, send what you have gathered only when
    the next gradient would not fit.

    Example: three float32 gradients of 100 numbers each with bucket_bytes=800 go in two calls, of 200 and 100 numbers.
    """
    # TODO: which gradients could have travelled together?
    for parameter in parameters:
        if parameter.grad is not None:
            gradient = parameter.grad.contiguous()
            all_reduce(gradient)
            parameter.grad.copy_(gradient / world_size)
