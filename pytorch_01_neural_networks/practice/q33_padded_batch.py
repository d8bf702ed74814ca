"""The same recording, in other company.

A speech recogniser takes recordings of different lengths, padded at the end to the longest of their batch. What it learns
from a recording depends on how long the others are. And in use, with eval(), the last word of a short recording comes out
differently when a longer one is in the batch.
"""

import torch
from torch import nn


class MaskedBatchNorm(nn.Module):
    """BatchNorm for a padded batch, as if there were no padding.

    forward: x (B, C, T), lengths (B,) whole numbers from 1 to T. The frames of recording b are x[b, :, : lengths[b]]; what lies
    behind them is padding, and may be anything, even nan.

    Returns (B, C, T). Frames become what self.norm makes of all frames of the batch and nothing else: in training
    with their mean and variance, which move its running averages; in eval mode with the running averages. The padding is 0,
    since the next convolution reads across the end of a recording. Nothing in the padding has any influence, on results,
    averages or gradients; x is not changed.

    Example: in training, one channel, recordings [1, 3] and [5] padded to [[1, 3], [5, 9]], a new norm:

        the frames are 1, 3 and 5, with mean 3 and variance 8 / 3, so the result is [[-1.22, 0], [1.22, 0]]
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        # TODO: print the result for the example. Which numbers were averaged, and what is in the padding now?
        steps = torch.arange(x.shape[-1], device=x.device)
        is_frame = steps < lengths[:, None]  # (B, T)
        return self.norm(x * is_frame[:, None])
