"""The fastest that a matrix product can be.

A chip has two speed limits: operations a second, and bytes a second from its memory. Whatever a kernel does, it can
beat neither, so you can say how long a product takes at least, and which limit holds it back, before it runs.
"""


def matmul_limit(
    m: int, n: int, k: int, element_bytes: int, peak_flop_s: float, peak_byte_s: float
) -> tuple[float, str]:
    """The least seconds for an (m, k) matrix times a (k, n) matrix, and what limits them: "compute" or "memory".

    A multiplication and an addition are two operations. Each input is read from memory once and the result written
    once, at best; computing and moving bytes happen at the same time.

    Example: float16, 2 bytes, on a chip with 312e12 FLOP/s and 2039e9 B/s (an A100's data sheet):

        matmul_limit(4096, 4096, 4096, 2, 312e12, 2039e9) is (0.00044, "compute"), rounded
        matmul_limit(1, 4096, 4096, 2, 312e12, 2039e9) is (0.0000165, "memory"), rounded
    """
    # TODO
    raise NotImplementedError
