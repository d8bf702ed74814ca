"""Add up what belongs to one row, first; then the rows in use are a small table of their own.

unique gives each row that occurs once, and for each token its place among them, so that index_add_ works on a (U, D) sum in
place of (V, D). The order matters: Adagrad squares the gradient, and the square of a sum is not the sum of squares, so
repeated tokens cannot be squared one by one, as they could be added one by one in plain gradient descent. The writes are
safe since no row occurs twice any more; with repetitions table[tokens] -= step would keep one of them. For Adagrad this is
the dense step itself, to rounding, because a gradient of 0 changes neither table nor squares. For Adam or momentum it would
be another algorithm: their unused rows still move. The work is now that of the batch, whatever V is.
"""

import torch

EPSILON = 1e-10


@torch.no_grad()
def adagrad_step(
    table: torch.Tensor, squares: torch.Tensor, tokens: torch.Tensor, upstream: torch.Tensor, lr: float
) -> None:
    rows, place = tokens.flatten().unique(return_inverse=True)  # (U,) and (N,)
    gradient = upstream.new_zeros(len(rows), table.shape[1])
    gradient.index_add_(0, place, upstream.flatten(0, -2))
    sums = squares[rows] + gradient**2
    squares[rows] = sums
    table[rows] -= lr * gradient / (sums.sqrt() + EPSILON)
