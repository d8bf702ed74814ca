"""Muon: momentum whose step is made orthogonal, for the weight matrices and the filters of hidden layers."""

import math
from collections.abc import Callable
from typing import Any

import torch

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of Keller Jordan: chosen for a steep start at 0, not for an end at 1
EPS = 1e-7


def orthogonalize(matrices: torch.Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The nearest orthogonal matrix to each of `matrices` (n, rows, columns), roughly: U S' Vᵀ with S' about 0.7 to 1.2.

    Newton–Schulz: each step replaces every singular value s by a·s + b·s³ + c·s⁵ with matrix products alone, which
    any device does well, where an SVD is slow. Source: https://kellerjordan.github.io/posts/muon/
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(dtype or matrices.dtype)
    x = x.mT if is_tall else x  # so that x xᵀ is the smaller of the two squares
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)  # the largest singular value is now at most 1
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def shape_factor(rows: int, columns: int, adjust_lr_fn: str | None) -> float:
    """What the learning rate of a (rows, columns) matrix is multiplied by; the names are torch.optim.Muon's."""
    if adjust_lr_fn in (None, "original"):
        return math.sqrt(max(1, rows / columns))
    if adjust_lr_fn == "match_rms_adamw":  # entries about as large as AdamW's, so that its lr can be kept
        return 0.2 * math.sqrt(max(rows, columns))
    raise ValueError(f'adjust_lr_fn is {adjust_lr_fn!r}; choose "original" or "match_rms_adamw"')


def default_ns_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it faster and its error does no harm; else float32, as on most CPUs."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon for weights of two or more axes: convolution filters are flattened to (out, rest).

    Give it the hidden layers only; embeddings, the output layer, biases and norms belong to AdamW. `ns_dtype` is the
    type of the Newton–Schulz products, by default `default_ns_dtype` of each parameter's device (the library: always
    bfloat16). Matrices of one shape are orthogonalised in one batch. Raises ValueError for a parameter with less than
    two axes or without a decimal point. Source: https://kellerjordan.github.io/posts/muon/; "match_rms_adamw" is from
    Liu et al. 2025, "Muon is Scalable for LLM Training" (https://arxiv.org/abs/2502.16982), section 2.2.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        ns_dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "ns_steps": ns_steps}.items():
            if value < 0:
                raise ValueError(f"{name} is {value}; it cannot be negative")
        shape_factor(1, 1, adjust_lr_fn)  # refuses an unknown name here and not at the first step
        options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
                   "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn, "ns_dtype": ns_dtype}  # fmt: skip
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.ndim < 2 or not parameter.is_floating_point():
                raise ValueError(
                    f"Muon takes matrices and filters, not a parameter of shape {tuple(parameter.shape)} and dtype "
                    f"{parameter.dtype}; give it to AdamW"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in self._by_shape(group["params"]):
                directions = torch.stack([self._direction(parameter, group) for parameter in parameters])
                dtype = group["ns_dtype"] or default_ns_dtype(directions.device)
                updates = orthogonalize(directions, group["ns_steps"], dtype)
                lr = group["lr"] * shape_factor(*directions.shape[1:], group["adjust_lr_fn"])
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.reshape(parameter.shape), alpha=-lr)
        return loss

    @staticmethod
    def _by_shape(parameters: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        """The parameters that have a gradient, those of one shape, type and device together."""
        groups: dict[Any, list[torch.Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                kind = parameter.flatten(1).shape, parameter.dtype, parameter.device
                groups.setdefault(kind, []).append(parameter)
        return list(groups.values())

    def _direction(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """The momentum after this gradient, as a matrix (out, rest)."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        return direction.flatten(1)
