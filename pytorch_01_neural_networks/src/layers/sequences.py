"""Recurrent layers and attention: what each time step costs, and what every pair of them does."""

import math
from typing import Any

from pytorch_01_neural_networks.src.layers.families import Family, Misfit, axes_text
from pytorch_01_neural_networks.src.layers.reading import Call, Shape
from shared.errors import CannotRun

import torch

MOST_STEPS = 20_000  # of time, layers and directions together; each waits for the one before
MOST_STACKED = 100


class Sequence(Family):
    """Inputs of (T, N, C), of (N, T, C) with batch_first=True, or of (T, C) for one sample."""

    def channels(self, layer: Any) -> int:
        raise NotImplementedError

    def batch_first(self, layer: Any) -> bool:
        return bool(layer.batch_first)

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        wanted = self.channels(layer)
        if len(shape) not in (2, 3):
            order = "(N, T, C)" if self.batch_first(layer) else "(T, N, C), or (N, T, C) with batch_first=True"
            return Misfit(order, axes_text(len(shape)), inputs=((8, 16, wanted),))
        if shape[-1] != wanted:
            own = call.replaced(**{self.width: shape[-1]})
            advice = ""
            if wanted in shape[:-1]:
                axis = shape.index(wanted)
                advice = f"axis {axis} has {wanted}: move it to the end, x.movedim({axis}, -1)"
            return Misfit(f"a last axis of {wanted}", str(shape[-1]), layers=(str(own),), advice=advice,
                          inputs=((*shape[:-1], wanted),))  # fmt: skip
        return None

    def steps_and_samples(self, layer: Any, shape: Shape) -> tuple[int, int]:
        if len(shape) == 2:
            return shape[0], 1
        return (shape[1], shape[0]) if self.batch_first(layer) else (shape[0], shape[1])


class Recurrent(Sequence):
    """Every weight is used once at every step: 2 operations for each. Gates: 1 in an RNN, 3 in a GRU, 4 in an LSTM."""

    parameters = "D * G * H * (C + H) + (layers - 1) * D * G * H * (D * H + H) + biases"
    flops = "2 * N * T * (D * G * H * (C + H) + (layers - 1) * D * G * H * (D * H + H))"
    width = "input_size"

    def __init__(self, gates: int) -> None:
        self.gates = gates

    def build(self, call: Call, device: str | torch.device) -> torch.nn.Module:
        stacked = call.arguments.get("num_layers", 1)
        if not isinstance(stacked, int) or stacked > MOST_STACKED:
            raise CannotRun(f"{call}: at most {MOST_STACKED} layers are stacked here; write a smaller num_layers")
        return super().build(call, device)

    def channels(self, layer: Any) -> int:
        return int(layer.input_size)

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        if layer.proj_size:
            raise CannotRun(f"{call}: a projected LSTM is not counted here; leave proj_size out")
        if misfit := super().misfit(call, layer, shape):
            return misfit
        sizes = self.sizes(layer, shape)
        steps = sizes["T"] * sizes["layers"] * sizes["D"]
        if steps > MOST_STEPS:
            raise CannotRun(
                f"{call} takes {steps:,} steps one after another; at most {MOST_STEPS:,} are run, try a shorter sequence"
            )
        return None

    def output(self, layer: Any, shape: Shape) -> Shape:
        return (*shape[:-1], layer.hidden_size * (2 if layer.bidirectional else 1))

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        steps, samples = self.steps_and_samples(layer, shape)
        directions, layers, hidden = 2 if layer.bidirectional else 1, layer.num_layers, layer.hidden_size
        return {
            "N": samples,
            "T": steps,
            "C": layer.input_size,
            "H": hidden,
            "G": self.gates,
            "D": directions,
            "layers": layers,
            "biases": 2 * layers * directions * self.gates * hidden if layer.bias else 0,
        }

    def working(self, layer: Any, shape: Shape) -> int:
        sizes = self.sizes(layer, shape)
        return 2 * sizes["N"] * sizes["T"] * sizes["D"] * sizes["layers"] * sizes["H"] * (self.gates + 1)

    def run(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = layer(x)[0]  # the second is the last state
        return output


class Attention(Sequence):
    """Four projections of every vector, and for every pair of steps a product of two and a sum of values."""

    parameters = "4 * C * C + 4 * C * bias"
    flops = "8 * N * T * C * C + 4 * N * T * T * C"
    is_counted = True
    width = "embed_dim"

    def channels(self, layer: Any) -> int:
        return int(layer.embed_dim)

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        plain = layer.bias_k is None and not layer.add_zero_attn and layer._qkv_same_embed_dim
        if not plain:
            raise CannotRun(f"{call}: query, key and value are one input here; leave kdim, vdim and add_... out")
        return super().misfit(call, layer, shape)

    def attention(self, layer: Any) -> Any:
        return layer

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        steps, samples = self.steps_and_samples(layer, shape)
        own = self.attention(layer)
        return {"N": samples, "T": steps, "C": own.embed_dim, "heads": own.num_heads,
                "bias": int(own.in_proj_bias is not None)}  # fmt: skip

    def working(self, layer: Any, shape: Shape) -> int:
        sizes = self.sizes(layer, shape)
        pairs = sizes["N"] * sizes["heads"] * sizes["T"] ** 2  # where they are all written down
        return 3 * pairs + 4 * math.prod(shape)

    def run(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = layer(x, x, x, need_weights=False)[0]
        return output


class Encoder(Attention):
    """Attention, then two Linears with F numbers in between, and two LayerNorms."""

    parameters = "4 * C * C + 2 * C * F + 2 * C + (7 * C + F) * bias"
    flops = "8 * N * T * C * C + 4 * N * T * T * C + 4 * N * T * C * F"
    width = "d_model"

    def channels(self, layer: Any) -> int:
        return int(layer.self_attn.embed_dim)

    def batch_first(self, layer: Any) -> bool:
        return bool(layer.self_attn.batch_first)

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        return Sequence.misfit(self, call, layer, shape)

    def attention(self, layer: Any) -> Any:
        return layer.self_attn

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        return super().sizes(layer, shape) | {"F": layer.linear1.out_features}

    def working(self, layer: Any, shape: Shape) -> int:
        sizes = self.sizes(layer, shape)
        return super().working(layer, shape) + 2 * sizes["N"] * sizes["T"] * sizes["F"]

    def run(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = layer(x)
        return output
