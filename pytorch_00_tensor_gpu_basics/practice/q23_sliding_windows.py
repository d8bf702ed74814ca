"""A hundred copies of every sample.

A machine is watched by a sensor with 1,000 samples a second, and a model looks at the last second, every 10 ms. Cut
out window by window, each sample is stored a hundred times: a day of 345 MB becomes 35 GB. But each window is only
another place at which to begin reading.
"""

import torch


def sliding_windows(signal: torch.Tensor, size: int, step: int) -> torch.Tensor:
    """All windows of `size` samples, beginning at sample 0, step, 2 * step, ... as long as a whole window is left.

    signal: (..., T) of any dtype and layout, a single channel or many; 1 <= size <= T, step >= 1
    Returns (..., windows, size). Gradients flow to the signal, as they do below.

    Wanted: the same numbers, and not one of them copied: the result reads the memory of the signal.

    Example: the signal [0, 1, 2, 3, 4, 5] with size 3 and step 2 gives [[0, 1, 2], [2, 3, 4]]; the 5 is left over.
    """
    # TODO: no copy.
    starts = range(0, signal.shape[-1] - size + 1, step)
    return torch.stack([signal[..., start : start + size] for start in starts], dim=-2)
