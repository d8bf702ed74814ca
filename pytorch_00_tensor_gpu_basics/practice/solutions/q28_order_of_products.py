"""Make the small thing first: each order pays for the tensor that stands in between.

w @ w is a million numbers, w @ u a thousand: 500 times less work for a pair of brackets. a @ b is as large as the
weight that the low rank was meant to avoid, so x @ a @ b, from left to right, is 260 times cheaper. q @ k.mT has a
number for each pair of tokens; without the softmax between the products the other order needs 2048 / 64 = 32 times
less, and grows in proportion to the text instead of with its square: that is linear attention. And a table of 10,000
x 10,000 products, of which only the diagonal is read, costs 10,000 times too much. einsum with several operands has
the same choice; torch.einsum goes from left to right unless opt_einsum is installed.
"""

MULTIPLICATIONS = {
    "w @ w @ u": 1000 * 1000 * 1000 + 1000 * 1000,
    "w @ (w @ u)": 2 * 1000 * 1000,
    "x @ (a @ b)": 4096 * 8 * 4096 + 512 * 4096 * 4096,
    "x @ a @ b": 2 * 512 * 4096 * 8,
    "q @ k.mT @ v": 2 * 12 * 2048 * 2048 * 64,
    "q @ (k.mT @ v)": 2 * 12 * 2048 * 64 * 64,
    "(p @ r.mT).diagonal()": 10_000 * 64 * 10_000,
    "(p * r).sum(dim=1)": 10_000 * 64,
}
