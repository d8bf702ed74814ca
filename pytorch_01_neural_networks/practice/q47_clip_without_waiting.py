"""Three hundred waits in every step, to find out that nothing is to be clipped.

A GPU works through a queue that Python fills ahead of it. Whoever asks for a number waits until the queue is empty, and the GPU
then waits for the next launch. This function asks once for each tensor, and once more at the end. What it does is right, and
more than torch.nn.utils.clip_grad_norm_ does: a batch with a broken number is skipped, instead of ending the training.
"""

from collections.abc import Iterable

import torch


@torch.no_grad()
def clip_or_skip(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Limits the norm of all gradients together, in place, and returns what it was before.

    parameters: those with .grad None are left out; it may be a generator. Gradients are float32, float16 or bfloat16.
    The norm is the root of the sum of all squares, a float32 tensor without dimensions on the gradients' device (0 on the CPU,
    if there are none). A float16 gradient can have a norm far beyond 65,504, the largest float16, and is then clipped like
    any other.
    - norm above max_norm: every gradient is multiplied by max_norm / norm (or max_norm / (norm + 1e-6), as PyTorch has it)
    - up to max_norm, 0 too: they stay as they are
    - norm not finite, since a gradient holds inf or nan: every number of every gradient becomes 0

    Wanted: the same without a single wait, and without a new tensor as large as a gradient.

    Example: gradients [3.0] and [4.0] with max_norm 1 become [0.6] and [0.8], and 5.0 is returned.
    """
    # TODO: which lines need a number in Python, and what could stand there in its place?
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = sum(gradient.float().square().sum().item() for gradient in gradients)
    norm = torch.tensor(total).sqrt()
    if not norm.isfinite():
        for gradient in gradients:
            gradient.zero_()
    elif norm > max_norm:
        for gradient in gradients:
            gradient.copy_(gradient * (max_norm / norm))
    return norm.to(gradients[0].device) if gradients else norm
