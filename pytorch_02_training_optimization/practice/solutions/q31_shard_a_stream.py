"""Deal in rounds: one sample for every process, and the rounds go to the workers in turn.

A round that is not complete is dealt to nobody, so all processes have the same number, one for each complete round. Dealing
to world_size * workers places at once looks the same and is not: at the end some processes have up to `workers` samples
more. zip over the same iterator, world_size times, reads exactly one round and stops at an incomplete one; islice picks
every workers-th round. Where the number is known, torch.utils.data.distributed.DistributedSampler repeats the first
samples instead of leaving out the last. In training either will do; in evaluation each sample has to count once, so count
what really came and divide by that.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any


def shard(stream: Iterable[Any], rank: int, world_size: int, worker: int, workers: int) -> Iterator[Any]:
    rounds = zip(*[iter(stream)] * world_size, strict=False)
    for samples in islice(rounds, worker, None, workers):
        yield samples[rank]
