"""A result can share memory when an offset and one stride per dimension are enough to describe it.

A slice, a transpose and an expansion are such descriptions. A list of rows or a mask may pick elements at any
distance, so indexing with them copies. reshape, contiguous and to copy only when they must: that makes them safe to
call and dangerous to write into, because whether x changes depends on how x happened to lie in memory. Of the two
roads from NumPy, tensor always copies and as_tensor (like from_numpy) shares.
"""

SHARES_MEMORY = {
    "x[:, ::2]": True,
    "x[[0, 2]]": False,
    "x[x > 5]": False,
    "x.t()": True,
    "x.reshape(2, 6)": True,
    "x.t().reshape(2, 6)": False,
    "x.contiguous()": True,
    "x.t().contiguous()": False,
    "x.to(torch.float32)": True,
    "x.expand(5, 3, 4)": True,
    "torch.tensor(x.numpy())": False,
    "torch.as_tensor(x.numpy())": True,
}
