"""What a row of layers would make of an input: every shape, and every mistake, before one number is computed."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from pytorch_01_neural_networks.src.layers.catalogue import LAYERS
from pytorch_01_neural_networks.src.layers.families import Family, Misfit
from pytorch_01_neural_networks.src.layers.reading import Call, Shape, read_layers, shown
from shared.device import memory
from shared.errors import CannotRun
from shared.units import bytes_text, significant

import torch
from torch import nn

# About two seconds of one core, at most; a GPU does a thousand times as much.
MOST_OPERATIONS = {"cpu": 5 * 10**10, "mps": 10**12, "cuda": 5 * 10**13}
SLOWER_WITHOUT_PRODUCTS = 10  # comparisons and exponentials take about so many times longer than products in a matrix
MOST_BYTES = {"cpu": 2 * 2**30, "mps": 4 * 2**30, "cuda": 32 * 2**30}


class DoesNotFit(CannotRun):
    """A layer does not take the shape that it is given. `misfit` says why, `place` which one of the row it is."""

    def __init__(self, message: str, misfit: Misfit, place: int) -> None:
        super().__init__(message)
        self.misfit, self.place = misfit, place


@dataclass(frozen=True)
class Step:
    """One layer of a plan, with numbers in the place of `...`."""

    call: Call
    family: Family
    given: Shape
    output: Shape
    parameters: int
    flops: int
    bytes_needed: int  # of memory while it computes, its parameters apart


def plan(calls: Sequence[Call], shape: Shape, device: torch.device) -> list[Step]:
    """Follows `shape` through the layers. Raises CannotRun at the first that does not take what it is given.

    Nothing is allocated: layers are made on "meta", and shapes come from the formulas.
    """
    expect_size(prod(shape) * 4, f"an input of {shape_text(shape)}", device)
    steps: list[Step] = []
    for index, typed in enumerate(calls):
        place = f"layer {index + 1} of {len(calls)}: " if len(calls) > 1 else ""
        source = f"what {steps[-1].call} gives, {shape}," if steps else f"the input {shape_text(shape)}"
        step = _step(typed, shape, place, source, index)
        steps.append(step)
        shape = step.output
        expect_size(step.bytes_needed + 4 * sum(each.parameters for each in steps), f"{place}{step.call}", device)
        effort = sum(each.flops * (1 if each.family.is_counted else SLOWER_WITHOUT_PRODUCTS) for each in steps)
        if effort > MOST_OPERATIONS[device.type]:
            raise CannotRun(
                f"{place}{step.call} brings it to {significant(float(effort))} operations; "
                f"{significant(float(MOST_OPERATIONS[device.type]))} are run here, try a smaller input"
            )
    return steps


def _step(typed: Call, shape: Shape, place: str, source: str, index: int) -> Step:
    family = LAYERS[typed.name]
    if family.takes_indices and index:
        raise CannotRun(f"{place}{typed} wants whole numbers, the rows to look up; {source} holds numbers with a point; "
                        "put it first")  # fmt: skip
    call = filled_in(typed, family, shape)
    expect_width(call, family)
    layer = build(call, family, "meta")
    if misfit := family.misfit(call, layer, shape):
        misfit = tried(misfit, call, shape)
        raise DoesNotFit(place + explained(misfit, call, source, is_first=index == 0), misfit, index)
    output = family.output(layer, shape)
    if prod(output) == 0:
        raise CannotRun(f"{place}{call} gives {output}, which holds no numbers; every size is 1 or more")
    numbers = 2 * prod(shape) + prod(output) + family.working(layer, shape)  # indices have twice the bytes
    return Step(call, family, shape, output, family.count_parameters(layer, shape), family.count_flops(layer, shape),
                4 * numbers)  # fmt: skip


def filled_in(call: Call, family: Family, shape: Shape) -> Call:
    """`call` with the number that fits in the place of `...`."""
    holes = [
        name for name, value in call.arguments.items() if value is ... or (isinstance(value, tuple) and ... in value)
    ]
    if not holes:
        return call
    if holes != [family.width] or call.arguments[family.width] is not ...:
        able = f"stands for {family.width} only" if family.width else "has nothing to stand for"
        raise CannotRun(f"{call}: ... {able} here; write the number")
    return call.replaced(**{family.width: family.width_of(shape)})


def expect_width(call: Call, family: Family) -> None:
    """Raises CannotRun where the argument that must agree with the input is no size at all."""
    value = call.arguments.get(family.width, 1)
    sizes = value if isinstance(value, tuple) and value and family.width == "normalized_shape" else (value,)
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise CannotRun(f"{call}: {family.width} is {value!r}; write a whole number, 1 or more, or ... for what fits")


def build(call: Call, family: Family, device: str | torch.device) -> nn.Module:
    """The layer; what PyTorch refuses becomes one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return family.build(call, device)
    except CannotRun:
        raise
    except Exception as error:  # any: the arguments are a learner's, and PyTorch answers to them as it likes
        raise CannotRun(f"{call} is refused by PyTorch: {first_sentence(error)}; change its arguments") from None


def first_sentence(error: Exception) -> str:
    """What PyTorch says, in a line."""
    return shown(f"{type(error).__name__}: {' '.join(str(error).split()).split('. ')[0]}", 160)


def tried(misfit: Misfit, call: Call, shape: Shape) -> Misfit:
    """`misfit` with those of its proposals that do fit: one that mends an axis may break a rule about another."""
    layers = tuple(cure for cure in misfit.layers if fits(read_layers(cure, LAYERS), shape))
    return replace(misfit, layers=layers, inputs=tuple(each for each in misfit.inputs if fits([call], each)))


def fits(calls: Sequence[Call], shape: Shape) -> bool:
    """Whether the layers take an input of this shape, and something is left of it."""
    for call in calls:
        family = LAYERS[call.name]
        try:
            layer = build(call, family, "meta")
            if family.misfit(call, layer, shape):
                return False
        except CannotRun:
            return False
        shape = family.output(layer, shape)
    return prod(shape) > 0


def explained(misfit: Misfit, call: Call, source: str, *, is_first: bool) -> str:
    """The mistake in one line, with what fits."""
    tries = [*misfit.layers, *(f"--input {','.join(map(str, each))}" for each in misfit.inputs if is_first)]
    cures = [misfit.advice] if misfit.advice else []
    if tries:
        cures.append(f"try: {'  or: '.join(tries)}")
    if not cures and misfit.inputs:
        cures.append(f"it takes {misfit.inputs[0]}")
    return "; ".join([f"{call} wants {misfit.wants}", f"{source} has {misfit.has}", *cures])


def shape_text(shape: Shape) -> str:
    """A shape as Python writes it; one of absurd size as its number of elements."""
    return str(shape) if len(str(shape)) < 60 else f"{len(shape)} axes"


def expect_size(bytes_needed: int, what: str, device: torch.device) -> None:
    """Raises CannotRun where that much memory is absurd, or more than half of what is free."""
    most = MOST_BYTES[device.type]
    free_bytes = memory(device).free_bytes
    if free_bytes is not None:
        most = min(most, free_bytes // 2)
    if bytes_needed > most:
        needed = bytes_text(bytes_needed) if bytes_needed < 2**50 else f"{bytes_needed:.1e} B"
        raise CannotRun(f"{what} needs {needed} of memory; at most {bytes_text(most)} are used here, try smaller sizes")
