"""Chunks go around: n - 1 steps in which they grow, and n - 1 in which the finished ones are handed on.

In step s rank r gives chunk r - s to the rank behind it and takes chunk r - s - 1 from the one before, which is the chunk
that it gives next. After n - 1 steps a chunk has met every rank and is whole; from then on what arrives replaces what is
there. Each sum was made once, in one order, and then copied, so all ranks have the same bits: had every rank added up by
itself, each in its own order, the weights of the replicas would drift apart in the last digit and nobody would notice.
isend before recv, and wait after it: if all wait for their neighbour to receive first, nobody ever does. contiguous() is x
itself where it can be, and else a copy, which the last line brings home. (reshape(-1) would not do: of every second column
it makes a view with a stride of 2, and whoever sends memory sends what lies between.)
"""

from typing import Any

import torch


def all_reduce(x: torch.Tensor, link: Any) -> None:
    rank, n = link.rank, link.world_size
    flat = x.contiguous().view(-1)
    chunks = flat.tensor_split(n)
    for step in range(2 * (n - 1)):
        mine = chunks[(rank - step - 1) % n]
        taken = torch.empty_like(mine)
        request = link.isend(chunks[(rank - step) % n], (rank + 1) % n)
        link.recv(taken, (rank - 1) % n)
        request.wait()
        mine.copy_(mine + taken if step < n - 1 else taken)
    x.copy_(flat.view_as(x))
