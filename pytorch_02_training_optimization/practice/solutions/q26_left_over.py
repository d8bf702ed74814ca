"""The divisor is the number of parts in the step, and that is only known when the step's parts are there.

A loop that counts modulo per_step finds out too late: when the source ends, the parts that are left have been divided by
per_step already. So take up to per_step parts first, count them, and divide by that. islice gives fewer where the source
ends, and nothing at all after that, so there is no empty step and no case of its own for the end. The parts held
are data, without activations; their graphs still come and go one by one. Give a scheduler the number that is returned:
it is the ceiling of parts / per_step.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def train_epoch(
    model: nn.Module, optimizer: Any, parts: Iterable[tuple[torch.Tensor, torch.Tensor]], per_step: int
) -> int:
    source, steps = iter(parts), 0
    while group := list(islice(source, per_step)):
        optimizer.zero_grad()
        for x, y in group:
            (F.cross_entropy(model(x), y) / len(group)).backward()
        optimizer.step()
        steps += 1
    return steps
