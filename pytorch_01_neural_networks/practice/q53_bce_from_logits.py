"""A loss that is right where the model is badly wrong, and where it begins.

The formula in the book is -log(sigmoid(z)) for a yes and -log(1 - sigmoid(z)) for a no. In float16 it is infinite from a
logit of about 8 on, in float32 from about 17. And a model whose last layer starts at zero has all its logits at exactly
0, where a formula can have the right value and the wrong slope: then nothing is ever learned.
"""

import torch


def bce_with_logits(z: torch.Tensor, y: torch.Tensor, pos_weight: torch.Tensor) -> torch.Tensor:
    """The loss of each logit: -pos_weight * y * log(sigmoid(z)) - (1 - y) * log(1 - sigmoid(z)).

    z: logits of any shape in float16, bfloat16, float32 or float64; they may require a gradient
    y: targets, from 0 to 1 with everything between, in the shape and dtype of z
    pos_weight: how much a yes is worth, one number or one for each class; it broadcasts to the shape of z, in its dtype
    Returns a tensor of the shape and dtype of z. Its value and the gradient of z are right to rounding for every z, if
    it were ±1000.

    Write it with arithmetic, exp, log, log1p and operations that choose between numbers. softplus, logsigmoid and the
    losses of torch.nn.functional would be the whole answer, so they stay out.

    Example: z = [0, 0, 100, -100], y = [1, 0, 0, 1], pos_weight = 3

        losses [2.0794, 0.6931, 100, 300], their slopes in z [-1.5, 0.5, 1, -3]
    """
    # TODO
    raise NotImplementedError
