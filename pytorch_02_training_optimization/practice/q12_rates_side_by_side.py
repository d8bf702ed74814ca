"""A fair comparison needs ten learning rates for each optimizer. This one waits for them in a row.

The network is small, so a step is all overhead: launching the operations takes far longer than doing them, and ten trainings
take ten times as long as one. They never look at each other. Let them share the operations.
"""

import torch
import torch.nn.functional as F


def sweep(
    x: torch.Tensor, y: torch.Tensor, start: torch.Tensor, rates: torch.Tensor, steps: int, momentum: float = 0.9
) -> torch.Tensor:
    """Trains a linear classifier once with each learning rate; returns the weights of all runs, (R, K, D).

    x (B, D) floating point and y (B,) int64 are the batch of every step. start (K, D), in the dtype of x: where all runs begin.
    rates (R,), R at least 1, in the dtype of x: run r makes `steps` steps of SGD with momentum on the mean cross-entropy, with
    lr = rates[r]. Nothing that is given is changed, and the result requires no gradient.

    Wanted: the same weights up to rounding, from a number of operations that does not depend on R.

    Example: with rates [0, 0.5] and momentum 0, run 0 ends at start, and run 1 where gradient descent with lr 0.5 ends.
    """
    # TODO: what is different in the runs, and which shape would it all have in one tensor?
    runs = []
    for lr in rates:
        w, velocity = start.clone(), torch.zeros_like(start)
        for _ in range(steps):
            w.requires_grad_()
            loss = F.cross_entropy(x @ w.T, y)
            (gradient,) = torch.autograd.grad(loss, w)
            velocity = momentum * velocity + gradient
            w = w.detach() - lr * velocity
        runs.append(w)
    return torch.stack(runs)
