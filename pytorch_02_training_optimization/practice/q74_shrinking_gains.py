"""With more weight decay the network gets worse, although its matrices hardly change.

The parameter groups were taken from a well-known repository: LayerNorm and biases do not decay, everything else does.
Then the model got a batch norm, and the gain of every norm is now below 0.3. In another model the optimizer refuses the
groups: "some parameters appear in more than one parameter group".
"""

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: first what decays, then what does not.

    What has two axes or more decays: matrices, kernels of convolutions, tables of embeddings. Everything else has a
    weight decay of 0.0: biases, gains of any norm, single scales, whoever wrote the module. Parameters that are frozen
    (requires_grad is False) are in no group, all others in exactly one, also where two modules share one. Each group is
    {"params": a list, "weight_decay": a float}; a list may be empty. Nothing in the model changes.
    """
    # TODO: what do the names and types of modules know of what a parameter is for?
    decayed, undecayed = [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name.endswith("bias") or isinstance(module, nn.LayerNorm):
                undecayed.append(parameter)
            else:
                decayed.append(parameter)
    return [{"params": decayed, "weight_decay": decay}, {"params": undecayed, "weight_decay": 0.0}]
