"""A memory for every pixel.

Rain radar makes a picture every five minutes, and what falls in half an hour depends on where the showers were and how they
move. An LSTM that reads a picture as one long row has to learn for each pixel anew what a neighbour is. So keep its
equations, and let a convolution do what the two matrices did: then there is a state at every pixel, and its gates look at
the pixels around it (Shi et al. 2015, without the peepholes).
"""

import torch

State = tuple[torch.Tensor, torch.Tensor]


def conv_lstm_step(
    x: torch.Tensor,
    state: State | None,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_ih: torch.Tensor | None = None,
    bias_hh: torch.Tensor | None = None,
) -> State:
    """The new (h, c) after one picture.

    x: (B, C, height, width) floating point; state: h and c of (B, H, height, width), or None before the first picture, which
        means zeros
    weight_ih: (4 H, C, k, k) and weight_hh: (4 H, H, k, k) with k odd, not always the same k; bias_ih and bias_hh: (4 H,),
        each may be missing. The 4 H rows are the gates one after the other, stacked in PyTorch's order.
    Each kernel is laid over every pixel, as Conv2d does it; beyond the border of the picture there are zeros. Nothing that
    is given is changed, and gradients flow to all of it.

    Example: pictures of one pixel and k = 1 leave what nn.LSTMCell computes, with the same weights.
    """
    # TODO
    raise NotImplementedError
