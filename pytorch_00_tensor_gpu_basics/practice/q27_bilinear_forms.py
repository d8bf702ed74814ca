"""One einsum, and what it keeps in memory.

A knowledge graph holds facts such as (Lima, capital of, Peru). A model scores one by a bilinear form: the vector of
the first entity, a matrix for the relation, the vector of the second, x^T W z. The obvious einsum has three operands
and is right. But only two can be multiplied at a time, and what stands in between decides whether a batch fits.
"""

import torch


def bilinear_forms(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """y[b, o] = the sum over i and j of x[b, i] * weight[o, i, j] * z[b, j], for each sample b and relation o.

    x: (B, I), weight: (O, I, J), z: (B, J), of one floating dtype, any layout
    Returns (B, O), same dtype. Gradients flow to all three.

    Wanted: a number of operations that depends neither on B nor on O, and no tensor in between with more numbers than
    the larger of these two: the weight itself, and B times the smallest of O * I, O * J and I * J. Which of the three
    is smallest depends on the arguments, so choose the order yourself, without torch.nn.functional.bilinear.

    Example: x = [[1, 2]], weight = [[[1, 0], [0, 1]], [[0, 1], [0, 0]]] and z = [[3, 4]] give [[11, 4]]:
    1 * 3 + 2 * 4 for the first matrix, 1 * 4 for the second.
    """
    # TODO
    raise NotImplementedError
