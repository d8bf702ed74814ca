"""Less than a megabyte in, forty gigabytes in between.

A calculator that anybody may use gets x - y with x of shape (100000, 1) and y of shape (1, 100000). Both are small; the
difference is not, and the process is killed before it can say so. From the shapes alone it is known beforehand what an
expression needs at its worst moment, and the order of evaluation has a say in it.
"""

from itertools import zip_longest

# A name, or ("T", tree), or one of "+", "-", "*", "@" with its operands: ("+", "x", ("@", ("T", "w"), "y")) is x + w.T @ y
Tree = str | tuple


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a + b, for shapes that fit together."""
    pairs = list(zip_longest(reversed(a), reversed(b), fillvalue=1))
    return tuple(right if left == 1 else left for left, right in reversed(pairs))


def peak_bytes(tree: Tree, shapes: dict[str, tuple[int, ...]]) -> int:
    """The most bytes that results take up at one moment, when the operands are evaluated in the best order.

    tree: see above; it fits the shapes. shapes: for each name the shape of its tensor, all float32, 4 bytes a number.

    The tensors with names are there anyway and do not count. "+", "-" and "*" make a new tensor of the broadcast
    shape. "@" takes two matrices and makes a new one. ("T", x) is the transposed matrix x, a view: it makes nothing, and
    keeps alive what it looks at. While an operation runs, its operands and its result are alive; then its operands are
    dropped, where they are results. Of its two operands one is evaluated completely, then, while that result waits, the
    other; which one goes first is chosen for each operation so that the peak is as low as it can be.

    Examples, with x of shape (100, 1) and y of shape (1, 100):
        peak_bytes(("-", "x", "y"), shapes) == 40_000
        peak_bytes(("+", ("*", "x", "x"), ("-", "x", "y")), shapes) == 80_400
    """
    # TODO
    raise NotImplementedError
