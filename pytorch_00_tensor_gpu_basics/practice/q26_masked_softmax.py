"""A softmax that knows one trick of three.

Attention turns each row of scores into weights that add up to 1; what must not be seen has a score of -inf. Somebody
has already made it "numerically stable" by subtracting the maximum. In training it still returns nan: once rows of
1e4 and -1e4 share a batch, once a sequence consists of padding alone, and once somebody switches to float16.
"""

import torch


def softmax(scores: torch.Tensor, dim: int) -> torch.Tensor:
    """exp(scores) / sum of exp(scores) along `dim`, right for every input below.

    scores: of any shape with at least one entry along `dim`, in float16, bfloat16, float32 or float64; each entry is
        finite or -inf; they are not changed
    Returns the shape and dtype of the scores, right to the rounding of that dtype. Where all entries along `dim` are
    -inf there is nothing to look at, and all weights are 0. Gradients are finite everywhere, and 0 in such a row.

    Written out in exp, max and sum, as it stands in every fused attention kernel; without torch.softmax and its kin.

    Example: softmax(torch.tensor([[0.0, 0.0], [-inf, -inf], [1e4, -inf]]), dim=1) is [[0.5, 0.5], [0, 0], [1, 0]].
    """
    # TODO: it is right for ordinary scores; repair it for the others.
    weights = (scores - scores.max()).exp()
    return weights / weights.sum(dim, keepdim=True)
