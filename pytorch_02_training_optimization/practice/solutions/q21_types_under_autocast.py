"""autocast decides by operation, not by line: products are narrowed, losses widened, and the rest takes what comes.

So a sum of two float32 matrices stays float32, a ReLU of a bfloat16 product stays bfloat16, and where the two meet the
wider one wins, as everywhere in PyTorch. A product of float16 becomes bfloat16 too: the type comes from the block, not
from the input. float64 is left alone, since whoever asked for it had a reason. An operation in place, such as addmm_, has
to write into the tensor that is there and is not touched by autocast. The weights stay float32; only their temporary
copies are 16 bits, and the cast is part of the graph, so that the gradient that arrives is float32 again.
"""

DTYPE = {
    "a @ b": "bfloat16",
    "a + b": "float32",
    "(a @ b).relu()": "bfloat16",
    "a @ b + a": "float32",
    "a.half() @ b.half()": "bfloat16",
    "a.double() @ b.double()": "float64",
    "a.clone().addmm_(a, b)": "float32",
    "layer(a)": "bfloat16",
    "layer.weight": "float32",
    "torch.autograd.grad(layer(a).sum(), layer.weight)[0]": "float32",
    "F.mse_loss(layer(a), layer(b))": "float32",
    "torch.cat([layer(a), a])": "float32",
}
