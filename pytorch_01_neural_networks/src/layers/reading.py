"""Layers as a learner types them: parsed as a Python expression, never evaluated."""

import ast
import difflib
import inspect
import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import EllipsisType
from typing import Any

from shared.errors import CannotRun

from torch import nn

Shape = tuple[int, ...]
Value = int | float | str | bool | tuple["Value", ...] | EllipsisType | None  # ... is a number to be filled in

LONGEST_TEXT = 2000  # characters
MOST_LAYERS = 50
MOST_AXES = 8
LARGEST_NUMBER = 10**12  # of one argument or axis; what several make together is limited where their sum is known
OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Pow: "**",
}

# nn.RNN and its kin take *args, so their signature does not name the arguments.
RECURRENT = ("input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout",
             "bidirectional", "proj_size")  # fmt: skip


def shown(text: object, longest: int = 60) -> str:
    """`text` in one line that a terminal shows as it is: control signs escaped, the end of a long one cut off."""
    cut = f"{str(text)[:longest]}…" if len(str(text)) > longest else str(text)
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in cut)


def parameters_of(name: str) -> tuple[str, ...]:
    """The names of a layer's arguments, in order; without those that say where and in what type it is made."""
    if name in ("RNN", "LSTM", "GRU"):
        return RECURRENT if name == "RNN" else tuple(each for each in RECURRENT if each != "nonlinearity")
    signature = inspect.signature(getattr(nn, name)).parameters
    unnamed = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD  # Sigmoid has those of every module
    return tuple(each for each, parameter in signature.items() if each not in ("device", "dtype")
                 and not each.startswith("_") and parameter.kind not in unnamed)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A layer and its arguments, such as Conv2d(3, 16, 3, padding=1), as it was typed."""

    name: str
    positional: tuple[Value, ...] = ()
    keywords: Mapping[str, Value] = field(default_factory=dict)

    def __str__(self) -> str:
        values = [_written(value) for value in self.positional]
        return f"{self.name}({', '.join(values + [f'{k}={_written(v)}' for k, v in self.keywords.items()])})"

    @property
    def arguments(self) -> dict[str, Value]:
        """Every argument by its name."""
        return dict(zip(parameters_of(self.name), self.positional, strict=False)) | dict(self.keywords)

    def replaced(self, **values: Value) -> "Call":
        """The same call with other values, each in the place where the old one stood."""
        names = parameters_of(self.name)
        positional = tuple(values.pop(names[i], value) for i, value in enumerate(self.positional))
        return replace(self, positional=positional, keywords=dict(self.keywords) | values)


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_written, value))}{',' if len(value) == 1 else ''})"
    return "..." if value is ... else repr(value)


def read_layers(text: str, known: Collection[str]) -> list[Call]:
    """The calls in a text such as "Conv2d(3, 8, 3); ReLU()", each of a layer in `known`. Raises CannotRun.

    Also read are "nn.ReLU()", several lines, a tuple, and nn.Sequential(...). `...` stands for a number to be found.
    """
    if len(text) > LONGEST_TEXT:
        raise CannotRun(f"--layer has {len(text):,} characters; {LONGEST_TEXT:,} are enough for a network to be read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser has an opinion on some hostile lines
            tree = ast.parse(text.replace("…", "...").strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        raise CannotRun(f"--layer '{shown(text)}' cannot be read ({shown(reason)}); try \"Linear(128, 10)\"") from None
    try:
        calls = [
            call for line in tree.body for call in _calls(line.value if isinstance(line, ast.Expr) else line, known)
        ]
    except RecursionError:
        raise CannotRun(f"--layer '{shown(text)}' is nested too deep; try \"Linear(128, 10)\"") from None
    if not calls:
        raise CannotRun("--layer is empty; try \"Conv2d(3, 16, 3, padding=1)\"")  # fmt: skip
    if len(calls) > MOST_LAYERS:
        raise CannotRun(f"--layer has {len(calls)} layers; at most {MOST_LAYERS} are read")
    return calls


def _calls(node: ast.AST, known: Collection[str]) -> Iterator[Call]:
    if isinstance(node, ast.Tuple | ast.List):
        for each in node.elts:
            yield from _calls(each, known)
        return
    if not isinstance(node, ast.Call):
        hint = "Linear(128, 10)"
        if isinstance(node, ast.Name) and node.id in known:
            hint = f"{node.id}({', '.join(required_of(node.id))})"
        raise CannotRun(f"'{shown(ast.unparse(node))}' is not a layer with its arguments; try \"{hint}\"")
    name = _name(node.func)
    if name == "Sequential" and not node.keywords:
        for each in node.args:
            yield from _calls(each, known)
        return
    if name not in known:
        raise CannotRun(_unknown(name, known))
    positional = tuple(_value(each, name) for each in node.args)
    keywords: dict[str, Value] = {}
    for given in node.keywords:
        if given.arg is None:
            raise CannotRun(f"{name} with ** is not read; write its arguments one by one")
        keywords[given.arg] = _value(given.value, name)
    _expect_arguments(name, len(positional), keywords)
    yield Call(name, positional, keywords)


def _name(function: ast.AST) -> str:
    """The layer's name, with or without `nn.` or `torch.nn.` before it."""
    written = shown(ast.unparse(function))
    return written.removeprefix("torch.").removeprefix("nn.")


def _unknown(name: str, known: Collection[str]) -> str:
    by_lower = {each.lower(): each for each in known}
    if name.startswith("Lazy") and (eager := name.removeprefix("Lazy")) in known:
        return f"{name} is not needed here: write ... for the number to be found, as in {eager}(..., 10)"
    close = [name.lower()] if name.lower() in by_lower else difflib.get_close_matches(name.lower(), by_lower, 3, 0.6)
    near = [by_lower[each] for each in close]
    if near:
        return f"there is no layer '{name}' in this playground; did you mean {' or '.join(near)}?"
    if isinstance(getattr(nn, name, None), type):
        return f"{name} does not make one tensor from one tensor, so it has no place here; try Linear or Conv2d"
    return f"there is no layer '{name}' in this playground; it knows {', '.join(list(known)[:3])} and {len(known) - 3} more"


def required_of(name: str) -> tuple[str, ...]:
    """The names of the arguments that a layer cannot do without."""
    names = parameters_of(name)
    if name in ("RNN", "LSTM", "GRU"):
        return names[:2]
    parameters = inspect.signature(getattr(nn, name)).parameters
    return tuple(each for each in names if parameters[each].default is inspect.Parameter.empty)


def _expect_arguments(name: str, count: int, keywords: Mapping[str, Value]) -> None:
    """Refuses an argument that the layer does not have, and one that it lacks."""
    names, required, most = parameters_of(name), required_of(name), 3  # of a recurrent layer
    if name not in ("RNN", "LSTM", "GRU"):
        parameters = inspect.signature(getattr(nn, name)).parameters
        most = sum(parameters[each].kind is not inspect.Parameter.KEYWORD_ONLY for each in names)
    for keyword in keywords:
        if keyword in ("device", "dtype"):
            raise CannotRun(f"{name} is made on --device in float32; leave {keyword}= out")
        if keyword not in names:
            near = difflib.get_close_matches(keyword, names, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names) or 'none'}"
            raise CannotRun(f"{name} has no argument '{shown(keyword)}'; {hint}")
        if keyword in names[:count]:
            raise CannotRun(f"{name} is given {keyword} twice; write it once")
    if count > most:
        kept = f"{', '.join(names[:most])} without their names" if most else "no arguments without a name"
        raise CannotRun(f"{name} is given {count} arguments; it takes {kept}")
    missing = [each for each in required if each not in keywords and each not in names[:count]]
    if missing:
        raise CannotRun(f"{name} lacks {' and '.join(missing)}; write {name}({', '.join(required)})")


def _value(node: ast.AST, name: str) -> Any:
    """A literal, a tuple of literals, or whole-number arithmetic such as 16 * 7 * 7."""
    value: Any
    match node:
        case ast.Constant(value=int() | float() | str() | None as value):
            pass
        case ast.Constant(value=value) if value is ...:
            return value
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(_value(each, name) for each in elements)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand) if _is_number(
            inner := _value(operand, name)
        ):
            return -inner if isinstance(sign, ast.USub) else inner
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in OPERATORS:
            value = _calculated(_value(left, name), type(operator), _value(right, name), name)
        case _:
            raise CannotRun(
                f"{name}: '{shown(ast.unparse(node), 30)}' is not read; an argument is a number, True, False, None, "
                "a string or a tuple of them"
            )
    if isinstance(value, float) and not math.isfinite(value):
        raise CannotRun(f"{name}: {value} is no size; write a finite number")
    if _is_number(value) and abs(value) > LARGEST_NUMBER:
        raise CannotRun(f"{name}: numbers up to 10^12 are read; one here is larger, write a smaller one")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _calculated(left: Any, operator: type[ast.operator], right: Any, name: str) -> int:
    if not (isinstance(left, int) and isinstance(right, int)):
        raise CannotRun(f"{name}: {OPERATORS[operator]} is calculated between whole numbers only; write the result")
    if operator is ast.FloorDiv:
        if right == 0:
            raise CannotRun(f"{name}: {left} // 0 has no result; write the number that you mean")
        return left // right
    if operator is ast.Pow:
        if right < 0 or (abs(left) > 1 and right > 40):  # 2**40 is above the largest number
            raise CannotRun(f"{name}: {left}**{right} is no size up to 10^12; write a smaller one")
        return int(left**right)
    return left + right if operator is ast.Add else left - right if operator is ast.Sub else left * right


def read_shape(text: str) -> Shape:
    """The input's shape from "8,3,32,32" or "(8, 3, 32, 32)". Raises CannotRun."""
    bare = text.strip()
    for opening, closing in ("()", "[]"):
        if bare.startswith(opening) and bare.endswith(closing):
            bare = bare[1:-1]
    parts = [part.strip() for part in bare.rstrip(", ").split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise CannotRun(f"--input '{shown(text)}' is no shape; write whole numbers with commas, as in 8,3,32,32")
    if len(parts) > MOST_AXES:
        raise CannotRun(f"--input has {len(parts)} axes; layers take at most 5, and {MOST_AXES} are read")
    if any(len(part) > 13 or int(part) > LARGEST_NUMBER for part in parts):
        raise CannotRun("--input has an axis above 10^12; write a smaller one, as in 8,3,32,32")
    if any(int(part) == 0 for part in parts):
        raise CannotRun(f"--input '{shown(text)}' holds no numbers at all; every axis is 1 or more")
    return tuple(map(int, parts))
