"""In float32 it learns. In mixed precision, with the same learning rate, the loss stands still.

A loop that trained well was moved to float16: autocast around the forward pass, a GradScaler around the rest, as the
documentation shows. No error, no NaN, the scale stays at 65,536, and the logged gradient norm reads 300,000, so surely
clipping is what keeps it stable.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def train_step(
    model: nn.Module, optimizer: Any, scaler: torch.amp.GradScaler, x: torch.Tensor, y: torch.Tensor, max_norm: float
) -> float:
    """One step of regression with squared error, the gradient clipped to a length of at most max_norm.

    optimizer: has zero_grad(), step() and param_groups, and holds all parameters of the model
    scaler: belongs to this optimizer; the step is left out where it finds an infinite gradient, and its scale adapts
    Returns the length of the gradient of the loss before clipping, for the log; whatever it is where the step is left
    out.

    Wanted: but for rounding, the same weights and the same returned length as without a scaler.
    """
    # TODO: 300,000 is the length of which gradient?
    optimizer.zero_grad()
    loss = F.mse_loss(model(x), y)
    scaler.scale(loss).backward()
    length = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()
    return length.item()
