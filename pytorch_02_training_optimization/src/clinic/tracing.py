"""Forward tracing: what went through every module, and two traces held against each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shared.drawing import number
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import percent

import torch
from torch import nn


@dataclass(frozen=True)
class Call:
    """One module at work. `output` is a copy on the CPU, so that nothing behind it can change it; None while it raised."""

    name: str
    kind: str
    arrived: tuple[int, ...]
    arrived_dtype: torch.dtype
    output: torch.Tensor | None


def trace(model: nn.Module, x: torch.Tensor) -> tuple[list[Call], str]:
    """What model(x) does, module by module (those without parts), in order; and what it complains of, or ""."""
    calls: list[Call] = []
    names = {module: name for name, module in model.named_modules() if not any(module.children())}

    def leave(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor | None) -> None:
        kept = None if output is None else output.detach().cpu().clone()
        calls.append(Call(names[module], type(module).__name__, tuple(args[0].shape), args[0].dtype, kept))

    # always_call: a module that raises is told of, too, with None for its output.
    handles = [module.register_forward_hook(leave, always_call=True) for module in names]
    try:
        with torch.no_grad():
            message = complaint(lambda: model(x))
    finally:
        for handle in handles:
            handle.remove()
    return calls, message


def first_without_batch(one: Sequence[Call]) -> Call | None:
    """In the trace of a batch of one: the first call whose output does not begin with an axis of length 1."""
    return next((call for call in one if call.output is not None and call.output.shape[:1] != (1,)), None)


def first_deviation(ours: Sequence[Call], theirs: Sequence[Call], tolerance: float) -> tuple[Call, float] | None:
    """The first call whose output is further than `tolerance` from its counterpart; the order must be the same."""
    for call, other in zip(ours, theirs, strict=True):
        if call.output is not None and other.output is not None:
            apart = relative_deviation(call.output, other.output)
            if not apart <= tolerance:
                return call, apart
    return None


def relative_deviation(found: torch.Tensor, oracle: torch.Tensor) -> float:
    """The largest difference, in units of the oracle's largest number; infinite where shape or dtype differ."""
    if (found.shape, found.dtype) != (oracle.shape, oracle.dtype):
        return math.inf
    return ((found - oracle).abs().max() / oracle.abs().max().clamp(min=1e-30)).item()


# Three networks with something wrong in the middle


class DropsEveryAxisOfOne(nn.Module):
    """The mistake: squeeze() without a dim. With a batch of one, the batch axis goes, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.squeeze()


class LeftoverHalf(nn.Module):
    """The mistake: half precision from an old experiment, in a model that is float32 everywhere else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.half()


def reader(
    *, epsilon: float = 1e-5, flatten: type[nn.Module] = nn.Flatten, last: type[nn.Module] = nn.GELU
) -> nn.Sequential:
    """(B, 1, 16, 16) → (B, 10): two convolutions, one number of each channel, two layers."""
    model = nn.Sequential()
    parts = {
        "conv1": nn.Conv2d(1, 16, 3, stride=2, padding=1),
        "act1": nn.GELU(),
        "conv2": nn.Conv2d(16, 32, 3, stride=2, padding=1),
        "norm": nn.BatchNorm2d(32, eps=epsilon, momentum=None),
        "act2": nn.GELU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": flatten(),
        "hidden": nn.Linear(32, 32),
        "act3": last(),
        "head": nn.Linear(32, 10),
    }
    for name, part in parts.items():
        model.add_module(name, part)
    return model


def show_tracing(lesson: Lesson, images: torch.Tensor) -> None:
    lesson.section(
        "A forward pass, traced",
        "print() in forward() is the tracer that everybody writes and forgets to remove. A hook on every module gives the "
        "same for any model, without touching it: what arrived, what left, in which type, and how large. Here is a small "
        "reader of letters, before its first step.",
    )
    x = (images[:8].view(8, 1, 16, 16).float() - 127) / 64
    model = reader().to(lesson.device)
    model(x)  # its BatchNorm now knows one batch
    model.eval()
    calls, _ = trace(model, x)
    lesson.table(
        [
            {
                "module": call.name,
                "kind": call.kind,
                "arrives": str(call.arrived),
                "leaves": str(tuple(call.output.shape)),
                "dtype": str(call.output.dtype).removeprefix("torch."),
                "mean": number(call.output.mean().item()),
                "std": number(call.output.std().item()),
            }
            for call in calls
            if call.output is not None
        ]
    )
    with torch.no_grad():
        untouched = model(x)
    same = calls[-1].output is not None and relative_deviation(calls[-1].output, untouched.cpu()) < 1e-6
    lesson.check("the trace ends with what the model returns", same and len(calls) == len(list(model)),
                 f"{len(calls)} modules, and no hook is left")  # fmt: skip
    lesson.text(
        "A trace becomes sharp where you have a second one. Three programs that are wrong somewhere in the middle:"
    )
    squeezing = reader(flatten=DropsEveryAxisOfOne).to(lesson.device).eval()
    eight, one = trace(squeezing, x)[0], trace(squeezing, x[:1])[0]
    lost = first_without_batch(one)
    halved, message = trace(reader(last=LeftoverHalf).to(lesson.device).eval(), x)
    port = reader(epsilon=1e-3).to(lesson.device).eval()
    port.load_state_dict(model.state_dict())
    ported = trace(port, x)[0]
    found = first_deviation(ported, calls, 1e-5)
    other = next(call for call in halved if call.output is not None and call.output.dtype is not torch.float32)
    at_end = relative_deviation(ported[-1].output, calls[-1].output)  # type: ignore[arg-type]
    lesson.table(
        [
            {"symptom": "scores (10) for a batch of one", "held against": "a batch of 8",
             "first difference": f"{lost.name}: {lost.kind}" if lost else "none"},
            {"symptom": f"an error in {halved[-1].name}", "held against": "its own dtypes",
             "first difference": f"{other.name}: {other.kind}"},
            {"symptom": f"a port, scores off by {percent(at_end)}", "held against": "the original",
             "first difference": f"{found[0].name}: {found[0].kind}, off by {percent(found[1])}" if found else "none"},
        ]
    )  # fmt: skip
    lesson.items({f"{halved[-1].name} says": message})
    batch_of = [tuple(call.output.shape) for call in (eight[-1], one[-1]) if call.output is not None]
    lesson.check("a batch of one: squeeze() took the batch axis", lost is not None and lost.name == "flatten"
                 and batch_of == [(8, 10), (10,)], f"scores {batch_of[0]} and {batch_of[1]}")  # fmt: skip
    raised = [call.name for call in halved if call.output is None]
    lesson.check("the layer that complains is not the one to blame", raised == ["head"] and other.name == "act3",
                 f"{raised[0] if raised else 'none'} raised; {other.name} sent "
                 f"{str(other.output.dtype if other.output is not None else '').removeprefix('torch.')}")  # fmt: skip
    lesson.check("the port: equal up to the layer that differs", found is not None and found[0].name == "norm" and at_end > 1e-4,
                 "its eps is 1e-3, as in another library, and not 1e-5")  # fmt: skip
    lesson.shows(
        f"an error in the last of {len(calls)} layers pointed at a module in front of it, and a deviation of {percent(at_end)} "
        "in the scores had one birthplace. When you port a model, rewrite a layer or upgrade a library, keep one batch and "
        "its trace: the first call that differs is where to read."
    )
