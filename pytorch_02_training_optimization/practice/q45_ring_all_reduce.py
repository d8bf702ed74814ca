"""An all-reduce, when all you have is send and receive.

Everybody sends to rank 0, which adds up and sends back: right, and with 64 ranks rank 0 sends 63 tensors while 63 ranks
wait. In a ring nobody sends more than two, however many take part. Every training on several GPUs rests on this.
"""

from typing import Any

import torch


def all_reduce(x: torch.Tensor, link: Any) -> None:
    """Writes the sum of x over all ranks into x, in place, in every rank. Each rank runs this at the same time.

    x: any shape and type of number, alike in all ranks; perhaps a view that is not contiguous. No gradients.
    link: what this rank knows of the others:
        link.rank, link.world_size     its number, from 0, and how many there are, 1 or more
        link.isend(t, to)              begins to send t to another rank and returns a request at once. Nothing is copied:
                                       t is read at any time until request.wait() returns, which it does when the other
                                       rank has received. Every request has to be waited for
        link.recv(t, source)           waits for the next tensor that rank `source` sends here, and writes it into t, which
                                       has as many numbers as were sent; there may be none
        both take contiguous tensors, as torch.distributed does

    Wanted: the same bits in all ranks. With n ranks each sends at most 2 (n - 1) tensors, none of them with more than
    ceil(x.numel() / n) numbers.

    Example: where rank 0 has [1, 2, 3] and rank 1 has [10, 20, 30], both have [11, 22, 33] afterwards.
    """
    # TODO
    raise NotImplementedError
