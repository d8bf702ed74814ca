"""The longer of two times: this is the roofline model, and the product of a matrix and a vector shows what it is for.

Each of the m * n results takes k multiplications and k additions. A square product does 2n³ operations on 3n² numbers,
so from some size on it is limited by arithmetic. With m = 1, as when a language model makes one token, every weight
is read for a single multiplication and addition: no tensor core can help, only fewer bytes can. Answering 16 users at
once takes hardly longer than answering one, and that is why servers batch. (Williams, Waterman and Patterson,
"Roofline", 2009.)
"""


def matmul_limit(
    m: int, n: int, k: int, element_bytes: int, peak_flop_s: float, peak_byte_s: float
) -> tuple[float, str]:
    compute_s = 2 * m * n * k / peak_flop_s
    memory_s = (m * k + k * n + m * n) * element_bytes / peak_byte_s
    return max((compute_s, "compute"), (memory_s, "memory"))
