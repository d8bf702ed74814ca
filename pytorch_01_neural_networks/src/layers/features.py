"""Layers that treat features: Linear, normalisation, activations, dropout, and tables of vectors."""

import math
from typing import Any

from pytorch_01_neural_networks.src.layers.families import (
    Family,
    Misfit,
    WithoutDevice,
    axes_text,
    image_axes,
)
from pytorch_01_neural_networks.src.layers.reading import Call, Shape
from shared.errors import CannotRun

import torch
from torch import nn


class Linear(Family):
    parameters = "C_out * C_in + C_out * bias"
    flops = "2 * rows * C_in * C_out"
    is_counted = True
    width = "in_features"

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        wanted, whole = layer.in_features, math.prod(shape[1:])
        if shape[-1] == wanted:
            return None
        tries = [str(call.replaced(in_features=shape[-1]))]
        if len(shape) > 2:
            tries.insert(int(whole != wanted), f"Flatten(); {call.replaced(in_features=whole)}")
        advice = ""
        if wanted in shape[:-1] and whole != wanted:
            axis = shape.index(wanted)
            advice = f"axis {axis} has {wanted}: move it to the end, x.movedim({axis}, -1)"
        return Misfit(f"a last axis of {wanted}", str(shape[-1]), layers=tuple(tries), advice=advice)

    def output(self, layer: Any, shape: Shape) -> Shape:
        return (*shape[:-1], layer.out_features)

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        return {
            "rows": math.prod(shape[:-1]),
            "C_in": layer.in_features,
            "C_out": layer.out_features,
            "bias": int(layer.bias is not None),
        }


class Bilinear(Family):
    """Every feature of one input times every feature of another; here the one input is both."""

    parameters = "C_out * C_1 * C_2 + C_out * bias"
    flops = "2 * rows * C_out * (C_1 * C_2 + C_2)"

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        wanted = layer.in1_features, layer.in2_features
        if wanted == (shape[-1], shape[-1]):
            return None
        own = call.replaced(in1_features=shape[-1], in2_features=shape[-1])
        return Misfit(f"last axes of {wanted[0]} and {wanted[1]}", f"{shape[-1]} for both", layers=(str(own),))

    def output(self, layer: Any, shape: Shape) -> Shape:
        return (*shape[:-1], layer.out_features)

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        return {
            "rows": math.prod(shape[:-1]),
            "C_1": layer.in1_features,
            "C_2": layer.in2_features,
            "C_out": layer.out_features,
            "bias": int(layer.bias is not None),
        }

    def working(self, layer: Any, shape: Shape) -> int:
        return int(layer.out_features) * math.prod(shape)

    def run(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = layer(x, x)
        return y


class BatchNorm(Family):
    """In training: 1 operation a number for the mean, 3 for the variance, 2 to normalise, 2 to scale and shift."""

    parameters = "C * weight + C * bias"
    flops = "numbers * (6 + weight + bias)"
    width = "num_features"

    def __init__(self, axes: int) -> None:
        self.axes = axes

    def width_of(self, shape: Shape) -> int:
        return shape[min(1, len(shape) - 1)]

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        names = f"(N, C, {image_axes(self.axes)})"
        allowed = (2, 3) if self.axes == 1 else (self.axes + 2,)
        if len(shape) not in allowed:
            inputs = (8, layer.num_features, *(32,) * self.axes)
            return Misfit(f"(N, C) or {names}" if self.axes == 1 else names, axes_text(len(shape)), inputs=(inputs,))
        if misfit := self.misfit_of_channels(call, layer.num_features, shape):
            return misfit
        if math.prod(shape) == shape[1]:
            return Misfit("two numbers or more for each channel, to have a variance", "one", inputs=((8, *shape[1:]),))
        return None

    def misfit_of_channels(self, call: Call, wanted: int, shape: Shape, axis: int = 1) -> Misfit | None:
        if shape[axis] == wanted:
            return None
        advice = ""
        if shape[-1] == wanted and len(shape) > 2:
            advice = f"the last axis has {wanted}: put the channels before the rest, x.movedim(-1, {axis})"
        return Misfit(f"{wanted} channels in axis {axis}", str(shape[axis]), advice=advice,
                      layers=(str(call.replaced(**{self.width: shape[axis]})),))  # fmt: skip

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        return {
            "numbers": math.prod(shape),
            "C": layer.num_features,
            "weight": int(layer.weight is not None),
            "bias": int(layer.bias is not None),
        }


class InstanceNorm(BatchNorm):
    def width_of(self, shape: Shape) -> int:
        return shape[-1 - self.axes] if len(shape) > self.axes else shape[0]

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        names = image_axes(self.axes)
        if len(shape) not in (self.axes + 1, self.axes + 2):
            inputs = (8, layer.num_features, *(32,) * self.axes)
            return Misfit(f"(N, C, {names}), or (C, {names}) for one sample", axes_text(len(shape)), inputs=(inputs,))
        if misfit := self.misfit_of_channels(call, layer.num_features, shape, len(shape) - self.axes - 1):
            return misfit
        if math.prod(shape[-self.axes :]) == 1:
            inputs = (*shape[: -self.axes], *(8,) * self.axes)
            return Misfit("two places or more, to have a variance", "one", inputs=(inputs,))
        return None


class GroupNorm(BatchNorm):
    width = "num_channels"

    def __init__(self) -> None:
        super().__init__(axes=1)

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        if len(shape) < 2:
            return Misfit("(N, C, ...)", axes_text(len(shape)), inputs=((8, layer.num_channels, 8),))
        if misfit := self.misfit_of_channels(call, layer.num_channels, shape):
            if shape[1] % layer.num_groups:
                return Misfit(
                    misfit.wants, misfit.has, advice=misfit.advice, inputs=((shape[0], layer.num_channels, *shape[2:]),)
                )
            return misfit
        if math.prod(shape) == shape[0] * layer.num_groups:
            return Misfit("two numbers or more in each group, to have a variance", "one", inputs=((*shape, 8),))
        return None

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        has = int(layer.weight is not None)
        bias = int(layer.bias is not None)
        return {"numbers": math.prod(shape), "C": layer.num_channels, "weight": has, "bias": bias}


class LayerNorm(Family):
    """The same steps as BatchNorm, over the last axes of one sample."""

    parameters = "C * weight + C * bias"
    flops = "numbers * (6 + weight + bias)"
    width = "normalized_shape"

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        wanted = tuple(layer.normalized_shape)
        if shape[-len(wanted) :] == wanted:
            return None
        own = str(call.replaced(normalized_shape=shape[-1]))
        if len(wanted) == 1:
            return Misfit(f"a last axis of {wanted[0]}", str(shape[-1]), layers=(own,))
        return Misfit(f"last axes of {wanted}", str(shape[-len(wanted) :]), layers=(own,))

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        return {
            "numbers": math.prod(shape),
            "C": math.prod(layer.normalized_shape),
            "weight": int(layer.weight is not None),
            "bias": int(getattr(layer, "bias", None) is not None),
        }


class RmsNorm(LayerNorm):
    """No mean: 2 operations a number for the mean square, 1 to divide, 1 to scale."""

    parameters = "C * weight"
    flops = "numbers * (3 + weight)"


class Elementwise(WithoutDevice):
    """Each number for itself; exp, log, tanh, erf, a division and a comparison count as one operation each."""

    def __init__(self, each: int) -> None:
        self.flops = f"{each} * numbers" if each != 1 else "numbers"


class Softmax(WithoutDevice):
    """Largest, difference, exp, sum and division."""

    flops = "5 * numbers"

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        if layer.dim is None:
            raise CannotRun(f"{call} does not say over which axis; try {call.replaced(dim=-1)}")
        if not isinstance(layer.dim, int) or not -len(shape) <= layer.dim < len(shape):
            return Misfit(f"an axis {layer.dim}", axes_text(len(shape)), layers=(str(call.replaced(dim=-1)),))
        return None


class Prelu(Family):
    parameters = "learned"
    flops = "2 * numbers"
    width = "num_parameters"

    def width_of(self, shape: Shape) -> int:
        return shape[1] if len(shape) > 1 else 1

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        has = self.width_of(shape)
        if layer.num_parameters in (1, has):
            return None
        return Misfit(
            f"{layer.num_parameters} channels in axis 1", str(has), layers=(str(call.replaced(num_parameters=has)),)
        )

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        return {"numbers": math.prod(shape), "learned": layer.num_parameters}


class Dropout(Elementwise):
    """A random number, a comparison, a product."""

    def __init__(self) -> None:
        super().__init__(each=3)


class Dropout2d(Dropout):
    """A product; the random numbers are few, one for each channel."""

    def __init__(self) -> None:
        Elementwise.__init__(self, each=1)

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        if len(shape) in (3, 4):
            return None
        return Misfit("(N, C, H, W), or (C, H, W) for one sample", axes_text(len(shape)), inputs=((8, 16, 32, 32),))


class Embedding(Family):
    """Reads rows of a table and computes nothing."""

    parameters = "V * C"
    takes_indices = True

    def build(self, call: Call, device: str | torch.device) -> nn.Module:
        if device == "meta":  # filling a table with random numbers that do not exist would load a compiler (4 s)
            rows, columns = call.arguments["num_embeddings"], call.arguments["embedding_dim"]
            table = torch.empty(rows, columns, device="meta")  # type: ignore[arg-type]
            built: nn.Module = getattr(nn, call.name)(*call.positional, **call.keywords, _weight=table)
            return built
        return super().build(call, device)

    def output(self, layer: Any, shape: Shape) -> Shape:
        return (*shape, layer.embedding_dim)

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        return {"V": layer.num_embeddings, "C": layer.embedding_dim, "N": shape[0], "L": shape[-1]}


class EmbeddingBag(Embedding):
    """The sum, the mean or the maximum of the rows in each bag of L."""

    flops = "N * L * C"

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        if layer.mode not in ("sum", "mean", "max"):
            raise CannotRun(f"{call}: there is no mode {layer.mode!r}; it is one of sum, mean and max")
        if len(shape) != 2:
            return Misfit("(N, L), N bags of L indices", axes_text(len(shape)), inputs=((8, 16),))
        return None

    def output(self, layer: Any, shape: Shape) -> Shape:
        return (shape[0], layer.embedding_dim)
