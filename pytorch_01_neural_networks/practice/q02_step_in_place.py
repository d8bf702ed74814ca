"""The loss falls. So what?

A training step by hand, in plain tensors. The loss falls from step to step, though the accuracy that it reports is 0.00,
which somebody put down to a slip in the logging. And with twice the learning rate, which the same network bears well when
autograd finds the gradients, this one explodes.
"""

import torch


def train_step(
    w1: torch.Tensor,
    b1: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    lr: float,
) -> tuple[float, float]:
    """One step of gradient descent on the mean cross-entropy; returns loss and accuracy of the network before the step.

    w1 (H, D), b1 (H,), w2 (K, H), b2 (K,): relu(x @ w1.T + b1) @ w2.T + b2 are the logits. Changed in place.
    x (B, D) and y (B,) int64, the right classes, are not changed. No tensor requires a gradient.

    Example: D = H = 1, K = 2, w1 = 1, w2 = [[1], [0]], biases 0, one sample x = 2 with y = 0, lr = 1. Then p is
    [0.881, 0.119], w1 becomes 1.238 and w2 [[1.238], [-0.238]]; it returns 0.127 and 1.
    """
    # TODO: for each line that writes into a tensor, who reads that tensor afterwards?
    h = x @ w1.T
    h += b1
    h.clamp_(min=0)
    logits = h @ w2.T + b2
    samples = torch.arange(len(y))
    loss = -logits.log_softmax(1)[samples, y].mean()
    p = logits.softmax(1)
    delta2 = p
    delta2[samples, y] -= 1
    delta2 /= len(y)
    w2 -= lr * delta2.T @ h
    b2 -= lr * delta2.sum(0)
    delta1 = delta2 @ w2
    delta1[h == 0] = 0
    w1 -= lr * delta1.T @ x
    b1 -= lr * delta1.sum(0)
    accuracy = (p.argmax(1) == y).float().mean()
    return loss.item(), accuracy.item()
