"""A loss that requires a gradient holds the graph behind it, and the graph holds what its backward() would need.

In training backward() frees that after each batch. Here nobody calls it, and total, a sum of tensors with a graph, holds
the activations of every batch. no_grad() records nothing from the start, which saves memory inside each batch as well;
.item() or .detach() alone would free them only after it. inference_mode() also records nothing, and is a little faster
because its tensors carry no version number. But they can never be used where a gradient is computed: a table that the
model keeps from such a call breaks the next training step. no_grad and model.eval() are different things: one switches
recording off, the other changes what dropout and batch norm compute, and validation needs both.
"""

from collections.abc import Iterable

import torch


@torch.no_grad()
def validation_error(model: torch.nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    total, count = 0.0, 0
    for inputs, targets in batches:
        loss = (model(inputs) - targets).square().mean()
        total += loss.item() * len(inputs)
        count += len(inputs)
    return total / count
