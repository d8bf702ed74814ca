"""Sending grows with n², multiplying with n³, so work outgrows travel, if the GPU is faster at all.

In the example the latency alone asks for n = 248, the bytes alone for 243, both together for 360. A GPU ten times
faster moves that to 358; a link twice as fast to 296; and leaving the product on the GPU, because the next operation
runs there too, to 286. The cheapest transfer is the one that you do not make.
"""


def crossover(cpu_flop_s: float, gpu_flop_s: float, latency_s: float, link_byte_s: float, largest: int) -> int | None:
    for n in range(1, largest + 1):
        transfer_s = latency_s + 4 * n**2 / link_byte_s
        if 3 * transfer_s + 2 * n**3 / gpu_flop_s < 2 * n**3 / cpu_flop_s:
            return n
    return None
