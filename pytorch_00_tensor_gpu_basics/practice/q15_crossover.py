"""From which size on is the GPU worth the trip?

A GPU multiplies faster, but the matrices are in the computer's memory: two must travel to the GPU, and the product
must travel back. Small matrices are multiplied before the first byte would have arrived.
"""


def crossover(cpu_flop_s: float, gpu_flop_s: float, latency_s: float, link_byte_s: float, largest: int) -> int | None:
    """The smallest n, from 1 to `largest`, for which the GPU finishes sooner; None where there is none.

    Two (n, n) float32 matrices are sent in one transfer each, multiplied (2n³ operations), and the product is fetched
    in a third transfer. A transfer takes latency_s + bytes / link_byte_s. The three transfers and the product follow
    one another. The CPU only multiplies.

    Example: 1 TFLOP/s against 100 TFLOP/s, with 10 µs and 25 GB/s between them:

        crossover(1e12, 100e12, 10e-6, 25e9, 10_000) == 360
    """
    # TODO
    raise NotImplementedError
