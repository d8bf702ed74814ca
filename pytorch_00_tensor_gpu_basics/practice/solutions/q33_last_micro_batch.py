"""Gradients add up because backward() never clears them: wanted inside a step, wrong from one step to the next.

So zero_grad() comes once, before the first micro-batch. And a mean of means weighs each micro-batch alike: five samples
and then one make that one count five times as much as the others. Divide each sum by the number of all samples instead,
which has to be known before the first backward(). An empty micro-batch then adds zero, where its mean would be 0 / 0.
Calling backward() on each part at once frees its graph; summing the losses first would keep them all, and the memory
with them. The same mistake, with tokens instead of samples, stood in widely used training libraries until 2024: it raises
no error and only trains a little worse.
"""

from collections.abc import Sequence

import torch


def train_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> float:
    numbers = sum(targets.numel() for _, targets in micro_batches)
    optimizer.zero_grad()
    mean = 0.0
    for inputs, targets in micro_batches:
        loss = (model(inputs) - targets).square().sum() / numbers
        loss.backward()
        mean += loss.item()
    optimizer.step()
    return mean
