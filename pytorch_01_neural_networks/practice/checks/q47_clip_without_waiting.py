"""Right first, against the formula in float64; then the waits are counted and the new tensors measured."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from shared.device import pick_device
from shared.dispatch import Watcher, name_of, tensors_in
from shared.practice import expect
from shared.traps import expect_tensor, shown

import torch
from torch.overrides import TorchFunctionMode

Gradients = list[torch.Tensor]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# Calls that hand a number, or how many there are, from the device to Python, and how a learner writes them.
WAITS = {
    name: f"{name}()"
    for name in ("item", "tolist", "numpy", "cpu", "nonzero", "equal", "allclose", "masked_select", "unique")
}
WAITS |= {
    "__bool__": "`if` or bool()",
    "__float__": "float()",
    "__int__": "int()",
    "__index__": "int()",
    "__array__": "numpy",
}


def draw(seed: int, size: float = 1.0, dtype: torch.dtype = torch.float32) -> Gradients:
    """Of many shapes: one transposed, one of no dimension, one without elements."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(8, 5), (), (0, 3), (40, 20), (7,), (3, 2, 4)]
    made = [size * torch.randn(shape, generator=generator) for shape in shapes]
    made[0] = made[0].t()
    return [x.to(dtype) for x in made]


def with_one(gradients: Gradients, at: int, value: float) -> Gradients:
    """The same with one number of gradients[at] replaced."""
    gradients[at].view(-1)[0] = value
    return gradients


def norm_of(gradients: Iterable[torch.Tensor]) -> float:
    return math.sqrt(sum(x.double().square().sum().item() for x in gradients))


def as_weights(gradients: Gradients, device: torch.device) -> list[torch.Tensor]:
    """Weights with these .grad, and one without; all ones."""
    weights = [torch.ones_like(x, device=device).requires_grad_() for x in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone().to(device)
    frozen = torch.ones(3, device=device, requires_grad=True)
    return [*weights[:2], frozen, *weights[2:]]


def check(answer: Any, seed: int) -> None:
    cpu = torch.device("cpu")
    cases: list[tuple[str, Gradients, float]] = [
        ("[3.0] and [4.0]", [torch.tensor([3.0]), torch.tensor([4.0])], 1.0),
        ("random gradients above the limit", draw(seed), 0.7),
        ("random gradients below the limit", draw(seed + 10), 1000.0),
        ("small gradients, a thousandth of the limit", draw(seed + 20, 1e-4), 5.0),
        ("gradients that are all 0", [torch.zeros(4), torch.zeros(2, 3)], 1.0),
        ("random gradients, one number inf", with_one(draw(seed + 30), 3, math.inf), 1.0),
        ("random gradients, one number nan", with_one(draw(seed + 40), 4, math.nan), 1.0),
        ("random gradients far below the limit, one number -inf", with_one(draw(seed + 50, 1e-3), 1, -math.inf), 1e6),
        ("bfloat16 gradients", draw(seed + 60, 10, torch.bfloat16), 3.0),
        ("float16 gradients of a norm beyond 65,504", draw(seed + 70, 8000, torch.float16), 3.0),
        ("float16 gradients whose squares are below the smallest float16", draw(seed + 80, 1e-4, torch.float16), 1e-4),
        ("gradients in float32 and float16", [*draw(seed), *draw(seed + 1, 3, torch.float16)], 2.0),
    ]
    for case, gradients, max_norm in cases:
        expect_clipped(answer, case, gradients, max_norm, cpu)
    expect_clipped(answer, "random gradients above the limit", draw(seed), 0.7, pick_device())
    expect_nothing(answer)
    expect_no_graph(answer, draw(seed))
    expect_no_wait(answer, seed)


def expect_clipped(answer: Any, case: str, gradients: Gradients, max_norm: float, device: torch.device) -> None:
    weights = as_weights(gradients, device)
    held = [weight.grad for weight in weights]
    call = f"clip_or_skip of {case}, max_norm {max_norm:g},"
    norm = answer.clip_or_skip((weight for weight in weights), max_norm)
    right = norm_of(gradients)
    expect_tensor(norm, call, (), torch.float32)
    found = norm.item()
    close = math.isclose(found, right, rel_tol=1e-5) or not (math.isfinite(found) or math.isfinite(right))
    expect(close, f"{call} returned {found:.6g}, and the norm of all gradients together was {right:.6g}")
    expect(
        norm.device.type == device.type, f"{call} returned a tensor on {norm.device}; leave it where the gradients are"
    )
    moved = any(
        not torch.equal(weight.detach().cpu(), torch.ones(weight.shape, dtype=weight.dtype)) for weight in weights
    )
    expect(not moved, f"{call} changed the weights; only the gradients are clipped")
    expect(
        weights[2].grad is None,
        f"{call} gave a gradient to a weight that had none; optimizers step over None, not over 0",
    )
    same = all(weight.grad is grad for weight, grad in zip(weights, held, strict=True))
    expect(
        same, f"{call} replaced .grad by other tensors; buckets and graphs hold on to the old ones, so write into those"
    )
    after = [grad for grad in held if grad is not None]
    for number, (before, now) in enumerate(zip(gradients, after, strict=True)):
        expect_gradient(f"{call} gradient {number}", before, now, right, max_norm)


def expect_gradient(what: str, before: torch.Tensor, now: torch.Tensor, norm: float, max_norm: float) -> None:
    was, found = before.double().flatten(), now.cpu().double().flatten()
    if not math.isfinite(norm):
        bad = ~(found == 0)
        if bad.any():
            at = int(bad.nonzero()[0])
            expect(False, f"{what}: one number of all was not finite, so all should be 0, and here {was[at].item():.4g} has "
                   f"become {found[at].item():.4g}")  # fmt: skip
        return
    factor = max_norm / (norm + 1e-6) if norm > max_norm else 1.0
    tolerance = TOLERANCE[before.dtype] if norm > max_norm else 0.0
    smallest = 1e-7 if before.dtype == torch.float16 else 0.0  # half a step of the numbers around 0
    slack = 2e-6 / norm if norm > max_norm else 0.0  # with or without 1e-6 in the divisor
    wrong = (found - factor * was).abs() > (tolerance + slack) * (factor * was).abs() + smallest * (norm > max_norm)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        limit = "above" if norm > max_norm else "not above"
        expect(False, f"{what}: {was[at].item():.6g} has become {found[at].item():.6g} and should be "
               f"{factor * was[at].item():.6g}; the norm of all, {norm:.4g}, is {limit} the limit")  # fmt: skip


def expect_nothing(answer: Any) -> None:
    call = "clip_or_skip of two weights that both have .grad None"
    norm = answer.clip_or_skip([torch.ones(2), torch.ones(3)], 1.0)
    expect_tensor(norm, call, (), torch.float32)
    expect(norm.item() == 0, f"{call} returned {shown(norm.item())} and should return 0")


def expect_no_graph(answer: Any, gradients: Gradients) -> None:
    """Gradients that were made with create_graph=True require gradients themselves."""
    weights = as_weights(gradients, torch.device("cpu"))
    for weight in weights:
        if weight.grad is not None:
            weight.grad = 2 * weight.grad.requires_grad_()
    norm = answer.clip_or_skip(weights, 1.0)
    expect(not norm.requires_grad, "clip_or_skip of gradients from backward(create_graph=True) records a graph; keep "
           "torch.no_grad()")  # fmt: skip


class Waits(TorchFunctionMode):
    """The calls that hand a number from the device to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        has_mask = name == "__getitem__" and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool
        if name in WAITS or has_mask:
            self.names.append(WAITS.get(name, "indexing with a mask"))
        return function(*args, **(kwargs or {}))


class NewTensors(Watcher):
    """How many numbers the largest tensor has that was made inside `with`, and by which operation."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in known}
        self.largest, self.made_by = 0, ""

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        for x in tensors_in(result):
            storage = x.untyped_storage()
            count = storage.nbytes() // x.element_size()
            if storage.data_ptr() not in self.known and count > self.largest:
                self.largest, self.made_by = count, name_of(operation).partition(".")[0]


def expect_no_wait(answer: Any, seed: int) -> None:
    cases = {
        "large": draw(seed, 100),
        "small": draw(seed, 1e-3),
        "broken": with_one(draw(seed), 3, math.inf),
        "float16": draw(seed, 100, torch.float16),
    }
    for case, gradients in cases.items():
        call = f"clip_or_skip of {len(gradients)} {case} gradients"
        with Waits() as waits:
            answer.clip_or_skip(as_weights(gradients, torch.device("cpu")), 1.0)
        names = ", ".join(dict.fromkeys(waits.names))
        often = "once" if len(waits.names) == 1 else f"{len(waits.names)} times"
        expect(not waits.names, f"right, but in {call} Python waits for the device {often}, by {names}")
        weights = as_weights(gradients, torch.device("cpu"))
        largest = max(x.numel() for x in gradients)
        with NewTensors([*weights, *(weight.grad for weight in weights if weight.grad is not None)]) as new:
            answer.clip_or_skip(weights, 1.0)
        expect(new.largest <= 3 * len(gradients), f"right, and without a wait, but {call} makes a new tensor of {new.largest} "
               f"numbers by {new.made_by}, where the largest gradient has {largest}; a few numbers are enough")  # fmt: skip


Scale = Callable[[Gradients, torch.Tensor, float], None]


def right_norm(gradients: Gradients) -> torch.Tensor:
    return torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(x, dtype=torch.float32) for x in gradients] or [torch.zeros(())])
    )


def scale_and_mask(gradients: Gradients, norm: torch.Tensor, max_norm: float) -> None:
    for x in gradients:
        x.mul_((max_norm / norm).clamp(max=1.0)).masked_fill_(~norm.isfinite(), 0.0)


def clipping(
    scale: Scale = scale_and_mask, norm_of_all: Callable[[Gradients], torch.Tensor] = right_norm
) -> dict[str, object]:
    """The way of the solution, with one of its two parts replaced."""

    @torch.no_grad()
    def clip_or_skip(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = norm_of_all(gradients)
        scale(gradients, norm, max_norm)
        return norm

    return {"clip_or_skip": clip_or_skip}


def multiplies_by_zero(gradients: Gradients, norm: torch.Tensor, max_norm: float) -> None:
    factor = torch.where(norm.isfinite(), (max_norm / norm).clamp(max=1.0), 0.0)
    for x in gradients:
        x.mul_(factor)


def scales_up(gradients: Gradients, norm: torch.Tensor, max_norm: float) -> None:
    for x in gradients:
        x.mul_(max_norm / norm.clamp(min=1e-6)).masked_fill_(~norm.isfinite(), 0.0)


def asks_once(gradients: Gradients, norm: torch.Tensor, max_norm: float) -> None:
    if not norm.isfinite() or norm > max_norm:
        scale_and_mask(gradients, norm, max_norm)


def asks_by_list(gradients: Gradients, norm: torch.Tensor, max_norm: float) -> None:
    if norm.tolist() != 0:
        scale_and_mask(gradients, norm, max_norm)


def chooses_by_where(gradients: Gradients, norm: torch.Tensor, max_norm: float) -> None:
    for x in gradients:
        x.copy_(torch.where(norm.isfinite(), x * (max_norm / norm).clamp(max=1.0), 0.0))


def replaces_gradients(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    weights = [p for p in parameters if p.grad is not None]
    norm = right_norm([p.grad for p in weights if p.grad is not None])
    for p in weights:
        if p.grad is not None:
            p.grad = torch.where(norm.isfinite(), p.grad * (max_norm / norm).clamp(max=1.0), 0.0).to(p.dtype)
    return norm


def in_own_dtype(gradients: Gradients) -> torch.Tensor:
    norms = [x.norm().float() for x in gradients] or [torch.zeros(())]
    return torch.stack(norms).norm()


def of_the_largest(gradients: Gradients) -> torch.Tensor:
    return torch.stack([right_norm([x]) for x in gradients] or [torch.zeros(())]).max()


def clips_each(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = right_norm(gradients)
    for x in gradients:
        scale_and_mask([x], right_norm([x]), max_norm)
    return norm


def uses_the_library(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm).float()


WRONG = {
    "asks once": (clipping(asks_once), "Python waits for the device"),
    "asks by a list": (clipping(asks_by_list), "by tolist()"),
    "chooses by where": (clipping(chooses_by_where), "makes a new tensor of 800 numbers"),
    "multiplies by 0": (clipping(multiplies_by_zero), "should be 0, and here inf has become nan"),
    "makes small gradients large": (clipping(scales_up), "is not above the limit"),
    "clips each tensor on its own": ({"clip_or_skip": clips_each}, "is above the limit"),
    "replaces .grad": ({"clip_or_skip": replaces_gradients}, "replaced .grad"),
    "takes norms in the gradient's dtype": (clipping(norm_of_all=in_own_dtype), "float16 gradients"),
    "takes the largest norm for that of all": (clipping(norm_of_all=of_the_largest), "returned 4, and the norm of all"),
    "uses the library": ({"clip_or_skip": uses_the_library}, "should be 0, and here"),
}
