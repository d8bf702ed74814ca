"""The order of an epoch comes from a generator that lives for one call, seeded by seed and epoch together.

seed + epoch would be shorter, and run 1 would have in epoch 2 the order that run 2 has in epoch 1: runs with neighbouring
seeds, as everybody uses them to measure the noise, would see the same epochs one after another. A digest of both has no such
neighbours. The order is drawn for the whole data set, then cut into batches, and only then dealt to the processes; a process
that shuffled its own share would see other samples as soon as there are more or fewer of it. A checkpoint now needs two
numbers for the data, the epoch and the index, and DataLoader workers can make any batch without having made those before.
"""

import hashlib

import torch


def rows_of(
    count: int, batch_size: int, seed: int, epoch: int, index: int, rank: int = 0, processes: int = 1
) -> torch.Tensor:
    if batch_size % processes:
        raise ValueError(f"a batch of {batch_size} cannot be divided by {processes} processes")
    if not 0 <= index < count // batch_size:
        raise IndexError(f"an epoch of {count} samples has no batch {index}")
    key = hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:8]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(int.from_bytes(key, "big")))
    return order[index * batch_size :][:batch_size][rank::processes]
