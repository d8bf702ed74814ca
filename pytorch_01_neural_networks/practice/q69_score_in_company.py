"""A review that is liked less in company.

A network reads reviews in both directions and gives each a score. Alone a short review got 0.83, in a batch with longer ones
0.41. Somebody found that output[:, -1] was padding there, and repaired it: now the two are 0.07 apart. But the accuracy is
that of a network with one direction, and the second one might as well not be there.
"""

import torch
from torch import nn


class ReviewScorer(nn.Module):
    """A score for each review.

    forward: tokens (B, T) int64, lengths a list of B whole numbers from 1 to T, in any order → (B,)
        Review b is tokens[b, : lengths[b]]; what stands behind it is padding, and may be any token.

    The score is self.head of two states of the last layer, side by side: the forward direction's when it has read the whole
    review, and the backward direction's when it has read the whole review. So each review gets the score that it gets
    alone, but for rounding, and no padding has any influence. The recurrent network is called once for the whole batch.
    The three modules stay as they are: there are trained weights, and others call them as well.

    Example: with one layer, the backward half of what self.head is given is the state of a network that was given the
    words in reversed order, the first word last.
    """

    def __init__(self, vocabulary: int, width: int, hidden: int, layers: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, hidden, layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 1)

    def forward(self, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        # TODO: draw a row of steps. Which of them has each direction read, at the step that is taken here?
        output, _ = self.gru(self.embedding(tokens))  # (B, T, 2 * hidden)
        last = torch.tensor(lengths, device=tokens.device) - 1
        ends = output[torch.arange(len(tokens), device=tokens.device), last]
        return self.head(ends).squeeze(1)
