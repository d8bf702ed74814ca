"""from_numpy does not copy: tensor and array are two views of the same bytes, so the next fill rewrote every batch.

.clone() gives the batch memory of its own. What looks like a copy is often none: .contiguous(), .to("cpu"), .float()
and torch.as_tensor return the same memory when it already has that form. A copy to the GPU would have hidden the
bug, until somebody made it non_blocking: then the buffer is refilled while the copy is still reading it. The last
batch would need no copy, since nobody fills the buffer after it; the clone costs little and survives the next edit.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch


def read_batches(samples: Iterable[np.ndarray], batch_size: int, features: int) -> Iterator[torch.Tensor]:
    buffer = np.empty((batch_size, features), dtype=np.float32)
    filled = 0
    for sample in samples:
        buffer[filled] = sample
        filled += 1
        if filled == batch_size:
            yield torch.from_numpy(buffer).clone()
            filled = 0
    if filled:
        yield torch.from_numpy(buffer[:filled]).clone()
