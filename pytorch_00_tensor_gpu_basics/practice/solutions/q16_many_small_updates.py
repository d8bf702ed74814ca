"""One call that takes the whole list.

The foreach operations (documentation of torch: "Foreach Operations") go through the tensors inside PyTorch, and on a
GPU a few kernels serve hundreds of tensors, which share the cost of a launch. The optimizers of torch.optim do the
same, and torch.optim.swa_utils does it for exactly this average. lerp is the name for moving part of the way:
lerp(a, b, w) = a + w * (b - a). A flat copy of all weights would work too, but moves every byte twice more.
"""

from collections.abc import Sequence

import torch


@torch.no_grad()
def update_average(averages: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], decay: float) -> None:
    torch._foreach_lerp_(averages, parameters, 1 - decay)
