"""An operator is one call, however much it does: cross_entropy calls two others itself, and that is its own affair.

Asking for a type that is there already is still a call, though nothing is copied. Each index of x[0, 1, 2] makes a view of
its own. To walk over a tensor is one unbind, and then one call for everything that is done with an item. Python's sum()
begins with 0 and adds eight times. max() compares seven times, and after each comparison Python must know the answer: one
more call, and on a GPU a wait. `5.0 in t` compares all, joins the answers and reads one. A line is as expensive as its
calls: the two last lines compute the same, with 10 calls and with 1.
"""

CALLS = {
    "x * 2 + 1": 2,
    "F.cross_entropy(logits, y)": 1,
    "x.float()": 1,
    "len(x) * x.shape[1] * x.numel()": 0,
    "x[0, 1, 2]": 3,
    "torch.stack([image * 2 for image in x])": 10,
    "sum(t)": 9,
    "max(t)": 15,
    "5.0 in t": 3,
    "if (x > 0).any(): pass": 3,
    "(logits.argmax(1) == y).float().mean().item()": 5,
    "for p, g in zip(params, grads): p -= 0.1 * g": 10,
    "torch._foreach_add_(params, grads, alpha=-0.1)": 1,
}
