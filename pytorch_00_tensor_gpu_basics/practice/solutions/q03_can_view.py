"""Between two neighbouring dimensions the walk through memory either continues evenly or jumps.

It continues when one step of the outer dimension is as long as a whole walk through the inner one: stride[d] ==
size[d + 1] * stride[d + 1]. A view may merge and split what lies between two jumps as it likes, because there one
stride describes the whole walk, but no new dimension may reach across a jump. So the number of elements behind each
jump must be a number of elements behind some boundary of the new shape. A dimension of size 1 is never stepped
along, so its stride says nothing; where there are no elements, nothing can be wrong. This is what PyTorch's
computeStride does (aten/src/ATen/TensorUtils.cpp).
"""

from itertools import pairwise
from math import prod


def can_view(shape: tuple[int, ...], stride: tuple[int, ...], new_shape: tuple[int, ...]) -> bool:
    if 0 in shape:
        return True
    walked = [(size, step) for size, step in zip(shape, stride, strict=True) if size != 1]
    boundaries = {prod(new_shape[d:]) for d in range(len(new_shape))}
    for d, (outer, inner) in enumerate(pairwise(walked), start=1):
        continues = outer[1] == inner[0] * inner[1]
        behind = prod(size for size, _ in walked[d:])
        if not continues and behind not in boundaries:
            return False
    return True
