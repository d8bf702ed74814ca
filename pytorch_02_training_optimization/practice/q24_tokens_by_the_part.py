"""Eight parts should train as one batch does. They did on images, and on text they do not.

The loop was tested with parts that were full to the last token, and agreed with the whole batch to seven digits. Real
sentences have different lengths and are padded. Since then the network is better at short sentences than it used to be,
and the loss in the log is not that of the validation, which counts tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

IGNORED = -100  # stands in y where a sentence is over; F.cross_entropy leaves it out


def train_step(model: nn.Module, optimizer: Any, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """One step on the mean loss of all tokens of all parts, each token counted alike.

    model: x (B, T) numbers to (B, T, C) scores; each sentence by itself
    optimizer: has zero_grad() and step()
    parts: (x, y) with y (B, T), IGNORED where nothing counts; B and T differ from part to part. A part may hold nothing
    but padding; not all do.
    Returns that mean loss.

    Wanted: but for rounding, the weights and the loss of one batch of all sentences. The graph of one part at a time.
    """
    # TODO: how much does one token count, in a part with few of them and in one with many?
    optimizer.zero_grad()
    total = 0.0
    for x, y in parts:
        scores = model(x)
        loss = F.cross_entropy(scores.flatten(0, 1), y.flatten(), ignore_index=IGNORED) / len(parts)
        loss.backward()
        total += loss.item()
    optimizer.step()
    return total
