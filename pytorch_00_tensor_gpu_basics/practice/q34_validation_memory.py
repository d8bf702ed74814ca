"""Training fits into memory. Validation does not.

The training loop runs all night. Then the same model is evaluated on the validation set, with the same batch size and
no optimizer, and after some hundred batches the memory is full.
"""

from collections.abc import Iterable

import torch


def validation_error(model: torch.nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The mean squared error over all samples of all batches.

    batches: pairs (inputs, targets) with one sample per row, not always as many; they come one at a time from a disk
        and can be read only once; at least one. model(inputs) has the shape of targets.
    Nothing is kept for a backward pass, since none will come. After the call all is as it was: the model trains on, and
    is still whole if it has kept something from this call (many keep a table that they compute when first called). The
    caller has chosen model.eval() or model.train() already.

    Example: with errors 1, 1, 1 in the first batch and 3 in the second, the mean squared error is 12 / 4 = 3.
    """
    # TODO: which tensors of the first batch are still in memory when the last one begins, and who holds them?
    total, count = 0.0, 0
    for inputs, targets in batches:
        loss = (model(inputs) - targets).square().mean()
        total += loss * len(inputs)
        count += len(inputs)
    return total / count
