"""Which samples belong to batch i of epoch e? A function of the seed, so that nothing has to be saved or agreed upon.

A training on 8 GPUs was stopped, and 4 are free. It should go on with the batch that would have come, with the same samples
in it. So the order of an epoch may depend on the seed and the epoch, and on nothing that a process remembers or is.
"""

import torch


def rows_of(
    count: int, batch_size: int, seed: int, epoch: int, index: int, rank: int = 0, processes: int = 1
) -> torch.Tensor:
    """The rows of the data set, (batch_size / processes,) int64, that process `rank` computes of batch `index` of `epoch`.

    count: samples in the data set; those that do not fill a last batch are left out of this epoch
    batch_size: samples of a batch over all processes, which divide it evenly; raises ValueError where they cannot
    index: from 0; raises IndexError where the epoch has no such batch

    Whatever the number of processes, together they compute the same samples of a batch, each once. In an epoch no sample
    comes twice. Every epoch of every seed has an order of its own. The global random generator is neither used nor seeded.

    Example: with 10 samples and batches of 4, the batches 0 and 1 hold 8 of the samples, and there is no batch 2.
    """
    # TODO: from which numbers may a generator be seeded here, and how do two of them become one?
    raise NotImplementedError
