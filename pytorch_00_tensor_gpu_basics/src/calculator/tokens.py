"""A line cut into numbers, names, texts and signs. Anything else is refused here, with its place and a replacement."""

import re
import unicodedata
from dataclasses import dataclass

from pytorch_00_tensor_gpu_basics.src.calculator.limits import MAX_CHARACTERS, MAX_INTEGER
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake, Repair, escaped, quoted

NUMBER = re.compile(r"(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?", re.ASCII)
NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
TEXT = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")
SIGNS = ("...", "**", "//", "==", "!=", "<=", ">=", *"+-*/%@<>&|~()[],.:=")  # longer ones first
LONGEST_NUMBER = 40  # digits

# What keyboards, web pages and text processors put in the place of a sign; Unicode's own compatibility forms, such as
# fullwidth letters and superscripts, need no table.
LOOK_ALIKES = {
    "×": "*", "·": "*", "∗": "*", "⋅": "*", "÷": "/", "∕": "/", "−": "-", "–": "-", "—": "-", "≤": "<=", "≥": ">=",
    "≠": "!=", "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "π": "pi", "∞": "inf", "√": "sqrt", "²": "**2",
    "³": "**3", "ᵀ": ".T", "\xa0": " ", "^": "**",
}  # fmt: skip
LETTERS = dict(zip("асеорхуіјѕԁАВЕКМНОРСТХαοτυνιΑΒΕΖΗΙΚΜΝΟΡΤΥΧı", "aceopxyijsdABEKMHOPCTXaotuviABEZHIKMNOPTYXi",
                   strict=True))  # fmt: skip
FOREIGN = {
    ";": "one calculation a line; give the next one by itself",
    "\n": "a line ends here; give the next one by itself",
    "\r": "a line ends here; give the next one by itself",
    "{": "there are no sets, dicts or f-strings here; tensors are written tensor([1, 2])",
    "}": "there are no sets, dicts or f-strings here; tensors are written tensor([1, 2])",
    "\\": "a line cannot be continued on the next one",
    "!": "to negate a mask write ~mask, to compare !=",
    "?": "write help, or help reshape",
    "$": "this sign has no meaning here",
    "`": "this sign has no meaning here",
    "'": "this text does not end; the only text here is the pattern of einsum, such as 'ij,jk->ik'",
    '"': 'this text does not end; the only text here is the pattern of einsum, such as "ij,jk->ik"',
}


@dataclass(frozen=True)
class Token:
    """`kind` is number, name, text, sign or end; `value` is a number, or the characters themselves."""

    kind: str
    value: str | int | float
    start: int
    end: int


def tokenize(line: str) -> list[Token]:
    """The tokens of `line` without spaces and comment, and one of kind "end"; raises Mistake."""
    if len(line) > MAX_CHARACTERS:
        raise Mistake(f"this line has {len(line):,} characters; the calculator stops at {MAX_CHARACTERS:,}", (0, 1))
    tokens, at = [], 0
    while at < len(line) and line[at] != "#":
        if line[at] == " ":
            at += 1
            continue
        token = _token_at(line, at)
        tokens.append(token)
        at = token.end
    end = min(at, len(line.rstrip()))
    return [*tokens, Token("end", "", end, end)]


def _token_at(line: str, at: int) -> Token:
    if match := NUMBER.match(line, at):
        if name := NAME.match(line, match.end()):
            raise Mistake(f"{quoted(line[at : name.end()])} is neither a number nor a name; a product needs its sign",
                          (at, name.end()), repairs=[f"{match.group()} * {name.group()}"])  # fmt: skip
        return Token("number", _number(match.group(), at), at, match.end())
    if match := NAME.match(line, at):
        return Token("name", match.group(), at, match.end())
    if match := TEXT.match(line, at):
        return Token("text", match.group()[1:-1], at, match.end())
    for sign in SIGNS:
        if line.startswith(sign, at):
            return Token("sign", sign, at, at + len(sign))
    raise _foreign(line, at)


def _number(digits: str, at: int) -> int | float:
    span = (at, at + len(digits))
    if len(digits) > LONGEST_NUMBER:
        raise Mistake(f"a number of {len(digits)} characters; the calculator stops at {LONGEST_NUMBER}", span)
    if re.search(r"__|_$|_\.|\._|_[eE]", digits):
        raise Mistake("an underscore in a number stands between two digits, as in 1_000", span)
    if not digits.replace("_", "").isdigit():
        value = float(digits)
        if value == float("inf"):
            raise Mistake("this number is above 1.8e308, the largest that float64 holds; infinity is written inf", span)
        return value
    if re.match(r"0_?\d", digits) and int(digits):
        raise Mistake("a whole number does not begin with 0", span, repairs=[str(int(digits))])
    if int(digits) > MAX_INTEGER:
        raise Mistake(f"this number is above {MAX_INTEGER:,} (2^63 - 1), the largest that int64 holds; write it "
                      "with a point to get a float", span, repairs=[f"{digits}."])  # fmt: skip
    return int(digits)


def _foreign(line: str, at: int) -> Mistake:
    """What is wrong with a character that no token begins with."""
    sign = line[at]
    span = (at, at + 1)
    if sign in FOREIGN:
        return Mistake(f"{quoted(sign)}: {FOREIGN[sign]}", span)
    meant = in_ascii(sign)
    name = unicodedata.name(sign, "a character without a name").lower()
    known = f"{quoted(sign)} is U+{ord(sign):04X}, {name}"
    if meant == sign or not meant.isascii() or not (meant.isprintable() and meant):
        return Mistake(f"{known}; names, numbers and signs are written in ASCII", span)
    if sign == "^":
        known = "'^' is no power here, as in Python"
    return Mistake(f"{known}; here it is written {escaped(meant) if meant != ' ' else 'as a space'}", span,
                   repairs=[Repair("".join(map(in_ascii, line)), (0, len(line)))])  # fmt: skip


def in_ascii(sign: str) -> str:
    """The character that `sign` looks like or stands for; itself where there is none."""
    return LOOK_ALIKES.get(sign) or LETTERS.get(sign) or unicodedata.normalize("NFKC", sign)
