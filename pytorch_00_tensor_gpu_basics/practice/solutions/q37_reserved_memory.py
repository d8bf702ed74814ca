"""Each segment is a list of blocks in the order of their addresses; a block is a size and who holds it.

Allocated and reserved differ by what is free inside the segments, and that is not lost: the next request of the right
size gets it without asking the device, which would take far longer. It is lost to a request that no single free block
can hold. Blocks merge only with neighbours in their own segment, so one small survivor in the middle can make 20 MiB
useless for a request of 12. torch.cuda.empty_cache() gives back only segments in which nothing is held. Hence three
habits: allocate what stays (model, optimizer) before what comes and goes, keep the shapes of the batches alike, and
where they cannot be, set PYTORCH_ALLOC_CONF=expandable_segments:True, which lets one segment grow in place of many of
fixed size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MIB = 2**20


@dataclass
class Block:
    size: int
    holder: str | None = None


Segment = list[Block]


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def segment_size(size: int) -> int:
    if size <= MIB:
        return 2 * MIB
    return 20 * MIB if size < 10 * MIB else round_up(size, 2 * MIB)


def take(pool: list[Segment], name: str, size: int) -> None:
    places = [(segment, i) for segment in pool for i, block in enumerate(segment)]
    free = [(segment, i) for segment, i in places if segment[i].holder is None and segment[i].size >= size]
    if not free:
        pool.append([Block(segment_size(size))])
        free = [(pool[-1], 0)]
    segment, i = min(free, key=lambda place: place[0][place[1]].size)  # of equal ones, min keeps the first
    rest = segment[i].size - size
    if rest >= 512 if size <= MIB else rest > MIB:
        segment[i : i + 1] = [Block(size), Block(rest)]
    segment[i].holder = name


def give_back(pool: list[Segment], name: str) -> None:
    for segment in pool:
        merged: Segment = []
        for block in segment:
            if block.holder == name:
                block.holder = None
            if merged and merged[-1].holder is None and block.holder is None:
                merged[-1].size += block.size
            else:
                merged.append(block)
        segment[:] = merged


def replay(events: Sequence[tuple[str, int | None]]) -> tuple[int, int]:
    small: list[Segment] = []
    large: list[Segment] = []
    for name, requested in events:
        if requested is None:
            give_back(small + large, name)
        else:
            size = round_up(requested, 512)
            take(small if size <= MIB else large, name, size)
    blocks = [block for segment in small + large for block in segment]
    allocated = sum(block.size for block in blocks if block.holder is not None)
    return allocated, sum(block.size for block in blocks)
