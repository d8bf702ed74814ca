"""Tensors drawn in characters: a row of boxes for each row, the blocks of a third axis side by side."""

import itertools
from collections.abc import Sequence

import torch

MAX_ROWS, MAX_COLUMNS = 6, 8  # beyond these, or the width, the first ones are drawn and dots say that there is more
EMPTY = "│ nothing │"
MAX_WIDTH = 94  # characters; a lesson's drawing is indented by four


def number(value: float | int | bool | complex) -> str:
    """`value` in few characters: three significant digits, True as T and False as a dot."""
    if isinstance(value, bool):
        return "T" if value else "·"
    if isinstance(value, int):
        return str(value)
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e+0" in text and abs(value) < 1e6 else text  # 1000 and not 1e+03


def grid(x: torch.Tensor, name: str = "", marked: torch.Tensor | None = None) -> str:
    """`x`, of any number of axes, with `name` and its shape above it; numbers where `marked` is true stand in brackets.

    A scalar is a box of its own and a vector one row. A tensor of three axes is drawn as blocks, one for each index of
    the first; of more axes, or of long ones, the first few are drawn. Numbers that fall under dots are never read.
    """
    *outer, rows, columns = (1,) * max(0, 2 - x.ndim) + tuple(x.shape)
    tables = x.reshape(*outer, rows, columns)
    marks = None if marked is None else marked.expand(x.shape).reshape(*outer, rows, columns)
    drawn = ""
    for index in itertools.product(*map(range, outer)):
        label = f"[{', '.join(map(str, index))}]" if index else ""
        lines = _boxes(tables[index], None if marks is None else marks[index])
        block = "\n".join([label, *lines] if label else lines)
        wider = beside(drawn, block, middle=False) if drawn else block
        if drawn and max(map(len, wider.split("\n"))) > MAX_WIDTH - 3:
            drawn = beside(drawn, "\n…", middle=False)
            break
        drawn = wider
    return f"{name} {tuple(x.shape)}".strip() + f"\n{drawn or EMPTY}"


def _boxes(table: torch.Tensor, marks: torch.Tensor | None) -> list[str]:
    shown = table[:MAX_ROWS, :MAX_COLUMNS].tolist()
    if not shown or not shown[0]:
        return [EMPTY]
    brackets = [[False] * len(row) for row in shown] if marks is None else marks[:MAX_ROWS, :MAX_COLUMNS].tolist()
    texts = [
        [f"({number(value)})" if mark else f" {number(value)} " for value, mark in zip(row, in_row, strict=True)]
        for row, in_row in zip(shown, brackets, strict=True)
    ]
    width = max(len(text) for row in texts for text in row)
    count = min(len(shown[0]), (MAX_WIDTH - 6) // (width + 1))
    more = " …" if count < table.shape[1] else ""
    lines = [f"│{'│'.join(text.rjust(width) for text in row[:count])}│{more}" for row in texts]
    return [*lines, " …"] if table.shape[0] > MAX_ROWS else lines


def beside(*blocks: str, gap: str = "  ", middle: bool = True) -> str:
    """Drawings from left to right: the first lines on one level, a single sign such as "+" in the `middle` of the rest."""
    columns = [block.split("\n") for block in blocks]
    height = max(map(len, columns))
    padded: list[Sequence[str]] = []
    for lines in columns:
        above = (height - len(lines) + 1) // 2 if middle and len(lines) == 1 else 0
        width = max(map(len, lines))
        column = [""] * above + lines + [""] * (height - above - len(lines))
        padded.append([line.ljust(width) for line in column])
    return "\n".join(gap.join(line).rstrip() for line in zip(*padded, strict=True))
