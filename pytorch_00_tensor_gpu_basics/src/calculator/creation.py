"""Operations that make a tensor out of nothing but numbers."""

import math
from collections.abc import Iterator, Sequence

from pytorch_00_tensor_gpu_basics.src.calculator.limits import MAX_AXES, MAX_INTEGER
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake, many
from pytorch_00_tensor_gpu_basics.src.calculator.table import described, is_integer, operation
from pytorch_00_tensor_gpu_basics.src.calculator.values import Node, Number, Plan, check_reach

import torch

EXACT = 2**53  # beyond it float64, in which PyTorch counts the steps of arange, skips whole numbers
KEYS = "dtype:dtype=None requires_grad:flag=False"


def make(shape: Sequence[int], make_tensor: object, says: str, dtype: torch.dtype | None, requires_grad: bool) -> Plan:
    """A plan without inputs. Raises Mistake for sizes below 0, and for whole numbers that should have a gradient."""
    if min(shape, default=0) < 0:
        raise Mistake(f"an axis cannot be {min(shape)} long", argument="shape")
    if requires_grad and dtype in (torch.int64, torch.bool):
        raise Mistake("only floating-point numbers have a gradient; write 1. for 1, or dtype=float32", argument="requires_grad=",
                      repairs=["dtype=float32"])  # fmt: skip
    notes = (
        ["requires_grad is not needed here: grad(loss, x) works for every floating-point x"] if requires_grad else []
    )
    return Plan(tuple(shape), make_tensor, says, notes=notes)  # type: ignore[arg-type]


def check_fits(value: Number, dtype: torch.dtype | None, argument: str) -> None:
    """A number must lie inside the type that it is put into, as in PyTorch."""
    if dtype is torch.int64 and isinstance(value, float) and not abs(value) < 2.0**63:
        raise Mistake(f"int64 has no {value:g}", argument=argument)
    if dtype is torch.float32:
        check_reach(value, argument)


def leaves(nested: object, depth: int = 0) -> Iterator[object]:
    if depth > MAX_AXES:
        raise Mistake(f"brackets inside one another {depth} deep; the calculator stops at {MAX_AXES} axes")
    if isinstance(nested, list | tuple):
        for item in nested:
            yield from leaves(item, depth + 1)
    else:
        yield nested


def nested_shape(nested: object) -> tuple[int, ...]:
    """The shape of lists inside lists, which must have equal lengths on each level."""
    if not isinstance(nested, list | tuple):
        return ()
    inner = [nested_shape(item) for item in nested]
    for place, shape in enumerate(inner):
        if shape != inner[0]:
            first, other = (f"has {counted(shape[0])}" if shape else "is a number" for shape in (inner[0], shape))
            raise Mistake(f"entry 0 {first} and entry {place} {other}; all rows of a tensor have the same shape")
    return (len(nested), *(inner[0] if inner else ()))


def counted(entries: int) -> str:
    return f"{entries:,} number{'s' * (entries != 1)}"


@operation(
    "tensor",
    f"data:nested {KEYS}",
    "the numbers in brackets; a bracket inside a bracket is a row",
    "tensor([[1, 2], [3, 4]])",
    forms="function",
)
def tensor(data: object, dtype: torch.dtype | None, requires_grad: bool) -> Plan:
    if isinstance(data, Node):
        raise Mistake("this is a tensor already", repairs=["{0}"])
    entries = list(leaves(data))
    for entry in entries:
        if isinstance(entry, Node):
            raise Mistake("tensors are not put into tensor(...); stack puts them side by side, cat joins them",
                          repairs=["stack([{all}])", "cat([{all}])"])  # fmt: skip
        if not isinstance(entry, bool | int | float):
            raise Mistake(f"a tensor is made of numbers, and this is {described(entry)}")
        check_fits(entry, dtype if dtype is torch.int64 else None, "data")
    shape = nested_shape(data)
    kinds = {type(entry) for entry in entries}
    natural = torch.float32 if float in kinds or not kinds else torch.int64 if int in kinds else torch.bool
    made = torch.float32 if dtype is None and natural is torch.float32 else dtype or natural
    what = (
        "float32, since one of the numbers has a point"
        if dtype is None and float in kinds and len(kinds) > 1
        else "as written"
    )
    return make(shape, lambda: torch.tensor(data, dtype=dtype), f"{counted(len(entries))}, {what}", made,
                requires_grad)  # fmt: skip


def enter_constant(name: str, says: str) -> None:
    function = torch.zeros if name == "zeros" else torch.ones

    @operation(name, f"*shape:sizes {KEYS}", says, f"{name}(2, 3)", forms="function")
    def run(shape: Sequence[int], dtype: torch.dtype | None, requires_grad: bool) -> Plan:
        return make(shape, lambda: function(shape, dtype=dtype), says, dtype, requires_grad)

    @operation(
        f"{name}_like",
        "x:tensor dtype:dtype=None",
        f"{says}, in the shape and type of x",
        f"{name}_like(eye(2))",
        forms="function",
    )
    def run_like(x: Node, dtype: torch.dtype | None) -> Plan:
        made = dtype or x.tensor.dtype
        return make(
            x.shape, lambda: function(x.shape, dtype=made), f"{says}, in the shape and type of the other", made, False
        )


enter_constant("zeros", "filled with 0")
enter_constant("ones", "filled with 1")


@operation(
    "full", f"shape:sizes fill_value:number {KEYS}", "filled with one number", "full((2, 3), 7)", forms="function"
)
def full(shape: Sequence[int], fill_value: Number, dtype: torch.dtype | None, requires_grad: bool) -> Plan:
    natural = {bool: torch.bool, int: torch.int64, float: torch.float32}[type(fill_value)]
    check_fits(fill_value, dtype or natural, "fill_value")
    return make(
        shape,
        lambda: torch.full(shape, fill_value, dtype=dtype),
        f"filled with {fill_value}",
        dtype or natural,
        requires_grad,
    )


@operation("eye", f"n:whole m:whole=None {KEYS}", "1 on the diagonal, 0 elsewhere", "eye(3)", forms="function")
def eye(n: int, m: int | None, dtype: torch.dtype | None, requires_grad: bool) -> Plan:
    shape = (n, n if m is None else m)
    return make(shape, lambda: torch.eye(*shape, dtype=dtype), "1 on the diagonal, 0 elsewhere", dtype, requires_grad)


@operation("arange", f"start:number end:number=None step:number=1 {KEYS}", "from start up to, and not with, end",
           "arange(0, 10, 2)", forms="function")  # fmt: skip
def arange(start: Number, end: Number | None, step: Number, dtype: torch.dtype | None, requires_grad: bool) -> Plan:
    start, end = (0, start) if end is None else (start, end)
    if not all(math.isfinite(value) and abs(value) <= EXACT for value in (start, end, step)):
        raise Mistake(f"arange counts between -2^53 and 2^53 ({EXACT:,}), within which float64 has every whole number")
    if step == 0:
        raise Mistake("with a step of 0 the end is never reached", argument="step", repairs=["1"])
    if (end - start) * step < 0:
        raise Mistake(f"from {start} to {end} the step must be {'above' if end > start else 'below'} 0, and it is {step}",
                      repairs=[f"arange({start}, {end}, {-step})"])  # fmt: skip
    whole = all(map(is_integer, (start, end, step)))
    length = -((start - end) // step) if whole else math.ceil((end - start) / step)
    natural = torch.int64 if not any(isinstance(value, float) for value in (start, end, step)) else torch.float32
    last = "" if whole or dtype is not None else "; with a broken step, rounding decides whether the end is reached"
    return make((int(length),), lambda: torch.arange(start, end, step, dtype=dtype),
                f"from {start} in steps of {step}, up to and not with {end}{last}", dtype or natural, requires_grad)  # fmt: skip


@operation("linspace", f"start:number end:number steps:whole {KEYS}", "evenly spaced, from start to and with end",
           "linspace(0, 1, 5)", forms="function")  # fmt: skip
def linspace(start: Number, end: Number, steps: int, dtype: torch.dtype | None, requires_grad: bool) -> Plan:
    for name, value in (("start", start), ("end", end)):
        if not abs(value) <= EXACT:
            raise Mistake("linspace spans from -2^53 to 2^53 at most", argument=name)
    if steps < 0:
        raise Mistake(f"there are no {steps} numbers", argument="steps")
    return make((steps,), lambda: torch.linspace(start, end, steps, dtype=dtype),
                f"{many(steps)} numbers from {start} to {end}, both included", dtype, requires_grad)  # fmt: skip


def enter_random(name: str, says: str) -> None:
    function = torch.rand if name == "rand" else torch.randn

    @operation(name, f"*shape:sizes {KEYS}", says, f"{name}(2, 3)", forms="function", draws=True)
    def run(shape: Sequence[int], dtype: torch.dtype | None, requires_grad: bool, generator: torch.Generator) -> Plan:
        if dtype in (torch.int64, torch.bool):
            raise Mistake(f"{name} draws floating-point numbers; randint(0, 10, (2, 3)) draws whole ones", argument="dtype=",
                          repairs=["dtype=float32"])  # fmt: skip
        return make(shape, lambda: function(shape, dtype=dtype, generator=generator), says, dtype, requires_grad)


enter_random("rand", "random, evenly between 0 and 1")
enter_random("randn", "random, normal: mean 0, variance 1")


@operation("randint", "low:whole high:any=None shape:sizes=None", "random whole numbers from low up to, and not with, high",
           "randint(0, 10, (2, 3))", forms="function", draws=True)  # fmt: skip
def randint(low: int, high: object, shape: Sequence[int] | None, generator: torch.Generator) -> Plan:
    if isinstance(high, list | tuple) and shape is None:
        shape, high, low = tuple(high), low, 0
    if not is_integer(high) or shape is None or not all(map(is_integer, shape)):
        raise Mistake(
            "randint is written randint(low, high, shape), with the shape in parentheses: randint(0, 10, (2, 3))"
        )
    assert isinstance(high, int)
    if low >= high:
        raise Mistake(f"there is no whole number from {low} up to, and not with, {high}", argument="high")
    if high - low > MAX_INTEGER:
        raise Mistake(f"the span is {many(high - low)}; it goes up to {MAX_INTEGER:,}", argument="high")
    return make(shape, lambda: torch.randint(low, high, tuple(shape), generator=generator),
                f"random, whole, from {low} to {high - 1}", torch.int64, False)  # fmt: skip
