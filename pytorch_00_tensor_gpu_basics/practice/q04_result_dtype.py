"""Which dtype comes out?

half_tensor * 2.5 stays float16, but half_tensor * tensor_of_float32 is float32, twice the memory, and on a GPU off
the fast path. PyTorch's rule has two levels; most programs get bitten by the one that they do not know.
"""

import torch


def result_dtype(a: torch.Tensor | bool | int | float, b: torch.Tensor | bool | int | float) -> torch.dtype:
    """The dtype of a + b, worked out without adding them and without torch.result_type.

    a, b: real tensors of any dimension, or numbers of Python. torch.promote_types(dtype, dtype) is allowed: it gives
    the smallest dtype that holds both (int64 and float16 give float16).

    Examples:
        result_dtype(torch.ones(3, dtype=torch.float16), 2.5) is torch.float16
        result_dtype(torch.ones(3, dtype=torch.int32), 2.5) is torch.float32
        result_dtype(torch.ones(3, dtype=torch.uint8), torch.tensor(300, dtype=torch.int64)) is torch.uint8
    """
    # TODO
    raise NotImplementedError
