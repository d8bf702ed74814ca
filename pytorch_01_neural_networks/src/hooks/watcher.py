"""A watcher for training: what comes out of every layer and what comes back, cheap enough to leave on.

    with Watcher(model, every=10) as watcher:
        train(model)
    for layer in watcher.layers():
        print(layer.name, layer.std, layer.flat, layer.gradient, layer.step_ratio)
    print(watcher.first_not_finite())

Nothing is read from the device until you ask. Each statistic stays a tensor of one number, and those of one call of the
model are stacked when the next call begins: a measured step keeps some bytes for each layer, and no activation.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from shared.dispatch import tensors_in

import torch
from torch import nn

EDGE = 0.975  # |tanh| beyond which its slope, 1 - tanh², is under 5 % of the largest; the same for 2 sigmoid - 1

ROOT = "(model)"  # the name of the whole model, where it is watched itself

Event = tuple[int, str, str, int]  # in which call of the model, of which layer, what was measured, of how many numbers


@dataclass(frozen=True)
class Layer:
    """One layer over all steps that were measured; NaN stands for what was not."""

    name: str
    outputs: int  # tensors that its forward returned
    mean: float  # of the numbers in them, as the next two
    std: float
    flat: float  # the share that is exactly 0, or on the flat ends of a Tanh or Sigmoid; not of layers with weights
    gradient: float  # norm of the loss's gradient in them, in one step
    weight_gradient: float  # norm of the .grad of the layer's own parameters, in one step
    weight: float  # norm of these parameters

    @property
    def step_ratio(self) -> float:
        """Gradient by weight. Times the learning rate: by what share of itself plain SGD moves this layer in a step."""
        return self.weight_gradient / self.weight if self.weight else math.nan


def has_no_children(name: str, module: nn.Module) -> bool:
    return not any(module.children())


class Watcher:
    """Inside `with Watcher(model) as watcher:` every `every`-th call of the model is measured; the last `keep` are kept.

    `watches(name, module)` chooses the modules, by default those without children. Gradients are taken by hooks on the
    outputs, because full backward hooks of modules forbid in-place operations behind them. On leaving, by an error too,
    all hooks are removed; what was measured stays. A copy made inside is not watched.
    """

    def __init__(self, model: nn.Module, watches: Callable[[str, nn.Module], bool] = has_no_children, *,
                 every: int = 1, keep: int = 1000) -> None:  # fmt: skip
        self.modules = {name or ROOT: module for name, module in model.named_modules() if watches(name, module)}
        # A Linear or Conv makes no exact zeros. Not to look for them there is half of what a measured step costs.
        self._weighted = {
            name for name, module in self.modules.items() if any(True for _ in module.parameters(recurse=False))
        }
        self.model, self.every, self.calls = model, every, 0
        self._now: list[tuple[Event, torch.Tensor]] = []
        self._past: deque[tuple[list[Event], torch.Tensor]] = deque(maxlen=keep)
        self._inside = self._measures = False

    def __enter__(self) -> Self:
        with ExitStack() as hooks:  # all of them, or none where one is refused
            hooks.enter_context(self.model.register_forward_pre_hook(lambda model, _: self._begin(model), prepend=True))
            for name, module in self.modules.items():
                see_output = lambda module, _, y, name=name: self._see_output(name, module, y)  # noqa: E731
                hooks.enter_context(module.register_forward_hook(see_output))
            for path, parameter in self.model.named_parameters():  # tied weights come once, with their first layer
                name = path.rpartition(".")[0] or ROOT
                if name in self.modules and parameter.requires_grad:
                    see_grad = lambda parameter, name=name: self._see_parameter(name, parameter)  # noqa: E731
                    hooks.enter_context(parameter.register_post_accumulate_grad_hook(see_grad))
            self._hooks = hooks.pop_all()
        self._inside = self._measures = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside = self._measures = False  # a hook on an output goes with its graph, which may outlive this block
        self._hooks.close()
        self._stack()

    def _begin(self, model: nn.Module) -> None:
        if self._inside and model is self.model:  # a deep copy has copies of the hooks
            self._stack()
            self._measures = self.calls % self.every == 0
            self.calls += 1

    def _see_output(self, name: str, module: nn.Module, output: object) -> None:
        if not self._measures or module is not self.modules[name]:
            return
        for y in (output,) if isinstance(output, torch.Tensor) else tensors_in(output):
            if y.is_floating_point() and y.layout is torch.strided:
                x = y.detach()  # measured at once: whatever comes next may write into it
                self._note(name, "output", x)
                self._note(name, "sum", x, x.sum(dtype=wide(x)))
                if name not in self._weighted:
                    self._note(name, "live", x, live(module, x).sum(dtype=wide(x)))
                if y.grad_fn is not None:  # on a leaf the hooks would stay and stack up
                    y.register_hook(lambda gradient: self._note(name, "gradient", gradient) if self._inside else None)

    def _see_parameter(self, name: str, parameter: torch.Tensor) -> None:
        if self._measures and parameter.grad is not None and parameter.grad.layout is torch.strided:
            self._note(name, "weight gradient", parameter.grad)
            self._note(name, "weight", parameter)

    def _note(self, name: str, quantity: str, x: torch.Tensor, value: torch.Tensor | None = None) -> None:
        if value is None:  # detached: with create_graph a gradient has a graph, too
            value = torch.linalg.vector_norm(x.detach(), dtype=wide(x))
        self._now.append(((self.calls, name, quantity, x.numel()), value))

    def _stack(self) -> None:
        if self._now:
            events, values = zip(*self._now, strict=True)
            self._past.append((list(events), torch.stack(values)))
            self._now = []

    def _read(self) -> list[tuple[Event, float]]:
        """All that was measured, in order of time. This waits for the device, once."""
        self._stack()
        if not self._past:
            return []
        numbers = torch.cat([values for _, values in self._past]).tolist()
        return list(zip([event for events, _ in self._past for event in events], numbers, strict=True))

    def layers(self) -> list[Layer]:
        """A row for each watched module, in the order of their first calls; those never called come last."""
        found: dict[tuple[str, str], list[tuple[int, int, float]]] = defaultdict(list)
        for (call, name, quantity, count), value in self._read():
            found[name, quantity].append((call, count, value))
        return [summary(name, {quantity: found[name, quantity] for quantity in QUANTITIES})
                for name in dict.fromkeys([*(name for name, _ in found), *self.modules])]  # fmt: skip

    def first_not_finite(self) -> tuple[int, str, str] | None:
        """Call, layer and quantity of the first NaN or infinity, or of numbers from 1e19 on, whose squares overflow."""
        wrong = (
            (call, name, quantity) for (call, name, quantity, _), value in self._read() if not math.isfinite(value)
        )
        return next(wrong, None)


QUANTITIES = ("output", "sum", "live", "gradient", "weight gradient", "weight")


def wide(x: torch.Tensor) -> torch.dtype:
    """Sums of 16-bit numbers are taken in float32; in their own type they would overflow."""
    return torch.promote_types(x.dtype, torch.float32)


def live(module: nn.Module, y: torch.Tensor) -> torch.Tensor:
    """1 for each number that lets a gradient pass, 0 for exact zeros and for the flat ends of a Tanh or Sigmoid."""
    if isinstance(module, nn.Tanh | nn.Sigmoid):
        return (EDGE - (y if isinstance(module, nn.Tanh) else 2 * y - 1).abs()).clamp_(min=0).sign_()
    return y.sign().abs_()  # count_nonzero branches on every number: behind a ReLU 40 times slower, on a CPU


def summary(name: str, found: dict[str, list[tuple[int, int, float]]]) -> Layer:
    """Moments over all numbers. Norms are root mean squares over the steps, which show the one step that explodes."""

    def mean(quantity: str) -> float:
        count = sum(count for _, count, _ in found[quantity])
        return sum(value for *_, value in found[quantity]) / count if count else math.nan

    def squares(quantity: str) -> float:
        return sum(value * value for *_, value in found[quantity])  # and not value**2, which raises beyond 1e154

    def norm(quantity: str) -> float:
        steps = len({call for call, _, _ in found[quantity]})
        return math.sqrt(squares(quantity) / steps) if steps else math.nan

    numbers = sum(count for _, count, _ in found["output"])
    variance = squares("output") / numbers - mean("sum") * mean("sum") if numbers else math.nan
    return Layer(name, len(found["output"]), mean("sum"), math.sqrt(max(variance, 0.0)), 1 - mean("live"),
                 norm("gradient"), norm("weight gradient"), norm("weight"))  # fmt: skip
