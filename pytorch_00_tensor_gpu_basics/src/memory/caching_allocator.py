"""A model of PyTorch's CUDA allocator, small enough to read: it hands out addresses and holds no memory.

The rules are those of c10/cuda/CUDACachingAllocator.cpp (malloc, get_free_block, should_split, try_merge_blocks,
release_blocks) with the sizes of c10/core/AllocatorConfig.h, the same in PyTorch 2.11 to 2.15 unless PYTORCH_ALLOC_CONF
changes them. Left out: several streams (each has blocks of its own), CUDA graphs, and every option but one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

MIB = 2**20
SMALLEST_BLOCK = 512  # bytes; every request is rounded up to a multiple of it
SMALL_REQUEST = 1 * MIB  # requests up to here share segments of SMALL_SEGMENT, apart from the larger ones
SMALL_SEGMENT = 2 * MIB
LARGE_REQUEST = 10 * MIB  # requests below it are cut from segments of LARGE_SEGMENT, others get one of their own …
LARGE_SEGMENT = 20 * MIB
LARGE_STEP = 2 * MIB  # … rounded up to a multiple of this


def round_up(size: int, step: int) -> int:
    return -(-size // step) * step


@dataclass(eq=False)
class Block:
    """A piece of a segment; `requested` is 0 where it is free, else what was asked for."""

    size: int
    requested: int = 0


@dataclass(eq=False)
class Segment:
    """What one cudaMalloc returned: blocks without gaps between them, no two free ones side by side."""

    is_small: bool
    blocks: list[Block] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(block.size for block in self.blocks)


class OutOfSegments(MemoryError):
    """The model's out-of-memory error."""


class CachingAllocator:
    """The default rules. `capacity` is what the GPU has, in bytes."""

    def __init__(self, capacity: int = 2**62) -> None:
        self.capacity = capacity
        self.segments: list[Segment] = []

    def malloc(self, requested: int) -> Block:
        """The block that a request of `requested` > 0 bytes gets. Raises OutOfSegments."""
        size = round_up(requested, SMALLEST_BLOCK)
        found = next(iter(self.fitting(size)), None) or self._reserve(size)
        if found is None:  # before it gives up, the allocator empties its cache and tries again
            self.empty_cache()
            found = self._reserve(size)
        if found is None:
            raise OutOfSegments(
                f"tried to allocate {size / MIB:g} MiB; {(self.capacity - self.reserved_bytes) / MIB:g} MiB free, "
                f"{self.allocated_bytes / MIB:g} MiB allocated, "
                f"{(self.reserved_bytes - self.allocated_bytes) / MIB:g} MiB reserved but unallocated"
            )
        segment, block = found
        rest = block.size - size
        if rest >= SMALLEST_BLOCK if segment.is_small else rest > self._largest_unsplit_rest():
            segment.blocks.insert(segment.blocks.index(block) + 1, Block(rest))
            block.size = size
        block.requested = requested
        return block

    def free(self, block: Block) -> None:
        """Nothing goes back to the GPU: the block becomes free for the next request and joins its free neighbours."""
        (segment,) = (segment for segment in self.segments if block in segment.blocks)
        block.requested = 0
        merged: list[Block] = []
        for piece in segment.blocks:
            if merged and not merged[-1].requested and not piece.requested:
                merged[-1].size += piece.size
            else:
                merged.append(piece)
        segment.blocks = merged

    def empty_cache(self) -> None:
        """Segments without a single live block go back to the GPU."""
        self.segments = [segment for segment in self.segments if any(block.requested for block in segment.blocks)]

    @property
    def allocated_bytes(self) -> int:
        """What memory_allocated() counts: the blocks that tensors live in."""
        return sum(block.size for segment in self.segments for block in segment.blocks if block.requested)

    @property
    def reserved_bytes(self) -> int:
        """What memory_reserved() counts: all segments."""
        return sum(segment.size for segment in self.segments)

    def fitting(self, size: int) -> list[tuple[Segment, Block]]:
        """The free blocks that could take `size` bytes, the one that will come first."""
        is_small = size <= SMALL_REQUEST
        pairs = ((segment, block) for segment in self.segments if segment.is_small == is_small
                 for block in segment.blocks if not block.requested and block.size >= size)  # fmt: skip
        return sorted(pairs, key=lambda pair: self._preference(*pair))

    def _preference(self, segment: Segment, block: Block) -> tuple[bool, int]:
        """Best fit: the smallest free block that is large enough. Among equals, the lowest address, which is luck."""
        return False, block.size

    def _reserve(self, size: int) -> tuple[Segment, Block] | None:
        """A new segment; None where the GPU has no room for it."""
        if size <= SMALL_REQUEST:
            segment_size = SMALL_SEGMENT
        elif size < LARGE_REQUEST:
            segment_size = LARGE_SEGMENT
        else:
            segment_size = round_up(size, LARGE_STEP)
        if self.reserved_bytes + segment_size > self.capacity:
            return None
        block = Block(segment_size)
        self.segments.append(Segment(size <= SMALL_REQUEST, [block]))
        return self.segments[-1], block

    def _largest_unsplit_rest(self) -> int:
        """In large segments a rest of up to 1 MiB stays with its block: smaller blocks would only be in the way."""
        return SMALL_REQUEST


class ExpandableAllocator(CachingAllocator):
    """With expandable_segments:True: one segment of each kind, which grows at its end, page by page.

    The GPU's virtual addresses make it possible: a range is set aside at the start, memory is put behind it later.
    empty_cache() takes whole free pages out again, in any place; this model takes them from the end only.
    """

    def empty_cache(self) -> None:
        for segment in self.segments:
            end = segment.blocks[-1]
            if not end.requested:
                start = segment.size - end.size
                end.size = round_up(start, self._page(segment.is_small)) - start
                if not end.size:
                    segment.blocks.pop()
        self.segments = [segment for segment in self.segments if segment.blocks]

    def _preference(self, segment: Segment, block: Block) -> tuple[bool, int]:
        """The free end of a segment comes last: it can grow, so it counts as the largest."""
        return block is segment.blocks[-1], block.size

    def _reserve(self, size: int) -> tuple[Segment, Block] | None:
        """More pages behind the free end of the segment."""
        is_small = size <= SMALL_REQUEST
        segment = next((segment for segment in self.segments if segment.is_small == is_small), Segment(is_small))
        free_end = segment.blocks[-1].size if segment.blocks and not segment.blocks[-1].requested else 0
        pages = round_up(size - free_end, self._page(is_small))
        if self.reserved_bytes + pages > self.capacity:
            return None
        if segment not in self.segments:
            self.segments.append(segment)
        if not free_end:
            segment.blocks.append(Block(0))
        segment.blocks[-1].size += pages
        return segment, segment.blocks[-1]

    def _page(self, is_small: bool) -> int:
        return SMALL_SEGMENT if is_small else LARGE_SEGMENT

    def _largest_unsplit_rest(self) -> int:
        return SMALLEST_BLOCK - 1


# Traces: what a program asks for, step by step


@dataclass(frozen=True)
class Step:
    """`name` = torch.empty(`size` bytes); with size 0, del `name`; with neither, torch.cuda.empty_cache()."""

    name: str = ""
    size: int = 0

    def __str__(self) -> str:
        if not self.name:
            return "empty_cache()"
        return f"{self.name} = {self.size / MIB:g} MiB" if self.size else f"del {self.name}"


def run_trace(allocator: CachingAllocator, trace: Sequence[Step]) -> dict[str, Block]:
    """Does what `trace` says; returns the blocks that are still used, by name. Raises OutOfSegments."""
    blocks: dict[str, Block] = {}
    for step in trace:
        if not step.name:
            allocator.empty_cache()
        elif step.size:
            blocks[step.name] = allocator.malloc(step.size)
        else:
            allocator.free(blocks.pop(step.name))
    return blocks


Layout = list[list[tuple[int, int]]]


def layout(segments: Sequence[Segment]) -> Layout:
    """For each segment its blocks as (size, requested, or 0), in an order that does not depend on addresses."""
    return sorted([(block.size, block.requested) for block in segment.blocks] for segment in segments)


def draw(segment: Segment, blocks: dict[str, Block], unit: int = MIB) -> str:
    """One sign for `unit` bytes: the letter of the tensor that lives there, a dot for what is free."""
    names = {id(block): name for name, block in blocks.items()}
    cells = (names.get(id(block), "·") * max(1, round(block.size / unit)) for block in segment.blocks)
    return f"│{'│'.join(cells)}│"
