"""The same numbers in another shape, several tensors in one, and questions about a tensor."""

import math
from collections.abc import Sequence

from pytorch_00_tensor_gpu_basics.src.calculator import shapes
from pytorch_00_tensor_gpu_basics.src.calculator.einsums import Contraction, read_einsum, read_out
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake
from pytorch_00_tensor_gpu_basics.src.calculator.pictures import einsum_picture
from pytorch_00_tensor_gpu_basics.src.calculator.table import operation
from pytorch_00_tensor_gpu_basics.src.calculator.values import DTYPES, Node, Number, Plan, need_numbers

import torch

BACK = "g, brought back into the old shape"


@operation("reshape", "x:tensor *shape:sizes", "the same elements, read row by row into another shape; one size may be -1",
           "arange(6).reshape(2, -1)")  # fmt: skip
def reshape(x: Node, shape: Sequence[int]) -> Plan:
    new = shapes.reshape(x.shape, shape)
    fill = ""
    if -1 in shape:
        others = math.prod(size for size in shape if size != -1)
        fill = f", so -1 is {x.tensor.numel():,} / {others:,} = {new[list(shape).index(-1)]:,}"
    return Plan(
        new, lambda t: t.reshape(new), f"the same {x.tensor.numel():,} elements, row by row{fill}", (x,), local=[BACK]
    )


@operation("view", "x:tensor *shape:sizes", "reshape that refuses where the numbers would have to be copied",
           "arange(6).view(2, 3)", forms="method")  # fmt: skip
def view(x: Node, shape: Sequence[int]) -> Plan:
    new = shapes.reshape(x.shape, shape)
    try:
        x.tensor.view(new)
    except RuntimeError:
        raise Mistake(
            f"no strides can read {shapes.shown(new)} from memory in which {shapes.shown(x.shape)} lies with strides "
            f"{x.tensor.stride()}; reshape copies where a view cannot",
            repairs=[f"{{0}}.reshape({', '.join(map(str, new))})"],
        ) from None
    return Plan(new, lambda t: t.reshape(new), "another header for the same memory", (x,), local=[BACK])


@operation(
    "flatten", "x:tensor start_dim:axis=0 end_dim:axis=-1", "several axes become one", "zeros(2, 3, 4).flatten(1)"
)
def flatten(x: Node, start_dim: int, end_dim: int) -> Plan:
    new = shapes.flatten(x.shape, start_dim, end_dim)
    return Plan(new, lambda t: t.reshape(new), "several axes become one", (x,), local=[BACK])


@operation("squeeze", "x:tensor dim:axes=None", "drops axes of length 1", "zeros(1, 3, 1).squeeze()")
def squeeze(x: Node, dim: int | Sequence[int] | None) -> Plan:
    dims = shapes.axis_indices(dim, len(x.shape))
    new = shapes.squeeze(x.shape, dims)
    notes = ["nothing was dropped: squeeze takes only axes of length 1"] if new == x.shape else []
    return Plan(new, lambda t: t.squeeze(dims), "axes of length 1 are dropped", (x,), notes=notes, local=[BACK])


@operation("unsqueeze", "x:tensor dim:axis", "a new axis of length 1", "arange(3).unsqueeze(1)")
def unsqueeze(x: Node, dim: int) -> Plan:
    new = shapes.unsqueeze(x.shape, dim)
    axis = shapes.axis_index(dim, len(new))
    return Plan(new, lambda t: t.unsqueeze(axis), f"a new axis {axis} of length 1", (x,), local=[BACK])


@operation("transpose", "x:tensor dim0:axis dim1:axis", "two axes change places", "zeros(2, 3, 4).transpose(1, 2)")
def transpose(x: Node, dim0: int, dim1: int) -> Plan:
    first, second = shapes.axis_index(dim0, len(x.shape), "dim0"), shapes.axis_index(dim1, len(x.shape), "dim1")
    order = list(range(len(x.shape)))
    if order:
        order[first], order[second] = order[second], order[first]
    return plan_order(x, order, f"axes {first} and {second} change places")


@operation("permute", "x:tensor *dims:sizes", "all axes in a new order", "zeros(2, 3, 4).permute(2, 0, 1)")
def permute(x: Node, dims: Sequence[int]) -> Plan:
    return plan_order(x, shapes.permute(x.shape, dims), "the axes in a new order")


@operation("T", "x:tensor", "a matrix turned: rows become columns", "arange(6).reshape(2, 3).T", forms="attribute")
def turn(x: Node) -> Plan:
    if len(x.shape) < 2:
        raise Mistake(f"{shapes.shown(x.shape)} has no two axes to swap, so .T would do nothing; a column is made by a new axis",
                      repairs=["{0}.unsqueeze(1)"] if x.shape else [])  # fmt: skip
    if len(x.shape) > 2:
        raise Mistake(
            f"{shapes.shown(x.shape)} has {len(x.shape)} axes; .T is for two, and .mT swaps the last two",
            repairs=["{0}.mT"],
        )
    return plan_order(x, (1, 0), "rows become columns")


@operation("mT", "x:tensor", "the last two axes change places", "zeros(5, 2, 3).mT", forms="attribute")
def turn_matrices(x: Node) -> Plan:
    if len(x.shape) < 2:
        raise Mistake(
            f"{shapes.shown(x.shape)} has no two axes to swap", repairs=["{0}.unsqueeze(1)"] if x.shape else []
        )
    order = [*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2]
    return plan_order(x, order, "the last two axes change places")


def plan_order(x: Node, order: Sequence[int], says: str) -> Plan:
    return Plan(
        tuple(x.shape[axis] for axis in order),
        lambda t: t.permute(tuple(order)),
        says,
        (x,),
        local=["g, axes back in their order"],
    )


@operation("expand", "x:tensor *sizes:sizes", "an axis of length 1 is read again and again, without a copy",
           "arange(3).expand(2, 3)", forms="method")  # fmt: skip
def expand(x: Node, sizes: Sequence[int]) -> Plan:
    new = shapes.expand(x.shape, sizes)
    return Plan(
        new,
        lambda t: t.expand(new),
        "axes of length 1 are read again and again",
        (x,),
        local=["g, added up over what was repeated"],
    )


@operation(
    "repeat",
    "x:tensor *repeats:sizes",
    "copied so many times along each axis",
    "arange(3).repeat(2, 1)",
    forms="method",
)
def repeat(x: Node, repeats: Sequence[int]) -> Plan:
    if len(repeats) < len(x.shape):
        raise Mistake(
            f"{shapes.shown(x.shape)} has {len(x.shape)} axes, so repeat needs at least as many numbers",
            argument="repeats",
            repairs=[", ".join(["1"] * (len(x.shape) - len(repeats)) + list(map(str, repeats)))],
        )
    if min(repeats, default=0) < 0:
        raise Mistake(f"nothing can be repeated {min(repeats)} times", argument="repeats")
    padded = (1,) * (len(repeats) - len(x.shape)) + x.shape
    new = tuple(times * size for times, size in zip(repeats, padded, strict=True))
    return Plan(
        new, lambda t: t.repeat(tuple(repeats)), "copied along each axis", (x,), local=["g, added up over the copies"]
    )


@operation("flip", "x:tensor *dims:sizes", "turned around along axes", "arange(3).flip(0)")
def flip(x: Node, dims: Sequence[int]) -> Plan:
    axes = [shapes.axis_index(dim, len(x.shape), "dims") for dim in dims]
    if len(set(axes)) < len(axes):
        raise Mistake("an axis is named twice", argument="dims")
    if not x.shape and axes:
        return Plan((), lambda t: t.clone(), "nothing to turn around", (x,), local=["g"])
    return Plan(x.shape, lambda t: t.flip(axes), "turned around", (x,), local=["g, turned back"])


# Several into one


@operation(
    "cat",
    "tensors:tensors dim:axis=0",
    "joined along an axis that is there",
    "cat([zeros(2), ones(3)])",
    forms="function",
)
def cat(tensors: Sequence[Node], dim: int) -> Plan:
    new = shapes.cat([x.shape for x in tensors], dim)
    axis = shapes.axis_index(dim, len(new)) if new != (0,) else 0
    return Plan(new, lambda *ts: torch.cat(ts, axis), f"joined along axis {axis}, which becomes {new[axis]:,}", list(tensors),
                local=["g, cut where the tensors were joined"])  # fmt: skip


@operation(
    "stack",
    "tensors:tensors dim:axis=0",
    "put side by side along a new axis",
    "stack([zeros(2), ones(2)])",
    forms="function",
)
def stack(tensors: Sequence[Node], dim: int) -> Plan:
    new = shapes.stack([x.shape for x in tensors], dim)
    axis = shapes.axis_index(dim, len(new))
    return Plan(new, lambda *ts: torch.stack(ts, axis), f"along a new axis {axis} of length {len(tensors)}", list(tensors),
                local=["g, one slice for each tensor"])  # fmt: skip


@operation("einsum", "equation:text *operands:operands", "one letter for each axis; what is not right of the arrow is summed",
           'einsum("ij,jk->ik", ones(2, 3), ones(3, 4))', forms="function")  # fmt: skip
def einsum(equation: str, operands: Sequence[Node]) -> Plan:
    found = read_einsum(equation, [x.shape for x in operands])
    for x in operands:
        need_numbers(x, "einsum", "operands")
    if len({x.tensor.dtype for x in operands}) > 1:
        raise Mistake(
            "einsum wants one type in all tensors, and these are "
            f"{', '.join(x.dtype_name for x in operands)}; write x.float() or x.double()",
            argument="operands",
        )
    in_between = [math.prod(step.shape) for step in found.contractions[:-1]]
    copies = [x.tensor.numel() for x in operands] + in_between
    return Plan(
        found.shape,
        lambda *ts: contract(found.contractions, ts),
        read_out(found),
        list(operands),
        copies + in_between,
        sum(step.products for step in found.contractions),
        einsum_picture(found),
        local=["einsum with the letters exchanged"],
    )


def contract(steps: Sequence[Contraction], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Two tensors at a time, from the left, so that what lies in between is known beforehand."""
    result, *others = tensors
    if not others:
        return torch.einsum(steps[0].pattern, result)
    for step, other in zip(steps, others, strict=True):
        result = torch.einsum(step.pattern, result, other)
    return result


# Another type, out of the tape, out of the tensor


def enter_type(method: str, dtype: str) -> None:
    @operation(method, "x:tensor", f"as {dtype}", f"tensor([0, 2]).{method}()", forms="method")
    def run(x: Node) -> Plan:
        says = f"as {dtype}" if x.dtype_name != dtype else f"{dtype} it was already"
        notes = []
        if dtype == "int64" and x.is_float:
            says += ", cut towards 0"
            if not bool((x.tensor.abs() < 2.0**63).all()):
                notes = ["inf, nan and numbers beyond 2^63 have no whole number; what stands there now is arbitrary"]
        if dtype == "bool":
            says += ": True where it is not 0"
        return Plan(x.shape, lambda t: t.to(DTYPES[dtype]), says, (x,), notes=notes, local=["g"])


for each in {"float": "float32", "double": "float64", "long": "int64", "bool": "bool"}.items():
    enter_type(*each)


@operation("detach", "x:tensor", "the same numbers without their past: grad stops here", "tensor([1., 2.]).detach()")
def detach(x: Node) -> Plan:
    return Plan(x.shape, lambda t: t.detach(), "without its past: grad stops here", (x,), has_slope=False)


@operation(
    "item", "x:tensor", "the one number of a tensor, as a number of Python", "tensor([3.5]).item()", forms="method"
)
def item(x: Node) -> Number:
    if x.tensor.numel() != 1:
        raise Mistake(f"item takes the number out of a tensor that has one; {shapes.shown(x.shape)} has {x.tensor.numel():,}",
                      repairs=["{0}.sum().item()"])  # fmt: skip
    return x.tensor.item()


@operation("shape", "x:tensor", "the length of each axis", "zeros(2, 3).shape", forms="attribute")
def shape_of(x: Node) -> tuple[int, ...]:
    return x.shape


@operation("ndim", "x:tensor", "how many axes", "zeros(2, 3).ndim", forms="attribute")
def ndim(x: Node) -> int:
    return len(x.shape)


@operation("dtype", "x:tensor", "the type of the numbers", "zeros(2, 3).dtype", forms="attribute")
def dtype_of(x: Node) -> torch.dtype:
    return x.tensor.dtype


@operation("numel", "x:tensor", "how many elements", "zeros(2, 3).numel()")
def numel(x: Node) -> int:
    return x.tensor.numel()


@operation(
    "size", "x:tensor dim:axis=None", "the shape, or the length of one axis", "zeros(2, 3).size(0)", forms="method"
)
def size(x: Node, dim: int | None) -> tuple[int, ...] | int:
    if dim is None:
        return x.shape
    if not x.shape:
        raise Mistake("a number has no axes", argument="dim")
    return x.shape[shapes.axis_index(dim, len(x.shape))]


@operation(
    "stride",
    "x:tensor",
    "places to go in memory for the next element along each axis",
    "zeros(2, 3).T.stride()",
    forms="method",
)
def stride(x: Node) -> tuple[int, ...]:
    return tuple(x.tensor.stride())


@operation("is_contiguous", "x:tensor", "whether the rows lie one after another, without gaps", "zeros(2, 3).T.is_contiguous()",
           forms="method")  # fmt: skip
def is_contiguous(x: Node) -> bool:
    return x.tensor.is_contiguous()
