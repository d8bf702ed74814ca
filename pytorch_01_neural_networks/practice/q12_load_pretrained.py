"""Load all of it, or refuse.

Fine-tuning begins with somebody's weights and a head of one's own. load_state_dict(strict=False) takes them without a word
even where no name fits. strict=True complains, but by the time it has found a tensor of another shape, it has already
copied those that fit, and whoever catches the error goes on with half of each.
"""

from collections.abc import Mapping

import torch
from torch import nn


def load_pretrained(model: nn.Module, state: Mapping[str, torch.Tensor], new: tuple[str, ...] = ()) -> list[str]:
    """Copies the tensors of `state` into `model`, all but those whose names begin with one of `new`.

    state: names → tensors; it is not changed. Saved from a wrapped model it has "module." (DistributedDataParallel) or
        "_orig_mod." (torch.compile), or several of them one behind the other, before every name; what stands before every
        name comes off. A model may have children of its own that are called module, or submodule.
    new: beginnings of names in the model, such as ("head.",), which keep what they have; `state` may have other shapes
        there, other names or none
    Returns the names in model.state_dict() that were left as they are, in its order.
    The model keeps its tensors, their dtype and device; only numbers are copied, buffers included.

    Raises ValueError with the name in its message, and with the model still as it was, where a name of the model has no
    tensor in `state`, a name in `state` has no place in the model, the two shapes differ, or no name of the model begins
    with one of `new` (a typing error, most likely). Several at once: any of them is named.

    Example: model has trunk.weight and head.weight, state module.trunk.weight and module.head.weight of another shape:

        load_pretrained(model, state, new=("head.",)) == ["head.weight"]
    """
    # TODO
    raise NotImplementedError
