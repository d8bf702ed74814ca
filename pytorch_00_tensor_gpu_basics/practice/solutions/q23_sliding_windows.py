"""Two axes may walk over the same numbers: one goes `step` samples at a time, the other one sample.

If the last axis of the signal has the stride s, the windows have the stride step * s and the samples within a window
s again; no number has to move, and the shape may hold a hundred times more numbers than the memory. unfold is the
name for that; as_strided does the same from numbers that you work out, and believes you, even where they lead to
other people's numbers. Two things follow. Never write into such a result: one number stands in many windows. And
the view lasts until somebody copies it: .contiguous(), .reshape(), or the arithmetic of the model, so cut batches
of windows first. Two unfolds make the windows of a convolution.
"""

import torch


def sliding_windows(signal: torch.Tensor, size: int, step: int) -> torch.Tensor:
    return signal.unfold(-1, size, step)
