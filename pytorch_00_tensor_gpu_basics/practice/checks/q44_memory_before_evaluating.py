"""The oracle evaluates the tree in every order, on pretended tensors, and writes down what is alive after each step."""

import itertools
import random
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

from shared.practice import expect
from shared.traps import expect_integer, operations

import torch

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
ELEMENTWISE = ("+", "-", "*")


def broadcast(a: Shape, b: Shape) -> Shape:
    sizes = itertools.zip_longest(reversed(a), reversed(b), fillvalue=1)
    return tuple(right if left == 1 else left for left, right in sizes)[::-1]


def binary(tree: Any) -> list[Any]:
    """All operations with two operands in the tree."""
    if isinstance(tree, str):
        return []
    below = [operation for operand in tree[1:] for operation in binary(operand)]
    return below if tree[0] == "T" else [tree, *below]


class Evaluation:
    """One evaluation, with an order for each operation, in the order in which they are met."""

    def __init__(self, shapes: Shapes, orders: Iterator[bool]) -> None:
        self.shapes, self.orders = shapes, orders
        self.alive = self.peak = 0

    def run(self, tree: Any) -> tuple[Shape, int]:
        """Shape of the result, and bytes of the tensor that it is or looks at; 0 for one with a name."""
        if isinstance(tree, str):
            return self.shapes[tree], 0
        if tree[0] == "T":
            shape, size = self.run(tree[1])
            return shape[::-1], size
        if next(self.orders):
            a = self.run(tree[1])
            b = self.run(tree[2])
        else:
            b = self.run(tree[2])
            a = self.run(tree[1])
        shape = (a[0][0], b[0][1]) if tree[0] == "@" else broadcast(a[0], b[0])
        made = 4 * prod(shape)
        self.alive += made
        self.peak = max(self.peak, self.alive)
        self.alive -= a[1] + b[1]
        return shape, made


def lowest_peak(tree: Any, shapes: Shapes) -> int:
    count = len(binary(tree))
    peaks = []
    for orders in itertools.product([True, False], repeat=count):
        evaluation = Evaluation(shapes, iter(orders))
        evaluation.run(tree)
        peaks.append(evaluation.peak)
    return min(peaks)


X_Y = {"x": (100, 1), "y": (1, 100)}
SMALL = ("*", "x", "x")
LARGE = ("-", "x", "y")
ROW_SUM = ("@", LARGE, "x")  # needs 40,000 bytes on its way to a result of 400
TRAPS: list[tuple[str, Any, Shapes]] = [
    ("a name makes nothing", "x", X_Y),
    ("a result counts itself", SMALL, X_Y),
    ("the shape of a difference is the broadcast one", LARGE, X_Y),
    ("a transposed tensor is a view", ("T", "x"), X_Y),
    ("while + runs, both operands and the result are alive", ("+", SMALL, LARGE), X_Y),
    ("operands with names do not count", ("+", LARGE, "x"), X_Y),
    ("operands are dropped after their operation", ("+", ("+", ("+", LARGE, "x"), "x"), "x"), X_Y),
    ("a view keeps alive what it looks at", ("+", ("T", LARGE), "x"), X_Y),
    ("of a matrix product, only the outer axes stay", ("@", "y", "x"), X_Y),
    ("the peak can lie inside an operand", ROW_SUM, X_Y),
    ("the first result waits while the other operand is evaluated", ("+", ROW_SUM, ROW_SUM), X_Y),
    ("on the right, the operand with the higher peak still goes first", ("*", SMALL, ROW_SUM), X_Y),
    ("on the left, the operand with the higher peak goes first", ("*", ROW_SUM, SMALL), X_Y),
    (
        "the operand with the higher peak does not always go first: u - y keeps all of its peak while it waits",
        ("@", ("-", "u", "y"), ("@", ("-", ("T", "y"), "y"), "x")),
        {"u": (200, 1), **X_Y},
    ),
    ("a tensor without elements takes nothing", ("+", "n", "y"), {"n": (0, 1), "y": (1, 100)}),
    ("a vector is broadcast like a row", ("+", "v", "x"), {"v": (100,), "x": (100, 1)}),
    ("numbers have no axes", ("*", ("+", "k", "k"), "k"), {"k": ()}),
]


def random_tree(draw: random.Random, shape: Shape, shapes: Shapes, room: int) -> Any:
    """A tree of at most `room` operations whose result has this shape of two axes."""
    if room == 0:
        name = f"t{len(shapes)}"
        shapes[name] = shape
        return name
    left = draw.randint(0, room - 1)
    kind = draw.random()
    if kind < 0.15:
        return "T", random_tree(draw, shape[::-1], shapes, room)
    if kind < 0.55:
        inner = draw.choice([1, 3, 20, 60])
        operands = (shape[0], inner), (inner, shape[1])
        operator = "@"
    else:
        narrow = [tuple(draw.choice([1, size]) for size in shape) for _ in range(2)]
        operands = tuple(draw.sample([shape, narrow[0]], 2)) if draw.random() < 0.8 else (shape, shape)
        operator = draw.choice(ELEMENTWISE)
    a, b = (
        random_tree(draw, operand, shapes, count)
        for operand, count in zip(operands, (left, room - 1 - left), strict=True)
    )
    return operator, a, b


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    for reason, tree, shapes in TRAPS:
        expect_peak(answer, tree, shapes, reason)
    for room in (2, 3, 4, 5, 6):
        for _ in range(8):
            shapes: Shapes = {}
            tree = random_tree(draw, (draw.choice([1, 5, 50]), draw.choice([1, 7, 40])), shapes, room)
            expect_peak(answer, tree, shapes, "found at random")
    asked = operations(answer.peak_bytes, ROW_SUM, dict(X_Y))
    expect(not asked, f"right, but peak_bytes made tensors ({', '.join(asked)}); it must know before anything is made")


def expect_peak(answer: Any, tree: Any, shapes: Shapes, reason: str) -> None:
    used = {name: shape for name, shape in shapes.items() if name in names(tree)}
    call = f"peak_bytes({tree!r}, {used}), that is {written(tree)},"
    found, right = answer.peak_bytes(tree, dict(shapes)), lowest_peak(tree, shapes)
    expect_integer(found, call, "the number of bytes, an int")
    expect(found == right, f"{call} is {found:,} and should be {right:,}: {reason}")


def names(tree: Any) -> set[str]:
    return {tree} if isinstance(tree, str) else {name for operand in tree[1:] for name in names(operand)}


def written(tree: Any) -> str:
    """The tree as a formula."""
    if isinstance(tree, str):
        return tree
    if tree[0] == "T":
        return f"{written(tree[1])}.T"
    return f"({written(tree[1])} {tree[0]} {written(tree[2])})"


Known = tuple[int, int, Shape]


def estimate(join: Callable[[Known, Known, int], int], keeps: str = "") -> dict[str, object]:
    """An estimate that joins two operands by this rule; `keeps` names what it gets wrong otherwise."""

    def measure(tree: Any, shapes: Shapes) -> Known:
        if isinstance(tree, str):
            size = 4 * prod(shapes[tree]) if keeps == "names" else 0
            return size, size, shapes[tree]
        if tree[0] == "T":
            peak, kept, shape = measure(tree[1], shapes)
            copied = 4 * prod(shape) if keeps == "copies" else 0
            return max(peak, kept + copied), copied or kept, shape[::-1]
        a, b = (measure(operand, shapes) for operand in tree[1:])
        shape = (a[2][0], b[2][1]) if tree[0] == "@" else broadcast(a[2], b[2])
        made = 4 * prod(shape)
        return join(a, b, made), made, shape

    def peak_bytes(tree: Any, shapes: Shapes) -> int:
        return measure(tree, shapes)[0]

    return {"peak_bytes": peak_bytes}


def right_join(a: Known, b: Known, made: int) -> int:
    return max(min(max(a[0], a[1] + b[0]), max(b[0], b[1] + a[0])), a[1] + b[1] + made)


def from_the_left(a: Known, b: Known, made: int) -> int:
    return max(a[0], a[1] + b[0], a[1] + b[1] + made)


def higher_peak_first(a: Known, b: Known, made: int) -> int:
    first, second = (a, b) if a[0] >= b[0] else (b, a)
    return max(first[0], first[1] + second[0], first[1] + second[1] + made)


def runs_it(tree: Any, shapes: Shapes) -> int:
    torch.empty(1)
    return lowest_peak(tree, shapes)


WRONG = {
    "adds up all results": (estimate(lambda a, b, made: a[0] + b[0] + made), "operands are dropped after"),
    "takes the largest result": (estimate(lambda a, b, made: max(a[0], b[0], made)), "the result are alive"),
    "forgets what waits": (
        estimate(lambda a, b, made: max(a[0], b[0], a[1] + b[1] + made)),
        "the first result waits while the other",
    ),
    "evaluates from the left": (estimate(from_the_left), "on the right, the operand with the higher peak"),
    "lets the higher peak go first": (estimate(higher_peak_first), "keeps all of its peak while it waits"),
    "counts what has a name": (estimate(right_join, "names"), "a name makes nothing"),
    "copies to transpose": (estimate(right_join, "copies"), "a transposed tensor is a view"),
    "makes tensors": ({"peak_bytes": runs_it}, "before anything is made"),
}
