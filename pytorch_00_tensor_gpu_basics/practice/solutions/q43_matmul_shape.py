"""Give a vector its second axis, apply one rule to all cases, and take the axis away again.

A row (1, n) on the left, a column (n, 1) on the right: then only matrices with batches are left, where the two inner
axes must be equal and the batch axes follow broadcasting from the right. The axis to name is that of the shape as it was
given, so a vector on the right is named by -1. Counted from the end, an axis keeps its name however many batches stand in
front of it, which is why PyTorch's own code and good messages count from there. The order of the tests is that in which
a reader wants to hear it: first what @ is about, then the batches.
"""


def matmul_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    for name, shape in (("a", a), ("b", b)):
        if not shape:
            raise ValueError(f"{name} has no axes; @ needs at least one, * multiplies by a number")
    summed = -min(len(b), 2)
    if a[-1] != b[summed]:
        raise ValueError(f"axis -1 of a is {a[-1]}, axis {summed} of b is {b[summed]}: @ sums over these two")
    batch: tuple[int, ...] = ()
    for axis in range(3, max(len(a), len(b)) + 1):
        left = a[-axis] if axis <= len(a) else 1
        right = b[-axis] if axis <= len(b) else 1
        if 1 not in (left, right) and left != right:
            raise ValueError(f"axis -{axis} of a is {left}, axis -{axis} of b is {right}: batches must be equal or 1")
        batch = (right if left == 1 else left, *batch)
    return batch + a[-2:-1] + (b[-1:] if len(b) > 1 else ())
