"""silu(gate) costs two operations to make again, and a tensor to keep.

PyTorch's SiLU keeps its input, gate, and the multiplication keeps both its factors, silu(gate) and up. An operation with a
backward of its own keeps the two that are there anyway, and computes the sigmoid again: arithmetic that is cheap beside the
memory it saves, since a GPU waits for memory in such a layer. Training libraries for language models do exactly this, with
forward and backward fused into one kernel each. save_for_backward is more than a place to put things: it notes the version
of each tensor, so that a write in between raises an error, where with ctx.gate it would give a wrong gradient without a word.
torch.utils.checkpoint.checkpoint(f, gate, up, use_reentrant=False) does the same for any f, with more work in Python. What
cannot work is keeping the result and dividing it by up: where up is 0, nothing comes back.
"""

from typing import Any

import torch
from torch.nn import functional as F


def keep_the_inputs(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    ctx.save_for_backward(gate, up)
    return F.silu(gate) * up


def compute_again(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gate, up = ctx.saved_tensors
    share = torch.sigmoid(gate)
    slope = share * (1 + gate * (1 - share))
    return upstream * up * slope, upstream * gate * share


class SwiGLU(torch.autograd.Function):
    forward = staticmethod(keep_the_inputs)
    backward = staticmethod(compute_again)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return SwiGLU.apply(gate, up)
