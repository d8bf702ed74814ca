"""Each change is made with torch, on real tensors, and the sum is taken where it can be."""

import random
from itertools import combinations
from typing import Any

from shared.practice import expect
from shared.traps import shown

import torch

Shape = tuple[int, ...]


def candidates(name: str, axes: int) -> list[str]:
    exchanges = [f"{name}.transpose({d}, {e})" for d, e in combinations(range(axes), 2)]
    return [f"{name}.unsqueeze({d})" for d in range(axes + 1)] + exchanges


def added(expression: str, a: torch.Tensor, b: torch.Tensor) -> Shape | None:
    try:
        return tuple(eval(expression, {"a": a, "b": b}).shape)
    except RuntimeError:
        return None


def oracle(a: Shape, b: Shape) -> dict[str, Shape]:
    x, y = torch.empty(a), torch.empty(b)
    if added("a + b", x, y) is not None:
        return {}
    sums = {change: added(f"{change} + b", x, y) for change in candidates("a", len(a))}
    sums |= {change: added(f"a + {change}", x, y) for change in candidates("b", len(b))}
    return {change: shape for change, shape in sums.items() if shape is not None}


TRAPS: list[tuple[Shape, Shape]] = [
    ((32, 10), (32,)),
    ((32,), (32, 10)),
    ((2, 3), (3, 2)),
    ((2, 3), (2, 3)),
    ((2, 3), ()),
    ((2, 3), (4, 5)),
    ((2, 3, 4), (2, 4)),
    ((4, 3, 3), (4, 2)),
    ((2, 3, 4), (4, 3, 2)),
    ((8, 3, 5, 5), (3,)),
    ((2, 0), (2,)),
    ((3, 3, 2), (2, 3)),
    ((5,), (7,)),
]


def random_shapes(draw: random.Random) -> tuple[Shape, Shape]:
    """Two shapes of which one was made from the other."""
    shape = [draw.choice([1, 2, 3, 4]) for _ in range(draw.randint(1, 4))]
    other = draw.sample(shape, draw.randint(max(1, len(shape) - 1), len(shape)))
    if draw.random() < 0.3:
        other[draw.randrange(len(other))] = draw.choice([1, 2, 5])
    a, b = draw.sample([tuple(shape), tuple(other)], 2)
    return a, b


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    for a, b in TRAPS + [random_shapes(draw) for _ in range(100)]:
        call = f"changes_that_fit({a}, {b})"
        found, right = answer.changes_that_fit(a, b), oracle(a, b)
        expect(
            isinstance(found, dict),
            f'{call} returned {shown(found)}; return a dict such as {{"a.unsqueeze(1)": (2, 1)}}',
        )
        expect(right or not found, f"{call} has {shown(found)}, but a + b works as it is: nothing to change, {{}}")
        for change, shape in right.items():
            expect(change in found, f"{call} lacks {change!r}, after which the sum has the shape {shape}")
            expect(
                found[change] == shape, f"{call} says {found[change]} for {change!r}, and the sum has the shape {shape}"
            )
        known = candidates("a", len(a)) + candidates("b", len(b))
        for change in found:
            why = "after it, the two still do not fit" if change in known else "that is not a change of the list"
            expect(change in right, f"{call} has {shown(change)}: {why}")


def broadcast(a: Shape, b: Shape) -> Shape | None:
    return added("a + b", torch.empty(a), torch.empty(b))


def changes(name: str, shape: Shape, unsqueezes: bool = True, transposes: bool = True, at_the_end: bool = True) -> Any:
    if unsqueezes:
        for d in range(len(shape) + at_the_end):
            yield f"{name}.unsqueeze({d})", (*shape[:d], 1, *shape[d:])
    for d, e in combinations(range(len(shape)), 2):
        if transposes or (d, e) == (len(shape) - 2, len(shape) - 1):
            swapped = list(shape)
            swapped[d], swapped[e] = shape[e], shape[d]
            yield f"{name}.transpose({d}, {e})", tuple(swapped)


def advise(
    only: str = "ab", asks_first: bool = True, sums: bool = True, stops: bool = False, **options: bool
) -> dict[str, object]:
    """Advice with one mistake."""

    def changes_that_fit(a: Shape, b: Shape) -> dict[str, Shape]:
        if asks_first and broadcast(a, b) is not None:
            return {}
        pairs = [(change, x, b, x) for change, x in changes("a", a, **options) if "a" in only]
        pairs += [(change, a, x, x) for change, x in changes("b", b, **options) if "b" in only]
        fitting = {change: (broadcast(x, y), changed) for change, x, y, changed in pairs if broadcast(x, y) is not None}
        advice = {change: shape if sums else changed for change, (shape, changed) in fitting.items()}
        return dict(list(advice.items())[:1]) if stops else advice

    return {"changes_that_fit": changes_that_fit}


WRONG = {
    "changes only b": (advise(only="b"), "changes_that_fit((32, 10), (32,)) lacks 'a.unsqueeze(2)'"),
    "changes only a": (advise(only="a"), "changes_that_fit((32, 10), (32,)) lacks 'b.unsqueeze(1)'"),
    "stops at the first": (advise(stops=True), "changes_that_fit((32, 10), (32,)) lacks 'a.transpose(0, 1)'"),
    "forgets the axis at the end": (advise(at_the_end=False), "lacks 'a.unsqueeze(2)'"),
    "exchanges only the last two axes": (advise(transposes=False), "lacks 'a.transpose(0, 1)'"),
    "gives the shape of the changed operand": (advise(sums=False), "and the sum has the shape (32, 10, 32)"),
    "mends what works": (advise(asks_first=False), "works as it is"),
}
