"""The encoder needs one number for each number of its output: the slope of the loss there. With it, rows are independent.

So there are two passes. The first encodes all parts without a graph, and the loss of the collected vectors, which are leaves
now, goes backwards down to them. The second encodes each part again, with a graph, and sends the slopes of its rows through:
the sum of vectors times slopes has just that gradient. It is known as gradient caching, and is checkpointing with the parts
as pieces: torch.utils.checkpoint around the encoder, part by part, does the same. Both passes must be the same function: the
generator is put where it stood before that part, or dropout draws new masks and the gradient is that of a loss which nobody
computed. And value.backward() rather than autograd.grad(value, vectors), because the temperature of the loss learns as well.
"""

import torch
from torch import nn


def backward_of_whole_batch(encoder: nn.Module, loss: nn.Module, x: torch.Tensor, part_size: int) -> float:
    parts = x.split(part_size)
    states, encoded = [], []
    with torch.no_grad():
        for part in parts:
            states.append(torch.get_rng_state())
            encoded.append(encoder(part))
    vectors = torch.cat(encoded).requires_grad_()
    value = loss(vectors)
    value.backward()
    for part, state, slopes in zip(parts, states, vectors.grad.split(part_size), strict=True):
        torch.set_rng_state(state)
        (encoder(part) * slopes).sum().backward()
    return value.item()
