"""Compared with the step without a scaler: a short gradient, a long one, one that overflows, and three in a row."""

import copy
import math
from typing import Any

from shared.practice import expect
from shared.traps import expect_number, shown
from shared.units import significant

import torch
import torch.nn.functional as F
from torch import nn

LR = 0.5


class Descent:
    """Gradient descent with what a GradScaler asks for; torch.optim would import a compiler (4 s)."""

    def __init__(self, model: nn.Module) -> None:
        self.param_groups = [{"params": list(model.parameters())}]

    def zero_grad(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter -= LR * parameter.grad


def right_update(model: nn.Module, x: torch.Tensor, y: torch.Tensor, max_norm: float) -> tuple[torch.Tensor, float]:
    """By how much all weights in a row should change, and the length of the gradient."""
    weights = list(model.parameters())
    gradients = torch.autograd.grad(F.mse_loss(model(x), y), weights)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    length = flat.norm().item()
    return -LR * flat * min(1.0, max_norm / length), length


def flat_weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    x, y = torch.randn(6, 5, generator=generator), 4 + torch.randn(6, 2, generator=generator)
    length = right_update(model, x, y, 1.0)[1]
    for scale in (1.0, 2.0**8, 2.0**16):
        for max_norm, which in ((length / 8, "longer"), (length * 8, "shorter")):
            call = f"train_step with a scale of {scale:,.0f} and a gradient {which} than max_norm"
            expect_step(answer, copy.deepcopy(model), x, y, max_norm, scale, call)
    expect_nothing_where_it_overflows(answer, copy.deepcopy(model), x, y)
    expect_three_steps(answer, copy.deepcopy(model), x, y, length / 4)


def expect_step(answer: Any, model: nn.Module, x: torch.Tensor, y: torch.Tensor, max_norm: float, scale: float,
                call: str) -> None:  # fmt: skip
    optimizer: Any = Descent(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    wanted, length = right_update(model, x, y, max_norm)
    before = flat_weights(model)
    found = answer.train_step(model, optimizer, scaler, x, y, max_norm)
    moved = flat_weights(model) - before
    expect_number(found, call, "the length of the gradient, a float")
    expect_moved(moved, wanted, call)
    share = found / length
    expect(
        math.isclose(share, 1, rel_tol=1e-3),
        f"{call} returned {significant(found)}, which is {significant(share)} times the length of the gradient; the log "
        "wants the length before clipping, of the gradient in its own size",
    )


def expect_moved(moved: torch.Tensor, wanted: torch.Tensor, call: str) -> None:
    expect(moved.isfinite().all(), f"{call}: afterwards some weights are not finite")
    ratio = (moved.norm() / wanted.norm()).item()
    close = torch.allclose(moved, wanted, rtol=1e-2, atol=1e-3 * wanted.norm().item())
    reason = (
        "it stood still" if ratio == 0 else f"it went {significant(ratio)} times as far as without a scaler"
        if not 0.99 < ratio < 1.01 else "it went as far, but in another direction"
    )  # fmt: skip
    expect(close, f"{call}: {reason}; ask at each line whether the gradients carry the scale there")


def expect_nothing_where_it_overflows(answer: Any, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer: Any = Descent(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    before = flat_weights(model)
    found = answer.train_step(model, optimizer, scaler, x, torch.full_like(y, 1e36), 1.0)
    call = "train_step where a gradient overflows"
    expect(isinstance(found, float), f"{call} returned {shown(found)}; return a float, whichever it is")
    expect(
        torch.equal(flat_weights(model), before), f"{call} changed the weights; the scaler has to leave that step out"
    )
    expect(
        scaler.get_scale() == 2.0**15,
        f"{call} left the scale at {scaler.get_scale():,.0f}; it has to be halved for the next step",
    )
    wanted, _ = right_update(model, x, y, 1.0)
    answer.train_step(model, optimizer, scaler, x, y, 1.0)
    expect_moved(flat_weights(model) - before, wanted, "the train_step after one that was left out")


def expect_three_steps(answer: Any, model: nn.Module, x: torch.Tensor, y: torch.Tensor, max_norm: float) -> None:
    optimizer: Any = Descent(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number in range(3):
        wanted, _ = right_update(model, x, y, max_norm)
        before = flat_weights(model)
        answer.train_step(model, optimizer, scaler, x, y, max_norm)
        expect_moved(flat_weights(model) - before, wanted, f"train_step number {number + 1} in a row")


def begins(model: Any, optimizer: Any, scaler: Any, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad()
    scaler.scale(F.mse_loss(model(x), y)).backward()


def ends(optimizer: Any, scaler: Any) -> None:
    scaler.step(optimizer)
    scaler.update()


def clips_scaled_gradients(model: Any, optimizer: Any, scaler: Any, x: Any, y: Any, max_norm: float) -> float:
    begins(model, optimizer, scaler, x, y)
    length = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    ends(optimizer, scaler)
    return length.item()


def scales_max_norm(model: Any, optimizer: Any, scaler: Any, x: Any, y: Any, max_norm: float) -> float:
    return clips_scaled_gradients(model, optimizer, scaler, x, y, max_norm * scaler.get_scale())


def divides_by_hand(model: Any, optimizer: Any, scaler: Any, x: Any, y: Any, max_norm: float) -> float:
    begins(model, optimizer, scaler, x, y)
    for weight in model.parameters():
        weight.grad /= scaler.get_scale()
    length = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    ends(optimizer, scaler)
    return length.item()


def clips_after_the_step(model: Any, optimizer: Any, scaler: Any, x: Any, y: Any, max_norm: float) -> float:
    begins(model, optimizer, scaler, x, y)
    ends(optimizer, scaler)
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm).item()


def steps_past_the_scaler(model: Any, optimizer: Any, scaler: Any, x: Any, y: Any, max_norm: float) -> float:
    begins(model, optimizer, scaler, x, y)
    scaler.unscale_(optimizer)
    length = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    scaler.update()
    return length.item()


def never_updates(model: Any, optimizer: Any, scaler: Any, x: Any, y: Any, max_norm: float) -> float:
    begins(model, optimizer, scaler, x, y)
    scaler.unscale_(optimizer)
    length = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    scaler.step(optimizer)
    return length.item()


WRONG = {
    "clips scaled gradients": ({"train_step": clips_scaled_gradients}, "0.00391 times as far as without a scaler"),
    "multiplies max_norm by the scale": ({"train_step": scales_max_norm}, "256 times the length of the gradient"),
    "divides by hand": ({"train_step": divides_by_hand}, "0.00391 times as far as without a scaler"),
    "clips after the step": ({"train_step": clips_after_the_step}, "8.00 times as far as without a scaler"),
    "steps past the scaler": ({"train_step": steps_past_the_scaler}, "changed the weights"),
    "never calls update": ({"train_step": never_updates}, "it has to be halved"),
}
