"""A gradient of zero is an order to an optimizer, not a lock: the update is -lr * (gradient + decay * weight) and more.

Weight decay shrinks what has no gradient, momentum carries on what once had one, and Adam keeps two numbers for each weight
that will never move. Hooks on a parameter are also lost in a deepcopy, so that a copy trains everything. What must not be
trained should not be in a trained parameter: the bought rows are a buffer, which the state dict, .to() and deepcopy know and
no optimizer sees (a Parameter with requires_grad=False would do as well, since optimizers leave out what has no .grad).
Two lookups and a choice put the table together for the tokens at hand; clamped indices keep each lookup inside its own part,
and where() sends a gradient of zero to what it did not choose. torch.cat([bought, new]) would be right and would copy the
whole table for every batch.
"""

import torch
import torch.nn.functional as F
from torch import nn


class GrownEmbedding(nn.Module):
    bought: torch.Tensor

    def __init__(self, bought: torch.Tensor, added: int) -> None:
        super().__init__()
        self.register_buffer("bought", bought.detach().clone())
        self.new = nn.Parameter(self.bought.mean(dim=0).repeat(added, 1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        place = tokens - len(self.bought)  # among the new rows, from 0
        old = F.embedding(tokens.clamp(max=len(self.bought) - 1), self.bought)
        new = F.embedding(place.clamp(min=0), self.new)
        return torch.where((place >= 0).unsqueeze(-1), new, old)
