"""x reaches y on two ways, and whatever broadcasting repeated is added up again.

Write g for upstream * scale, the gradient that arrives at x * r. The straight way gives g * r. The other leads through
r, which each entry of the vector changes: dr/dx = -r³ x / D, and r in turn changes all entries, hence the mean of
g * x. Left out, this second part still lets a model train, only worse: a wrong backward shows in no error. Forward, one
entry of scale serves many entries of y, so its gradient is the sum over all of these: sum_to_size is the reverse of
broadcasting. r is computed again from x. A forward could save it instead, but to autograd that is a constant, and the
second derivative would be wrong without an error; once_differentiable, a decorator for backward, makes it an error.
"""

import torch

EPSILON = 1e-6


def rms_norm_backward(
    x: torch.Tensor, scale: torch.Tensor, upstream: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    r = (x.square().mean(dim=-1, keepdim=True) + EPSILON).rsqrt()  # (..., 1)
    g = upstream * scale
    to_x = r * g - x * r**3 * (g * x).mean(dim=-1, keepdim=True)
    to_scale = (upstream * x * r).sum_to_size(scale.shape)
    return to_x, to_scale
