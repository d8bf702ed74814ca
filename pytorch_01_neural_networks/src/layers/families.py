"""What the lab knows of every kind of layer, without computing anything: shapes, parameters, operations, and what fits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_01_neural_networks.src.layers.reading import Call, Shape
from shared.snippets import evaluate

import torch
from torch import nn


@dataclass(frozen=True)
class Misfit:
    """Why a layer does not take a shape: what it wants, what the input has instead, and what would fit."""

    wants: str
    has: str
    layers: tuple[str, ...] = ()  # each may stand in the layer's place
    inputs: tuple[Shape, ...] = ()  # each may be the first layer's input
    advice: str = ""


class Family:
    """Layers that share their formulas. The formulas are Python expressions over `sizes`: what is printed is what is run.

    Shapes: N samples, C channels or features, L the length of one image axis or the product of several, T time steps.
    """

    parameters = "0"
    flops = "0"  # a multiplication and an addition are two
    is_counted = False  # whether FlopCounterMode knows the operations of this family
    is_view = False  # whether the output may be the input's own numbers, looked at in another shape
    takes_indices = False
    width = ""  # the argument that must agree with the input's shape, and that `...` leaves to it

    def build(self, call: Call, device: str | torch.device) -> nn.Module:
        """The layer itself. On "meta" it has shapes and no numbers, so that an absurd one costs nothing."""
        layer: nn.Module = getattr(nn, call.name)(*call.positional, device=device, **call.keywords)
        return layer

    def width_of(self, shape: Shape) -> int:
        """What `...` stands for, given this input."""
        return shape[-1]

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        """None where the layer takes this input."""
        return None

    def output(self, layer: Any, shape: Shape) -> Shape:
        """The output's shape, for an input that fits."""
        return shape

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        """The names in the formulas."""
        return {"numbers": math.prod(shape)}

    def working(self, layer: Any, shape: Shape) -> int:
        """How many numbers PyTorch may hold in between, beside input, output and parameters."""
        return 0

    def run(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """The output that a next layer would get."""
        y: torch.Tensor = layer(x)
        return y

    def count_parameters(self, layer: Any, shape: Shape) -> int:
        return int(evaluate(self.parameters, **self.sizes(layer, shape)))

    def count_flops(self, layer: Any, shape: Shape) -> int:
        return int(evaluate(self.flops, **self.sizes(layer, shape)))


class WithoutDevice(Family):
    """Layers without parameters take no device."""

    def build(self, call: Call, device: str | torch.device) -> nn.Module:
        layer: nn.Module = getattr(nn, call.name)(*call.positional, **call.keywords)
        return layer


def per_axis(value: Any, count: int) -> tuple[int, ...] | None:
    """An argument such as 3 or (3, 5) as one whole number for each of `count` axes; None where it is neither."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * count
    whole = all(isinstance(each, int) and not isinstance(each, bool) for each in values)
    return values if whole and len(values) == count else None


def axes_text(count: int) -> str:
    return f"{count} axis" if count == 1 else f"{count} axes"


def image_axes(count: int) -> str:
    """The names of `count` image axes."""
    return {1: "L", 2: "H, W", 3: "D, H, W"}[count]


def divisors(number: int, count: int) -> Sequence[int]:
    """`number` as a product of `count` whole numbers, as even as it can be had."""
    parts = []
    for left in range(count, 1, -1):
        part = round(number ** (1 / left))
        while number % part:
            part -= 1
        parts.append(part)
        number //= part
    return [*parts, number]
