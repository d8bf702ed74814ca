"""One tensor in three, kept for a multiplication.

The widest tensors of most language models stand in their gated layers, silu(gate) * up: some ten thousand numbers for each
token, three tensors of them in each layer, all kept until backward() comes. Two of the three are enough.
"""

import torch
from torch.nn import functional as F


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, with silu(x) = x / (1 + e^-x).

    gate, up: of one shape and one floating-point dtype, often two halves of one tensor; both, one or neither requires a
        gradient; neither is changed
    Returns their shape and dtype; backward() finds the gradients of both, right to the rounding of the dtype, zeros among
    the inputs included.

    Wanted: between forward and backward autograd keeps nothing for this call but gate and up themselves. It keeps them as
    it does everywhere: if somebody writes into one of them meanwhile, backward() raises PyTorch's error about that.

    Example: swiglu(torch.tensor([0.0, 2.0]), torch.tensor([5.0, 3.0])) is [0, 5.2848].

    To see what is kept:

        with torch.autograd.graph.saved_tensors_hooks(lambda x: print(x) or x, lambda x: x):
            swiglu(gate, up)
    """
    # TODO: right, and one tensor too much. Which of the three could be made again from the other two?
    return F.silu(gate) * up
