"""A step over a hundred million rows, for eight thousand that were used.

A recommender has a row for each of its users. A batch looks up a few thousand, and Adagrad, which such tables are trained with
since rare rows keep long steps, reads and writes all of them: the gradient, full of zeros, the sum of squares and the table
itself. Where the gradient is 0 nothing changes. So why go there?
"""

import torch

EPSILON = 1e-10


@torch.no_grad()
def adagrad_step(
    table: torch.Tensor, squares: torch.Tensor, tokens: torch.Tensor, upstream: torch.Tensor, lr: float
) -> None:
    """One step of Adagrad for an embedding, table and squares changed in place:

        squares += gradient²
        table -= lr * gradient / (sqrt(squares) + EPSILON)

    table, squares: (V, D) float32 or float64; the table may require gradients
    tokens: int64 of any shape, what was looked up, with repetitions; upstream: (*tokens.shape, D), the gradient of the loss in
        each looked-up row. The gradient of a row of the table is the sum over all its uses. Neither is changed.

    Wanted: no new tensor with more numbers than upstream has, tokens.numel() * D, and no loop over tokens.

    Example: squares all 0, tokens [3, 5, 3], upstream [[1], [1], [1]] and lr 0.1: the gradient of row 3 is 2, its squares
    become 4, and it moves by -0.1; row 5 moves by -0.1 as well, and no other row is touched.
    """
    # TODO: which line makes a tensor of V rows, and what is in it?
    gradient = torch.zeros_like(table)
    gradient.index_add_(0, tokens.flatten(), upstream.flatten(0, -2))
    squares += gradient**2
    table -= lr * gradient / (squares.sqrt() + EPSILON)
