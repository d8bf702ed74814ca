"""One axis away from right.

"The size of tensor a (10) must match the size of tensor b (32)": scores of shape (32, 10), one weight for each of the 32
samples, and the weights lack an axis. A good message shows the change that mends it. There are three here, they compute
different things, and only the shapes of their results tell the reader which one was meant.
"""

from itertools import zip_longest


def shape_of_sum(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of a + b; None where they do not fit."""
    pairs = list(zip_longest(reversed(a), reversed(b), fillvalue=1))
    if any(left != right and 1 not in (left, right) for left, right in pairs):
        return None
    return tuple(right if left == 1 else left for left, right in reversed(pairs))


def changes_that_fit(a: tuple[int, ...], b: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Every single change of a or of b after which a + b works, with the shape of that sum.

    a, b: the shapes of two tensors called a and b. The changes are, written exactly like this:
        "a.unsqueeze(d)"       for each d from 0 to the number of axes of a: a new axis of size 1 in front of axis d
        "a.transpose(d, e)"    for each d < e: axes d and e of a exchanged
    and the same with b. Two changes may lead to the same shape; each has its entry. Where a + b works as it is, there is
    nothing to change: {}.

    Example:
        changes_that_fit((32, 10), (32,)) == {
            "a.unsqueeze(2)": (32, 10, 32),
            "a.transpose(0, 1)": (10, 32),
            "b.unsqueeze(1)": (32, 10),
        }
    """
    # TODO
    raise NotImplementedError
