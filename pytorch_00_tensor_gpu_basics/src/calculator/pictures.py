"""How shapes meet, in characters, and one element of a result computed in the open."""

import math
from collections.abc import Sequence

from pytorch_00_tensor_gpu_basics.src.calculator.einsums import Einsum
from pytorch_00_tensor_gpu_basics.src.calculator.shapes import Shape, shown
from shared.drawing import number

import torch

MOST_TERMS = 4  # of a sum that is written out
WIDEST_NAME = 24


def short(source: str) -> str:
    return source if len(source) <= WIDEST_NAME else f"{source[: WIDEST_NAME - 1]}…"


def broadcast_picture(names: Sequence[str], shapes: Sequence[Shape], result: Shape) -> list[str]:
    """Shapes aligned at the right, one column for each axis; 1→4 where an axis is stretched, -→4 where it is new."""
    if all(shape in (result, ()) for shape in shapes):
        return []
    rows = [[*map(short, names), "result"]]
    for axis in range(-len(result), 0):
        lengths = [shape[axis] if len(shape) >= -axis else None for shape in shapes]
        column = [
            f"-→{result[axis]}" if length is None else str(length) if length == result[axis] else f"1→{result[axis]}"
            for length in lengths
        ]
        rows.append([*column, str(result[axis])])
    widths = [max(map(len, column)) for column in rows]
    lines = [
        "   ".join(
            [
                rows[0][i].ljust(widths[0]),
                *(column[i].rjust(width) for column, width in zip(rows[1:], widths[1:], strict=True)),
            ]
        )
        for i in range(len(rows[0]))
    ]
    return [*lines[:-1], "─" * len(lines[-1]), lines[-1]]


def matmul_picture(left: Shape, right: Shape, result: Shape) -> list[str]:
    """The two axes that are paired, with a line between them."""
    first, second, sign = str(left), str(right), " @ "
    start = len(first) - 2 - (len(str(left[-1])) - 1) - (len(left) == 1)
    partner = 1 if len(right) == 1 else len(second) - 1 - len(f"{right[-2]}, {right[-1]}")
    end = len(first) + len(sign) + partner
    joined = " " * start + "^" + "─" * (end - start - 1) + "^"
    return [
        f"{first}{sign}{second} = {shown(result)}",
        f"{joined} {left[-1]} = {left[-1]}: paired, multiplied, added up, gone",
    ]


def reduce_picture(shape: Shape, dims: Sequence[int], result: Shape) -> list[str]:
    """The shape with the axes that disappear in brackets."""
    marked = ", ".join(f"[{size}]" if axis in dims else str(size) for axis, size in enumerate(shape))
    return [f"({marked}) → {shown(result)}"] if shape else []


def einsum_picture(einsum: Einsum) -> list[str]:
    """A column for each letter, a row for each tensor; what is summed over is missing in the last row."""
    letters = list(dict.fromkeys("".join(einsum.inputs)))
    width = max([3, *(len(str(einsum.lengths[letter])) + 1 for letter in letters)])
    lines = ["  ".join(["letter  ", *(letter.rjust(width) for letter in letters)])]
    for label, own in [
        *((f"tensor {place + 1}", text) for place, text in enumerate(einsum.inputs)),
        ("result", einsum.output),
    ]:
        cells = (
            str(einsum.lengths[letter]) if letter in own else "-" if label != "result" else "sum" for letter in letters
        )
        lines.append("  ".join([f"{label:<8}", *(cell.rjust(width) for cell in cells)]))
    return lines


def at(name: str, index: Sequence[int]) -> str:
    return f"{short(name)}[{', '.join(map(str, index))}]" if len(index) else short(name)


def figure(value: float) -> str:
    """A number inside a calculation; a whole one in full, True and False in words."""
    return str(value) if isinstance(value, int) else number(value)


def in_parentheses(value: float) -> str:
    return f"({figure(value)})" if value < 0 else figure(value)


def operand_index(index: Sequence[int], shape: Shape) -> tuple[int, ...]:
    """Where broadcasting reads an operand of `shape` for the element `index` of the result."""
    own = list(index)[len(index) - len(shape) :] if shape else []
    return tuple(0 if size == 1 else i for i, size in zip(own, shape, strict=True))


def last_index(shape: Shape) -> tuple[int, ...]:
    return tuple(size - 1 for size in shape)


def elementwise_by_hand(
    sign: str, names: Sequence[str], operands: Sequence[torch.Tensor | float], result: torch.Tensor
) -> str:
    """out[1, 2] = a[1, 0] + b[2] = 3 + 4 = 7, for the last element, where broadcasting is easiest to see."""
    index = last_index(tuple(result.shape))
    reads, values = [], []
    for name, operand in zip(names, operands, strict=True):
        if isinstance(operand, torch.Tensor):
            place = operand_index(index, tuple(operand.shape))
            reads.append(at(name, place))
            values.append(operand[place].item())
        else:
            reads.append(figure(operand))
            values.append(operand)
    if max(map(len, names)) > WIDEST_NAME:  # names that are cut would not say what is read
        reads = ["…"]
    shown_values = [figure(values[0]), *map(in_parentheses, values[1:])]
    between = f" {sign} "
    parts = [at("result", index), between.join(reads), between.join(shown_values), figure(result[index].item())]
    return " = ".join(part for part in dict.fromkeys(parts) if part != "…")


def matmul_by_hand(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor) -> str:
    """The first element: first row times first column."""
    row = left.reshape(-1, left.shape[-1])[0].tolist()
    column = (right if right.ndim == 1 else right.reshape(-1, *right.shape[-2:])[0][:, 0]).tolist()
    terms = [f"{figure(a)}*{in_parentheses(b)}" for a, b in zip(row[:MOST_TERMS], column, strict=False)]
    more = " + …" if len(row) > MOST_TERMS else ""
    first = (0,) * result.ndim
    return f"{at('result', first)} = {' + '.join(terms)}{more} = {figure(result[first].item())}"


def reduce_by_hand(form: str, x: torch.Tensor, dims: Sequence[int], result: torch.Tensor) -> str:
    """The first element: `form` is + for a sum, or words before the list of what it was made from."""
    index = [slice(None) if axis in dims else 0 for axis in range(x.ndim)]
    values = x[tuple(index)].reshape(-1)
    first = (0,) * result.ndim
    shown_values = [*map(figure, values[:MOST_TERMS].tolist()), *["…"] * (len(values) > MOST_TERMS)]
    if form in ("+", "/"):
        made = " + ".join(
            [shown_values[0], *(f"({value})" if value.startswith("-") else value for value in shown_values[1:])]
        )
        made = f"({made}) / {math.prod(values.shape)}" if form == "/" else made
    else:
        made = f"{form} {', '.join(shown_values)}"
    return f"{at('result', first)} = {made} = {figure(result[first].item())}"
