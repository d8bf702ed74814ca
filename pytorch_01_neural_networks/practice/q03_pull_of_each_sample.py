"""Which samples pull hardest?

After a few epochs, the samples with the longest gradients are the ones to look at: wrong labels come out on top. The same
lengths are needed to train with privacy, where each sample's gradient is cut to a fixed length, and to pick samples by
importance. Asking autograd for them one by one takes as many backward passes as there are samples.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

Layer = tuple[torch.Tensor, torch.Tensor]  # weight (outputs, inputs) and bias (outputs,)


def gradient_lengths(layers: Sequence[Layer], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """For each sample the length of the gradient of its own cross-entropy, in all weights and biases together.

    layers: one or more, with ReLU between them and none after the last, which gives the logits
    x: (B, D) of the dtype of the weights; y: (B,) int64, the right classes
    Returns (B,) of that dtype, without a graph: the root of the sum of squares of all entries of the gradient.

    Wanted: the same numbers from as many operations for 1,000 samples as for 2, and without a tensor that holds the
    gradients themselves: none with more numbers than 4 * B * W, where W is the largest of D and of all layers' outputs.

    Example: one layer with weight [[0], [0]] and bias [0, 0], x = [[2]], y = [0]. p is [0.5, 0.5], the gradient of the
    weight [[-1], [1]], of the bias [-0.5, 0.5], and its length is the root of 1 + 1 + 0.25 + 0.25, 1.5811.
    """
    # TODO: what is the gradient of a weight for a single sample, and how long is such a matrix?
    lengths = []
    for one_x, one_y in zip(x, y, strict=True):
        leaves = [(weight.detach().requires_grad_(), bias.detach().requires_grad_()) for weight, bias in layers]
        out = one_x
        for number, (weight, bias) in enumerate(leaves):
            out = (torch.relu(out) if number > 0 else out) @ weight.T + bias
        gradients = torch.autograd.grad(F.cross_entropy(out, one_y), [tensor for layer in leaves for tensor in layer])
        lengths.append(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt())
    return torch.stack(lengths)
