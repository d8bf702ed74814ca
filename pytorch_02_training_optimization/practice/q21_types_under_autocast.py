"""Which type comes out? Say it before you look.

All of this stands inside `with torch.autocast("cpu", torch.bfloat16):`. a and b are float32 matrices of 4 rows and 4
columns, layer is torch.nn.Linear(4, 4), and F is torch.nn.functional.
"""

# TODO: "float32", "bfloat16" or "float64" for each: the dtype of the result.
DTYPE = {
    "a @ b": None,
    "a + b": None,
    "(a @ b).relu()": None,
    "a @ b + a": None,
    "a.half() @ b.half()": None,
    "a.double() @ b.double()": None,
    "a.clone().addmm_(a, b)": None,
    "layer(a)": None,
    "layer.weight": None,
    "torch.autograd.grad(layer(a).sum(), layer.weight)[0]": None,
    "F.mse_loss(layer(a), layer(b))": None,
    "torch.cat([layer(a), a])": None,
}
