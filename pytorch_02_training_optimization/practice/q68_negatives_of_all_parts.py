"""A batch that cannot be divided, in parts.

A contrastive loss compares every row of the batch with every other, so the mean of the losses of four parts is another loss:
one with a quarter of the comparisons. The larger the batch, the better such models become, and the activations of the encoder
are what fills the memory. The vectors that come out of it are small.
"""

import torch
from torch import nn


def backward_of_whole_batch(encoder: nn.Module, loss: nn.Module, x: torch.Tensor, part_size: int) -> float:
    """Adds the gradients of loss(encoder(x)) to .grad, as backward() does, and returns the loss.

    encoder: (B, inputs) -> (B, D), each row from its row of x alone. It may drop units at random; what it draws comes from
        PyTorch's generator of the CPU. Its gradients are those of the loss that is returned, masks included.
    loss: (B, D) -> a number, of all rows together. It may have parameters, which get their gradients too.
    x: data that needs no gradient; its rows may come in parts of any size, B need not be a multiple of part_size

    Wanted: at no moment does autograd keep more of the encoder than it needs for part_size rows. What loss keeps of all B
    vectors may be kept. Each row goes through the encoder at most twice.

    Example: with B = 26 and part_size = 8, as much of the encoder is kept as for 8 rows, and all gradients are those of
    loss(encoder(x)).backward(), to the rounding of sums.
    """
    # TODO: right, and it keeps the activations of all rows. What does the encoder need to know of the loss, row by row?
    value = loss(encoder(x))
    value.backward()
    return value.item()
