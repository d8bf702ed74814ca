"""The loss that needs more memory than the model.

A language model of a billion weights with a vocabulary of 128,000 looks at 32,000 tokens in a step. Its logits in float32
take 16.4 GB, their log-softmax as much again, their gradient the same, and all that stands between is a single number.
Nobody needs the logits of all tokens at once.
"""

import torch
import torch.nn.functional as F


def loss_and_gradients(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mean cross-entropy of the logits hidden @ weight.T, and its gradients with respect to hidden and to weight.

    hidden: (N, D) float32 or float64, the last hidden state of each token; weight: (C, D) of its dtype, a row for each
        word of the vocabulary; both may require gradients, neither is changed
    labels: (N,) int64, the right word of each token, or -100 for one that does not count; at least one does. The mean is
        over those that count.
    rows: how many tokens may be looked at together, 1 or more; N need not be a multiple of it
    Returns three tensors without a graph: the loss, of no dimension, and gradients of the shapes of hidden and weight.

    Wanted: at no moment more numbers in new tensors than 4 * rows * C and three times the results, (N + C) * D numbers.
    The example of a billion weights, D = 2048, then needs 6 GB in place of 50, with rows = 1024.

    Example: hidden [[1, 0], [0, 1]], weight [[0, 0], [0, 0]], labels [0, 1]: the loss is log 2, the gradient of weight
    [[-0.25, 0.25], [0.25, -0.25]], that of hidden 0.
    """
    # TODO: how many tensors of N * C numbers are alive inside backward()?
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    loss = F.cross_entropy(hidden @ weight.T, labels)
    to_hidden, to_weight = torch.autograd.grad(loss, (hidden, weight))
    return loss.detach(), to_hidden, to_weight
