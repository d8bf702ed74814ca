"""A tensor is there anyway if its memory is: whoever asks `x is weight` never meets the transposed weight of a Linear.

Autograd saves weights as well, since the gradient of a layer's input needs them, and saves views of them: weight.t(), or
thirds of one matrix. As an object each is new, as a storage it is old, so storages are what to compare. There was a second
reason why nothing was recognised: model.parameters() is a generator, and the first question had used it up. A copy of each
weight costs 2 bytes, which in a small batch is more than was saved. float16 ends at 65,504: a larger activation becomes
infinite, and infinity times 0 is NaN in backward; below 6e-8 everything is 0. bfloat16 has the range of float32 and gives up
digits. Only float32 is packed, and only what was packed is unpacked: a mark beside the tensor says so, because
a bfloat16 tensor of autocast looks just like one of ours.
"""

from collections.abc import Iterable

import torch
from torch.autograd.graph import saved_tensors_hooks


def waiting_in_16_bits(there_anyway: Iterable[torch.Tensor]) -> saved_tensors_hooks:
    storages = {x.untyped_storage().data_ptr() for x in there_anyway}

    def pack(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
        is_packed = x.dtype is torch.float32 and x.untyped_storage().data_ptr() not in storages
        return (x.bfloat16() if is_packed else x), is_packed

    def unpack(kept: tuple[torch.Tensor, bool]) -> torch.Tensor:
        x, is_packed = kept
        return x.float() if is_packed else x

    return saved_tensors_hooks(pack, unpack)
