"""How many calls is this line? Say it before you count.

Each operator that your code calls costs some microseconds, however small its tensors are. A trace shows them directly below
your label: what an operator calls in its turn does not count here, and Python alone is no operator. Given are

    x: (8, 3, 4, 4) float32          t: (8,) float32, 0.0 to 7.0 in order
    logits: (8, 3) float32           y: (8,) int64
    params, grads: lists of 5 tensors each, (3,) float32; none of all these requires gradients
"""

# TODO: for each line the number of operators that it calls.
CALLS = {
    "x * 2 + 1": None,
    "F.cross_entropy(logits, y)": None,
    "x.float()": None,
    "len(x) * x.shape[1] * x.numel()": None,
    "x[0, 1, 2]": None,
    "torch.stack([image * 2 for image in x])": None,
    "sum(t)": None,
    "max(t)": None,
    "5.0 in t": None,
    "if (x > 0).any(): pass": None,
    "(logits.argmax(1) == y).float().mean().item()": None,
    "for p, g in zip(params, grads): p -= 0.1 * g": None,
    "torch._foreach_add_(params, grads, alpha=-0.1)": None,
}
