"""When must reshape copy?

view() gives the same storage another shape. It refuses when no strides can describe the new shape, and there
reshape() copies without a word. You can tell which it will be from three tuples.
"""


def can_view(shape: tuple[int, ...], stride: tuple[int, ...], new_shape: tuple[int, ...]) -> bool:
    """True where a tensor of this shape and stride (in elements) can be viewed as `new_shape` without a copy.

    Both shapes have the same number of elements; there is no -1 in `new_shape`. Decide from the numbers alone: no
    tensor is needed, and none is allowed.

    Example: torch.empty(4, 6) has stride (6, 1), and its transpose has shape (6, 4) and stride (1, 6).

        can_view((4, 6), (6, 1), (2, 12)) is True
        can_view((6, 4), (1, 6), (24,)) is False     # neighbours in the new order lie 6 apart, then jump back
        can_view((6, 4), (1, 6), (2, 3, 4)) is True  # only the dimension of size 6 is split
    """
    # TODO
    raise NotImplementedError
