"""Functions along an axis: those that make it disappear, and those that run along it."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from pytorch_00_tensor_gpu_basics.src.calculator import shapes
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake, listed
from pytorch_00_tensor_gpu_basics.src.calculator.pictures import reduce_by_hand, reduce_picture
from pytorch_00_tensor_gpu_basics.src.calculator.table import operation
from pytorch_00_tensor_gpu_basics.src.calculator.values import Node, Plan, need_float, need_numbers

import torch

Axes = int | Sequence[int] | None


def plan_reduction(x: Node, dim: Axes, keepdim: bool, compute: Callable[[torch.Tensor], torch.Tensor], *, says: str, form: str,
                   local: Sequence[str] = (), notes: Sequence[str] = ()) -> Plan:  # fmt: skip
    """One number for each place on the axes that stay; `form` says how one of them is computed by hand."""
    dims = shapes.axis_indices(dim, len(x.shape))
    shape = shapes.reduce(x.shape, dims, keepdim)
    along = "all axes" if dim is None else f"axis {dims[0]}" if len(dims) == 1 else f"axes {listed(dims, 'and')}"
    says = f"{says} along {along}" + (", kept with length 1" if keepdim and dims else "")
    filled = x.tensor.numel() and math.prod(shape)
    return Plan(
        shape,
        compute,
        says,
        (x,),
        work=x.tensor.numel(),
        picture=reduce_picture(x.shape, dims, shape),
        by_hand=partial(reduce_by_hand, form, x.tensor, dims) if form and filled else None,
        local=local,
        notes=notes,
    )


def refuse_empty(x: Node, dim: Axes, who: str) -> None:
    """There is no largest of nothing; a sum of nothing is 0."""
    dims = shapes.axis_indices(dim, len(x.shape))
    if any(x.shape[axis] == 0 for axis in dims if x.shape):
        raise Mistake(f"{who} of no elements: {shapes.shown(x.shape)} has an axis of length 0")


def refuse_keepdim_alone(dim: Axes, keepdim: bool, who: str) -> None:
    if keepdim and dim is None:
        raise Mistake(
            f"{who} takes keepdim only together with dim", argument="keepdim=", repairs=["dim=0, keepdim=True"]
        )


@operation("sum", "x:tensor dim:axes=None keepdim:flag=False", "adds up", "arange(6).reshape(2, 3).sum(dim=0)")
def sum_(x: Node, dim: Axes, keepdim: bool) -> Plan:
    refuse_keepdim_alone(dim, keepdim, "sum")
    notes = ["True counts as 1, so this is how many are True"] if x.tensor.dtype == torch.bool else []
    compute = (lambda t: t.sum()) if dim is None else (lambda t: t.sum(dim, keepdim))
    return plan_reduction(x, dim, keepdim, compute, says="added up", form="" if notes else "+", notes=notes,
                          local=["g to every element that was added"])  # fmt: skip


@operation("mean", "x:tensor dim:axes=None keepdim:flag=False", "averages", "tensor([1., 2., 6.]).mean()")
def mean(x: Node, dim: Axes, keepdim: bool) -> Plan:
    need_float(x, "mean")
    refuse_keepdim_alone(dim, keepdim, "mean")
    dims = shapes.axis_indices(dim, len(x.shape))
    count = math.prod(x.shape[axis] for axis in dims if x.shape)
    notes = [] if count else ["the average of nothing is 0/0, which is nan"]
    compute = (lambda t: t.mean()) if dim is None else (lambda t: t.mean(dim, keepdim))
    return plan_reduction(x, dim, keepdim, compute, says="averaged", form="/", notes=notes,
                          local=[f"g / {count} to every element that was averaged"])  # fmt: skip


@operation(
    "prod", "x:tensor dim:axis=None keepdim:flag=False", "multiplies along one axis, or all", "tensor([2, 3, 4]).prod()"
)
def prod(x: Node, dim: int | None, keepdim: bool) -> Plan:
    refuse_keepdim_alone(dim, keepdim, "prod")
    compute = (lambda t: t.prod()) if dim is None else (lambda t: t.prod(dim, keepdim))
    return plan_reduction(x, dim, keepdim, compute, says="multiplied", form="the product of",
                          local=["g * the product of all others"])  # fmt: skip


def enter_extreme(word: str) -> None:
    """max and amax, min and amin."""
    every = torch.max if word == "max" else torch.min
    along = torch.amax if word == "max" else torch.amin
    adjective = "largest" if word == "max" else "smallest"
    local = [f"g to the {adjective}; shared where several are equal"]

    @operation(
        word, "x:tensor dim:any=None keepdim:any=False", f"the {adjective} element", f"tensor([3, 1, 2]).{word}()"
    )
    def run(x: Node, dim: object, keepdim: object) -> Plan:
        if dim is not None:
            raise Mistake(f"{word} along an axis gives two tensors in PyTorch, values and indices; here a{word} gives the values "
                          f"and arg{word} the indices", repairs=[f"{{0}}.a{word}(dim={dim})"])  # fmt: skip
        refuse_empty(x, None, word)
        return plan_reduction(x, None, False, every, says=f"the {adjective}", form=f"the {adjective} of", local=local)

    @operation(f"a{word}", "x:tensor dim:axes=None keepdim:flag=False", f"the {adjective} element along axes",
               f"arange(6).reshape(2, 3).a{word}(dim=1)")  # fmt: skip
    def run_along(x: Node, dim: Axes, keepdim: bool) -> Plan:
        refuse_empty(x, dim, f"a{word}")
        dims = shapes.axis_indices(dim, len(x.shape))
        return plan_reduction(x, dim, keepdim, lambda t: along(t, dims, keepdim), says=f"the {adjective}",
                              form=f"the {adjective} of", local=local)  # fmt: skip

    where = torch.argmax if word == "max" else torch.argmin

    @operation(f"arg{word}", "x:tensor dim:axis=None keepdim:flag=False", f"where the {adjective} element is",
               f"tensor([3, 1, 2]).arg{word}()")  # fmt: skip
    def run_where(x: Node, dim: int | None, keepdim: bool) -> Plan:
        need_numbers(x, f"arg{word}")
        refuse_empty(x, dim, f"arg{word}")
        counted = ", counted through all rows" if dim is None and len(x.shape) > 1 else ""
        return plan_reduction(x, dim, keepdim, lambda t: where(t, dim, keepdim), says=f"the index of the {adjective}{counted}",
                              form=f"the place of the {adjective} of")  # fmt: skip


for each in ("max", "min"):
    enter_extreme(each)


def enter_spread(word: str) -> None:
    """std and var."""
    function = torch.std if word == "std" else torch.var
    what = "the standard deviation" if word == "std" else "the variance"

    @operation(
        word, "x:tensor dim:axes=None unbiased:flag=True keepdim:flag=False", what, f"tensor([1., 2., 6.]).{word}()"
    )
    def run(x: Node, dim: Axes, unbiased: bool, keepdim: bool) -> Plan:
        need_float(x, word)
        dims = shapes.axis_indices(dim, len(x.shape))
        count = math.prod(x.shape[axis] for axis in dims if x.shape)
        divisor = count - unbiased
        notes = [f"divided by {divisor}, n - 1; unbiased=False divides by n"] if unbiased and divisor > 0 else []
        if divisor <= 0:
            notes = [f"{what} of {count} number{'s' * (count != 1)} divides by {max(divisor, 0)}, so it is nan"]
        compute = lambda t: function(t, dim=dims, unbiased=unbiased, keepdim=keepdim)  # noqa: E731
        return plan_reduction(x, dim, keepdim, compute, says=what, form=f"{what} of", notes=notes,
                              local=["g * how far each element is from the mean, scaled"])  # fmt: skip


for each in ("std", "var"):
    enter_spread(each)


def enter_question(word: str) -> None:
    """all and any."""
    function = torch.all if word == "all" else torch.any
    says = "are all of them True" if word == "all" else "is any of them True"

    @operation(word, "x:tensor dim:axes=None keepdim:flag=False", f"{says}?", f"(arange(3) < 2).{word}()")
    def run(x: Node, dim: Axes, keepdim: bool) -> Plan:
        dims = shapes.axis_indices(dim, len(x.shape))
        return plan_reduction(x, dim, keepdim, lambda t: function(t, dim=dims, keepdim=keepdim), says=says, form="")


for each in ("all", "any"):
    enter_question(each)


@operation("cumsum", "x:tensor dim:axis", "running totals along an axis", "tensor([1, 2, 3]).cumsum(dim=0)")
def cumsum(x: Node, dim: int) -> Plan:
    axis = shapes.axis_index(dim, len(x.shape))
    return Plan(x.shape, lambda t: t.cumsum(axis), f"running totals along axis {axis}", (x,),
                local=["g summed from the end to here"])  # fmt: skip


@operation("softmax", "x:tensor dim:axis", "scores become shares that add up to 1 along an axis",
           "softmax(tensor([1., 2., 3.]), dim=0)")  # fmt: skip
def softmax(x: Node, dim: int) -> Plan:
    need_float(x, "softmax")
    axis = shapes.axis_index(dim, len(x.shape))
    return Plan(
        x.shape,
        lambda t: t.softmax(axis),
        f"shares: exp(x) over its sum along axis {axis}",
        (x,),
        scratch=(math.prod(x.shape),),
        local=["s * (g - the sum of g * s), with s the shares"],
    )


@operation("log_softmax", "x:tensor dim:axis", "the logarithm of softmax, without losing small shares",
           "log_softmax(tensor([0., 200.]), dim=0)")  # fmt: skip
def log_softmax(x: Node, dim: int) -> Plan:
    need_float(x, "log_softmax")
    axis = shapes.axis_index(dim, len(x.shape))
    return Plan(x.shape, lambda t: t.log_softmax(axis), f"x minus the logarithm of the sum of exp(x) along axis {axis}", (x,),
                scratch=(math.prod(x.shape),), local=["g - softmax(x) * the sum of g"])  # fmt: skip
