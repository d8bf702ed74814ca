"""Elements in the storage times bytes per element, and both can surprise.

Integers are int64 unless you say otherwise, a bool takes a byte and not a bit, and true division makes floats of the
default dtype. A slice keeps the whole storage of x alive, ten numbers or not; .clone() lets it go. An expanded tensor
holds what it had before, however large its shape. A complex64 is two float32. And seven billion weights in bfloat16
are 14 GB (13 GiB), which is why a 7B model runs on a 16 GB card and cannot be trained there: with float32 weights,
gradients and Adam's two averages, training takes 16 bytes per weight, 112 GB. The meta device knows the size of a
tensor and allocates nothing.
"""

BYTES_HELD = {
    "x": 8_000_000,
    "x > 5": 1_000_000,
    "x / 2": 4_000_000,
    "x.to(torch.bfloat16)": 2_000_000,
    "x[:10]": 8_000_000,
    "x[:10].clone()": 80,
    "torch.zeros(1).expand(1000, 1000)": 4,
    "torch.rand(1000, 1000) + 1j": 8_000_000,
    "torch.empty(7_000_000_000, dtype=torch.bfloat16, device='meta')": 14_000_000_000,
}
