"""Put the shapes under each other with their right ends flush, fill up with 1, and look at one column at a time.

All sizes other than 1 in a column must be alike. An operand that has 1 where the result has more is read again and
again, which is a stride of 0: the walk along that axis stays where it is. So broadcasting costs no memory for the
operands (the result is another matter), and expand() is this function. It also shows why (N, 1) - (N,) is no error
but an (N, N) table: in each column one of the two is a 1. And 1 against 0 gives 0: a size of 0 is a size like any
other.
"""

from collections.abc import Sequence
from itertools import zip_longest


def broadcast(
    shapes: Sequence[tuple[int, ...]], strides: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    backwards = []
    for axis, sizes in enumerate(zip_longest(*map(reversed, shapes), fillvalue=1), start=1):
        others = set(sizes) - {1}
        if len(others) > 1:
            raise ValueError(f"axis -{axis}: sizes {' and '.join(map(str, others))}")
        backwards.append(others.pop() if others else 1)
    common = tuple(reversed(backwards))
    read = []
    for shape, stride in zip(shapes, strides, strict=True):
        new_axes = len(common) - len(shape)
        own = zip(shape, stride, common[new_axes:], strict=True)
        read.append((0,) * new_axes + tuple(step if size == wanted else 0 for size, step, wanted in own))
    return common, read
