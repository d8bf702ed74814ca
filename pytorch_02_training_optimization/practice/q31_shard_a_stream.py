"""One stream, eight processes, four workers in each: who takes which sample?

A stream has no length and no index. Every worker of every process opens its own copy of it and reads from the
beginning, so each of them has to know which samples are its own. If two take the same sample, it counts twice. If one
process gets a sample more than the others, it starts one step more, and waits for ever for gradients that the others do
not send.
"""

from collections.abc import Iterable, Iterator
from typing import Any


def shard(stream: Iterable[Any], rank: int, world_size: int, worker: int, workers: int) -> Iterator[Any]:
    """The samples of one worker, in the order of the stream.

    stream: gives its samples one after another; it may be endless, and need not be a list. rank: which of world_size
        processes this is, from 0. worker: which of `workers` workers in this process, from 0; both numbers are at least 1.
    No sample goes to two places. All workers of a process together have as many samples as those of any other process;
    to that end up to world_size - 1 samples at the end of the stream go to nobody, and no more than that. Within a process
    the workers have equally many, to within one sample.
    A sample is given as soon as no more than world_size - 1 further ones have been read, and nothing is stored.

    Example: of the stream 0, 1, …, 10 with 2 processes of 2 workers each, 10 goes to nobody, every process gets five, and
    every worker two or three.
    """
    # TODO
    raise NotImplementedError
