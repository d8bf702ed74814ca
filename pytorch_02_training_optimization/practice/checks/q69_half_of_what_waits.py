"""Gradients against those without packing; and every tensor that is made and still alive when forward ends is counted."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from shared.dispatch import Watcher, tensors_in
from shared.practice import expect
from shared.traps import shown
from shared.units import significant

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

ROUNDING = 0.02  # of a gradient's length, after a few layers; bfloat16 rounds each number by 0.004 at most
Program = Callable[[torch.Tensor], torch.Tensor]
Tensors = list[torch.Tensor]


class Living(Watcher):
    """The bytes of all tensors that were made inside the block and are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        given = {x.untyped_storage()._cdata for x in tensors_in(args, kwargs)}
        for x in tensors_in(result):
            storage = x.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata)

    def total(self) -> int:
        return sum(self.sizes.values())


class Attention(nn.Module):
    """Its projections are thirds of one matrix, so autograd saves views of it."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.Parameter(0.3 * torch.randn(3 * 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (x @ part.t() for part in self.projections.chunk(3))
        return (query @ key.t()).softmax(1) @ value


class Length(nn.Module):
    """Of each row, in millions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * x).sum(1, keepdim=True).sqrt() * 1e-6


class Cubes(nn.Module):
    """In millionths."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * x * x) * 1e6


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4))


def check(answer: Any, seed: int) -> None:
    torch.manual_seed(seed)
    x, y = torch.randn(20, 8), torch.randint(4, (20,))
    words = torch.randint(3000, (20,))
    cases: list[tuple[str, nn.Module, torch.Tensor]] = [
        ("a small network", layers(), x),
        (
            "attention, whose projections are thirds of one matrix",
            nn.Sequential(nn.Linear(8, 8), Attention(), nn.Linear(8, 4)),
            x,
        ),
        ("numbers near 1e6", nn.Sequential(nn.Linear(8, 8), Length(), nn.Linear(1, 4)), 1e6 * x),
        ("numbers near 0.0001", nn.Sequential(nn.Linear(8, 4, bias=False), Cubes()), 1e-4 * x),
        ("words by their numbers, up to 3,000", nn.Sequential(nn.Embedding(3000, 8), nn.Linear(8, 4)), words),
    ]
    for case, model, inputs in cases:
        expect_gradients(answer, case, model, inputs, y, ROUNDING)
    expect_gradients(answer, "a network in float64", layers().double(), x.double(), y, 1e-12)
    expect_gradients(answer, "a network in bfloat16", layers().bfloat16(), x.bfloat16(), y, 1e-12)
    expect_gradients(answer, "a network under autocast", layers(), x, y, ROUNDING, autocast=True)
    expect_types(answer, x)
    wide = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4))
    expect_lean(answer, wide, x[:10].clone(), y[:10], "a small batch")
    expect_lean(answer, wide, torch.randn(30, 8)[10:], y, "a batch that is a slice of its data set")
    expect_lean(answer, layers(), torch.randn(400, 8), torch.randint(4, (400,)), "a large batch")
    expect_lean(answer, nn.Sequential(nn.Linear(8, 8), Attention(), nn.Linear(8, 4)), x, y, "attention")


def hooks_of(answer: Any, tensors: Iterable[torch.Tensor], call: str) -> saved_tensors_hooks:
    hooks = answer.waiting_in_16_bits(tensors)
    is_block = isinstance(hooks, saved_tensors_hooks) or (hasattr(hooks, "__enter__") and hasattr(hooks, "__exit__"))
    expect(is_block, f"{call} returned {shown(hooks)}; return saved_tensors_hooks(pack, unpack)")
    return hooks  # type: ignore[no-any-return]


def gradients(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])


def expect_gradients(answer: Any, case: str, model: nn.Module, x: torch.Tensor, y: torch.Tensor, tolerance: float, *,
                     autocast: bool = False) -> None:  # fmt: skip
    call = f"waiting_in_16_bits of {case}"

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return F.cross_entropy(model(x).float() if autocast else model(x), y)

    right = gradients(model, loss())
    hooks = hooks_of(answer, (tensor for tensor in [*model.parameters(), x]), call)
    try:
        with hooks:
            value = loss()
        found = gradients(model, value)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        expect(False, f"{call}: backward() stopped ({reason}); it gets a tensor back in another form than it was saved")
    expect(
        found.isfinite().all(), f"{call}: {int((~found.isfinite()).sum())} of {found.numel()} gradients are not finite"
    )
    off = ((found - right).norm() / right.norm()).item()
    expect(off <= tolerance, f"{call}: the gradient is off by {significant(100 * off)} % of its length; "
           f"{significant(100 * tolerance)} % are allowed")  # fmt: skip


def expect_types(answer: Any, x: torch.Tensor) -> None:
    """What backward gets, by a function that looks at what it saved."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool):
        found: list[torch.Tensor] = []

        class Look(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
                ctx.save_for_backward(saved)
                return x.clone()

            @staticmethod
            def backward(ctx: Any, upstream: torch.Tensor, found: Any = found) -> tuple[torch.Tensor, None]:
                found.extend(ctx.saved_tensors)
                return upstream, None

        saved = (3 * x).to(dtype)
        with hooks_of(answer, (), "waiting_in_16_bits(())"):
            result = Look.apply(x.clone().requires_grad_(), saved)
        result.sum().backward()
        name = str(dtype).removeprefix("torch.")
        got = found[0]
        expect(got.dtype is dtype, f"waiting_in_16_bits: a tensor was saved as {name} and came back as "
               f"{str(got.dtype).removeprefix('torch.')}")  # fmt: skip
        if dtype is not torch.float32:
            expect(torch.equal(got, saved), f"waiting_in_16_bits: a tensor of {name} came back with other numbers")
        else:
            expect(not torch.equal(got, saved), "waiting_in_16_bits: a float32 tensor came back with all its digits, so it "
                   "did not wait in 16 bits")  # fmt: skip


def alive_after_forward(hooks: Any, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    living = Living()
    with living:
        with hooks:
            loss = F.cross_entropy(model(x), y)
        total = living.total()
    loss.sum().backward()
    return total


def expect_lean(answer: Any, model: nn.Module, x: torch.Tensor, y: torch.Tensor, case: str) -> None:
    tensors = [*model.parameters(), x]
    plain = alive_after_forward(saved_tensors_hooks(lambda x: x, lambda x: x), model, x, y)
    least = alive_after_forward(right(tensors), model, x, y)
    hooks = hooks_of(answer, (tensor for tensor in tensors), "waiting_in_16_bits of a generator of tensors")
    found = alive_after_forward(hooks, model, x, y)
    weights = sum(weight.nbytes for weight in model.parameters())
    expect(found <= least + 100, f"waiting_in_16_bits with {case}: {found:,} bytes are alive after forward, {plain:,} without "
           f"it, and {least:,} are enough; the weights ({weights:,} bytes) and x ({x.nbytes:,}) are there anyway")  # fmt: skip


def packed(to: torch.dtype = torch.bfloat16, *, but_not: Callable[[torch.Tensor], bool] = lambda x: False,
           takes: Callable[[torch.Tensor], bool] = lambda x: x.dtype is torch.float32,
           marks: bool = True) -> saved_tensors_hooks:  # fmt: skip
    def pack(x: torch.Tensor) -> Any:
        is_packed = takes(x) and not but_not(x)
        return (x.to(to) if is_packed else x), is_packed

    def unpack(kept: Any) -> torch.Tensor:
        x, is_packed = kept
        result: torch.Tensor = x.float() if is_packed or (not marks and x.dtype is to) else x
        return result

    return saved_tensors_hooks(pack, unpack)


def is_in(tensors: Iterable[torch.Tensor]) -> Callable[[torch.Tensor], bool]:
    storages = {x.untyped_storage().data_ptr() for x in tensors}
    return lambda x: x.untyped_storage().data_ptr() in storages


def right(tensors: Iterable[torch.Tensor], **changes: Any) -> saved_tensors_hooks:
    return packed(but_not=is_in(tensors), **changes)


def asks_for_objects(there_anyway: Iterable[torch.Tensor]) -> saved_tensors_hooks:
    tensors = list(there_anyway)
    return packed(but_not=lambda x: any(x is other for other in tensors))


def asks_for_addresses(there_anyway: Iterable[torch.Tensor]) -> saved_tensors_hooks:
    tensors = {x.data_ptr() for x in there_anyway}
    return packed(but_not=lambda x: x.data_ptr() in tensors)


def asks_a_generator(there_anyway: Iterable[torch.Tensor]) -> saved_tensors_hooks:
    return packed(but_not=lambda x: any(x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
                                        for y in there_anyway))  # fmt: skip


WRONG = {
    "packs the weights too": ({"waiting_in_16_bits": lambda there_anyway: packed()}, "bytes are alive after forward"),
    "asks whether it is the same object": ({"waiting_in_16_bits": asks_for_objects}, "bytes are alive after forward"),
    "asks where it begins": ({"waiting_in_16_bits": asks_for_addresses}, "with attention:"),
    "uses its generator up": ({"waiting_in_16_bits": asks_a_generator}, "bytes are alive after forward"),
    "uses float16": (
        {"waiting_in_16_bits": lambda there_anyway: right(there_anyway, to=torch.float16)},
        "gradients are not finite",
    ),
    "packs every type": (
        {"waiting_in_16_bits": lambda there_anyway: right(there_anyway, takes=torch.is_floating_point)},
        "it gets a tensor back in another form",
    ),
    "does not remember what it packed": (
        {"waiting_in_16_bits": lambda there_anyway: right(there_anyway, marks=False)},
        "it gets a tensor back in another form",
    ),
    "packs nothing": (
        {"waiting_in_16_bits": lambda there_anyway: saved_tensors_hooks(lambda x: x, lambda x: x)},
        "with all its digits",
    ),
}
