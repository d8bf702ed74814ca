"""Ask two things of each: can a gradient come here at all, and was it made or computed?

A result requires a gradient when one of its inputs does, unless the graph was left on the way: by detach(), by
no_grad, by a number of Python (.item()), or by an operation without a derivative (a comparison). What requires a
gradient and was computed by a recorded operation is no leaf. That makes the small initial weights
torch.randn(3, requires_grad=True) * 0.1 a silent bug: the optimizer gets a product whose .grad is always None, and the
model never learns. Scale first and mark afterwards, or wrap it in nn.Parameter, which begins a new leaf. to() follows
the rule as well: with nothing to convert it returns w itself, and otherwise a computed copy.
"""

BECOMES = {
    "x * 2": "constant",
    "w.clone()": "non-leaf",
    "w.detach()": "constant",
    "w > 0": "constant",
    "w.sum().item() * x": "constant",
    "torch.no_grad()(torch.exp)(w)": "constant",
    "w.to(torch.float32)": "leaf",
    "w.to(torch.float64)": "non-leaf",
    "torch.randn(3, requires_grad=True) * 0.1": "non-leaf",
    "(torch.randn(3) * 0.1).requires_grad_()": "leaf",
    "torch.nn.Parameter(w * 0.1)": "leaf",
    "torch.nn.Linear(3, 1)(x)": "non-leaf",
}
