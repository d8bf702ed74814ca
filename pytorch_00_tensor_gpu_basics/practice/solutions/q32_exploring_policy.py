"""An operation may write over a tensor that nobody reads again. Two of the four wrote over one that somebody does.

The scores belong to the caller. softmax computes its gradient from its own result, so autograd saved that result; the
multiplication in place changed it, and backward(), which compares version numbers, refused: "is at version 2; expected
version 0". exp, tanh, sigmoid, sqrt and relu save their results as well. A product with a plain number saves nothing, so
the last line may stay in place. Cloning before writing is right too, and costs one more pass for nothing. The cure to
avoid is probabilities.data *= ...: it hides the write from the version number, the error is gone, and the gradient is
wrong.
"""

import torch


def move_probabilities(scores: torch.Tensor, temperature: float, epsilon: float) -> torch.Tensor:
    probabilities = torch.softmax(scores / temperature, dim=-1)
    mixed = probabilities * (1 - epsilon)
    mixed += epsilon / scores.shape[-1]
    return mixed
