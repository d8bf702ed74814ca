"""A mean of means counts every part alike, and so a token for more where its neighbours are few.

In a part with 50 tokens each counts three times as much as in one with 150. The bias does not average out: sentences
that are short are always heavier. Sum instead, and divide by a number that no part knows: the tokens of all of them.
It is there before the first forward pass, in y. It counts targets, not places, so padding is no part of it; and a part
of nothing but padding adds a sum of 0, where its mean would be 0 / 0. With several processes the count has to be summed
over them as well.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

IGNORED = -100


def train_step(model: nn.Module, optimizer: Any, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    count = sum(int((y != IGNORED).sum()) for _, y in parts)
    optimizer.zero_grad()
    total = 0.0
    for x, y in parts:
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=IGNORED, reduction="sum") / count
        loss.backward()
        total += loss.item()
    optimizer.step()
    return total
