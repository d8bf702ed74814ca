"""Text for people: one layout for every script, coloured where the terminal can, plain where it cannot.

rich supplies colour and progress bars and knows about NO_COLOR, pipes and old Windows consoles; where it is
missing the same lines appear without either.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO, TypeVar

from shared.units import significant

T = TypeVar("T")
Row = Mapping[str, object]

MAX_WIDTH = 100
WRAPPED_WIDTH = 24  # a column of text is not made narrower than this
BEST = " ◀ best"
SIGNS = "✓─◀µ→"
# For a stream that cannot encode them (a C locale, a Windows pipe).
ASCII = str.maketrans(dict(zip("✓✗─◀·★☐☑×µ–→│█▁²³…", "+x-<-*o+xu->|#_23.", strict=True)))


class Terminal:
    """Prints headings, paragraphs, tables and check lines at most `MAX_WIDTH` wide.

    `silent` keeps everything off the stream (for `--json`); progress bars go to stderr, and only in a terminal.
    """

    def __init__(self, stream: TextIO | None = None, silent: bool = False) -> None:
        self.stream = stream or sys.stdout
        self.silent = silent
        self.width = max(30, min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns))
        self._ascii = not can_encode(self.stream, SIGNS)
        self._last = "blank"  # what the last line was: blank, prose or other
        self._rich: Any = None
        try:
            from rich.console import Console
        except ImportError:
            return
        self._rich = Console(
            file=self.stream, width=self.width, highlight=False, markup=False, emoji=False, soft_wrap=True,
            color_system=None if os.environ.get("NO_COLOR") else "auto",  # rich would still send bold
        )  # fmt: skip
        self._rich.on_broken_pipe = _raise_again  # rich would exit with code 1 and no word

    def line(self, text: str = "", style: str | None = None) -> None:
        if self.silent:
            return
        self._last = "other" if text else "blank"
        if self._ascii:
            text = (
                text.translate(ASCII)
                .encode(self.stream.encoding or "ascii", "replace")
                .decode(self.stream.encoding or "ascii")
            )
        if self._rich is None:
            print(text, file=self.stream, flush=True)
        else:
            self._rich.print(text, style=style)
            self.stream.flush()

    def blank(self) -> None:
        """An empty line, unless the last one was empty."""
        if self._last != "blank":
            self.line()

    def rule(self, title: str) -> None:
        self.blank()
        *above, last = textwrap.wrap(title, self.width - 4, break_long_words=False) or [""]
        for line in above:
            self.line(f"   {line}", style="bold cyan")
        self.line(f"── {last} ".ljust(self.width, "─"), style="bold cyan")

    def paragraph(self, text: str, indent: str = "", first: str | None = None, style: str | None = None) -> None:
        """Wraps `text`; `first` replaces the indent of the first line."""
        start = indent if first is None else first
        for line in textwrap.wrap(" ".join(text.split()), self.width, initial_indent=start, subsequent_indent=indent,
                                  break_long_words=False, break_on_hyphens=False):  # fmt: skip
            self.line(line, style)
        self._last = "prose"

    def check(self, holds: bool, claim: str, evidence: str) -> None:
        """One line, claim to the left and evidence to the right; two where they do not fit."""
        if self._last == "prose":
            self.blank()
        mark, style = ("✓", "green") if holds else ("✗", "bold red")
        gap = self.width - 2 - len(claim) - len(evidence)
        if gap >= 2:
            column = max(len(claim) + 2, min(60, self.width - 2 - len(evidence)))
            self.line(f"{mark} {claim.ljust(column)}{evidence}", style)
        else:
            self.paragraph(claim, "  ", f"{mark} ", style)
            self.paragraph(evidence, "    ", style=style)
        self._last = "other"

    def table(self, rows: Sequence[Row], best: int | None = None) -> None:
        """Rows of heading → value, the headings of the first row; the row numbered `best` is marked.

        Text in the last column is wrapped where it does not fit. A table that is still too wide for the terminal is
        printed in parts, each with the first column again.
        """
        if not rows:
            return
        headings = list(rows[0])
        cells = {heading: [_cell(row.get(heading)) for row in rows] for heading in headings}
        rights = {heading: all(_is_number(cell) for cell in cells[heading]) for heading in headings}
        widths = {heading: max(len(heading), *map(len, cells[heading])) for heading in headings}
        room = self.width + 1 - (len(BEST) if best is not None else 0)
        last = headings[-1]
        if not rights[last] and len(headings) > 1:
            left = room - 3 - sum(widths[name] + 3 for name in headings[:-1])
            widths[last] = min(widths[last], max(left, WRAPPED_WIDTH))
        self.blank()
        part = [headings[0]]
        for heading in headings[1:]:
            if sum(widths[name] + 3 for name in [*part, heading]) > room and len(part) > 1:
                self._table_part(part, cells, rights, widths, best)
                part = [headings[0]]
            part.append(heading)
        self._table_part(part, cells, rights, widths, best)

    def _table_part(self, headings: list[str], cells: Mapping[str, list[str]], rights: Mapping[str, bool],
                    widths: Mapping[str, int], best: int | None) -> None:  # fmt: skip
        def aligned(texts: Sequence[str]) -> str:
            pairs = zip(headings, texts, strict=True)
            return "  " + "   ".join(
                text.rjust(widths[name]) if rights[name] else text.ljust(widths[name]) for name, text in pairs
            )

        self.line(aligned(headings).rstrip(), style="bold")
        for index in range(len(cells[headings[0]])):
            texts = [cells[heading][index] for heading in headings]
            first, *more = textwrap.wrap(texts[-1], widths[headings[-1]]) or [""]
            text, style = aligned([*texts[:-1], first]), "bold" if index == best else None
            self.line(f"{text}{BEST}" if index == best else text.rstrip(), style)
            for line in more:
                self.line(aligned([*[""] * (len(texts) - 1), line]).rstrip(), style)
        self.line()

    def progress(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yields from `items` under a bar with the time left; nothing where stdout or stderr is no terminal."""
        if self._rich is None or not (self.stream.isatty() and sys.stderr.isatty()):
            yield from items
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield from bars.track(items, description=label, total=total)


def _raise_again() -> None:
    raise  # called where rich handles the BrokenPipeError


def can_encode(stream: TextIO, text: str) -> bool:
    """Whether `stream` has all characters of `text`; a C locale or a Windows pipe may not."""
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _cell(value: object) -> str:
    return (
        significant(value)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else ""
        if value is None
        else str(value)
    )


def _is_number(cell: str) -> bool:
    return cell == "" or cell in ("unknown", "–", "yes", "no") or cell[0] in "0123456789+-<≈"
