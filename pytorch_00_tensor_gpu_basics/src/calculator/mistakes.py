"""What is said of a line that cannot be calculated: a caret under the place, one sentence, and a line that works."""

import difflib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

WIDEST_LINE = 90  # characters of the learner's line that are shown; a longer one is cut around the caret


@dataclass(frozen=True)
class Repair:
    """A text that may mend the line; {0}, {1} in it are the operands of the refused operation as the learner wrote them.

    It takes the place of `span`, by default what the caret is under. It is offered only when the mended line has been
    calculated with success.
    """

    text: str
    span: tuple[int, int] | None = None


class Mistake(Exception):
    """A line that cannot be calculated. `span` is the part of the line that is meant; None until it is known."""

    def __init__(
        self, message: str, span: tuple[int, int] | None = None, *, repairs: Iterable[str | Repair] = (),
        argument: str = "",
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.span, self.argument = span, argument
        self.repairs = [Repair(repair) if isinstance(repair, str) else repair for repair in repairs]
        self.tries: list[str] = []  # whole lines that were calculated with success
        self.refused_by_torch = False  # no rule of the calculator foresaw it

    def one_line(self) -> str:
        """The sentence, and the remedy where one was found."""
        return f"{self}; try: {'  or: '.join(map(escaped, self.tries))}" if self.tries else str(self)


def is_plain(sign: str) -> bool:
    """Whether a terminal shows `sign` as itself, one column wide, from left to right."""
    if " " <= sign <= "~":
        return True
    return (
        sign.isprintable()
        and unicodedata.east_asian_width(sign) not in "WF"
        and not unicodedata.category(sign).startswith("M")
        and unicodedata.bidirectional(sign) not in ("R", "AL", "AN")
    )


def escaped(text: str) -> str:
    """`text` with everything that a terminal might act upon, hide or draw wide written as \\x.. or \\u...."""
    return "".join(sign if is_plain(sign) else code_of(ord(sign)) for sign in text)


def code_of(point: int) -> str:
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def quoted(text: str, longest: int = 24) -> str:
    """A piece of the learner's line inside a sentence."""
    shown = escaped(text[: longest + 1])
    return f"'{shown}'" if len(text) <= longest else f"'{escaped(text[:longest])}…'"


def point_at(line: str, span: tuple[int, int], width: int = WIDEST_LINE) -> list[str]:
    """Two lines: `line`, cut to `width` where it is longer, and carets under the part that `span` names."""
    before, marked, after = (
        escaped(part) for part in (line[: span[0]][-width:], line[span[0] : span[1]][:width], line[span[1] :][:width])
    )
    marked = marked or " "  # past the end: something is missing there
    if len(before) + len(marked) + len(after) > width:
        marked = marked[: width // 3]
        room = width - len(marked)
        kept = min(len(before), max(room // 2, room - len(after)))
        before = before if kept == len(before) else f"…{before[len(before) - kept + 1 :]}"
        after = after if len(before) + len(after) <= room else f"{after[: max(0, room - len(before) - 1)]}…"
    return [(before + marked + after).rstrip(), " " * len(before) + "^" * len(marked)]


def nearest(word: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The known words that `word` may have been meant to be, the nearest first."""
    by_lower = {name.lower(): name for name in known}
    word = word[:60].lower()
    found = [by_lower[name] for name in difflib.get_close_matches(word, by_lower, most, 0.6 if len(word) > 2 else 1.0)]
    likeness = {name: difflib.SequenceMatcher(None, word, name.lower()).ratio() for name in found}
    found = [name for name in found if likeness[name] > max(likeness.values()) - 0.1]
    begun = [name for lower, name in by_lower.items() if len(word) > 1 and lower.startswith(word)]
    return list(dict.fromkeys([*begun[:1], *found]))[:most]


def listed(words: Iterable[object], last: str = "or") -> str:
    """["a", "b", "c"] as "a, b or c"."""
    *first, end = map(str, words)
    return f"{', '.join(first)} {last} {end}" if first else end


def many(count: int) -> str:
    """A count in full, or its order of magnitude where nobody would count the digits."""
    return f"{count:,}" if abs(count) < 10**15 else f"about 10^{len(str(abs(count))) - 1}"
