"""The oracle sends each sample through alone, as a 1 among zeros, and every layer is a convolution whose weights are 1."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shared.practice import expect
from shared.traps import shown

import torch
from torch.nn import functional as F


class Layer(NamedTuple):
    """Equal to the plain tuple that an answer is given."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1


Layers = list[Layer]


def reached(layers: Layers, length: int) -> list[list[int]]:
    """For each output the samples that reach it; no output where a window is longer than what the layer gets."""
    x = torch.eye(length, dtype=torch.float64)[:, None]  # (samples, 1, length)
    for kernel, stride, padding, dilation in layers:
        if x.shape[-1] + 2 * padding < dilation * (kernel - 1) + 1:
            return []
        x = F.conv1d(x, torch.ones(1, 1, kernel, dtype=torch.float64), None, stride, padding, dilation).sign()
    return [column.nonzero().flatten().tolist() for column in x[:, 0].unbind(-1)]


CASES: list[tuple[str, Layers, int]] = [
    ("no layer: each output is its sample", [], 3),
    ("a kernel reads as many samples in a row", [Layer(3)], 5),
    ("a stride moves the window by as much", [Layer(3, stride=2)], 7),
    ("padding moves every window back, and the padding is no sample", [Layer(3, padding=1)], 5),
    ("dilation leaves gaps between the samples of one window", [Layer(3, dilation=2)], 7),
    ("dilation leaves gaps, and one of the three reads padding", [Layer(3, padding=1, dilation=2)], 6),
    ("a stride wider than the kernel leaves samples that nobody reads", [Layer(2, stride=3), Layer(2)], 11),
    ("windows of one place, every other place", [Layer(1, stride=2), Layer(3, stride=2)], 13),
    ("a later layer's step is one output of the layer before, so strides multiply",
     [Layer(2, stride=2), Layer(2, stride=2), Layer(3)], 20),
    ("the order of the layers counts", [Layer(3), Layer(2, stride=2)], 7),
    ("the last samples may be read by no window: each layer ends at its own length",
     [Layer(3, stride=2), Layer(3, padding=1)], 8),
    ("padding inside the network is no sample either", [Layer(3, padding=1)] * 3, 9),
    ("a window can lie in the padding altogether, and sees nothing", [Layer(1, padding=2)], 3),
    ("one sample", [Layer(3, padding=1)], 1),
    ("a window as long as all that the layer gets", [Layer(4), Layer(3, padding=1)], 4),
    ("a window is longer than all that the first layer gets", [Layer(4)], 3),
    ("a window is longer than all that the first layer gets, whatever comes behind it", [Layer(6), Layer(2, padding=3)], 3),
    ("the first layer leaves less than the second needs", [Layer(3, stride=2), Layer(3)], 5),
]  # fmt: skip


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    for reason, layers, length in CASES:
        expect_seen(answer, reason, layers, length)
    for _ in range(60):
        layers = [
            Layer(draw.randint(1, 4), draw.randint(1, 3), draw.randint(0, 2), draw.randint(1, 3))
            for _ in range(draw.randint(1, 4))
        ]
        expect_seen(answer, "found by random layers", layers, draw.randint(1, 30))


def expect_seen(answer: Any, reason: str, layers: Layers, length: int) -> None:
    right = reached(layers, length)
    given = [tuple(layer) for layer in layers]
    for output in range(len(right)):
        call = f"seen_by({given}, {length}, {output})"
        try:
            found = answer.seen_by(list(given), length, output)
        except IndexError:
            expect(False, f"{call} raised IndexError, and the network has outputs 0 to {len(right) - 1}: {reason}")
        expect_places(found, call)
        expect(found == right[output], f"{call} returned {found} and should return {right[output]}: {reason}")
    for output in (-1, len(right)):
        call = f"seen_by({given}, {length}, {output})"
        try:
            found = answer.seen_by(list(given), length, output)
        except IndexError:
            continue
        outputs = f"outputs 0 to {len(right) - 1}" if right else "no output"
        expect(False, f"{call} returned {shown(found)}; the network has {outputs}, so raise IndexError: {reason}")


def expect_places(found: object, call: str) -> None:
    is_list = isinstance(found, list) and all(isinstance(place, int) and not isinstance(place, bool) for place in found)
    expect(is_list, f"{call} returned {shown(found)}; return a list of whole numbers")
    assert isinstance(found, list)
    expect(found == sorted(set(found)), f"{call} returned {shown(found)}; ascending, each place once")


def lengths_of(layers: Sequence[tuple[int, ...]], length: int) -> list[int]:
    lengths = [length]
    for kernel, stride, padding, dilation in layers:
        lengths.append((lengths[-1] + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
    return lengths


def going_back(
    step: Callable[[set[int], Layer, int], set[int]], cuts: str = "each", refuses: bool = True
) -> dict[str, object]:
    """An answer that goes from one output backwards by `step`; `cuts` says where places outside are dropped."""

    def seen_by(layers: Sequence[tuple[int, ...]], length: int, output: int) -> list[int]:
        lengths = lengths_of(layers, length)
        if refuses and (min(lengths) < 1 or not 0 <= output < lengths[-1]):
            raise IndexError
        places = {output}
        for layer, inside in zip(reversed(layers), reversed(lengths[:-1]), strict=True):
            places = step(places, Layer(*layer), inside)
            if cuts == "each":
                places = {place for place in places if 0 <= place < inside}
        return sorted(place for place in places if 0 <= place < length)

    return {"seen_by": seen_by}


def right_step(places: set[int], layer: Layer, inside: int) -> set[int]:
    return {i * layer.stride - layer.padding + layer.dilation * tap for i in places for tap in range(layer.kernel)}


def forgets_padding(places: set[int], layer: Layer, inside: int) -> set[int]:
    return {i * layer.stride + layer.dilation * tap for i in places for tap in range(layer.kernel)}


def forgets_dilation(places: set[int], layer: Layer, inside: int) -> set[int]:
    return {i * layer.stride - layer.padding + tap for i in places for tap in range(layer.kernel)}


def fills_the_gaps(places: set[int], layer: Layer, inside: int) -> set[int]:
    read = right_step(places, layer, inside)
    return set(range(min(read), max(read) + 1)) if read else read


def moves_into_the_row(places: set[int], layer: Layer, inside: int) -> set[int]:
    return {min(max(place, 0), inside - 1) for place in right_step(places, layer, inside)}


def adds_up_kernels(layers: Sequence[tuple[int, ...]], length: int, output: int) -> list[int]:
    """The formula for the size of the field alone, as if it began at output * (all strides)."""
    lengths = lengths_of(layers, length)
    if min(lengths) < 1 or not 0 <= output < lengths[-1]:
        raise IndexError
    size = 1 + sum(dilation * (kernel - 1) for kernel, _, _, dilation in layers)
    step = math.prod(stride for _, stride, _, _ in layers)
    return list(range(output * step, min(length, output * step + size)))


def knows_no_end(layers: Sequence[tuple[int, ...]], length: int, output: int) -> list[int]:
    if output < 0:
        raise IndexError
    return going_back(right_step, refuses=False)["seen_by"](layers, length, output)  # type: ignore[operator, no-any-return]


WRONG = {
    "forgets that padding moves the windows": (going_back(forgets_padding), "padding moves every window back"),
    "forgets dilation": (going_back(forgets_dilation), "dilation leaves gaps"),
    "fills the gaps": (going_back(fills_the_gaps), "returned [0, 1, 2, 3, 4] and should return [0, 2, 4]"),
    "takes padding for the first sample": (going_back(moves_into_the_row), "one of the three reads padding"),
    "cuts at the end only": (going_back(right_step, cuts="end"), "each layer ends at its own length"),
    "adds up the kernels": ({"seen_by": adds_up_kernels}, "padding moves every window back"),
    "knows no last output": ({"seen_by": knows_no_end}, "so raise IndexError"),
    "takes an output below 0": (going_back(right_step, refuses=False), "so raise IndexError"),
}
