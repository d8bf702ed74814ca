"""Gradients and optimizers that take less room: the step inside backward, None instead of zeros, one tensor at a time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pytorch_02_training_optimization.src.budget.anatomy import Step
from pytorch_02_training_optimization.src.budget.ledger import Ledger
from pytorch_02_training_optimization.src.budget.network import (
    activation_bytes,
    count_parameters,
    make_network,
    random_batch,
)
from pytorch_02_training_optimization.src.budget.states import optimizer_tensors
from shared.agreement import deviation
from shared.lesson import Lesson
from shared.units import bytes_text, percent, significant

import torch
import torch.nn.functional as F
from torch import nn

Stepper = Callable[[], None]


def adam(model: nn.Module, **options: bool) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), **options)  # type: ignore[arg-type]


def step_after_backward(optimizer: torch.optim.Optimizer) -> Stepper:
    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return step


def step_and_keep_zeros(optimizer: torch.optim.Optimizer) -> Stepper:
    """The mistake: zeros are as large as gradients, and stay through the next forward pass."""

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def step_inside_backward(model: nn.Module) -> list[torch.optim.Optimizer]:
    """An Adam for each parameter, called when its gradient is complete; the gradient goes before the next one comes.

    There is no moment at which all gradients are there: no clipping by their norm, no adding up over several batches.
    """
    optimizers: list[torch.optim.Optimizer] = []
    for parameter in model.parameters():
        optimizer = torch.optim.Adam([parameter], foreach=False)

        def step(parameter: torch.Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(step)
        optimizers.append(optimizer)
    return optimizers


@dataclass(frozen=True)
class Way:
    """A way to step: what it makes of a model (optimizers to look into, and what to call after backward)."""

    build: Callable[[nn.Module], tuple[Sequence[torch.optim.Optimizer], Stepper]]


def after(make: Callable[[torch.optim.Optimizer], Stepper], **options: bool) -> Way:
    def build(model: nn.Module) -> tuple[Sequence[torch.optim.Optimizer], Stepper]:
        optimizer = adam(model, **options)
        return [optimizer], make(optimizer)

    return Way(build)


WAYS = {
    "one tensor at a time": after(step_after_backward, foreach=False),
    "… and zeros kept": after(step_and_keep_zeros, foreach=False),
    "foreach=True": after(step_after_backward, foreach=True),
    "fused=True": after(step_after_backward, fused=True),
    "inside backward": Way(lambda model: (step_inside_backward(model), lambda: None)),
}


@dataclass(frozen=True)
class Account:
    """Of the second of two steps: its peak, where that is, and the most that gradients took; and the weights."""

    peak_bytes: int
    phase: str
    gradient_bytes: int
    weights: list[torch.Tensor]


def account_for(way: Way, channels: int, depth: int, batch_size: int, device: torch.device, seed: int) -> Account:
    torch.manual_seed(seed)
    phases: list[tuple[str, int]] = []
    x, y = random_batch(batch_size, device)
    with Ledger(device) as ledger:
        model = make_network(channels, depth, device)
        for parameter in model.parameters():  # registered first, and so called before any step
            parameter.register_post_accumulate_grad_hook(lambda p: ledger.label("gradients", [p.grad]))
        optimizers, step = way.build(model)
        start = 0
        for _ in range(2):
            start = ledger.moment
            ledger.restart_peak()
            loss = F.cross_entropy(model(x), y)
            phases.append(("forward", ledger.moment))
            loss.backward()
            del loss
            phases.append(("backward", ledger.moment))
            step()
            phases.append(("step", ledger.moment))
            ledger.label("optimizer", (x for optimizer in optimizers for x in optimizer_tensors(optimizer)))
    gradients = ledger.series(start, ledger.moment)["gradients"]
    peak_phase = Step(ledger, phases).phase_of(ledger.peak_moment)
    return Account(ledger.peak_bytes, peak_phase, max(gradients), list(model.parameters()))


def farthest(a: Iterable[torch.Tensor], b: Iterable[torch.Tensor]) -> float:
    return max(deviation(one, other) for one, other in zip(a, b, strict=True))


def show_lean(lesson: Lesson) -> None:
    device = lesson.device
    channels, depth = lesson.pick(full=1024, cpu=128, quick=32), lesson.pick(full=12, cpu=8, quick=4)
    count = count_parameters(channels, depth)
    each = activation_bytes(1, channels, depth, torch.float32, device)
    batch_size = max(1, round(count / each / 4))
    lesson.section(
        "Gradients that never meet",
        f"On the other side of the account, with a batch of {batch_size}, activations are a trifle, and the peak is 16 bytes "
        "of each parameter and what the optimizer needs on its way. Five ways to make the same step of Adam, the second of "
        "two counted. (hooks_and_gradients of project 01 introduced the step inside backward.)",
    )
    ways = {name: way for name, way in WAYS.items() if name != "fused=True" or device.type != "mps"}
    found = {
        name: account_for(way, channels, depth, batch_size, device, lesson.options.seed) for name, way in ways.items()
    }
    for name, account in found.items():
        lesson.record("peak of a step", account.peak_bytes, "B", way=name, parameters=count)
    best = min(found, key=lambda name: found[name].peak_bytes)
    lesson.table([{"Adam": name, "peak": bytes_text(account.peak_bytes), "bytes of each parameter": account.peak_bytes / count,
                   "it lies in": account.phase, "gradients at most": percent(account.gradient_bytes / (4 * count))}
                  for name, account in found.items()], best=list(found).index(best))  # fmt: skip
    plain, foreach, inside = (found[name] for name in ("one tensor at a time", "foreach=True", "inside backward"))
    apart = max(farthest(account.weights, plain.weights) for account in found.values())
    lesson.check("all take the same steps", apart < 1e-5, f"weights agree to {significant(apart, 1)}")
    lesson.check("foreach makes a copy of everything on its way", foreach.peak_bytes - plain.peak_bytes > 2 * count,
                 f"{bytes_text(foreach.peak_bytes - plain.peak_bytes)} more; weights are {bytes_text(4 * count)}")  # fmt: skip
    lesson.check("inside backward, gradients never meet", inside.gradient_bytes < 4 * count / 3,
                 f"{percent(inside.gradient_bytes / (4 * count))} of them at most")  # fmt: skip
    saved = plain.peak_bytes - inside.peak_bytes
    lesson.check(
        "which takes most of their 4 bytes off the peak",
        saved > 2 * count,
        f"{saved / count:.2f} bytes of each parameter",
    )
    large = round(64 * count / each)
    late, early = (account_for(WAYS[name], channels, depth, large, device, lesson.options.seed).peak_bytes
                   for name in ("… and zeros kept", "one tensor at a time"))  # fmt: skip
    lesson.check("in a large batch, zeros that were kept come on top", late - early > 3 * count,
                 f"{(late - early) / count:.2f} bytes of each parameter")  # fmt: skip
    lesson.shows(
        f"the same step needs {inside.peak_bytes / count:.1f} or {foreach.peak_bytes / count:.1f} bytes of each parameter. On a "
        "GPU foreach is the default because it launches few kernels; fused=True launches as few and copies nothing, so it is "
        f"the better choice there. Zeros cost {bytes_text(late - early)} in the large batch for nothing: None is the default "
        "of zero_grad() for that reason."
    )
