"""Pieces of an HTML page that stands alone: tables, lists, bars, and pictures that are part of it.

What is called HTML in an argument's description is taken as it is; everything else is text and is escaped here.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from shared.units import percent


class Column(NamedTuple):
    """One column of a table: its heading, and its cells as HTML; an empty cell is shown as a dash."""

    head: str
    cells: list[str]
    is_number: bool = False


def table_html(label: str, columns: Sequence[Column]) -> str:
    """A table that scrolls sideways by itself, by touch and by keyboard; `label` names it to a screen reader."""
    css = [' class="number"' if column.is_number else "" for column in columns]
    top = "".join(f'<th scope="col"{c}>{escape(column.head)}</th>' for column, c in zip(columns, css, strict=True))
    body = []
    for first, *others in zip(*(column.cells for column in columns), strict=True):
        cells = "".join(f"<td{c}>{cell or '–'}</td>" for cell, c in zip(others, css[1:], strict=True))
        body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>\n')
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table><thead><tr>{top}</tr></thead>\n<tbody>{''.join(body)}</tbody></table></div>"
    )


def list_html(items: Iterable[str]) -> str:
    """A list of HTML items; nothing where there are none."""
    lines = "\n".join(f"<li>{item}</li>" for item in items)
    return f'<ul class="plain">{lines}</ul>' if lines else ""


def bar_html(share: float) -> str:
    """A share in per cent, and as a bar of that length, at most the whole."""
    width = 100 * min(max(share, 0.0), 1.0)
    return f'{percent(share)}<span class="bar" aria-hidden="true"><i style="width:{width:.0f}%"></i></span>'


def picture_html(path: Path) -> str:
    """The PNG at `path` as part of the page, or a sentence where it is gone."""
    caption = escape(path.stem.replace("_", " "))
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return f'<p class="soft">The picture “{caption}” is no longer beside its record.</p>'
    image = f'<img src="data:image/png;base64,{data}" alt="Plot: {caption}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
