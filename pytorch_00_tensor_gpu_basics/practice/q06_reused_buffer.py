"""A data loader whose batches change after you have them.

The loader fills one NumPy buffer and hands it to PyTorch. Trained batch by batch, all is well. Then somebody writes
`batches = list(read_batches(...))` to shuffle them, and the model learns nothing any more.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch


def read_batches(samples: Iterable[np.ndarray], batch_size: int, features: int) -> Iterator[torch.Tensor]:
    """Yields float32 tensors of shape (batch_size, features); the last one is shorter where samples run out.

    samples: arrays of shape (features,), read only as they are needed, since they may come from a disk or a camera
    Each batch belongs to whoever receives it: neither the loader nor a later batch may change it, and writing into
    it changes nothing else.

    Example: five samples and batch_size 2 give batches of 2, 2 and 1 samples.
    """
    # TODO: look at the first batch again after the second has been read, and repair it.
    buffer = np.empty((batch_size, features), dtype=np.float32)
    filled = 0
    for sample in samples:
        buffer[filled] = sample
        filled += 1
        if filled == batch_size:
            yield torch.from_numpy(buffer)
            filled = 0
    if filled:
        yield torch.from_numpy(buffer[:filled])
