"""Broadcasting without broadcasting.

prices[:, None] * weeks copies nothing, though both are read in a shape that neither has. All that happens is
arithmetic on shapes and strides, and one rule that is checked axis by axis. Write it down, and no broadcast will
surprise you again.
"""

from collections.abc import Sequence


def broadcast(
    shapes: Sequence[tuple[int, ...]], strides: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The common shape of some operands and, for each of them, the strides by which it is read in that shape.

    shapes, strides: one of each for every operand, at least one operand, as .shape and .stride() say
    Raises ValueError where the shapes do not go together. Its message names the last axis on which they disagree,
    counted from the end, in the words "axis -2".

    No tensor is needed, and none is allowed. Strides along a final size of 0 or 1 are never used; any number is right.

    Examples, with strides of contiguous tensors:
        broadcast([(3, 1), (4,)], [(1, 1), (1,)]) == ((3, 4), [(1, 0), (0, 1)])
        broadcast([(3, 4), (2, 4)], [(4, 1), (4, 1)]) raises ValueError("axis -2: sizes 3 and 2")
    """
    # TODO
    raise NotImplementedError
