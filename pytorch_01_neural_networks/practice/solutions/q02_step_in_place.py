"""Two lines wrote into a tensor that a later line still read; the others that write in place are right.

delta2 = p is a second name, not a second tensor: after the subtraction the right class has p - 1, below all others, and
argmax never names it. And w2 was updated before delta1 went back through it; the chain rule wants the weights of the
forward pass. That error is of the order of lr, so small steps forgive it and large ones do not, and a falling loss proves
nothing. The habit: first everything that the loss needs, then all gradients, then all updates. Autograd has it built in:
backward() computes everything before the optimizer moves anything, and a weight that is changed too early raises an error,
since its version number does not fit. By hand nobody looks, so compare the first two steps with autograd's.
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
    h = x @ w1.T
    h += b1
    h.clamp_(min=0)
    logits = h @ w2.T + b2
    samples = torch.arange(len(y))
    loss = -logits.log_softmax(1)[samples, y].mean()
    accuracy = (logits.argmax(1) == y).float().mean()
    delta2 = logits.softmax(1)
    delta2[samples, y] -= 1
    delta2 /= len(y)
    delta1 = delta2 @ w2
    delta1[h == 0] = 0
    w2 -= lr * delta2.T @ h
    b2 -= lr * delta2.sum(0)
    w1 -= lr * delta1.T @ x
    b1 -= lr * delta1.sum(0)
    return loss.item(), accuracy.item()
