"""The chapters of tensor_math: reductions, broadcasting, matrix products, einsum and the order of contractions."""
