"""An error message that names the axis.

"mat1 and mat2 shapes cannot be multiplied (3x4 and 3x5)": the message is true, and its reader still has to find out which
of the numbers should have been equal. A calculator that knows the shape rule of @ can answer before it computes, and
say where to look.
"""


def matmul_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a @ b for two tensors of the shapes a and b, worked out without a tensor.

    The last axis of a is summed with the last but one of b. The axes in front of the last two are batches, and broadcast.
    A tensor of one axis counts as a row on the left and as a column on the right, and that axis is missing in the result.

    Raises ValueError with a message that holds, word for word,
        "axis -1 of a is 4, axis -2 of b is 3"      where two axes must be equal and are not; counted from the end of the
                                                    shape as it was given, and of several such pairs the last ones
        "a has no axes"                             where a is (), likewise b; a first

    Examples:
        matmul_shape((5, 2, 3), (3, 4)) == (5, 2, 4)
        matmul_shape((3,), (3, 4)) == (4,)
        matmul_shape((5, 2, 3), (7, 3, 4)) raises "axis -3 of a is 5, axis -3 of b is 7"
    """
    # TODO
    raise NotImplementedError
