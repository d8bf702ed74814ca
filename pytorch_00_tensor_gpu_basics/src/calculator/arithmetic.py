"""The operators and the functions that compute: what each gives, which types it takes, and its slope."""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial

from pytorch_00_tensor_gpu_basics.src.calculator import shapes
from pytorch_00_tensor_gpu_basics.src.calculator.limits import MAX_INTEGER
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake, Repair
from pytorch_00_tensor_gpu_basics.src.calculator.pictures import elementwise_by_hand, matmul_by_hand, matmul_picture
from pytorch_00_tensor_gpu_basics.src.calculator.table import described, operation
from pytorch_00_tensor_gpu_basics.src.calculator.values import Node, Number, Plan, need_numbers

import torch

Operand = Node | Number

SIGNS: dict[str, Callable[..., torch.Tensor]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "//": operator.floordiv,
    "%": operator.mod, "**": operator.pow, "@": operator.matmul, "&": operator.and_, "|": operator.or_,
    "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
COMPARISONS = ("<", ">", "<=", ">=", "==", "!=")
SAYS = {
    "+": "element by element", "-": "element by element", "*": "element by element; a matrix product is @",
    "/": "element by element; / always gives floats", "//": "element by element, rounded down",
    "%": "element by element: what remains of the division", "**": "element by element",
    "&": "True where both are True", "|": "True where one of them is True",
}  # fmt: skip
STRETCHED = "added up over what was stretched"
# Going backwards, what the left and the right operand are handed of the slope g of the result.
LOCAL = {
    "+": ("g", "g"), "-": ("g", "-g"), "*": ("g * {1}", "g * {0}"), "/": ("g / {1}", "-g * {0} / {1} ** 2"),
    "**": ("g * {1} * {0} ** ({1} - 1)", "g * {0} ** {1} * log({0})"), "%": ("g", "-g * ({0} // {1})"),
}  # fmt: skip


def is_mask(x: Operand) -> bool:
    return isinstance(x, bool) or (isinstance(x, Node) and x.tensor.dtype == torch.bool)


# Numbers without tensors: Python's arithmetic, inside int64


def compute_numbers(sign: str, left: Number, right: Number) -> Number:
    """As Python computes it; raises Mistake where Python would refuse, or leave int64."""
    if sign in ("&", "|") and not (isinstance(left, bool) and isinstance(right, bool)):
        raise Mistake(f"{sign} is for masks; put each comparison in parentheses: (a > 0) {sign} (b < 1)")
    if sign == "@":
        raise Mistake("@ pairs axes, and numbers have none; multiply with *", repairs=["{0} * {1}"])
    if sign in ("/", "//", "%") and right == 0:
        raise Mistake("a division by zero of two numbers is refused, as in Python; a tensor would give inf or nan",
                      repairs=["tensor({0}) / {1}"])  # fmt: skip
    if sign == "**":
        return power_of_numbers(left, right)
    if sign in ("//", "%") and not (math.isfinite(left) and math.isfinite(right)):
        raise Mistake("no whole number of times inf or nan")
    return in_range(SIGNS[sign](left, right), sign)  # type: ignore[arg-type]


def power_of_numbers(base: Number, exponent: Number) -> Number:
    if base == 0 and exponent < 0:
        raise Mistake("0 to a negative power is a division by zero", repairs=["tensor({0}.) ** {1}"])
    if base < 0 and not float(exponent).is_integer():
        raise Mistake("a negative number to a broken power is not a real number; a tensor would give nan",
                      repairs=["tensor({0}.) ** {1}"])  # fmt: skip
    if abs(base) > 1 and exponent * math.log2(abs(base)) > 1024:
        raise too_large(f"this power has about {exponent * math.log10(abs(base)):,.0f} digits")
    try:
        return in_range(base**exponent, "**")
    except OverflowError:
        raise too_large("this power is above 1.8e308") from None


def too_large(what: str) -> Mistake:
    return Mistake(f"{what}; whole numbers go up to {MAX_INTEGER:,} here (int64), floats up to 1.8e308")


def in_range(value: Number, sign: str) -> Number:
    if isinstance(value, int) and not -MAX_INTEGER - 1 <= value <= MAX_INTEGER:
        raise Mistake(f"the result has {len(str(abs(value)))} digits and int64 ends at {MAX_INTEGER:,}; write one of the "
                      "numbers with a point", repairs=[f"{{0}}. {sign} {{1}}"])  # fmt: skip
    return value


# Two operands with a sign between them


def plan_binary(sign: str, left: Operand, right: Operand, names: Sequence[str]) -> Plan:
    """left SIGN right where at least one is a tensor; `names` are the operands as they were written."""
    wrong = [x for x in (left, right) if not isinstance(x, Node | bool | int | float)]
    if wrong:
        mended = (
            f"tensor({{{i}}})" if isinstance(x, list | tuple) else f"{{{i}}}" for i, x in enumerate((left, right))
        )
        raise Mistake(
            f"{sign} works on tensors and numbers, and this is {described(wrong[0])}",
            repairs=[f" {sign} ".join(mended)],
        )
    if sign == "@":
        return plan_matmul(left, right, names)
    check_types(sign, left, right)
    nodes = [x for x in (left, right) if isinstance(x, Node)]
    try:
        shape = shapes.broadcast(*(node.shape for node in nodes))
    except Mistake as mistake:
        repairs = shapes.broadcast_repairs(nodes[0].shape, nodes[1].shape)
        mistake.repairs += [Repair(f"{a} {sign} {b}") for a, b in repairs]
        raise
    function = SIGNS[sign]
    if len(nodes) == 2:
        compute: Callable[..., torch.Tensor] = function
    elif isinstance(left, Node):
        compute = lambda x: function(x, right)  # noqa: E731
    else:
        compute = lambda x: function(left, x)  # noqa: E731
    operands = [x.tensor if isinstance(x, Node) else x for x in (left, right)]
    local = [
        slope_text(sign, i, names, (left, right), shape) for i, x in enumerate((left, right)) if isinstance(x, Node)
    ]
    return Plan(shape, compute, SAYS.get(sign, "a question to each element, answered True or False"), nodes,
                by_hand=partial(elementwise_by_hand, sign, names, operands), local=local,
                operands=(left, right), notes=pair_note(sign, nodes, names), has_slope=sign != "//")  # fmt: skip


def slope_text(
    sign: str, side: int, names: Sequence[str], operands: tuple[Operand, Operand], shape: shapes.Shape
) -> str:
    """What the operand on one side is handed of the slope g of the result."""
    if sign not in LOCAL:
        return ""
    text = LOCAL[sign][side].format(*names)
    exponent = operands[1]
    if sign == "**" and side == 0 and not isinstance(exponent, Node):
        text = f"g * {exponent} * {names[0]}" + (f" ** {exponent - 1:g}" if exponent != 2 else "")
    x = operands[side]
    stretched = isinstance(x, Node) and x.shape != shape
    return f"{text}, {STRETCHED}" if stretched else text


def pair_note(sign: str, nodes: Sequence[Node], names: Sequence[str]) -> list[str]:
    """The famous trap: a column against a row of the same length is every pair, N x N."""
    if len(nodes) < 2 or sign not in ("+", "-", "*", "/", "**", *COMPARISONS):
        return []
    first, second = (node.shape for node in nodes)
    for one, other, turned in ((first, second, names[1]), (second, first, names[0])):
        n = one[0] if one else 0
        if n > 1 and one == (n, 1) and other in ((n,), (1, n)):
            fitting = f"{turned}.unsqueeze(1)" if other == (n,) else f"{turned}.T"
            return [f"{one} met {other}: both were stretched, so each of {n} met each of {n}, and {n * n:,} numbers came out. "
                    f"If you meant {n} pairs, write {fitting}"]  # fmt: skip
    return []


def check_types(sign: str, left: Operand, right: Operand) -> None:
    """Raises Mistake for what PyTorch refuses of bool and of whole numbers."""
    masks = is_mask(left), is_mask(right)
    if sign in ("&", "|"):
        for x, mask, side in zip((left, right), masks, ("left", "right"), strict=True):
            if not mask:
                raise Mistake(f"{sign} joins masks, and this is {kind(x)}; it binds tighter than a comparison, so put each "
                              f"comparison in parentheses: (a > 0) {sign} (b < 1)", argument=side)  # fmt: skip
    if (sign == "-" and any(masks)) or (sign in ("//", "%", "**") and all(masks)):
        mended = (
            f"{{{i}}}.long()" if isinstance(x, Node) and masks[i] else f"{{{i}}}" for i, x in enumerate((left, right))
        )
        raise Mistake(f"{sign} is not defined for bool; ~ turns a mask around, and .long() makes it 1 and 0",
                      repairs=[f" {sign} ".join(mended)])  # fmt: skip
    whole = all(not isinstance(x, float) and not (isinstance(x, Node) and x.is_float) for x in (left, right))
    if sign in ("//", "%") and whole and has_zero(right):
        raise Mistake("a whole number cannot be divided by 0; a float gives inf or nan", argument="right",
                      repairs=["{1}.float()", "{1}."])  # fmt: skip
    if sign == "**" and whole and isinstance(left, Node) and is_negative(right):
        raise Mistake("whole numbers to a negative power would be broken numbers; make them floats first", argument="left",
                      repairs=["{0}.float()"])  # fmt: skip


def has_zero(x: Operand) -> bool:
    return bool((x.tensor == 0).any()) if isinstance(x, Node) else x == 0


def is_negative(x: Operand) -> bool:
    """A number below 0. Of a tensor PyTorch does not ask: 2 ** tensor(-1) is 0 in whole numbers."""
    return not isinstance(x, Node) and x < 0


def kind(x: Operand) -> str:
    return x.dtype_name if isinstance(x, Node) else described(x)


def plan_matmul(left: Operand, right: Operand, names: Sequence[str]) -> Plan:
    for side, x in (("left", left), ("right", right)):
        if not isinstance(x, Node):
            raise Mistake(f"@ pairs axes, and the number {x} has none; multiply by it with *", repairs=["{0} * {1}"])
        need_numbers(x, "@", side)
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    if left.tensor.dtype != right.tensor.dtype:
        whole = "left" if not left.is_float else "right" if not right.is_float else ""
        mend = {"left": "{0}.float() @ {1}", "right": "{0} @ {1}.float()"}.get(whole, "{0}.double() @ {1}.double()")
        raise Mistake(f"@ wants one type on both sides, and these are {left.dtype_name} and {right.dtype_name}",
                      repairs=[mend, "{0}.double() @ {1}.double()"])  # fmt: skip
    shape = shapes.matmul(left.shape, right.shape)
    paired = left.shape[-1]
    batch = math.prod(shapes.broadcast(left.shape[:-2], right.shape[:-2]))
    copies = (
        [batch * math.prod(x.shape[-2:]) for x in (left, right)] if max(len(left.shape), len(right.shape)) > 2 else []
    )
    says = "each row of the left meets each column of the right" if shape else "a dot product"
    if len(right.shape) == 1 and shape:
        says = "each row of the left meets the vector"
    return Plan(
        shape,
        torch.matmul,
        says,
        (left, right),
        copies,
        math.prod(shape) * paired,
        matmul_picture(left.shape, right.shape, shape),
        partial(matmul_by_hand, left.tensor, right.tensor) if paired else None,
        operands=(left, right),
        local=[text.format(*names) for text in product_slopes(len(left.shape), len(right.shape))],
    )


def product_slopes(left_axes: int, right_axes: int) -> tuple[str, str]:
    """What the two sides of @ are handed of the slope g of the product."""
    turned = "T" if max(left_axes, right_axes) == 2 else "mT"
    to_left, to_right = f"g @ {{1}}.{turned}", f"{{0}}.{turned} @ g"
    if left_axes == right_axes == 1:
        return "g * {1}", "g * {0}"
    if right_axes == 1:
        to_left = "g.unsqueeze(-1) * {1}"
    if left_axes == 1:
        to_right = "{0}.unsqueeze(1) * g"
    return to_left, to_right


@operation("matmul", "left:operand right:operand", "the same as a @ b", "matmul(eye(2), ones(2, 3))")
def matmul(left: Operand, right: Operand) -> Plan:
    return plan_matmul(left, right, ("{0}", "{1}"))


# One operand with a sign before it


def plan_unary(sign: str, x: Node) -> Plan:
    if sign == "~":
        if not is_mask(x):
            raise Mistake(
                f"~ turns a mask around, and this is {x.dtype_name}; for the negative write -", repairs=["-{0}"]
            )
        return Plan(x.shape, operator.invert, "True where it was False", (x,))
    if is_mask(x):
        raise Mistake(f"{sign} is not defined for bool; ~ turns a mask around", repairs=["~{0}"])
    compute = operator.neg if sign == "-" else operator.pos
    return Plan(x.shape, compute, "element by element", (x,), local=["-g" if sign == "-" else "g"])
