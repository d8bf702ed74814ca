"""The same result for a fraction of the work.

Matrix products may be bracketed as you like: the result is the same, the work is not. Python goes from left to right
unless you say otherwise. Count multiplications before you run anything: a product of (m, k) with (k, n) takes
m * k * n of them, each matrix of a batch as many again, and an element-wise product one for each result. The tensors:

    w (1000, 1000)  u (1000, 1)                        a weight that is applied twice to one vector
    x (512, 4096)   a (4096, 8)    b (8, 4096)         512 tokens and a low-rank update of a weight (LoRA)
    q, k, v         each (12, 2048, 64)                12 heads, 2048 tokens, 64 numbers; .mT swaps the last two
    p, r            each (10000, 64)                   10,000 pairs of vectors whose dot products are wanted

For example x @ a takes 512 * 4096 * 8 = 16,777,216.
"""

# TODO: the number of multiplications of each expression, exactly; a product such as 512 * 4096 * 8 will do.
MULTIPLICATIONS = {
    "w @ w @ u": None,
    "w @ (w @ u)": None,
    "x @ (a @ b)": None,
    "x @ a @ b": None,
    "q @ k.mT @ v": None,
    "q @ (k.mT @ v)": None,
    "(p @ r.mT).diagonal()": None,
    "(p * r).sum(dim=1)": None,
}
