"""A parameter's shape tells what it is for; the name of its module tells who wrote it.

A list of norm types is out of date with the next norm: BatchNorm here, RMSNorm or your own tomorrow. A gain is a vector,
and decay pulls it from 1 to 0, which scales the signal away and makes nothing simpler. `ndim >= 2` has no list to keep.
model.parameters() gives a shared parameter once; walking module by module gives it once for each module that has it, and
optimizers refuse that, or worse, a hand-written one steps twice. A frozen parameter in a group would decay all the same in
an optimizer that does not look at .grad, and keeps state for nothing.
"""

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim >= 2]
    undecayed = [parameter for parameter in trained if parameter.ndim < 2]
    return [{"params": decayed, "weight_decay": decay}, {"params": undecayed, "weight_decay": 0.0}]
