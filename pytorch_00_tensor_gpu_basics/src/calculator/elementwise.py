"""Functions that treat each element by itself, and those that choose between two."""

from collections.abc import Callable

from pytorch_00_tensor_gpu_basics.src.calculator import shapes
from pytorch_00_tensor_gpu_basics.src.calculator.arithmetic import Operand, is_mask
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake
from pytorch_00_tensor_gpu_basics.src.calculator.table import operation
from pytorch_00_tensor_gpu_basics.src.calculator.values import Node, Number, Plan, check_reach, need_numbers

import torch

# The function, what it does, what x is handed of the slope g of the result, and an example.
ELEMENTWISE: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str, str, str]] = {
    "exp": (torch.exp, "e to the power of each element", "g * exp({0})", "exp(tensor([0., 1.]))"),
    "log": (torch.log, "the natural logarithm", "g / {0}", "log(tensor([1., 10.]))"),
    "sqrt": (torch.sqrt, "the square root", "g / (2 * sqrt({0}))", "sqrt(tensor([4., 9.]))"),
    "sin": (torch.sin, "the sine, of radians", "g * cos({0})", "sin(tensor([0., pi / 2]))"),
    "cos": (torch.cos, "the cosine, of radians", "-g * sin({0})", "cos(tensor([0., pi]))"),
    "tanh": (torch.tanh, "squashed into -1 to 1", "g * (1 - tanh({0}) ** 2)", "tanh(tensor([-2., 0., 2.]))"),
    "sigmoid": (torch.sigmoid, "squashed into 0 to 1", "g * sigmoid({0}) * (1 - sigmoid({0}))", "sigmoid(tensor([-2., 2.]))"),
    "relu": (torch.relu, "negative numbers become 0", "g * ({0} > 0)", "relu(tensor([-1., 2.]))"),
    "abs": (torch.abs, "without its sign", "g * {0} / abs({0})", "abs(tensor([-1., 2.]))"),
    "round": (torch.round, "to the nearest whole number, halves to the even one", "", "round(tensor([0.5, 1.5, 2.4]))"),
}  # fmt: skip


def enter_elementwise(name: str) -> None:
    function, says, local, example = ELEMENTWISE[name]

    @operation(name, "x:tensor", says, example)
    def run(x: Node) -> Plan:
        if name in ("relu", "abs", "round"):
            need_numbers(x, name)
        return Plan(x.shape, function, says, (x,), local=[local], has_slope=name != "round")


for each in ELEMENTWISE:
    enter_elementwise(each)


@operation(
    "clamp", "x:tensor min:number=None max:number=None", "cut off below min and above max", "clamp(arange(5), 1, 3)"
)
def clamp(x: Node, min: Number | None, max: Number | None) -> Plan:
    need_numbers(x, "clamp")
    if min is None and max is None:
        raise Mistake("clamp needs min, max or both: clamp(x, min=0)")
    for name, bound in (("min", min), ("max", max)):
        check_reach(bound, name)
    return Plan(
        x.shape,
        lambda t: t.clamp(min, max),
        "cut off at the bounds",
        (x,),
        local=["g where nothing was cut off, else 0"],
    )


@operation("where", "condition:tensor input:operand other:operand", "from one where the condition is True, else from the other",
           "where(arange(4) > 1, 10, -10)", forms="function")  # fmt: skip
def where(condition: Node, input: Operand, other: Operand) -> Plan:
    if not is_mask(condition):
        raise Mistake(f"the condition must be True and False, and this is {condition.dtype_name}; compare it with something",
                      argument="condition", repairs=["{0} > 0"])  # fmt: skip
    for name, x in (("input", input), ("other", other)):
        check_reach(None if isinstance(x, Node) else x, name)
    nodes = [x for x in (condition, input, other) if isinstance(x, Node)]
    shape = shapes.broadcast(*(node.shape for node in nodes))
    choices = [None if isinstance(x, Node) else x for x in (input, other)]

    def compute(mask: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        left = iter(tensors)
        first, second = (next(left) if choice is None else choice for choice in choices)
        return torch.where(mask, first, second)

    local = ["", *["g where the choice fell on it, else 0"] * (len(nodes) - 1)]
    return Plan(shape, compute, "chosen element by element", nodes, local=local)


def enter_choice(name: str, word: str) -> None:
    function = torch.maximum if name == "maximum" else torch.minimum

    @operation(
        name, "x:tensor other:tensor", f"the {word} of two, element by element", f"{name}(arange(3), tensor([2, 0, 5]))"
    )
    def run(x: Node, other: Node) -> Plan:
        shape = shapes.broadcast(x.shape, other.shape)
        return Plan(
            shape,
            function,
            f"the {word} of the two",
            (x, other),
            local=[f"g where it was the {word}, half where both were"],
        )


enter_choice("maximum", "larger")
enter_choice("minimum", "smaller")
