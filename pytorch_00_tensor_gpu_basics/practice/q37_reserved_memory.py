"""Why nvidia-smi shows 20 GB when your tensors take 6.

On a GPU, a deleted tensor's bytes go back to PyTorch and not to the device: memory_allocated() falls, memory_reserved()
stays. The allocator that decides this follows six short rules. With them you can say before a run what it will reserve,
and see how gigabytes can be free in pieces that no request fits into.
"""

from collections.abc import Sequence


def replay(events: Sequence[tuple[str, int | None]]) -> tuple[int, int]:
    """Bytes allocated and bytes reserved at the end of the events.

    events: (name, bytes) asks for memory, one byte or more; (name, None) gives back what that name holds. No name holds
    two requests at once. At the start nothing is reserved.

    The rules (c10/cuda/CUDACachingAllocator.cpp with its default settings, on one stream):
      1. A request is rounded up to a multiple of 512 bytes. Up to 1 MiB it is small, else large. Small and large
         requests never share a segment.
      2. It gets the smallest free block that is large enough; of equal ones the one in the oldest segment, and there
         the first.
      3. Where none is large enough, a new segment is reserved, one free block: 2 MiB for a small request, 20 MiB for
         one below 10 MiB, and for any other the request, rounded up to a multiple of 2 MiB.
      4. The request gets the front of its block. The rest becomes a free block if it is at least 512 bytes (small) or
         more than 1 MiB (large); otherwise the request gets the whole block, and all of it counts as allocated.
      5. A block that is given back is free, and becomes one block with free blocks beside it in its segment.
      6. No segment is given back to the device.

    Examples:
        replay([("a", 1000)]) == (1024, 2 * 2**20)
        replay([("a", 1000), ("b", 3 * 2**20), ("b", None)]) == (1024, 22 * 2**20)
    """
    # TODO
    raise NotImplementedError
