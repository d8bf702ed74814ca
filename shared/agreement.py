"""Two ways to compute one thing, and how far apart they are: in value, and in the gradient of all that went in."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shared.dispatch import tensors_in

import torch
from torch import nn


@dataclass(frozen=True)
class Agreement:
    """The largest deviation of an output and of a gradient; infinite where one side has what the other lacks."""

    value: float
    gradient: float

    def within(self, tolerance: float) -> bool:
        return max(self.value, self.gradient) <= tolerance

    def __str__(self) -> str:
        return f"values to {self.value:.0e}, gradients to {self.gradient:.0e}"


def deviation(found: torch.Tensor, oracle: torch.Tensor) -> float:
    """The largest difference between two tensors, in units of the oracle's largest number, or of 1 if that is larger.

    Infinite where shape or dtype differ, and where only one of the two is not finite.
    """
    if (found.shape, found.dtype) != (oracle.shape, oracle.dtype):
        return math.inf
    if found.numel() == 0:
        return 0.0
    found, oracle = (x.detach().to_dense().cpu().double() for x in (found, oracle))  # MPS has no float64
    same = (found == oracle) | (found.isnan() & oracle.isnan())  # infinities of one sign are equal; so are two NaNs
    if not (same | (found.isfinite() & oracle.isfinite())).all():
        return math.inf
    finite = oracle[oracle.isfinite()].abs()
    scale = max(1.0, finite.max().item()) if len(finite) else 1.0
    return (found - oracle).masked_fill(same, 0).abs().max().item() / scale


def agreement(own: Callable[..., Any], oracle: Callable[..., Any], *inputs: torch.Tensor) -> Agreement:
    """How far `own(*inputs)` is from `oracle(*inputs)`, forwards and backwards.

    Either may return a tensor or any nesting of tensors; a gradient of random numbers is sent back through all of
    them at once. Compared are the gradients of the inputs with a decimal point and, where both are modules, those of
    their parameters, in the order of `parameters()`. Inputs keep their strides. Both sides start from the same state
    of the random generator, and leave `.grad` of their parameters as it was.
    """
    start = torch.get_rng_state(), _device_states(inputs)
    (outputs, gradients), (right_outputs, right_gradients) = (
        _outputs_and_gradients(function, inputs, start) for function in (own, oracle)
    )
    return Agreement(_worst(outputs, right_outputs), _worst(gradients, right_gradients))


def _outputs_and_gradients(
    function: Callable[..., Any], inputs: tuple[torch.Tensor, ...], start: tuple[torch.Tensor, Any]
) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
    torch.set_rng_state(start[0])
    for device, state in start[1].items():
        torch.get_device_module(device).set_rng_state(state, device)
    copies = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    outputs = tensors_in(function(*copies))
    parameters = list(function.parameters()) if isinstance(function, nn.Module) else []
    sources = [x for x in (*copies, *parameters) if x.requires_grad]
    ends = [x for x in outputs if x.requires_grad]
    if not ends or not sources:
        return list(outputs), []
    generator = torch.Generator().manual_seed(0)
    backwards = [torch.randn(x.shape, generator=generator).to(x.device, x.dtype) for x in ends]
    # As a sum of products: handed over as grad_outputs, the numbers would import sympy (1.5 s).
    total = sum((x * back).sum() for x, back in zip(ends, backwards, strict=True))
    return list(outputs), list(torch.autograd.grad(total, sources, allow_unused=True))  # type: ignore[arg-type]


def _device_states(inputs: tuple[torch.Tensor, ...]) -> dict[torch.device, torch.Tensor]:
    devices = {x.device for x in inputs if x.device.type == "cuda"}
    return {device: torch.cuda.get_rng_state(device) for device in devices}


def _worst(found: list[torch.Tensor | None], oracle: list[torch.Tensor | None]) -> float:
    if len(found) != len(oracle):
        return math.inf
    pairs = list(zip(found, oracle, strict=True))
    if any((x is None) != (right is None) for x, right in pairs):
        return math.inf
    return max((deviation(x, right) for x, right in pairs if x is not None and right is not None), default=0.0)
