"""Activations that wait in 16 bits were to need half the memory. They need more than before, and some gradients are NaN.

Between forward and backward an activation only waits, and it may wait in fewer bits. PyTorch calls two functions of yours, one
when autograd saves a tensor and one when backward wants it again, so this is a matter of a few lines. They were soon written.
"""

from collections.abc import Iterable

import torch
from torch.autograd.graph import saved_tensors_hooks


def waiting_in_16_bits(there_anyway: Iterable[torch.Tensor]) -> saved_tensors_hooks:
    """Inside `with waiting_in_16_bits(...):` what autograd saves in float32 is kept in bfloat16 until backward.

    there_anyway: tensors that live longer than the graph, such as model.parameters() and the batch. What shares its memory
        with one of them, a transposed weight for example, costs nothing now and is left as it is.
    Tensors of other types (indices, masks, float64, what autocast has made smaller already) are left as they are, too.
    backward() gets each tensor in the dtype in which it was saved.

    Wanted: gradients that differ from the usual ones by the rounding of bfloat16, 0.4 % of each number at most, also where
    activations are very large or very small.

    Example:
        with waiting_in_16_bits([*model.parameters(), x]):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
    """

    # TODO: print what arrives here, for a model of two layers. Who has it already? And which numbers does float16 reach?
    def pack(x: torch.Tensor) -> torch.Tensor:
        if any(x is other for other in there_anyway):
            return x
        return x.half() if x.is_floating_point() else x

    def unpack(kept: torch.Tensor) -> torch.Tensor:
        return kept.float() if kept.is_floating_point() else kept

    return saved_tensors_hooks(pack, unpack)
