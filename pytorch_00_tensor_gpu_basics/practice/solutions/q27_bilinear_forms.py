"""The first product should make the longest axis disappear, because what is left in between has the other two.

Three operands can be contracted in three orders: x with the weight sums over i and leaves (B, O, J); the weight with
z sums over j and leaves (B, O, I); x with z sums over nothing and leaves all pairs (B, I, J), in which o does not
occur. Each order takes B * O * I * J multiplications in its larger step, and as many as the tensor in between has
numbers in the other, so the leanest is also the fastest. einsum with three operands goes from left to right unless
the package opt_einsum is installed. Multiplying everything first and summing at the end keeps B * O * I * J numbers.
"""

import torch


def bilinear_forms(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    _, i, j = weight.shape
    longest = max(weight.shape)
    if i == longest:
        return torch.einsum("boj,bj->bo", torch.einsum("bi,oij->boj", x, weight), z)
    if j == longest:
        return torch.einsum("bi,boi->bo", x, torch.einsum("oij,bj->boi", weight, z))
    return torch.einsum("bij,oij->bo", torch.einsum("bi,bj->bij", x, z), weight)
