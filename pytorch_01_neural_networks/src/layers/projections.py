"""Query, key and value are three Linears on one input: fused into one, split into heads, and turned into attention."""

import math

from shared.agreement import agreement
from shared.device import full_float32
from shared.lesson import Lesson
from shared.timing import compare, ratio
from shared.traps import operations
from shared.units import significant

import torch
from torch import nn
from torch.nn import functional as F


def fuse(layers: list[nn.Linear]) -> nn.Linear:
    """One Linear with the rows of all of them, one below the other."""
    fused = nn.Linear(
        layers[0].in_features, sum(layer.out_features for layer in layers), device=layers[0].weight.device
    )
    with torch.no_grad():
        fused.weight.copy_(torch.cat([layer.weight for layer in layers]))
        fused.bias.copy_(torch.cat([layer.bias for layer in layers]))
    return fused


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, T, C) as (B, heads, T, C / heads): each vector is cut into pieces, then the axes change places."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def split_heads_by_reshape(x: torch.Tensor, heads: int) -> torch.Tensor:
    """The mistake: the right shape without a transpose, so that a head gets pieces of different vectors."""
    return x.reshape(len(x), heads, x.shape[1], -1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k.mT / √D) v for q, k, v of (B, heads, T, D) (Vaswani et al. 2017, equation 1)."""
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1) @ v


def show_projections(lesson: Lesson) -> None:
    b, t, c = lesson.pick(full=(16, 512, 512), cpu=(4, 128, 256), quick=(2, 16, 64))
    heads = 8
    lesson.section(
        "Query, key and value are three Linears",
        "Attention asks of every vector three things: what it looks for (query), what it offers to be found by (key), and "
        "what it hands over (value). Each is a Linear on the same input. This is the bridge to project 04, and a pattern "
        f"of its own: Linears that share an input can be one. Here B = {b} texts, T = {t} vectors, C = {c}, {heads} heads.",
    )
    x = torch.randn(b, t, c, device=lesson.device)
    three = [nn.Linear(c, c, device=lesson.device) for _ in range(3)]
    fused = fuse(three)
    apart = agreement(lambda x: fused(x).chunk(3, dim=-1), lambda x: [layer(x) for layer in three], x)
    lesson.check("one Linear with 3 C rows computes all three", apart.within(1e-5), apart)
    product = fused(x)
    parts = product.chunk(3, dim=-1)
    lesson.check("and its parts are views of one output",
                 len({part.untyped_storage().data_ptr() for part in parts}) == 1,
                 f"{tuple(parts[0].shape)}, stride {parts[0].stride()}")  # fmt: skip
    calls = len(operations(lambda: [layer(x) for layer in three])), len(operations(fused, x))
    lesson.check(
        "three times fewer operations are started", calls[0] == 3 * calls[1], f"{calls[1]} instead of {calls[0]}"
    )
    read = [4 * count * x.numel() for count in (3, 1)]
    with torch.no_grad():
        times = compare({"three": lambda: [layer(x) for layer in three], "fused": lambda: fused(x)}, lesson.device,
                        budget_s=lesson.pick(full=0.6, quick=0.02), rounds=lesson.pick(full=9, quick=3))  # fmt: skip
    faster = ratio(times["three"], times["fused"])
    lesson.record("three Linears against one", faster.median, "x", tokens=b * t, channels=c)
    q, k, v = (split_heads(part, heads) for part in parts)
    out = attend(q, k, v)
    shapes = {
        "x": (x, "B, T, C"),
        "fused(x)": (product, "B, T, 3 C"),
        "q, k, v": (q, "B, heads, T, D: split, then transposed"),
        "k.mT": (k.mT, "B, heads, D, T"),
        "q @ k.mT": (q @ k.mT, "one number for each pair of vectors"),
        "softmax(...) @ v": (out, "a mean of values, by those weights"),
        "joined": (out.transpose(1, 2).flatten(2), "B, T, C: all heads beside each other"),
    }
    lesson.table([{"tensor": name, "shape": str(tuple(y.shape)), "is": what} for name, (y, what) in shapes.items()])
    with full_float32():
        apart = agreement(attend, F.scaled_dot_product_attention, q.detach(), k.detach(), v.detach())
    lesson.check("it is F.scaled_dot_product_attention", apart.within(1e-4), apart)
    wrong = split_heads_by_reshape(parts[0], heads)
    lesson.check("reshape alone gives the same shape and other numbers",
                 wrong.shape == q.shape and not torch.equal(wrong, q),
                 f"{(wrong != q).float().mean().item():.0%} of q is something else, and no error")  # fmt: skip
    lesson.shows(
        f"three Linears took {faster.median:.2f} times as long as the fused one, for the same {6 * b * t * c * c:,} FLOPs: "
        f"it reads x once, {significant(read[1] / 1e6)} MB instead of {significant(read[0] / 1e6)}, and is started once. "
        "How much that gives depends on the size. nn.MultiheadAttention does it too: its in_proj_weight has 3 C rows."
    )
