"""An accuracy that depends on the number of GPUs.

The same weights and the same 10,000 images: 71.34 % on one GPU, 71.30 % on eight, 71.41 % on twelve, and with another batch
size yet another number. Somebody wrote "noise" beside it. But nothing here is drawn at random.
"""

from collections.abc import Callable

import torch
from torch.utils.data import DistributedSampler, TensorDataset


def evaluate(
    model: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int,
    rank: int,
    world_size: int,
    all_reduce: Callable[[torch.Tensor], torch.Tensor],
) -> float:
    """The share of the images that model reads right, from 0 to 1: the same number in every rank.

    Each rank runs this at the same time, on the same images (N, ...) and labels (N,), N at least 1, perhaps fewer than ranks.
    model(batch) gives logits (B, classes); it is in eval mode and gets at most batch_size images at a time.
    all_reduce(x) returns the sum of the tensor x over all ranks, once every rank has called it; each rank must therefore call
    it as often as the others, and at most twice, however many batches there are, since they wait for the slowest.

    Wanted: every image is read once, by one rank, and no rank reads more than ceil(N / world_size).

    Example: of 5 images 4 are read right; the result is 0.8 with any number of ranks and any batch_size.
    """
    # TODO: 5 images, 2 ranks, batch_size 2: write down which images each rank reads, and what is averaged with what.
    sampler: DistributedSampler[int] = DistributedSampler(TensorDataset(labels), world_size, rank, shuffle=False)
    accuracies = []
    with torch.no_grad():
        for batch in torch.tensor(list(sampler)).split(batch_size):
            is_right = model(images[batch]).argmax(dim=1) == labels[batch]
            accuracies.append(all_reduce(is_right.float().mean()) / world_size)
    return torch.stack(accuracies).mean().item()
