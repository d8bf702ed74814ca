"""Which of these tensors will ever hold a gradient? Say it before you look.

w = torch.ones(3, requires_grad=True) is a weight, and x = torch.arange(3.0) is data. Each expression makes a tensor t,
and then somebody computes a loss from t and calls loss.backward(). What becomes of t?

    "leaf"      backward() ends at t and fills t.grad; an optimizer can train it
    "non-leaf"  t was computed from such a tensor; backward() passes through, and t.grad stays None
    "constant"  backward() never comes here: t.requires_grad is False

Example: w is "leaf", and w * x is "non-leaf". (t.is_leaf alone does not tell, for it is True of constants as well.)
"""

# TODO: "leaf", "non-leaf" or "constant" for each.
BECOMES = {
    "x * 2": None,
    "w.clone()": None,
    "w.detach()": None,
    "w > 0": None,
    "w.sum().item() * x": None,
    "torch.no_grad()(torch.exp)(w)": None,
    "w.to(torch.float32)": None,
    "w.to(torch.float64)": None,
    "torch.randn(3, requires_grad=True) * 0.1": None,
    "(torch.randn(3) * 0.1).requires_grad_()": None,
    "torch.nn.Parameter(w * 0.1)": None,
    "torch.nn.Linear(3, 1)(x)": None,
}
