"""For a single sample the gradient of a weight is an outer product, and its length is the product of two lengths.

The gradient of a batch is delta.T @ h: the sum over samples of delta[b] times h[b]. One of these terms alone has the entries
delta[b, j] * h[b, i], and the sum of their squares is the sum of the squares of delta[b] times that of h[b]. The bias acts as
one more input that is always 1. So one ordinary pass forward and one back for all samples at once gives every length, and
no gradient is ever written down. delta must not be divided by B here, since each sample is asked for its own loss. The trick
is Goodfellow's (2015, "Efficient per-example gradient computations"); libraries for private training rest on it. It needs
each sample to be a row: where a weight is used many times for one sample, as in a convolution, the terms have to be added
before they are squared.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

Layer = tuple[torch.Tensor, torch.Tensor]


@torch.no_grad()
def gradient_lengths(layers: Sequence[Layer], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    inputs, sums = [x], []
    for weight, bias in layers:
        sums.append(inputs[-1] @ weight.T + bias)
        inputs.append(sums[-1].relu())
    delta = sums[-1].softmax(1) - F.one_hot(y, sums[-1].shape[1])  # (B, K)
    squares = x.new_zeros(len(x))
    for i in reversed(range(len(layers))):
        squares += delta.square().sum(1) * (inputs[i].square().sum(1) + 1)
        if i > 0:
            delta = (delta @ layers[i][0]) * (sums[i - 1] > 0)
    return squares.sqrt()
