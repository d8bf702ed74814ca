"""A few tokens at a time, forward and backward together, and only sums are kept.

The loss is a sum over tokens, so its gradient in weight is one too: each part adds its share to one tensor in place, and
its logits die before the next part's are made. Autograd alone does not do this: ask for the loss of all parts first and
for the gradient afterwards, and the graph holds the logits of every part. The divisor must be known before the first part,
since a part is divided by the labels of all; a part of padding only then adds 0 and no 0 / 0. cross_entropy's gradient is
softmax minus one-hot, so it could be written without autograd as well. In bfloat16 the running sums belong into float32, or
they stop counting. Kernels that fuse the product with the loss go one step further and keep even the logits of a part in
the chip's own memory.
"""

import torch
import torch.nn.functional as F

IGNORED = -100


def loss_and_gradients(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count = (labels != IGNORED).sum()
    hidden, weight = (x.detach().requires_grad_() for x in (hidden, weight))
    total, to_hidden, to_weight = hidden.new_zeros(()), torch.empty_like(hidden), torch.zeros_like(weight)
    for start in range(0, len(hidden), rows):
        part = hidden[start : start + rows]
        loss = F.cross_entropy(part @ weight.T, labels[start : start + rows], reduction="sum") / count
        to_part, share = torch.autograd.grad(loss, (part, weight))
        to_hidden[start : start + rows] = to_part
        to_weight += share
        total += loss.detach()
    return total, to_hidden, to_weight
