"""What x[1:, None, ..., -1] means: each part of an index takes an axis, keeps it, or makes a new one."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType

from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake
from pytorch_00_tensor_gpu_basics.src.calculator.shapes import Shape, axes_of, shown
from pytorch_00_tensor_gpu_basics.src.calculator.table import is_integer
from pytorch_00_tensor_gpu_basics.src.calculator.values import Node, Plan

import torch

TO_ITS_PLACES = "g to the places it came from, 0 elsewhere"
Part = int | slice | EllipsisType | None


@dataclass(frozen=True)
class Indexed:
    """The shape that remains, one phrase for each part of the index, and the parts with slices cut to the axis.

    PyTorch computes strides from a slice's step even where only one element is taken, so a huge one overflows there.
    """

    shape: Shape
    phrases: tuple[str, ...]
    parts: tuple[Part, ...]


def index_shape(shape: Shape, parts: Sequence[Part], spans: Sequence[tuple[int, int]]) -> Indexed:
    """The rule for integers, slices, None and `...`; raises Mistake with the span of the part that is wrong."""
    if list(parts).count(...) > 1:
        raise Mistake(
            "one `...` is enough: it stands for all axes that are not named", spans[parts.index(...)], repairs=[":"]
        )
    taken = sum(part is not None and part is not ... for part in parts)
    if taken > len(shape):
        raise Mistake(
            f"{taken} {'index' if taken == 1 else 'indices'} for {shown(shape)}, which has {axes_of(shape)}", spans[-1]
        )
    result: list[int] = []
    phrases: list[str] = []
    cut: list[Part] = []
    axis = 0
    for part, span in zip(parts, spans, strict=True):
        if part is None:
            result.append(1)
            phrases.append("None makes a new axis of length 1")
        elif part is ...:
            skipped = len(shape) - taken
            result += shape[axis : axis + skipped]
            phrases.append(f"... keeps {_axes(axis, skipped)}")
            axis += skipped
        elif isinstance(part, slice):
            length, inside = cut_slice(part, shape[axis], span)
            result.append(length)
            whole = part == slice(None, None, None)
            phrases.append(f"axis {axis}: {'all' if whole else f'{result[-1]} of'} {shape[axis]}")
            axis += 1
        else:
            if not -shape[axis] <= part < shape[axis]:
                if not shape[axis]:
                    raise Mistake(f"axis {axis} has length 0: there is no element to take", span)
                raise Mistake(
                    f"there is no index {part} on axis {axis} of length {shape[axis]}: it takes 0 to {shape[axis] - 1}, "
                    f"or -{shape[axis]} to -1 from the end",
                    span,
                    repairs=["-1" if part > 0 else "0"],
                )
            phrases.append(f"axis {axis}: number {part % shape[axis]}, the axis disappears")
            axis += 1
        cut.append(inside if isinstance(part, slice) else part)
    return Indexed((*result, *shape[axis:]), tuple(phrases), tuple(cut))


def plan_index(x: Node, parts: Sequence[object], spans: Sequence[tuple[int, int]]) -> Plan:
    """x[...] in all its forms; raises Mistake with the span of the part that is wrong."""
    if len(parts) == 1 and isinstance(parts[0], tuple):  # x[(0, 1)] is x[0, 1], as in Python
        parts, spans = parts[0], [spans[0]] * len(parts[0])
    for part, span in zip(parts, spans, strict=True):
        if isinstance(part, list | Node):
            if len(parts) > 1:
                raise Mistake("a tensor or a list as an index stands alone here: x[mask], x[[0, 2]]", span)
            return plan_gather(x, part)
        bounds = (part.start, part.stop, part.step) if isinstance(part, slice) else (part,)
        if part is not ... and not all(bound is None or is_integer(bound) for bound in bounds):
            axis = "; True would make a new axis, which is written x[None]" if isinstance(part, bool) else ""
            raise Mistake(f"an index is a whole number, a slice, None, ... or a mask{axis}", span)
    turned = [
        place for place, part in enumerate(parts) if isinstance(part, slice) and is_integer(part.step) and part.step < 0
    ]
    if turned and all(part == slice(None) for place, part in enumerate(parts) if place not in turned):
        axes = ", ".join(map(str, turned))
        raise Mistake(
            f"PyTorch has no slices with a step below 1; .flip({axes}) turns an axis around",
            repairs=[f"{{0}}.flip({axes})"],
        )
    found = index_shape(x.shape, parts, spans)  # type: ignore[arg-type]
    return Plan(found.shape, lambda t: t[found.parts], "; ".join(found.phrases), (x,), local=[TO_ITS_PLACES])


def plan_gather(x: Node, index: list[object] | Node) -> Plan:
    """x[mask] and x[[0, 2]]: elements picked out one by one, so always a copy."""
    if isinstance(index, list):
        if not all(map(is_integer, index)):
            raise Mistake("a list as an index holds whole numbers: x[[0, 2]]", argument="index")
        index = Node(torch.tensor(index, dtype=torch.int64), "")
    picked = index.tensor
    if index.is_float:
        raise Mistake(
            "an index is made of whole numbers, or of True and False", argument="index", repairs=["{1}.long()"]
        )
    if picked.dtype == torch.bool:
        if index.shape != x.shape[: len(index.shape)]:
            raise Mistake(f"the mask has shape {shown(index.shape)}, and it must be that of the first axes of {shown(x.shape)}",
                          argument="index")  # fmt: skip
        count, axes = int(picked.sum()), len(index.shape)
        says = f"the {count:,} of {picked.numel():,} where the mask is True"
        return Plan(
            (count, *x.shape[axes:]), lambda t: t[picked], says, (x,), scratch=[count] * axes, local=[TO_ITS_PLACES]
        )
    if not x.shape:
        raise Mistake("a number has no axis to take from", argument="index")
    if bool(((picked < -x.shape[0]) | (picked >= x.shape[0])).any()):
        raise Mistake(f"an index lies outside of axis 0, which is {x.shape[0]} long", argument="index")
    return Plan((*index.shape, *x.shape[1:]), lambda t: t[picked], "the rows with these numbers, in this order", (x,),
                local=[TO_ITS_PLACES])  # fmt: skip


def cut_slice(part: slice, length: int, span: tuple[int, int]) -> tuple[int, slice]:
    """How many elements start:stop:step takes, and the same slice with its ends inside; as in Python."""
    step = 1 if part.step is None else part.step
    if step <= 0:
        raise Mistake(f"the step of a slice is at least 1 in PyTorch, and this is {step}", span, repairs=[":"])
    start, stop, step = part.indices(length)
    return max(0, -((start - stop) // step)), slice(start, max(start, stop), min(step, max(1, length)))


def _axes(first: int, count: int) -> str:
    if count < 2:
        return f"axis {first}" if count else "nothing more"
    return f"axes {first} to {first + count - 1}"
