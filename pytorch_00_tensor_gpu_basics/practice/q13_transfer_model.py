"""Two numbers that describe every transfer.

A copy to the GPU takes a while before the first byte arrives, and then every byte takes its share:
seconds = latency + bytes / bandwidth. With both numbers you know for any size what a transfer will cost.
"""

from collections.abc import Sequence


def fit_transfer_model(sizes_bytes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Latency in seconds and bandwidth in bytes per second, from measured transfers.

    sizes_bytes, seconds: two or more measurements, the sizes from a few bytes to gigabytes, in any order. Each time
    is off by a few per cent of itself, as measurements are. Both results must be good: the latency that decides
    about small tensors, and the bandwidth that decides about large ones.

    Example: 10 µs and 25 GB/s take 10.04 µs for 1 kB and 50 µs for 1 MB, so

        fit_transfer_model([1_000, 1_000_000], [10.04e-6, 50e-6]) is (10e-6, 25e9), up to rounding
    """
    # TODO
    raise NotImplementedError
