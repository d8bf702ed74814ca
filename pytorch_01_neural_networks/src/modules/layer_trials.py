"""The layers of own_layers.py against torch.nn: random shapes, both modes, float32 and float64."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytorch_01_neural_networks.src.modules import own_layers
from pytorch_01_neural_networks.src.modules.own_layers import windows
from shared.agreement import Agreement, agreement, deviation
from shared.device import full_float32
from shared.drawing import beside, grid
from shared.lesson import Lesson
from shared.snippets import complaint, lines_of_code
from shared.units import significant

import torch
from torch import nn

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
Options = dict[str, Any]


# Random trials


def odd(draw: random.Random, low: int = 1, high: int = 7) -> int:
    """An odd size: what is computed in blocks of 2, 4 or 8 has a rest."""
    return draw.randrange(low | 1, high + 1, 2)


def draw_linear(draw: random.Random) -> tuple[Options, torch.Tensor]:
    inputs, outer = odd(draw, 3, 15), [odd(draw) for _ in range(draw.randint(1, 3))]
    options = {"in_features": inputs, "out_features": odd(draw, 1, 15), "bias": draw.random() < 0.5}
    return options, torch.randn(*outer, inputs, dtype=torch.float64)


def draw_conv(draw: random.Random) -> tuple[Options, torch.Tensor]:
    groups = draw.randint(1, 3)
    inputs, outputs = groups * draw.randint(1, 3), groups * draw.randint(1, 3)
    options = {
        "in_channels": inputs,
        "out_channels": outputs,
        "kernel_size": (draw.randint(1, 4), draw.randint(1, 4)),
        "stride": (draw.randint(1, 3), draw.randint(1, 3)),
        "padding": (draw.randint(0, 2), draw.randint(0, 2)),
        "dilation": (draw.randint(1, 2), draw.randint(1, 2)),
        "groups": groups,
        "bias": draw.random() < 0.5,
    }
    return options, torch.randn(draw.randint(1, 3), inputs, odd(draw, 7, 13), odd(draw, 7, 13), dtype=torch.float64)


def draw_batch_norm(draw: random.Random) -> tuple[Options, torch.Tensor]:
    channels = odd(draw)
    options = {
        "num_features": channels,
        "eps": draw.choice([1e-5, 1e-3]),
        "momentum": draw.choice([0.1, 0.3, None]),
        "affine": draw.random() < 0.7,
        "track_running_stats": draw.random() < 0.7,
    }
    x = torch.randn(draw.randint(1, 4), channels, odd(draw, 3, 9), odd(draw, 3, 9), dtype=torch.float64)
    return options, x * draw.uniform(0.5, 2) + draw.uniform(-1, 1)


def draw_normalized(draw: random.Random) -> tuple[Options, torch.Tensor]:
    # At least 9 numbers are normalised together: over two or three, a variance near 0 would blow up rounding errors.
    inner = [odd(draw, 9, 15)] if draw.random() < 0.5 else [odd(draw, 3, 5), odd(draw, 3, 5)]
    outer = [odd(draw) for _ in range(draw.randint(1, 2))]
    options = {"normalized_shape": inner, "elementwise_affine": draw.random() < 0.7}
    return options, torch.randn(*outer, *inner, dtype=torch.float64)


def draw_layer_norm(draw: random.Random) -> tuple[Options, torch.Tensor]:
    options, x = draw_normalized(draw)
    return {**options, "eps": draw.choice([1e-5, 1e-3]), "bias": draw.random() < 0.7}, x


def draw_rms_norm(draw: random.Random) -> tuple[Options, torch.Tensor]:
    options, x = draw_normalized(draw)
    return {**options, "eps": draw.choice([None, 1e-5, 1e-3])}, x


def draw_dropout(draw: random.Random) -> tuple[Options, torch.Tensor]:
    shape = [odd(draw, 3, 9) for _ in range(draw.randint(1, 3))]
    return {"p": draw.choice([0.0, 0.1, 0.5, 0.9, 1.0])}, torch.randn(shape, dtype=torch.float64)


def draw_embedding(draw: random.Random) -> tuple[Options, torch.Tensor]:
    rows = draw.randint(3, 11)
    options = {
        "num_embeddings": rows,
        "embedding_dim": odd(draw, 1, 9),
        "padding_idx": draw.choice([None, 0, rows // 2, -1]),
    }
    return options, torch.randint(rows, [odd(draw) for _ in range(draw.randint(1, 2))])


DRAWS: dict[str, Callable[[random.Random], tuple[Options, torch.Tensor]]] = {
    "Linear": draw_linear,
    "Conv2d": draw_conv,
    "BatchNorm2d": draw_batch_norm,
    "LayerNorm": draw_layer_norm,
    "RMSNorm": draw_rms_norm,
    "Dropout": draw_dropout,
    "Embedding": draw_embedding,
}
VARIED = {
    "Linear": "1 to 3 outer axes, bias",
    "Conv2d": "stride, padding, dilation, groups",
    "BatchNorm2d": "momentum, None too, tracking",
    "LayerNorm": "1 or 2 axes, affine, bias, eps",
    "RMSNorm": "1 or 2 axes, affine, eps",
    "Dropout": "p from 0 to 1",
    "Embedding": "padding_idx, repeated rows",
}


def lay_out(x: torch.Tensor, way: str) -> torch.Tensor:
    """The same numbers with other strides: "in order", "transposed", or with "gaps" between them."""
    if way == "transposed":
        backwards = tuple(reversed(range(x.ndim)))
        return x.permute(backwards).contiguous().permute(backwards)
    return torch.stack([x, x], dim=-1)[..., 0] if way == "gaps" else x


@dataclass(frozen=True)
class Trial:
    """How far two layers are apart: outputs, gradients of input and parameters, and the buffers afterwards."""

    agreed: Agreement
    buffers: float

    @property
    def value(self) -> float:
        return max(self.agreed.value, self.buffers)

    @property
    def gradient(self) -> float:
        return self.agreed.gradient


def pair_up(name: str, own: type[nn.Module], options: Options, dtype: torch.dtype,
            device: torch.device) -> tuple[nn.Module, nn.Module]:  # fmt: skip
    """Our layer and the library's with the same random weights and buffers, which each has loaded from the other.

    Raises RuntimeError where a state dict lacks a name or has one too many: both loads are strict.
    """
    library = getattr(nn, name)(**options).to(device, dtype)
    ours = own(**options).to(device, dtype)
    with torch.no_grad():
        for parameter in library.parameters():  # ones and zeros would hide a forgotten weight or bias
            parameter.normal_()
        for label, buffer in library.named_buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2) if "var" in label else buffer.normal_()
    ours.load_state_dict(library.state_dict(), strict=True)
    library.load_state_dict(ours.state_dict(), strict=True)
    return ours, library


def compare_layers(ours: nn.Module, library: nn.Module, x: torch.Tensor, training: bool) -> Trial:
    agreed = agreement(ours.train(training), library.train(training), x)
    pairs = zip(ours.buffers(), library.buffers(), strict=True)
    return Trial(agreed, max((deviation(own, right) for own, right in pairs), default=0.0))


def device_for(name: str, dtype: torch.dtype, device: torch.device) -> torch.device:
    """MPS has no float64; and only on the CPU do both kinds of Dropout draw the same mask from the same seed."""
    return CPU if name == "Dropout" or (device.type == "mps" and dtype == torch.float64) else device


def try_layer(name: str, draw: random.Random, device: torch.device) -> dict[torch.dtype, list[Trial]]:
    """One random shape and set of options, in both formats; in each first in training, then in evaluation."""
    options, x = DRAWS[name](draw)
    way = draw.choice(["in order", "transposed", "gaps"])
    trials: dict[torch.dtype, list[Trial]] = {}
    for dtype in TOLERANCE:
        place = device_for(name, dtype, device)
        layers = pair_up(name, getattr(own_layers, name), options, dtype, place)
        given = lay_out(x.to(place, dtype if x.is_floating_point() else x.dtype), way)
        trials[dtype] = [compare_layers(*layers, given, training) for training in (True, False)]
    return trials


# What is shown


def show_convolution(lesson: Lesson) -> None:
    lesson.section(
        "A convolution is a matrix product",
        "Before the table of all layers, the one that looks hardest. A convolution slides a kernel over an image and "
        "sums products. Write each window as a row of a matrix and the kernel as a column, and it is one product of "
        "matrices, which every device does fast. The windows overlap, and still cost nothing at first: they are a view.",
    )
    image = torch.tensor([[0.0, 0, 1, 2], [0, 1, 2, 0], [1, 2, 0, 0], [2, 0, 0, 1]])[None, None]
    kernel = torch.tensor([[1.0, 0], [0, -1]])[None, None]
    view = windows(image, (2, 2), (1, 2), (1, 1))
    rows, column = view.flatten(4).flatten(0, 3), kernel.flatten(1).mT
    y = rows @ column
    right = nn.functional.conv2d(image, kernel, stride=(1, 2))
    lesson.drawing(beside(grid(image[0, 0].int(), "image"), "*", grid(kernel[0, 0].int(), "kernel"), "→",
                          grid(right[0, 0].int(), "stride (1, 2)")))  # fmt: skip
    lesson.drawing(
        beside(grid(rows.int(), "windows"), "@", grid(column.int(), "kernel"), "=", grid(y.int(), "products"))
    )
    lesson.check("the product has the numbers of conv2d", torch.equal(y.flatten(), right.flatten()),
                 " ".join(f"{value:g}" for value in right.flatten().tolist()))  # fmt: skip
    large = torch.zeros(1, 16, 32, 32, device=lesson.device)
    seen = windows(large, (3, 3), (1, 1), (1, 1))
    lesson.check("the windows are a view of the image", seen.untyped_storage().data_ptr() == large.untyped_storage().data_ptr(),
                 f"{seen.numel():,} numbers read from {large.numel():,}")  # fmt: skip
    copied = seen.numel() / large.numel()
    lesson.shows(
        f"written out as a matrix, a 3x3 kernel makes an image of 32x32 {copied:.1f} times as large. Libraries avoid that "
        "copy: they form the rows tile by tile where the GPU computes. The arithmetic is the same."
    )


def loads_both_ways(name: str) -> bool:
    """Whether each of the two layers takes the other's state dict, every name and shape, strict=True."""
    options, _ = DRAWS[name](random.Random(0))
    ours, library = getattr(own_layers, name)(**options), getattr(nn, name)(**options)
    into_ours = complaint(lambda: ours.load_state_dict(library.state_dict(), strict=True))
    into_library = complaint(lambda: library.load_state_dict(ours.state_dict(), strict=True))
    return not into_ours and not into_library


def worst_start(seed: int) -> float:
    """How far the initial weights of our layers are from the library's, drawn with the same seed."""
    worst = 0.0
    for name, options in (("Linear", (5, 3)), ("Conv2d", (4, 6, 3)), ("Embedding", (7, 5, 2))):
        starts = []
        for library in (own_layers, nn):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                starts.append(list(getattr(library, name)(*options).parameters()))
        worst = max(worst, *(deviation(own, right) for own, right in zip(*starts, strict=True)))
    return worst


def show_layers(lesson: Lesson) -> None:
    n = lesson.pick(full=300, quick=8)
    lesson.section(
        "Seven layers of our own against torch.nn",
        f"Each layer in src/modules/own_layers.py meets the library's with {n} random shapes and options: odd sizes, "
        "inputs whose numbers do not lie in order, in training and in evaluation. Compared are outputs, buffers, and "
        "the gradients of input and parameters; the worst deviation counts, relative to the largest number. float32 "
        "tells whether a layer is good enough to use, float64 whether its formula is right.",
    )
    draw, table = random.Random(lesson.options.seed), []
    worst = {(dtype, part): 0.0 for dtype in TOLERANCE for part in ("value", "gradient")}
    compared = 0
    with full_float32():
        for name in lesson.progress(DRAWS, "layers", len(DRAWS)):
            tried = [try_layer(name, draw, lesson.device) for _ in range(n)]
            row: dict[str, object] = {"layer": name, "lines": lines_of_code(getattr(own_layers, name))}
            for dtype in TOLERANCE:
                trials = [trial for of_shape in tried for trial in of_shape[dtype]]
                compared += len(trials)
                for part in ("value", "gradient"):
                    off = max(getattr(trial, part) for trial in trials)
                    worst[dtype, part] = max(worst[dtype, part], off)
                    row[f"{part}, float{8 * dtype.itemsize}"] = significant(off, 1)
                    lesson.record(f"largest deviation of a {part}", off, "relative", layer=name, dtype=dtype)
            table.append(row)
    lesson.table(table)
    lesson.text("What was drawn at random besides the shapes:")
    lesson.items(VARIED)
    for dtype, tolerance in TOLERANCE.items():
        value, gradient = worst[dtype, "value"], worst[dtype, "gradient"]
        lesson.check(f"in float{8 * dtype.itemsize} all agree to {tolerance:g}", max(value, gradient) <= tolerance,
                     f"values to {value:.0e}, gradients to {gradient:.0e}")  # fmt: skip
    fitting = [name for name in DRAWS if loads_both_ways(name)]
    lesson.check("each loads the other's state dict, strict=True", len(fitting) == len(DRAWS),
                 f"{len(fitting)} of {len(DRAWS)}, both ways")  # fmt: skip
    start = worst_start(lesson.options.seed)
    lesson.check("with the same seed both begin with the same weights", start < 1e-6, f"off by {significant(start, 1)}")
    lines = sum(int(str(row["lines"])) for row in table)
    lesson.shows(
        f"{lines} lines are {len(DRAWS)} layers of torch.nn, the same to {worst[torch.float64, 'value']:.0e} in "
        f"{compared:,} comparisons, and a checkpoint of one loads into the other. What the library adds is speed, and "
        "cases such as complex numbers and other paddings. Write a layer of your own the same way: formula, oracle, "
        "random shapes, both modes, gradients."
    )
