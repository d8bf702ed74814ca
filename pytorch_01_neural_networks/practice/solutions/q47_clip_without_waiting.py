"""A decision about numbers on the device can be made on the device: as a factor, a clamp, a mask.

.item(), float(), an `if` on a tensor, tolist(), nonzero() and indexing with a mask all have to know a number in Python, and
so wait. "If it is too long" becomes min(1, max_norm / norm), which is 1 where nothing is to be done, also for a norm of 0,
where the quotient is infinite. "If it is not finite" cannot become a factor of 0, since inf x 0 and nan x 0 are nan;
masked_fill_ writes and does not multiply. The dtype argument of vector_norm converts while it adds up, without a float32 copy
of the gradient. What is returned is a tensor as well: log it every hundred steps, and wait then. On many tensors
torch._foreach_norm and torch._foreach_mul_ also save the launches; that is what clip_grad_norm_ calls.
"""

from collections.abc import Iterable

import torch


@torch.no_grad()
def clip_or_skip(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    factor = (max_norm / norm).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor).masked_fill_(~norm.isfinite(), 0.0)
    return norm
