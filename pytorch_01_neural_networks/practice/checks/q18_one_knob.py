"""Each layer is made and run, and the operations of its products are counted as they reach the CPU."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Real
from typing import Any

from shared.dispatch import Watcher, name_of
from shared.practice import expect
from shared.traps import expect_predictions, shown
from shared.units import significant

import torch
from torch import nn

BATCH = 2
TOLERANCE = 0.005  # three digits of a factor
WHAT = ("parameters", "FLOPs")
Pair = tuple[float, float]


class Products(Watcher):
    """Adds up two operations for each pair of numbers that a product or a convolution multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        match name_of(operation).partition(".")[0]:
            case "mm" | "bmm":
                self.flops += 2 * result.numel() * args[0].shape[-1]
            case "addmm" | "baddbmm":
                self.flops += 2 * result.numel() * args[1].shape[-1]
            case "convolution":
                x, weight, is_transposed = args[0], args[1], args[6]
                places = x if is_transposed else result  # where a kernel is laid down, for each of its channels
                self.flops += 2 * places.numel() * weight[0].numel()


def counted(layer: nn.Module, *shape: int) -> tuple[int, int]:
    """Parameters and FLOPs of a layer. In float64, where an LSTM on a CPU is made of products that can be seen."""
    x = torch.zeros(shape, dtype=torch.float64)
    arguments = (x, x, x) if isinstance(layer, nn.MultiheadAttention) else (x,)
    with torch.no_grad(), Products() as products:
        layer.double()(*arguments)
    return sum(p.numel() for p in layer.parameters()), products.flops


def conv(side: int = 8, **options: int) -> tuple[int, int]:
    given: dict[str, Any] = {"kernel_size": 3, "padding": 1, "bias": False}
    return counted(nn.Conv2d(16, 16, **(given | options)), BATCH, 16, side, side)


def separable() -> tuple[int, int]:
    depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
    return counted(nn.Sequential(depthwise, nn.Conv2d(16, 16, 1, bias=False)), BATCH, 16, 8, 8)


def transposed() -> tuple[int, int]:
    return counted(nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1, bias=False), BATCH, 16, 8, 8)


def lstm(**options: Any) -> tuple[int, int]:
    given = {"input_size": 16, "hidden_size": 16, "bias": False}
    return counted(nn.LSTM(**(given | options)), 10, BATCH, 16)


def attention(width: int = 16, heads: int = 2, length: int = 32) -> tuple[int, int]:
    return counted(nn.MultiheadAttention(width, heads, bias=False), length, BATCH, width)


BEFORE: dict[str, Callable[[], tuple[int, int]]] = {"conv": conv, "lstm": lstm, "attention": attention}
AFTER: dict[str, Callable[[], tuple[int, int]]] = {
    "conv: images of 16 x 16": lambda: conv(side=16),
    "conv: kernel_size=5, padding=2": lambda: conv(kernel_size=5, padding=2),
    "conv: dilation=2, padding=2": lambda: conv(dilation=2, padding=2),
    "conv: stride=2": lambda: conv(stride=2),
    "conv: groups=16": lambda: conv(groups=16),
    "conv: groups=16, and behind it Conv2d(16, 16, 1)": separable,
    "conv: ConvTranspose2d(16, 16, 4, stride=2, padding=1) in its place": transposed,
    "lstm: hidden_size=32": lambda: lstm(hidden_size=32),
    "lstm: num_layers=2, bidirectional=True": lambda: lstm(num_layers=2, bidirectional=True),
    "attention: num_heads=4": lambda: attention(heads=4),
    "attention: texts of 64 vectors": lambda: attention(length=64),
    "attention: embed_dim=32, and 32 numbers in each vector": lambda: attention(width=32),
}


@cache
def factors() -> dict[str, Pair]:
    """What a learner has to foresee."""
    with torch.random.fork_rng(devices=[]):  # a layer draws its weights
        before = {name: make() for name, make in BEFORE.items()}
        after = {line: make() for line, make in AFTER.items()}
    starts = {line: before[line.partition(":")[0]] for line in after}
    return {line: (after[line][0] / starts[line][0], after[line][1] / starts[line][1]) for line in after}


def check(answer: Any, seed: int) -> None:
    predictions = answer.FACTORS
    expect_predictions(predictions, "FACTORS", AFTER, "a pair such as (4, 1)")
    for line, pair in predictions.items():
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2 and all(map(is_number, pair))
        expect(is_pair, f"`{line}` is {shown(pair)}; write two numbers, such as (4, 1)")
    missed = [line for line in AFTER if not all(map(is_close, predictions[line], factors()[line]))]
    if missed:
        triples = zip(WHAT, predictions[missed[0]], factors()[missed[0]], strict=True)
        off = [f"multiplies the {what} by {in_words(right)}, not by {in_words(said)}"
               for what, said, right in triples if not is_close(said, right)]  # fmt: skip
        count = f"{len(missed)} of {len(AFTER)} predictions"
        expect(False, f"{count} did not come true; the first: `{missed[0]}` {' and '.join(off)}. Why?")


def is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_close(said: float, right: float) -> bool:
    return math.isclose(said, right, rel_tol=TOLERANCE)


def in_words(factor: float) -> str:
    return f"{factor:g}" if float(factor).is_integer() else significant(float(factor))


def mistaken(wrong: dict[str, Pair]) -> dict[str, object]:
    """All predictions right but those of the lines that begin so."""
    missed = {line: pair for begin, pair in wrong.items() for line in AFTER if line.startswith(begin)}
    return {"FACTORS": factors() | missed}


WRONG = {
    "takes parameters and FLOPs for one thing": (
        mistaken({"conv: images": (4, 4), "conv: stride": (0.25, 0.25), "attention: texts": (3, 3)}),
        "3 of 12 predictions did not come true; the first: `conv: images of 16 x 16` multiplies the parameters by 1, not by 4",
    ),
    "pays for dilation": (mistaken({"conv: dilation": (25 / 9, 25 / 9)}), "the parameters by 1, not by 2.78"),
    "halves one axis": (mistaken({"conv: stride": (1, 1 / 2)}), "multiplies the FLOPs by 0.250, not by 0.500"),
    "divides by the square of the groups": (
        mistaken({"conv: groups=16": (1 / 256, 1 / 256)}),
        "the parameters by 0.0625, not by 0.00391",
    ),
    "forgets the 1x1 convolution": (
        mistaken({"conv: groups=16, and": (1 / 16, 1 / 16)}),
        "Conv2d(16, 16, 1)` multiplies the parameters by 0.174",
    ),
    "counts the outputs of a transposed convolution": (
        mistaken({"conv: ConvTranspose2d": (16 / 9, 64 / 9)}),
        "multiplies the FLOPs by 1.78, not by 7.11",
    ),
    "forgets that the state is an input too": (mistaken({"lstm: hidden": (2, 2)}), "the parameters by 3, not by 2"),
    "takes two layers of two directions for four": (mistaken({"lstm: num_layers": (4, 4)}), "by 5, not by 4"),
    "pays for heads": (mistaken({"attention: num_heads": (2, 2)}), "the parameters by 1, not by 2"),
    "calls attention quadratic": (mistaken({"attention: texts": (1, 4)}), "multiplies the FLOPs by 3, not by 4"),
    "squares the width everywhere": (mistaken({"attention: embed": (4, 4)}), "multiplies the FLOPs by 3, not by 4"),
}
