"""Give each token the number of its bag, and the loop is one index_add.

The number is how many bags have begun at or before the token, minus one; searchsorted counts that, and right=True makes an
empty bag lose against the one behind it. Looked-up rows then are added into the row of their bag, and adding is what
repeated numbers need: y[bag] += rows would keep one row of each bag. A mean is that sum divided by a count of the same kind,
at least 1, so that an empty bag stays zero and never becomes 0 / 0. Padding is left out of both before anything is looked
up. The backward of the lookup is again an index_add, into the table. What nn.EmbeddingBag adds is memory: it never makes the
(N, D) rows in the middle.
"""

import torch


def bag_vectors(
    table: torch.Tensor,
    tokens: torch.Tensor,
    offsets: torch.Tensor,
    mode: str,
    weights: torch.Tensor | None = None,
    padding_idx: int | None = None,
) -> torch.Tensor:
    places = torch.arange(len(tokens), device=tokens.device)
    bag = torch.searchsorted(offsets, places, right=True) - 1  # (N,)
    if padding_idx is not None:
        is_word = tokens != padding_idx
        tokens, bag = tokens[is_word], bag[is_word]
        weights = None if weights is None else weights[is_word]
    rows = table[tokens]
    if weights is not None:
        rows = rows * weights[:, None]
    sums = table.new_zeros(len(offsets), table.shape[1]).index_add(0, bag, rows)
    if mode == "sum":
        return sums
    return sums / torch.bincount(bag, minlength=len(offsets)).clamp(min=1)[:, None]
