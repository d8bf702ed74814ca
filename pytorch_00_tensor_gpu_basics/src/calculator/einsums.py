"""einsum: one letter for each axis. Letters that are missing on the right of the arrow are summed over."""

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake, escaped, listed, quoted
from pytorch_00_tensor_gpu_basics.src.calculator.shapes import Shape, shown


@dataclass(frozen=True)
class Contraction:
    """One product of two tensors (or the sums over one): the pattern to compute it by, and what that costs."""

    pattern: str
    shape: Shape
    products: int


@dataclass(frozen=True)
class Einsum:
    """A pattern that fits its operands: length of each letter, what is summed, and the products one after another."""

    inputs: tuple[str, ...]
    output: str
    lengths: dict[str, int]
    shape: Shape
    contractions: tuple[Contraction, ...]

    @property
    def summed(self) -> str:
        return "".join(sorted(set("".join(self.inputs)) - set(self.output)))


def read_einsum(pattern: str, shapes: Sequence[Shape]) -> Einsum:
    """Checks `pattern` against the operands' shapes; raises Mistake."""
    inputs, output = _split(pattern)
    if len(inputs) != len(shapes):
        raise Mistake(f"the pattern describes {len(inputs)} tensor{'s' * (len(inputs) != 1)} and {len(shapes)} "
                      f"{'are' if len(shapes) != 1 else 'is'} given", argument="equation")  # fmt: skip
    lengths: dict[str, int] = {}
    for place, (letters, shape) in enumerate(zip(inputs, shapes, strict=True)):
        if len(letters) != len(shape):
            raise Mistake(f"'{letters}' has {len(letters)} letter{'s' * (len(letters) != 1)} for tensor {place + 1}, whose "
                          f"shape is {shown(shape)}; one letter for each axis", argument="equation")  # fmt: skip
        own: dict[str, int] = {}
        for letter, length in zip(letters, shape, strict=True):
            if own.setdefault(letter, length) != length:
                raise Mistake(f"'{letter}' stands twice in '{letters}', which takes the diagonal, but the axes have "
                              f"{own[letter]} and {length}", argument="equation")  # fmt: skip
        for letter, length in own.items():
            known = lengths.setdefault(letter, length)
            if 1 not in (known, length) and known != length:
                raise Mistake(f"'{letter}' is {known} long in one tensor and {length} in tensor {place + 1}; a letter has one "
                              "length", argument="equation", repairs=_turned(inputs, output, place, shapes))  # fmt: skip
            lengths[letter] = length if known == 1 else known
    unknown = [letter for letter in output if letter not in lengths]
    if unknown:
        raise Mistake(f"'{unknown[0]}' stands on the right of the arrow and in no tensor", argument="equation")
    return Einsum(inputs, output, lengths, tuple(lengths[letter] for letter in output),
                  tuple(_contractions(inputs, output, shapes)))  # fmt: skip


def _split(pattern: str) -> tuple[tuple[str, ...], str]:
    """The letters of each input and of the output; without an arrow those that stand once, in the alphabet's order."""
    compact = pattern.replace(" ", "")
    if "." in compact:
        raise Mistake("'...' in a pattern is not part of this calculator; give each axis a letter", argument="equation")
    foreign = [sign for sign in compact.replace("->", "", 1) if sign not in string.ascii_letters + ","]
    if foreign:
        raise Mistake(f"{quoted(foreign[0])} in the pattern: it has letters, commas and one arrow, as in 'ij,jk->ik'",
                      argument="equation")  # fmt: skip
    left, arrow, output = compact.partition("->")
    if "," in output:
        raise Mistake("right of the arrow stands one result, without commas", argument="equation")
    inputs = tuple(left.split(","))
    if not arrow:
        output = "".join(sorted(letter for letter in set(left) - {","} if left.count(letter) == 1))
    twice = [letter for letter in output if output.count(letter) > 1]
    if twice:
        raise Mistake(
            f"'{twice[0]}' stands twice on the right of the arrow; a result has each letter once", argument="equation"
        )
    return inputs, output


def _turned(inputs: Sequence[str], output: str, place: int, shapes: Sequence[Shape]) -> list[str]:
    """The pattern with the letters of one matrix swapped, where they came in the wrong order."""
    if len(shapes[place]) != 2:
        return []
    letters = [text[::-1] if i == place else text for i, text in enumerate(inputs)]
    return [f'"{escaped(",".join(letters))}->{output}"']


def _contractions(inputs: Sequence[str], output: str, shapes: Sequence[Shape]) -> list[Contraction]:
    """From left to right, two at a time; a letter is kept as long as anybody needs it."""
    steps = []
    left, sizes = inputs[0], dict(zip(inputs[0], shapes[0], strict=True))
    if len(inputs) == 1:
        return [Contraction(f"{left}->{output}", tuple(sizes[x] for x in output), math.prod(shapes[0]))]
    for place in range(1, len(inputs)):
        right = inputs[place]
        later = set(output).union(*inputs[place + 1 :])
        kept = output if place == len(inputs) - 1 else "".join(x for x in dict.fromkeys(left + right) if x in later)
        for letter, length in zip(right, shapes[place], strict=True):
            sizes[letter] = max(sizes.get(letter, 1), length) if length and sizes.get(letter, 1) else 0
        used = dict.fromkeys(left + right)
        steps.append(
            Contraction(f"{left},{right}->{kept}", tuple(sizes[x] for x in kept), math.prod(sizes[x] for x in used))
        )
        left, sizes = kept, {x: sizes[x] for x in kept}
    return steps


def read_out(einsum: Einsum) -> str:
    """The pattern in words: "i and k stay, j is summed over"."""
    stays = f"{listed(einsum.output, 'and')} {'stay' if len(einsum.output) > 1 else 'stays'}" if einsum.output else ""
    summed = einsum.summed
    goes = (
        f"{listed(summed, 'and')} {'are' if len(summed) > 1 else 'is'} summed over" if summed else "nothing is summed"
    )
    return f"{stays}, {goes}" if stays else f"{goes}: one number"
