"""How much memory does it hold?

Say it before you measure: how many bytes does the result of each expression keep alive, if nothing else is kept?
x is what most people write without thinking of a dtype: x = torch.arange(1_000_000).
"""

# TODO: the number of bytes of each result's storage, exactly.
BYTES_HELD = {
    "x": None,
    "x > 5": None,
    "x / 2": None,
    "x.to(torch.bfloat16)": None,
    "x[:10]": None,
    "x[:10].clone()": None,
    "torch.zeros(1).expand(1000, 1000)": None,
    "torch.rand(1000, 1000) + 1j": None,
    "torch.empty(7_000_000_000, dtype=torch.bfloat16, device='meta')": None,
}
