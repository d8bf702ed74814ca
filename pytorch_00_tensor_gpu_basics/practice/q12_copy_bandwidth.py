"""How fast does this machine copy memory?

b.copy_(a) for two float32 tensors of 256 MiB, on the fastest device here (the GPU, where there is one). Every number
is read once and written once, so twice 256 MiB move. Predict the rate in GB/s (10^9 bytes a second), before you run
gpu_benchmarks: as a range that you would bet on, the high end at most 4 times the low end.
"""

# TODO: (low, high) in GB/s, such as (1.0, 2.0)
COPY_GB_S = None
