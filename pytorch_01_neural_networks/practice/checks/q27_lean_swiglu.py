"""Right first, in value and gradients; then hooks on saved tensors tell what is kept, by the storage that it lies in."""

from collections.abc import Callable
from typing import Any

from shared.agreement import deviation
from shared.practice import expect
from shared.traps import expect_tensor
from shared.units import significant

import torch
from torch.nn import functional as F

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.04}
Pair = tuple[torch.Tensor, torch.Tensor]


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return 2 * torch.randn(shape, generator=generator, dtype=torch.float64)

    example = torch.tensor([0.0, 2.0]), torch.tensor([5.0, 3.0])
    expect_right(answer, "the example", *example)
    whole, far, none = draw(5, 14), draw(4, 6), torch.zeros(3, 4, dtype=torch.float64)
    far[0], far[1] = 300.0, -300.0
    halves = whole.chunk(2, dim=-1)
    cases = [
        ("vectors", draw(7), draw(7)),
        ("two halves of one tensor", halves[0], halves[1]),
        ("transposed tensors", draw(6, 3).t(), draw(6, 3).t()),
        ("numbers far from zero", far, draw(4, 6)),
        ("an up of zeros", draw(3, 4), none),
        ("a gate of zeros", none, draw(3, 4)),
        ("two numbers", draw(), draw()),
        ("no number", draw(0, 3), draw(0, 3)),
        ("float32 tensors", draw(2, 3, 5).float(), draw(2, 3, 5).float()),
        ("bfloat16 tensors", draw(8, 9).bfloat16(), draw(8, 9).bfloat16()),
    ]
    for case, gate, up in cases:
        for trained in ((True, True), (True, False), (False, True), (False, False)):
            expect_right(answer, case, gate, up, trained)
    expect_lean(answer, "two tensors", draw(40, 30), draw(40, 30))
    expect_lean(answer, "two halves of one tensor", *draw(40, 60).chunk(2, dim=-1))
    for name in ("gate", "up"):
        expect_versions(answer, name, draw(3, 4), draw(3, 4))


def gradients(
    function: Callable[..., torch.Tensor], gate: torch.Tensor, up: torch.Tensor, trained: tuple[bool, bool]
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """The result, and the gradients of those that are trained, for a sum with weights from 1 to 2."""
    leaves = [x.detach().requires_grad_(is_trained) for x, is_trained in zip((gate, up), trained, strict=True)]
    y = function(*leaves)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not wanted or not isinstance(y, torch.Tensor) or not y.requires_grad:
        return y, []
    weights = torch.linspace(1, 2, y.numel(), dtype=torch.float64).reshape(y.shape).to(y.dtype)
    return y, list(torch.autograd.grad((y * weights).sum(), wanted, allow_unused=True))


def expect_right(
    answer: Any, case: str, gate: torch.Tensor, up: torch.Tensor, trained: tuple[bool, bool] = (True, True)
) -> None:
    names = [name for name, is_trained in zip(("gate", "up"), trained, strict=True) if is_trained]
    who = "both require" if len(names) == 2 else f"{names[0] if names else 'neither'} requires"
    call = f"swiglu of {case}, where {who} a gradient"
    kept = gate.clone(), up.clone()
    y, found = gradients(answer.swiglu, gate, up, trained)
    expect_tensor(y, call, tuple(gate.shape), gate.dtype)
    is_kept = torch.equal(gate, kept[0]) and torch.equal(up, kept[1])
    expect(is_kept, f"{call}, changed what it was given")
    expect(y.requires_grad == any(trained), f"{call}: the result {'has' if y.requires_grad else 'has not'} a graph")
    right, wanted = gradients(lambda gate, up: F.silu(gate) * up, kept[0].double(), kept[1].double(), trained)
    off = deviation(y.double(), right)
    expect(off < TOLERANCE[gate.dtype], f"{call}, is off by up to {off:.2g}")
    for name, gradient, oracle in zip(names, found, wanted, strict=True):
        expect(gradient is not None, f"{call}: backward() brings no gradient to {name}")
        assert gradient is not None
        assert oracle is not None
        expect(gradient.dtype == gate.dtype, f"{call}: the gradient of {name} is {gradient.dtype}")
        off = deviation(gradient.double(), oracle)
        expect(off < TOLERANCE[gate.dtype], f"{call}, is right, and the gradient of {name} is off by up to {off:.2g}")


def expect_lean(answer: Any, case: str, gate: torch.Tensor, up: torch.Tensor) -> None:
    kept: dict[int, int] = {}  # address of a storage: its bytes

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    leaves = gate.requires_grad_(), up.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        y = answer.swiglu(*leaves)
    own = {x.untyped_storage().data_ptr() for x in leaves}
    more = sum(size for address, size in kept.items() if address not in own)
    y.sum().backward()
    expect(more == 0, f"right, but for swiglu of {case} autograd keeps {more:,} bytes besides gate and up, "
           f"{significant(more / (gate.numel() * gate.element_size()), 2)} times the bytes of gate")  # fmt: skip


def expect_versions(answer: Any, name: str, gate: torch.Tensor, up: torch.Tensor) -> None:
    leaves = gate.requires_grad_(), up.requires_grad_()
    inputs = dict(zip(("gate", "up"), (leaf * 1 for leaf in leaves), strict=True))
    y = answer.swiglu(**inputs)
    with torch.no_grad():
        inputs[name].add_(1)
    try:
        y.sum().backward()
    except RuntimeError:
        return
    expect(False, f"swiglu: somebody wrote into {name} before backward(), which went on with the new numbers and gave a wrong "
           "gradient without an error; let autograd keep what is kept")  # fmt: skip


def slope(gate: torch.Tensor) -> torch.Tensor:
    share = gate.sigmoid()
    return share * (1 + gate * (1 - share))


def as_function(
    save: Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], object], load: Callable[[Any, torch.Tensor], Pair]
) -> dict[str, object]:
    """An operation of its own: `save` gets ctx, gate, up and the result, `load` gets ctx and the gradient that arrives."""

    class Operation(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
            y = F.silu(gate) * up
            save(ctx, gate, up, y)
            return y

        @staticmethod
        def backward(ctx: Any, upstream: torch.Tensor) -> Pair:
            return load(ctx, upstream)

    def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = Operation.apply(gate, up)
        return y

    return {"swiglu": swiglu}


def save_inputs(ctx: Any, gate: torch.Tensor, up: torch.Tensor, y: torch.Tensor) -> None:
    ctx.save_for_backward(gate, up)


def save_the_slope(ctx: Any, gate: torch.Tensor, up: torch.Tensor, y: torch.Tensor) -> None:
    ctx.save_for_backward(gate, up, slope(gate))


def put_on_ctx(ctx: Any, gate: torch.Tensor, up: torch.Tensor, y: torch.Tensor) -> None:
    ctx.gate, ctx.up = gate, up


def save_the_result(ctx: Any, gate: torch.Tensor, up: torch.Tensor, y: torch.Tensor) -> None:
    ctx.save_for_backward(gate, up, y)


def load_from_ctx(ctx: Any, upstream: torch.Tensor) -> Pair:
    return upstream * ctx.up * slope(ctx.gate), upstream * F.silu(ctx.gate)


def load_saved(ctx: Any, upstream: torch.Tensor) -> Pair:
    gate, up = ctx.saved_tensors[:2]
    return upstream * up * slope(gate), upstream * F.silu(gate)


def load_without_a_term(ctx: Any, upstream: torch.Tensor) -> Pair:
    gate, up = ctx.saved_tensors
    return upstream * up * gate.sigmoid(), upstream * F.silu(gate)


def load_by_dividing(ctx: Any, upstream: torch.Tensor) -> Pair:
    gate, up, y = ctx.saved_tensors
    return upstream * up * slope(gate), upstream * y / up


def works_in_place(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return gate.data.mul_(gate.data.sigmoid()) * up


WRONG = {
    "leaves it to two operations": ({"swiglu": lambda gate, up: F.silu(gate) * up}, "1.0 times the bytes of gate"),
    "writes it out": ({"swiglu": lambda gate, up: gate * gate.sigmoid() * up}, "times the bytes of gate"),
    "keeps the slope": (as_function(save_the_slope, load_saved), "1.0 times the bytes of gate"),
    "puts them on ctx": (as_function(put_on_ctx, load_from_ctx), "let autograd keep what is kept"),
    "forgets that gate stands in silu twice": (
        as_function(save_inputs, load_without_a_term),
        "the gradient of gate is off by up to",
    ),
    "divides the result by up": (as_function(save_the_result, load_by_dividing), "an up of zeros"),
    "works in place": ({"swiglu": works_in_place}, ", changed what it was given"),
    "detaches": ({"swiglu": lambda gate, up: F.silu(gate.detach()) * up}, "brings no gradient to gate"),
}
