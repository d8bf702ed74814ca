"""Sums on the way, one division by one number that all workers share, and workers times that, since a mean will follow.

The label of a short sentence counted more than one of a long sentence, first within a worker (mean of the micro-batches'
means), then among workers (mean of their means). Only the number of labels in the whole batch is a fair divisor, so it has
to be known before the first backward(): one all_reduce of a count. DistributedDataParallel then divides by the number of
workers, which nobody asked for here, so the loss is multiplied by it first. A micro-batch of padding has the sum 0, where
its mean is 0 / 0; it still goes through backward(), because a worker without a gradient lets the others wait for ever. So
does one that calls all_reduce once for each micro-batch, when it has fewer of them. Large libraries got the first part
wrong until 2024, and the second is easily forgotten when the first is repaired.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

IGNORED = -100


def train_step(
    model: torch.nn.Module,
    micro_batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    all_reduce: Callable[[torch.Tensor], torch.Tensor],
    workers: int,
) -> float:
    own_count = sum(int((labels != IGNORED).sum()) for _, labels in micro_batches)
    count = all_reduce(torch.tensor(own_count)).clamp(min=1)
    total = torch.zeros(())
    for tokens, labels in micro_batches:
        logits = model(tokens).flatten(0, 1)
        loss = F.cross_entropy(logits, labels.flatten(), reduction="sum") / count
        (loss * workers).backward()
        total += loss.detach()
    return all_reduce(total).item()
