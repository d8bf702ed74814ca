"""Operands have a rank: tensors with dimensions, then tensors of no dimension, then numbers of Python.

A lower rank changes the dtype only by bringing a higher category (bool, then integer, then floating), because then
the value could not be kept at all. Within a category it has no say: a Python 2.5 must not turn a float16 model into
float32. So uint8 + tensor(300) stays uint8, and 300 becomes 44 without a word: the price of the rule. Two operands of
one rank are equal, and the smallest dtype that holds both wins. A number of Python counts as torch's default dtype.
(Source: the documentation of torch.dtype, "Type promotion".)
"""

import torch


def rank(operand: torch.Tensor | bool | int | float) -> int:
    if not isinstance(operand, torch.Tensor):
        return 0
    return 2 if operand.ndim else 1


def own_dtype(operand: torch.Tensor | bool | int | float) -> torch.dtype:
    if isinstance(operand, torch.Tensor):
        return operand.dtype
    if isinstance(operand, bool):  # before int: a bool of Python is an int as well
        return torch.bool
    return torch.int64 if isinstance(operand, int) else torch.get_default_dtype()


def category(dtype: torch.dtype) -> int:
    if dtype.is_floating_point:
        return 2
    return 0 if dtype == torch.bool else 1


def result_dtype(a: torch.Tensor | bool | int | float, b: torch.Tensor | bool | int | float) -> torch.dtype:
    if rank(a) < rank(b):
        a, b = b, a
    first, second = own_dtype(a), own_dtype(b)
    if rank(a) == rank(b) or category(second) > category(first):
        return torch.promote_types(first, second)
    return first
