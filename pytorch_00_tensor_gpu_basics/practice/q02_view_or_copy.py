"""View or copy? Say it before you look.

x is a float32 tensor of 3 rows and 4 columns: x = torch.arange(12.0).reshape(3, 4).
"""

# TODO: True where writing into the result would change x (both have the same storage), False where it is a copy.
SHARES_MEMORY = {
    "x[:, ::2]": None,
    "x[[0, 2]]": None,
    "x[x > 5]": None,
    "x.t()": None,
    "x.reshape(2, 6)": None,
    "x.t().reshape(2, 6)": None,
    "x.contiguous()": None,
    "x.t().contiguous()": None,
    "x.to(torch.float32)": None,
    "x.expand(5, 3, 4)": None,
    "torch.tensor(x.numpy())": None,
    "torch.as_tensor(x.numpy())": None,
}
