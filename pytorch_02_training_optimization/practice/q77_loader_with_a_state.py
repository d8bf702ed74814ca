"""Build a loader that shuffles and that can be stopped in the middle of an epoch.

A trainer that finds state_dict() and load_state_dict() on your loader puts the state into its checkpoint, and brings it
back. It may ask at any time: in the middle of an epoch, at its last batch, between two epochs. What is in the state is up
to you.
"""

from collections.abc import Iterator
from typing import Any


class Loader:
    """Hands out the rows 0 to count - 1 of a data set in batches, every epoch in another order.

    An epoch has len(loader) batches, the last one perhaps smaller, and each row comes once. loader.epoch is the number of
    the epoch, from 0, that the next batch belongs to: with the last batch of an epoch it moves on.

    `for rows in loader:` goes on where the loader stands, and ends with the epoch. So after a break, or after
    load_state_dict(), comes the batch that would have come next, and then the rest of that epoch.

    state_dict(), called while the body of the loop works on a batch, says that this batch has been handed out. It holds
    plain values that json can write, stays as it is when the loader goes on, and is as small for a billion rows as for ten.
    Loaded into a Loader with the same count and batch_size, of whatever seed, it makes it hand out what this one would have.
    No random generator is touched that others may use.

    Example: Loader(5, 2, seed=0) may hand out [3, 0], [4, 1], [2] and then, in epoch 1, [1, 3], [0, 2], [4].
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        # TODO: from which few numbers could you make the order of this epoch again?
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[list[int]]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError
