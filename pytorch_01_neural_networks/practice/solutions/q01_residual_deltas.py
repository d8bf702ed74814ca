"""Where a tensor is used in two places, its gradient is the sum of what comes back from both.

The input of a block goes into its product and past it, so what comes back is delta @ weight plus the gradient of the
block's output, untouched. The mask of ReLU belongs to the way through the product alone; and it is asked of the sums, since
the block's output is positive also where its ReLU was shut. Everything else is as in a plain network: the delta of the
logits is (p - one-hot) / B, a weight gets delta.T @ input, and a bias the sum of delta, because it was added to every
sample. Follow the untouched way from the loss to the first layer: no weight and no slope stands on it, so no depth can make
that part of the gradient vanish. In a plain network each layer multiplies it once more.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

Layer = tuple[torch.Tensor, torch.Tensor]


def gradients(
    layers: Sequence[Layer], inputs: Sequence[torch.Tensor], sums: Sequence[torch.Tensor], y: torch.Tensor
) -> list[Layer]:
    def of_layer(delta: torch.Tensor, given: torch.Tensor) -> Layer:
        return delta.T @ given, delta.sum(0)

    logits = sums[-1]
    delta = (logits.softmax(1) - F.one_hot(y, logits.shape[1])) / len(y)  # (B, K)
    found = [of_layer(delta, inputs[-1])]
    upstream = delta @ layers[-1][0]  # (B, H), of what the last layer was given
    for i in reversed(range(1, len(layers) - 1)):
        delta = upstream * (sums[i] > 0)
        found.append(of_layer(delta, inputs[i]))
        upstream = upstream + delta @ layers[i][0]
    found.append(of_layer(upstream * (sums[0] > 0), inputs[0]))
    return found[::-1]
