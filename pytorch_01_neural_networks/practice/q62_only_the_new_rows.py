"""The rows that were to stand still.

A table of word vectors is bought ready-made, and a company adds the forty words that only it uses. Only these are to be
trained: the bought rows were measured and released as they are. The gradient of the bought rows is set to zero, a test proves
it, and after the first epoch every one of them is 4 % shorter.
"""

import torch
from torch import nn


class GrownEmbedding(nn.Module):
    """A bought table with some rows behind it that learn.

    bought: (V, D) floating point, perhaps a parameter of another model; the rows 0 to V - 1 of the table hold what it held when
        it was given, whatever becomes of it afterwards
    added: how many new rows follow, 1 or more: V to V + added - 1. Each begins as the mean of the bought rows.

    forward: tokens int64 of any shape, from 0 to V + added - 1 → (*tokens.shape, D)

    Whatever an optimizer does with model.parameters() (weight decay, momentum, noise), the bought rows stay, to the last
    bit; the new ones get the gradient of all their uses. Nothing but (added, D) numbers is handed to the optimizer for training.
    The state dict has all rows, so that a model loads what another one saved, and .to() moves and converts all of them.

    Example: bought = [[1, 2], [3, 4]] and added = 1: the table is [[1, 2], [3, 4], [2, 3]], and only [2, 3] is trained.
    """

    def __init__(self, bought: torch.Tensor, added: int) -> None:
        super().__init__()
        self.count = len(bought)
        self.embedding = nn.Embedding(self.count + added, bought.shape[1], dtype=bought.dtype)
        with torch.no_grad():
            self.embedding.weight[: self.count] = bought
            self.embedding.weight[self.count :] = bought.mean(dim=0)
        self.embedding.weight.register_hook(self.keep_new_rows)

    def keep_new_rows(self, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[: self.count] = 0
        return gradient

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        # TODO: write down one step of an optimizer with weight decay. What does it do where the gradient is 0?
        return self.embedding(tokens)
