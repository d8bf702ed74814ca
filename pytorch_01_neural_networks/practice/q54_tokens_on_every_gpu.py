"""Eight GPUs, sentences of many lengths, and a gradient that belongs to no batch.

A language model trains on several GPUs. The same run on one GPU with the same tokens learns a little better, and nobody
knows why. Now and then the loss is nan, on the day on which one GPU got a micro-batch of nothing but padding.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


def train_step(
    model: torch.nn.Module,
    micro_batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    all_reduce: Callable[[torch.Tensor], torch.Tensor],
    workers: int,
) -> float:
    """Leaves the gradient of this worker's part in .grad; returns the loss of the whole batch, the same on each worker.

    Every GPU has a worker that runs this function at the same time as the others, on its own copy of one model.
    micro_batches: this worker's pairs (tokens, labels), int64 (B, T), one pair or more, T not always the same;
        model(tokens) gives logits (B, T, C). A label of -100 is padding and does not count. There may be no other
        label in a micro-batch, and none in all of a worker's.
    all_reduce(x): the sum of x, a tensor without a graph, over all workers. It returns when every worker has called it, so
        each must call it as often as the others; at most twice in a step, since they wait for the slowest.

    After the call DistributedDataParallel takes .grad of all workers, each of which must have one, and puts their mean
    into its place. Wanted there: the gradient of the mean cross-entropy over all labels that count, on whichever worker;
    where none counts, zeros and a loss of 0.
    .grad is None before the call; each micro-batch's graph is gone before the next one's is made.

    Example: one worker has three labels with losses 1, 1 and 1, another one label with loss 3. The loss is 6 / 4 = 1.5.
    """
    # TODO: with how much weight does each of the four labels of the example enter the mean of .grad?
    mean = 0.0
    for tokens, labels in micro_batches:
        loss = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()) / len(micro_batches)
        loss.backward()
        mean += loss.item()
    return all_reduce(torch.tensor(mean)).item() / workers
