"""Each part of the tree is known by three things: its peak, what it keeps while it waits, and its shape.

Of two operands, the one that goes first needs its peak, then waits with its result while the other needs its own:
max(peak of the first, kept by the first + peak of the second). Try both orders and take the lower. Whichever went first,
in the end both results and the new one are alive, so that sum is a bound too. Going first pays for the operand whose
peak lies far above what it keeps: the same rule by which compilers number registers (Sethi and Ullman, 1970), and the
reason why einsum and compilers reorder. Nothing was allocated to know it; PyTorch's meta device does the same for
whole models. The result of a chain of elementwise operations is what torch.compile fuses away.
"""

from itertools import zip_longest
from math import prod

Tree = str | tuple


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a + b, for shapes that fit together."""
    pairs = list(zip_longest(reversed(a), reversed(b), fillvalue=1))
    return tuple(right if left == 1 else left for left, right in reversed(pairs))


def measure(tree: Tree, shapes: dict[str, tuple[int, ...]]) -> tuple[int, int, tuple[int, ...]]:
    """Peak, bytes kept by the result, and its shape."""
    if isinstance(tree, str):
        return 0, 0, shapes[tree]
    if tree[0] == "T":
        peak, kept, shape = measure(tree[1], shapes)
        return peak, kept, shape[::-1]
    peak_a, kept_a, shape_a = measure(tree[1], shapes)
    peak_b, kept_b, shape_b = measure(tree[2], shapes)
    shape = (shape_a[0], shape_b[1]) if tree[0] == "@" else broadcast(shape_a, shape_b)
    made = 4 * prod(shape)
    a_first, b_first = max(peak_a, kept_a + peak_b), max(peak_b, kept_b + peak_a)
    return max(min(a_first, b_first), kept_a + kept_b + made), made, shape


def peak_bytes(tree: Tree, shapes: dict[str, tuple[int, ...]]) -> int:
    return measure(tree, shapes)[0]
