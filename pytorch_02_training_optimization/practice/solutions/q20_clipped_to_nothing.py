"""Between backward() and step() every gradient carries the scale, so a length is compared with the wrong number.

With a scale of 65,536 a gradient of length 4.6 measures 300,000. Clipped to 1 and then divided by the scale in
scaler.step(), it has the length 0.000015: the loss stands still, and nothing is wrong that a message could name.
scaler.unscale_(optimizer) divides early, notes whether anything is infinite, and tells step() that it has been done.
Everything that looks at the size of gradients belongs after it: clipping by norm or by value, logging, noise.
Dividing the gradients by hand would divide twice, since step() does not know of it. Multiplying max_norm by the scale
clips rightly, but then the log still has the other length.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def train_step(
    model: nn.Module, optimizer: Any, scaler: torch.amp.GradScaler, x: torch.Tensor, y: torch.Tensor, max_norm: float
) -> float:
    optimizer.zero_grad()
    loss = F.mse_loss(model(x), y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    length = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()
    return length.item()
