"""The two directions end at opposite ends of a review, and only the library knows where the backward one may begin.

At step length - 1 the forward direction has read everything. The backward one arrives there from the padding and has
read, of the review, its last word and no more: half of the head's input said nothing else. Its end is step 0, but taken
from the padded output that state has come through all the padding, so no index into it is right. Packed, each sequence is
walked back from its own last word, and in a deeper network every layer is free of padding. h_n has the ends of all layers
and directions: the last two of its rows are forward and backward of the last layer, and with enforce_sorted=False they are
in the order of the batch. They lie one behind the other in memory, (2, B, hidden), so a reshape to (B, 2 * hidden) would
mix reviews; cat along the last axis does not.
"""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class ReviewScorer(nn.Module):
    def __init__(self, vocabulary: int, width: int, hidden: int, layers: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, hidden, layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 1)

    def forward(self, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        words = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        _, h_n = self.gru(words)  # (2 * layers, B, hidden)
        ends = torch.cat([h_n[-2], h_n[-1]], dim=1)
        return self.head(ends).squeeze(1)
