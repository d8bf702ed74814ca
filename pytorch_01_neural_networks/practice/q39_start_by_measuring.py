"""A hundred layers that all start loud enough.

Kaiming's variance is right on average, over many networks and for the layer that it was derived for. You start one network.
Its depth multiplies the luck of each layer; its first batch holds pixels from 0 to 255; zeros are padded to its borders, and
in its transposed convolutions each output sums only some of the products. A formula for all of that is hard to find. The
first batch knows it (Mishkin and Matas 2016).
"""

from collections.abc import Sequence

import torch
from torch import nn


def initialise(layers: Sequence[nn.Module], x: torch.Tensor) -> None:
    """Draws the layers' weights anew, so that on the batch x the mean of h² is 1 in the output h of each of them.

    layers: any number, each applied to the result of the one before, the first to x. Those with a weight of two or more
        axes are Linear or convolutions of any kind, transposed and grouped ones too, with bias or without. All others, be it
        an activation, Flatten or GroupNorm, stay as they are, whatever parameters they have.
    x: the first batch, not all zeros, of any size; no layer changes its input in place.
    After the call
        - each weight is random and symmetric around 0, and no two are drawn alike, nor two rows of one; biases are 0
        - the mean of h² of each is within 1 % of 1; h is what the Linear or convolution itself returns on x
        - the parameters are the same objects as before, ready to be trained: no gradients, no graph

    Example: with layers [Linear(3, 4), ReLU(), Linear(4, 2)], both layers[0](x).square().mean() and
    layers[2](layers[1](layers[0](x))).square().mean() are 1.
    """
    # TODO
    raise NotImplementedError
