"""The shape rules: what comes out of an operation, computed from the shapes alone, before anything is allocated.

Each rule returns a shape or raises Mistake, with repairs in which {0} and {1} stand for the operands.
"""

import math
from collections.abc import Sequence

from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake, listed

Shape = tuple[int, ...]


def shown(shape: Sequence[int]) -> str:
    """(2, 3) and (4,) as Python prints them, () as what it is."""
    return str(tuple(shape)) if shape else "() (one number, no axes)"


def axis_index(axis: int, axes: int, argument: str = "dim") -> int:
    """`axis` counted from the front: -1 is the last one. A scalar takes 0 and -1, as in PyTorch."""
    room = max(axes, 1)
    if -room <= axis < room:
        return axis % room
    has = "there is one axis, 0 or -1" if room == 1 else f"there are {axes} axes, 0 to {axes - 1} or -{axes} to -1"
    raise Mistake(f"there is no axis {axis}: {has}", argument=argument, repairs=["-1" if axis > 0 else "0"])


def axis_indices(dims: int | Sequence[int] | None, axes: int) -> tuple[int, ...]:
    """All axes that `dims` names; None names every one."""
    if dims is None:
        return tuple(range(axes))
    if dims == ():  # for some of PyTorch's functions this means all axes, for others none
        raise Mistake("no axis is named; leave dim out to take all of them", argument="dim")
    found = [axis_index(dim, axes) for dim in ((dims,) if isinstance(dims, int) else dims)]
    if len(set(found)) < len(found):
        raise Mistake(f"axis {next(axis for axis in found if found.count(axis) > 1)} is named twice", argument="dim")
    return tuple(found)


def axes_of(shape: Shape) -> str:
    """How many axes, in words."""
    return f"{len(shape) or 'no'} {'axis' if len(shape) == 1 else 'axes'}"


# Broadcasting


def broadcast(*shapes: Shape) -> Shape:
    """Aligned at the right; an axis of length 1, or one that is missing, is stretched to the other's length."""
    result: list[int] = []
    for axis in range(-max(map(len, shapes)), 0):
        lengths = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        if len(lengths) > 1:
            met = [shape[axis] for shape in shapes if len(shape) >= -axis]
            raise Mistake(f"shapes {listed(map(shown, shapes), 'and')} do not broadcast: counted from the right, axis {axis} "
                          f"is {listed(met, 'and')}, and only a 1 can be stretched")  # fmt: skip
        result.append(lengths.pop() if lengths else 1)
    return tuple(result)


def broadcasts(*shapes: Shape) -> bool:
    try:
        broadcast(*shapes)
    except Mistake:
        return False
    return True


def broadcast_repairs(left: Shape, right: Shape) -> list[tuple[str, str]]:
    """What to write for the two operands so that they broadcast, the likeliest meaning first."""
    found: list[tuple[tuple[bool, int], tuple[str, str]]] = []
    for mend_left in (True, False) if len(left) < len(right) else (False, True):
        operand, other = (left, right) if mend_left else (right, left)
        changed = {f".unsqueeze({axis})": (*operand[:axis], 1, *operand[axis:]) for axis in range(1, len(operand) + 1)}
        if len(operand) == 2:
            changed[".T"] = operand[::-1]
        for text, shape in changed.items():
            if broadcasts(shape, other):
                # The likeliest is what leaves the larger operand's shape as it is.
                surprise = (broadcast(shape, other) not in (left, right), len(found))
                found.append((surprise, (f"{{0}}{text}", "{1}") if mend_left else ("{0}", f"{{1}}{text}")))
    return [texts for _, texts in sorted(found)][:3]


# Products


def matmul(left: Shape, right: Shape) -> Shape:
    """(..., n, k) @ (..., k, m) is (..., n, m); a vector is a row on the left, a column on the right, and vanishes."""
    if not left or not right:
        raise Mistake("a number has no axis to pair with; multiply by it with *", repairs=["{0} * {1}"])
    rows, columns = (1, *left)[-2:] if len(left) == 1 else left[-2:], (*right, 1)[:2] if len(right) == 1 else right[-2:]
    if rows[1] != columns[0]:
        meets = "axis -1 of the left"
        partner = "axis -1" if len(right) == 1 else "axis -2"
        turned = ".T" if len(right) == 2 else ".mT"
        repairs = [f"{{0}} @ {{1}}{turned}"] if len(right) > 1 and rows[1] == columns[1] else []
        if len(left) > 1 and rows[0] == columns[0]:
            repairs.append(f"{{0}}{'.T' if len(left) == 2 else '.mT'} @ {{1}}")
        if len(left) == len(right) == 1:
            repairs.append("{0}.unsqueeze(1) * {1}")
        elif left == right:
            repairs.append("{0} * {1}")
        raise Mistake(f"{shown(left)} @ {shown(right)}: {meets} is {rows[1]} and {partner} of the right is {columns[0]}; "
                      "@ pairs these two, so they must be equal", repairs=repairs)  # fmt: skip
    if not broadcasts(left[:-2], right[:-2]):
        raise Mistake(f"{shown(left)} @ {shown(right)}: the matrices fit, but the batch axes in front of them, "
                      f"{shown(left[:-2])} and {shown(right[:-2])}, do not broadcast")  # fmt: skip
    kept = ((rows[0],) if len(left) > 1 else ()) + ((columns[1],) if len(right) > 1 else ())
    return broadcast(left[:-2], right[:-2]) + kept


# The same elements in another shape


def reshape(shape: Shape, target: Sequence[int]) -> Shape:
    """The shape that is meant by `target`, in which one -1 is whatever remains."""
    elements = math.prod(shape)
    if any(size < -1 for size in target):
        raise Mistake(f"a size cannot be {min(target)}; only -1 has a meaning, whatever remains", argument="shape",
                      repairs=["-1"])  # fmt: skip
    if target.count(-1) > 1:
        raise Mistake("only one size can be -1, since one is all that the others leave open", argument="shape",
                      repairs=["-1"])  # fmt: skip
    given = math.prod(size for size in target if size != -1)
    fits = given == elements if -1 not in target else given > 0 and elements % given == 0
    if fits:
        return tuple(elements // given if size == -1 else size for size in target)
    ways = [", ".join(str(-1 if place == i else size) for place, size in enumerate(target)) for i in range(len(target))]
    others = [math.prod(size for place, size in enumerate(target) if place != i) for i in range(len(target))]
    works = [way for way, other in zip(ways, others, strict=True) if other > 0 and elements % other == 0]
    if -1 not in target:
        why = f"the {elements:,} elements of {shown(shape)} cannot fill {shown(target)}, which has {given:,}"
    elif given == 0:
        why = f"with a size of 0 beside it, -1 could be anything in {shown(target)}"
    else:
        why = f"the {elements:,} elements of {shown(shape)} cannot be divided by {given:,}, so there is no size for the -1"
    if -1 in target and len(target) == 2 and elements:
        works = [", ".join(str(size if size == -1 else nearest_divisor(elements, given)) for size in target)]
    raise Mistake(why, argument="shape", repairs=[*works[::-1], "-1"])


def nearest_divisor(number: int, wanted: int) -> int:
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return min([*small, *(number // size for size in small)], key=lambda size: abs(size - wanted))


def flatten(shape: Shape, start: int, end: int) -> Shape:
    first, last = axis_index(start, len(shape), "start_dim"), axis_index(end, len(shape), "end_dim")
    if not shape:
        return (1,)
    if first > last:
        raise Mistake(f"axis {first}, the first to be flattened, comes after axis {last}, the last", argument="start_dim",
                      repairs=["0"])  # fmt: skip
    return (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :])


def permute(shape: Shape, dims: Sequence[int]) -> tuple[int, ...]:
    """The order in which the old axes stand in the new shape."""
    if len(dims) != len(shape):
        order = ", ".join(map(str, reversed(range(len(shape)))))
        raise Mistake(f"{len(dims)} of the {axes_of(shape)} of {shown(shape)} are named; permute wants each of them once",
                      argument="dims", repairs=[order])  # fmt: skip
    axes = [axis_index(dim, len(shape), "dims") for dim in dims]
    if len(set(axes)) < len(axes):
        raise Mistake(f"axis {next(axis for axis in axes if axes.count(axis) > 1)} is named twice; permute wants each once",
                      argument="dims", repairs=[", ".join(map(str, reversed(range(len(shape)))))])  # fmt: skip
    return tuple(axes)


def expand(shape: Shape, target: Sequence[int]) -> Shape:
    """`target` with -1 filled in; only axes of length 1 and new ones in front can be stretched."""
    new = len(target) - len(shape)
    if new < 0:
        raise Mistake(f"{shown(shape)} has {axes_of(shape)}, so expand needs at least as many sizes; -1 keeps one",
                      argument="sizes", repairs=[", ".join(["-1"] * len(shape))])  # fmt: skip
    result = []
    for axis, size in enumerate(target):
        old = shape[axis - new] if axis >= new else None
        if size == -1 and old is not None:
            result.append(old)
        elif size < 0:
            raise Mistake(f"a new axis in front has no length to keep, so it cannot be {size}", argument="sizes")
        elif old in (None, 1, size):
            result.append(size)
        else:
            kept = ", ".join(str(-1 if place == axis else length) for place, length in enumerate(target))
            raise Mistake(f"axis {axis - new} of {shown(shape)} is {old} and cannot be stretched to {size}; only a 1 can be",
                          argument="sizes", repairs=[kept])  # fmt: skip
    return tuple(result)


# Fewer axes, more axes


def reduce(shape: Shape, dims: Sequence[int], keepdim: bool) -> Shape:
    """The axes in `dims` disappear, or stay with length 1."""
    if keepdim:
        return tuple(1 if axis in dims else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in dims)


def squeeze(shape: Shape, dims: Sequence[int]) -> Shape:
    return tuple(size for axis, size in enumerate(shape) if not (axis in dims and size == 1))


def unsqueeze(shape: Shape, dim: int) -> Shape:
    axis = axis_index(dim, len(shape) + 1)
    return (*shape[:axis], 1, *shape[axis:])


# Several tensors into one


def cat(shapes: Sequence[Shape], dim: int) -> Shape:
    """Along an axis that all have; the other axes must agree. (0,) counts as nothing, as in PyTorch."""
    if () in shapes:
        raise Mistake("a number has no axis along which to put it; stack makes one", repairs=["stack([{all}])"])
    filled = [shape for shape in shapes if shape != (0,)]
    if not filled:
        return (0,)
    axis = axis_index(dim, len(filled[0]))
    for place, shape in enumerate(filled):
        if len(shape) != len(filled[0]):
            raise Mistake(f"number {place + 1} has {axes_of(shape)} and the first has {axes_of(filled[0])}; cat wants as many in "
                          f"all: {listed(map(shown, filled), 'and')}", repairs=more_axes(filled))  # fmt: skip
        wrong = [i for i, size in enumerate(shape) if i != axis and size != filled[0][i]]
        if wrong:
            others = [other for other in range(len(shape)) if not [i for i in wrong if i != other]]
            raise Mistake(
                f"along axis {axis} the other axes must agree, and axis {wrong[0]} is {filled[0][wrong[0]]} in the "
                f"first and {shape[wrong[0]]} in number {place + 1}",
                repairs=[*(f"cat([{{all}}], dim={other})" for other in others), "cat([{0}, {1}.T])"],
            )
    return (*filled[0][:axis], sum(shape[axis] for shape in filled), *filled[0][axis + 1 :])


def more_axes(shapes: Sequence[Shape]) -> list[str]:
    """Ways to give the smaller of two tensors the axis that it lacks."""
    if len(shapes) != 2 or abs(len(shapes[0]) - len(shapes[1])) != 1:
        return []
    small = len(shapes[0]) > len(shapes[1])
    texts = []
    for axis in range(len(shapes[not small])):
        new = f"{{{small:d}}}.unsqueeze({axis})"
        texts.append(f"cat([{{0}}, {new}], dim={axis})" if small else f"cat([{new}, {{1}}], dim={axis})")
    return texts


def stack(shapes: Sequence[Shape], dim: int) -> Shape:
    """Along a new axis, so all must have the same shape."""
    for place, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise Mistake(
                f"number {place + 1} has shape {shown(shape)} and the first {shown(shapes[0])}; stack wants equal ones, "
                "cat joins along an axis",
                repairs=["cat([{all}])", "cat([{all}], dim=1)", "stack([{0}, {1}.T])"],
            )
    return (*shapes[0][: (axis := axis_index(dim, len(shapes[0]) + 1))], len(shapes), *shapes[0][axis:])
