"""A stack of weights (R, K, D), a rate (R, 1, 1) for each, and a loss that is a sum over the runs.

x @ w.mT with w of three axes gives the logits of all runs, (R, B, K). A sum of losses of which each knows only its own weights
has, for each run, the gradient of that run alone; a mean over the runs would divide it by R, and every rate would secretly be
another one. Over the samples it stays a mean: hence the sum, divided by B. A run that diverges fills its own slice with NaN
and harms nobody, as long as nothing is done across the runs, such as clipping one norm of all. This is how
optimizer_comparison trains 10 rates x some seeds at once; torch.func.vmap does the same for models that you cannot rewrite.
"""

import torch
import torch.nn.functional as F


def sweep(
    x: torch.Tensor, y: torch.Tensor, start: torch.Tensor, rates: torch.Tensor, steps: int, momentum: float = 0.9
) -> torch.Tensor:
    w = start.repeat(len(rates), 1, 1)
    velocity = torch.zeros_like(w)
    for _ in range(steps):
        w.requires_grad_()
        logits = (x @ w.mT).flatten(0, 1)  # (R * B, K)
        loss = F.cross_entropy(logits, y.repeat(len(rates)), reduction="sum") / len(y)
        (gradient,) = torch.autograd.grad(loss, w)
        velocity = momentum * velocity + gradient
        w = w.detach() - rates.view(-1, 1, 1) * velocity
    return w
