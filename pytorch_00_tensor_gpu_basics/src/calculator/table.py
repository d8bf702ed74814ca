"""The table of all that may be called. What does not stand in it does not exist: no name is ever looked up in Python."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_00_tensor_gpu_basics.src.calculator.limits import MAX_INTEGER
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake, listed, nearest, quoted
from pytorch_00_tensor_gpu_basics.src.calculator.values import DTYPE_NAMES, Node, Plan, Value

import torch

REQUIRED = object()
DEFAULTS: dict[str, object] = {"None": None, "False": False, "True": True}
INVENTED = {  # names of PyTorch that a beginner tries, and what to write here
    "backward": "write grad(loss, x): it gives what loss.backward() would leave in x.grad",
    "grad": "write grad(loss, x)",
    "requires_grad_": "leave it out: every floating-point variable can be differentiated",
    "requires_grad": "leave it out: every floating-point variable can be differentiated",
    "to": "leave devices out; for another type write x.float(), x.double(), x.long() or x.bool()",
    "type": "write x.float(), x.double(), x.long() or x.bool()",
    "cuda": "leave devices out: the calculator computes on the CPU",
    "cpu": "leave devices out: the calculator computes on the CPU",
    "numpy": "values are printed as they are",
    "tolist": "values are printed as they are",
    "print": "write the name alone, and its value is printed",
    "len": "write x.shape[0]",
    "t": "write x.T",
    "norm": "write (x ** 2).sum() ** 0.5",
    "nn": "layers are not part of this calculator, but relu, softmax and their like are",
    "functional": "write relu(x), softmax(x, dim=1)",
    "F": "write relu(x), softmax(x, dim=1)",
    "np": "write tensor([1, 2]); the functions have the same names, without np.",
    "empty": "write zeros(2, 3); what is in an empty tensor is left to chance",
    "clone": "leave it out: nothing is ever changed in place here",
    "add_": "nothing is changed in place here; write x = x + 1",
    "copy_": "nothing is changed in place here; write x = y",
    "zero_": "nothing is changed in place here; write x = zeros_like(x)",
}

RENAMED = {
    "range": "arange", "dot": "matmul", "mm": "matmul", "bmm": "matmul", "mv": "matmul", "concat": "cat",
    "concatenate": "cat", "hstack": "cat", "vstack": "cat", "Tensor": "tensor", "array": "tensor", "absolute": "abs",
    "average": "mean", "clip": "clamp", "tile": "repeat", "ravel": "flatten", "swapaxes": "transpose",
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str  # see `convert`
    default: object

    @property
    def takes_all(self) -> bool:
        """Whether sizes may follow one another without parentheses: reshape(2, 3) and reshape((2, 3))."""
        return self.name.startswith("*")


@dataclass(frozen=True)
class Operation:
    """One row of the table. `forms` says how it is written: f(x) as "function", x.f() as "method", x.f as "attribute"."""

    name: str
    parameters: tuple[Parameter, ...]
    forms: str
    says: str
    example: str
    run: Callable[..., Plan | Value]
    draws: bool  # whether it wants the generator of random numbers

    def written(self) -> str:
        """The call with its parameters, as help shows it."""
        shown = [
            parameter.name if parameter.default is REQUIRED else f"{parameter.name}={_shown_default(parameter.default)}"
            for parameter in self.parameters
        ]
        if "attribute" in self.forms:
            return f"{shown[0]}.{self.name}"
        if "function" in self.forms:
            return f"{self.name}({', '.join(shown)})"
        return f"{shown[0]}.{self.name}({', '.join(shown[1:])})"


OPERATIONS: dict[str, Operation] = {}


def operation(name: str, signature: str, says: str, example: str, forms: str = "function method", draws: bool = False
              ) -> Callable[[Callable[..., Plan | Value]], Callable[..., Plan | Value]]:  # fmt: skip
    """Enters a function into the table; `signature` is such as "x:tensor dim:axes=None keepdim:flag=False"."""

    def enter(run: Callable[..., Plan | Value]) -> Callable[..., Plan | Value]:
        parameters = []
        for text in signature.split():
            label, _, default = text.partition("=")
            parameter, _, kind = label.partition(":")
            value = REQUIRED if not default else DEFAULTS[default] if default in DEFAULTS else int(default)
            parameters.append(Parameter(parameter, kind, value))
        OPERATIONS[name] = Operation(name, tuple(parameters), forms, says, example, run, draws)
        return run

    return enter


def _shown_default(default: object) -> str:
    return DTYPE_NAMES.get(default, str(default)) if isinstance(default, torch.dtype) else str(default)


# From what was written to what an operation takes


def bind(
    operation: Operation, arguments: Sequence[Value], keywords: Mapping[str, Value], as_function: bool
) -> dict[str, Any]:
    """Arguments by parameter, each of the right kind; raises Mistake that names the argument."""
    bound: dict[str, Any] = {}
    rest = list(arguments)
    kind = operation.parameters[0].kind
    if len(rest) > 1 and (
        (kind == "tensors" and isinstance(rest[1], Node)) or (kind == "nested" and isinstance(rest[1], int | float))
    ):
        raise Mistake(
            f"{operation.name} takes all of them together, in brackets", repairs=[f"{operation.name}([{{all}}])"]
        )
    for parameter in operation.parameters:
        name = parameter.name.removeprefix("*")
        if parameter.takes_all and rest:
            several = len(rest) > 1 or not isinstance(rest[0], list | tuple)
            if several and as_function and "method" in operation.forms:
                raise Mistake(f"written as a function, {operation.name} takes its {name} in parentheses", argument=name,
                              repairs=["({argument},)" if len(rest) == 1 else "({argument})"])  # fmt: skip
            bound[name] = convert(tuple(rest) if several else rest[0], parameter, name)
            rest = []
        elif rest:
            bound[name] = convert(rest.pop(0), parameter, name)
    names = [parameter.name.removeprefix("*") for parameter in operation.parameters]
    if rest:
        most = len(operation.parameters)
        raise Mistake(f"{operation.name} takes at most {most} argument{'s' * (most != 1)}: {operation.written()}")
    for name, value in keywords.items():
        if name not in names:
            close = {"axis": ["dim"], "dims": ["dim"], "size": ["shape"]}.get(name) or nearest(name, names)
            meant = [word for word in close if word in names]
            raise Mistake(f"{operation.name} has no argument {quoted(name)}; it is written {operation.written()}",
                          argument=f"{name}:", repairs=meant)  # fmt: skip
        if name in bound:
            raise Mistake(f"{name} is given twice", argument=f"{name}=")
        bound[name] = convert(value, operation.parameters[names.index(name)], name)
    for parameter, name in zip(operation.parameters, names, strict=True):
        if name not in bound:
            if parameter.default is REQUIRED:
                repairs = ["{open}, dim=-1)", "{open}dim=-1)"] if name == "dim" else []
                raise Mistake(f"{operation.name} needs {_described(parameter)}: {operation.written()}", repairs=repairs)
            bound[name] = parameter.default
    return bound


def _described(parameter: Parameter) -> str:
    name = parameter.name.removeprefix("*")
    return {"tensor": "a tensor", "sizes": f"its {name}, such as 2, 3", "operands": "the tensors"}.get(
        parameter.kind, name
    )


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def convert(value: Any, parameter: Parameter, name: str) -> Any:
    """`value` if it is of the parameter's kind; raises Mistake that says what was wanted."""
    kind = parameter.kind
    if value is None and parameter.default is None:
        return None
    repairs = []
    if kind == "sizes":
        if isinstance(value, tuple | list):
            wrong = [size for size in value if not is_integer(size)]
            if not wrong:
                return tuple(value)
            value = wrong[0]
        repairs = ["({argument},)"] if is_integer(value) else []
    elif kind == "operands":
        if isinstance(value, tuple | list) and value and all(isinstance(item, Node) for item in value):
            return list(value)
    elif kind == "axes":
        if is_integer(value) or (isinstance(value, tuple | list) and all(map(is_integer, value))):
            return value if is_integer(value) else tuple(value)
    elif kind == "tensors":
        if isinstance(value, tuple | list) and value and all(isinstance(item, Node) for item in value):
            return list(value)
        if isinstance(value, Node):
            raise Mistake(f"{name} is a list of tensors, in brackets", argument=name, repairs=["[{all}]"])
    elif _fits(value, kind):
        return value
    if kind == "tensor" and isinstance(value, list | int | float) and not isinstance(value, bool):
        repairs = ["tensor({argument})"]
    elif isinstance(value, float) and value.is_integer() and abs(value) <= MAX_INTEGER:
        repairs = [str(int(value))]
    raise Mistake(f"{name} must be {WANTED[kind]}, and this is {described(value)}", argument=name, repairs=repairs)


WANTED = {
    "tensor": "a tensor", "operand": "a tensor or a number", "tensors": "a list of tensors, such as [a, b]",
    "operands": "tensors", "axis": "the number of an axis", "sizes": "whole numbers in parentheses, such as (2, 3)",
    "axes": "the number of an axis, or several in parentheses", "whole": "a whole number", "number": "a number",
    "flag": "True or False", "text": 'a pattern in quotes, such as "ij,jk->ik"',
    "dtype": f"a type: {listed(DTYPE_NAMES.values())}", "nested": "numbers in brackets", "any": "anything",
}  # fmt: skip


def _fits(value: object, kind: str) -> bool:
    return {
        "tensor": isinstance(value, Node),
        "operand": isinstance(value, Node | bool | int | float),
        "whole": is_integer(value),
        "axis": is_integer(value),
        "number": isinstance(value, bool | int | float),
        "flag": isinstance(value, bool),
        "text": isinstance(value, str),
        "dtype": isinstance(value, torch.dtype),
        "nested": isinstance(value, bool | int | float | list | tuple | Node),  # tensor(x) says why it refuses a tensor
        "any": True,
    }.get(kind, False)


def described(value: object) -> str:
    """What a value is, for a sentence."""
    if isinstance(value, Node):
        return f"a tensor of shape {value.shape}"
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, torch.dtype):
        return f"the type {DTYPE_NAMES[value]}"
    return {str: "a text", list: "a list", tuple: "a tuple", slice: "a slice"}.get(type(value), "no value")
