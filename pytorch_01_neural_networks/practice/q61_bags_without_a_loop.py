"""Many sets, one vector each.

A shop describes a customer by the articles in the basket: look their vectors up, take the sum or the mean. Baskets have all
sizes, and some are empty. nn.EmbeddingBag is made for this, and is not on every device. You have indexing and a few
operations more, and ten thousand baskets at a time.
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
    """One vector for each bag, (B, D), as torch.nn.functional.embedding_bag computes it.

    table: (V, D) floating point; tokens: (N,) int64, all bags one after the other
    offsets: (B,) int64, where each bag begins; the first is 0, and they never fall. A bag ends where the next one begins, the
        last one at N; so two equal offsets are an empty bag
    mode: "sum" or "mean"; an empty bag gives zeros in both
    weights: (N,), a factor for each token, only given with "sum"
    padding_idx: a token that counts as if it were not there, and whose row gets no gradient
    No loop over bags or tokens; gradients flow to table and to weights.

    Example: table [[0, 0], [1, 10], [3, 30]], tokens [1, 2, 2, 1], offsets [0, 3, 3], mode "mean":

        the bags are [1, 2, 2], [] and [1], and the result is [[7/3, 70/3], [0, 0], [1, 10]]
    """
    # TODO
    raise NotImplementedError
