"""Take the frames out, normalise them as a table, put them back: then the padding is neither counted nor shifted.

A zero is a number like any other. With half of a batch padded, the mean is halved and the variance is that of frames and
zeros together, in the running averages too; and since the share of padding changes from batch to batch, so does everything.
Afterwards the norm makes bias - mean * scale of each zero, which the next convolution reads at the end of every short
recording: that is why even eval mode depends on the company. Multiplying by a mask is a poor way to erase, since 0 * nan is
nan; masked_fill, where and indexing are safe. nn.BatchNorm1d takes a table (frames, C), so no formula has to be written, and
momentum, affine=False or an eps of your own keep working. The price: how many frames there are must be known before
the next kernel starts, so a GPU is waited for. Sums under a mask, divided by lengths.sum(), avoid that.
"""

import torch
from torch import nn


class MaskedBatchNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(x.shape[-1], device=x.device)
        is_frame = steps < lengths[:, None]  # (B, T)
        y = torch.zeros_like(x)
        y.mT[is_frame] = self.norm(x.mT[is_frame])  # (frames, C)
        return y
