"""The oracle is torch.broadcast_tensors on tensors without memory."""

import random
import re
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from shared.practice import expect
from shared.traps import operations, shown

import torch

Shape = tuple[int, ...]
Found = tuple[Shape, list[Shape]]

TRAPS: list[tuple[str, list[Shape]]] = [
    ("a size of 1 is stretched to the other size", [(3, 1), (3, 4)]),
    ("shapes are aligned at their right ends, and what is missing on the left counts as 1", [(3, 4), (4,)]),
    ("both may be stretched, each along another axis", [(3, 1), (4,)]),
    ("(N, 1) and (N,) make an (N, N) table", [(5, 1), (5,)]),
    ("sizes that are alike stay as they are", [(2, 3), (2, 3)]),
    ("a tensor of no dimension goes with everything", [(), (2, 3)]),
    ("tensors of no dimension stay tensors of no dimension", [(), ()]),
    ("a size of 1 stays where all have it", [(2, 1, 3), (1, 3)]),
    ("1 is stretched to 0 as to any other size", [(1, 3), (0, 3)]),
    ("a shape may be missing two axes", [(4,), (2, 3, 4)]),
    ("one operand keeps its shape", [(2, 3)]),
    ("three operands: each axis has one size other than 1", [(2, 1, 1), (3, 1), (4,)]),
]
REFUSED: list[tuple[list[Shape], int]] = [
    ([(3, 4), (2, 4)], -2),
    ([(3, 4), (3,)], -1),
    ([(2, 3), (3, 2)], -1),
    ([(2, 4), (4,), (4, 4)], -2),
    ([(6, 2), (3, 2)], -2),
    ([(0,), (3,)], -1),
    ([(2, 1, 4), (3, 5, 4)], -3),
    ([(1, 2, 1), (1, 3, 1), (5, 1, 1)], -2),
]


def contiguous(shape: Shape) -> Shape:
    return torch.empty(shape, device="meta").stride()


def random_operands(draw: random.Random) -> tuple[list[Shape], list[Shape]]:
    """Operands that go together: parts of one shape, some axes 1, permuted, sliced or expanded in memory."""
    whole = [draw.choice([0, 1, 2, 3, 5]) for _ in range(draw.randint(0, 4))]
    tensors = []
    for _ in range(draw.randint(1, 3)):
        sizes = [draw.choice([1, size, size]) for size in whole[draw.randint(0, len(whole)) :]]
        order = draw.sample(range(len(sizes)), len(sizes))
        tensor = torch.empty([2 * sizes[axis] for axis in order], device="meta")
        for axis in range(len(sizes)):
            tensor = tensor.narrow(axis, 0, sizes[order[axis]])
        tensors.append(tensor.permute([order.index(axis) for axis in range(len(sizes))]))
    return [tuple(tensor.shape) for tensor in tensors], [tensor.stride() for tensor in tensors]


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    for reason, shapes in TRAPS:
        expect_read(answer, reason, shapes, [contiguous(shape) for shape in shapes])
    expect_read(answer, "an axis that is not stretched keeps its own stride", [(4, 1), (4, 3)], [(7, 1), (1, 4)])
    for _ in range(100):
        expect_read(answer, "operands drawn at random", *random_operands(draw))
    asked = borrowed(answer.broadcast, [(3, 1), (4,)], [(1, 1), (1,)])
    expect(not asked, f"broadcast asked {asked[0] if asked else None}; work it out from the numbers")
    for shapes, axis in REFUSED:
        expect_refused(answer, shapes, axis)


def expect_read(answer: Any, reason: str, shapes: list[Shape], strides: list[Shape]) -> None:
    call = f"broadcast({shapes}, {strides})"
    operands = [torch.empty_strided(*operand, device="meta") for operand in zip(shapes, strides, strict=True)]
    views = torch.broadcast_tensors(*operands)
    right = tuple(views[0].shape)
    try:
        found = answer.broadcast(shapes, strides)
    except ValueError as error:
        expect(False, f"{call} raised ValueError: {error}; the common shape is {right}: {reason}")
    is_pair = isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Sequence) for part in found)
    expect(is_pair, f"{call} returned {shown(found)}; return the shape and a list with the strides of each operand")
    shape, read = found
    expect(tuple(shape) == right, f"{call} returned the shape {shown(shape)}, and it should be {right}: {reason}")
    expect(len(read) == len(shapes), f"{call} returned {shown(read)} for the strides; give one tuple for each operand")
    for number, (steps, view) in enumerate(zip(read, views, strict=True)):
        fits = isinstance(steps, Sequence) and len(steps) == len(right)
        expect(fits, f"{call}: the strides of operand {number} are {shown(steps)}; give one for each axis of {right}")
        walked = [axis for axis, size in enumerate(right) if size > 1]
        wrong = [axis for axis in walked if steps[axis] != view.stride(axis)]
        if wrong:
            axis = wrong[0] - len(right)
            place = (
                f"operand {number}, {shapes[number]}, is read with stride {steps[axis]} along axis {axis} of {right}"
            )
            stays = "it is read again and again there, which is stride 0"
            why = stays if view.stride(axis) == 0 else "its own stride leads from number to number"
            expect(False, f"{call}: {place}, and should have {view.stride(axis)}: {why}")


def expect_refused(answer: Any, shapes: list[Shape], axis: int) -> None:
    strides = [contiguous(shape) for shape in shapes]
    call = f"broadcast({shapes}, {strides})"
    sizes = sorted({shape[axis] for shape in shapes if len(shape) >= -axis} - {1})
    disagree = f"{' and '.join(map(str, sizes))} disagree on axis {axis}, the last one that does not fit"
    try:
        found = answer.broadcast(shapes, strides)
    except ValueError as error:
        named = re.search(r"axis (-?\d+)", str(error))
        expect(named, f'{call} raised ValueError("{error}"); name the axis in it, as "axis -2"')
        assert named
        expect(int(named[1]) == axis, f"{call} raised ValueError about {named[0]}, but {disagree}")
    else:
        expect(False, f"{call} returned {shown(found)}; {disagree}: raise ValueError")


def borrowed(function: Any, *args: object) -> list[str]:
    """What `function(*args)` calls of torch and NumPy, in order."""
    asked = []

    def notice(frame: FrameType, event: str, argument: Any) -> None:
        module = frame.f_globals.get("__name__", "") if event == "call" else getattr(argument, "__module__", "")
        name = frame.f_code.co_qualname if event == "call" else getattr(argument, "__name__", "")
        if str(module).split(".")[0] in ("torch", "numpy"):
            asked.append(f"{module}.{name}")

    before = sys.getprofile()
    sys.setprofile(notice)
    try:
        function(*args)
    finally:
        sys.setprofile(before)
    return asked + operations(function, *args)


def by_hand(
    left: bool = False, larger: bool = False, keeps_stride: bool = False, first: bool = False
) -> dict[str, object]:
    """A right answer, but for the slips that are asked for."""

    def fill(sizes: Shape, count: int, with_: int) -> Shape:
        missing = (with_,) * (count - len(sizes))
        return (*sizes, *missing) if left else (*missing, *sizes)

    def broadcast(shapes: Sequence[Shape], strides: Sequence[Shape]) -> Found:
        ndim = max(map(len, shapes))
        filled = [fill(shape, ndim, 1) for shape in shapes]
        common = []
        axes = range(-ndim, 0) if first else range(-1, -ndim - 1, -1)
        for axis in axes:
            sizes = {shape[axis] for shape in filled} - {1}
            if len(sizes) > 1 and not larger:
                raise ValueError(f"axis {axis}")
            common.append(max(sizes, default=1))
        shape = tuple(common if first else reversed(common))
        steps = [fill(stride, ndim, 0) for stride in strides]
        read = [
            tuple(step if keeps_stride or size == wanted else 0
                  for size, step, wanted in zip(old, own, shape, strict=True))
            for old, own in zip(filled, steps, strict=True)
        ]  # fmt: skip
        return shape, read

    return {"broadcast": broadcast}


def asks_torch(shapes: Sequence[Shape], strides: Sequence[Shape]) -> Found:
    operands = [torch.empty_strided(*operand, device="meta") for operand in zip(shapes, strides, strict=True)]
    views = torch.broadcast_tensors(*operands)
    return tuple(views[0].shape), [view.stride() for view in views]


WRONG = {
    "aligns the shapes on the left": (by_hand(left=True), "aligned at their right ends"),
    "takes the larger size": (by_hand(larger=True), "disagree on axis -2, the last one that does not fit"),
    "keeps the stride of a stretched axis": (by_hand(keeps_stride=True), "which is stride 0"),
    "names the first axis": (by_hand(first=True), "raised ValueError about axis -2, but 2 and 3 disagree on axis -1"),
    "asks torch": ({"broadcast": asks_torch}, "work it out from the numbers"),
}
