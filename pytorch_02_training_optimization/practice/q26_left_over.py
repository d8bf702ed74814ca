"""An epoch of ten parts, a step every four: what becomes of the last two?

The loop below has run for months. Somebody changed the number of parts in a step from 5 to 4, and now a fifth of the
data takes no part in the training. A colleague's repair, one more optimizer.step() behind the loop, trains on it, but
with steps that are half as long as they should be, and with one step too many where nothing was left over.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def train_epoch(
    model: nn.Module, optimizer: Any, parts: Iterable[tuple[torch.Tensor, torch.Tensor]], per_step: int
) -> int:
    """Trains on all parts, `per_step` of them for each step and what is left for the last one. Returns the number of steps.

    model: x (B, F) to (B, C) scores
    optimizer: has zero_grad() and step()
    parts: (x, y), all of one size B, from a source that can be read once and does not know its length; may be empty

    Each step follows the gradient of the mean loss over the samples in it, of the last one too. Of the source, never hold
    more than per_step parts; the graph of one part at a time.

    Example: ten parts and per_step 4 are three steps, on 4, 4 and 2 parts.
    """
    # TODO: how many parts are in the last step, and when can you know?
    optimizer.zero_grad()
    steps = 0
    for number, (x, y) in enumerate(parts, start=1):
        loss = F.cross_entropy(model(x), y) / per_step
        loss.backward()
        if number % per_step == 0:
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    return steps
