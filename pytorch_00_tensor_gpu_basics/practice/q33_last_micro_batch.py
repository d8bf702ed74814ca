"""Four small batches that are not one large batch.

Where a batch does not fit into memory, it is taken in micro-batches: backward() adds each one's gradient to .grad, and
the optimizer steps once, at the end. That must give the step of the whole batch. Here it does only in the first step,
and only when all micro-batches are of one size.
"""

from collections.abc import Sequence

import torch


def train_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> float:
    """One step of the optimizer on the mean squared error over all samples; returns that error, before the step.

    micro_batches: pairs (inputs, targets) with one sample per row, at least one pair. model(inputs) has the shape of
        targets, (samples, outputs). The last micro-batch is often smaller, and one is empty when a filter has removed
        all of its samples; together they hold at least one.
    The gradient is that of all samples together, whatever .grad holds when the step begins. There is never the graph of
    more than one micro-batch in memory.

    Example: with errors 1, 1, 1 in the first micro-batch and 3 in the second, the mean squared error is 12 / 4 = 3.
    """
    # TODO: compare .grad with that of the whole batch, in the first step and in the second.
    mean = 0.0
    for inputs, targets in micro_batches:
        loss = (model(inputs) - targets).square().mean() / len(micro_batches)
        loss.backward()
        mean += loss.item()
    optimizer.step()
    return mean
