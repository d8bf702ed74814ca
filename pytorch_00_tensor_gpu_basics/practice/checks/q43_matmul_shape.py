"""The oracle is torch.matmul on empty tensors; where that refuses, the axis to blame is found by trying."""

import random
from typing import Any

from shared.practice import expect
from shared.traps import operations, shown

import torch

Shape = tuple[int, ...]


def multiplied(a: Shape, b: Shape) -> Shape | None:
    """The shape of the product, None where torch refuses."""
    try:
        return tuple(torch.matmul(torch.empty(a), torch.empty(b)).shape)
    except RuntimeError:
        return None


def blamed(a: Shape, b: Shape) -> str:
    """What the message must hold where torch refuses."""
    for name, shape in (("a", a), ("b", b)):
        if not shape:
            return f"{name} has no axes"
    axis_of_b = -1 if len(b) == 1 else -2
    pairs = [(-1, axis_of_b), *((-axis, -axis) for axis in range(3, min(len(a), len(b)) + 1))]
    for left, right in pairs:
        is_batch = left < -1
        if a[left] != b[right] and not (is_batch and 1 in (a[left], b[right])):
            return f"axis {left} of a is {a[left]}, axis {right} of b is {b[right]}"
    raise AssertionError(f"torch refuses {a} @ {b}, and nothing is to blame")


TRAPS: list[tuple[str, Shape, Shape]] = [
    ("two matrices", (2, 3), (3, 4)),
    ("a batch of matrices and one matrix", (5, 2, 3), (3, 4)),
    ("one matrix and a batch of matrices", (2, 3), (5, 3, 4)),
    ("batches of the same size", (5, 2, 3), (5, 3, 4)),
    ("a batch of 1 is stretched", (1, 2, 3), (5, 3, 4)),
    ("a batch of 1 is stretched", (5, 2, 3), (1, 3, 4)),
    ("batch axes broadcast from the right", (6, 1, 2, 3), (5, 3, 4)),
    ("batch axes broadcast from the right", (5, 2, 3), (6, 1, 3, 4)),
    ("two vectors give a number, which has no axes", (3,), (3,)),
    ("a vector on the left is a row, and its axis goes away", (3,), (3, 4)),
    ("a vector on the right is a column, and its axis goes away", (2, 3), (3,)),
    ("a vector and batches", (3,), (6, 5, 3, 4)),
    ("batches and a vector", (6, 5, 2, 3), (3,)),
    ("a batch of none", (0, 2, 3), (1, 3, 4)),
    ("a sum over nothing is 0", (2, 0), (0, 4)),
    ("no rows", (0, 3), (3, 4)),
    ("the axes that @ sums over must be equal", (2, 3), (4, 5)),
    ("the axes that @ sums over must be equal, a size of 1 as well", (2, 1), (4, 5)),
    ("the axes that @ sums over must be equal, a size of 1 as well", (2, 3), (1, 5)),
    ("a vector on the right has one axis, and it is -1", (2, 3), (4,)),
    ("two vectors", (3,), (4,)),
    ("a vector on the left", (3,), (4, 2)),
    ("batches must be equal or 1", (5, 2, 3), (7, 3, 4)),
    ("batches must be equal or 1", (5, 6, 2, 3), (7, 6, 3, 4)),
    ("a batch of none is not a batch of 1", (0, 2, 3), (7, 3, 4)),
    ("of several pairs that disagree, the last ones are named", (5, 2, 3), (7, 4, 5)),
    ("of several pairs that disagree, the last ones are named", (5, 6, 2, 3), (7, 8, 3, 4)),
    ("@ is not for numbers", (), (3, 4)),
    ("@ is not for numbers", (2, 3), ()),
    ("@ is not for numbers", (), ()),
]


def random_case(draw: random.Random) -> tuple[str, Shape, Shape]:
    """Shapes that often fit."""
    n, m, k = (draw.randint(1, 4) for _ in range(3))
    batch = [draw.randint(1, 3) for _ in range(draw.randint(0, 3))]

    def batches() -> Shape:
        return tuple(draw.choice([size, size, 1, 2]) for size in batch[draw.randint(0, len(batch)) :])

    a, b = (*batches(), n, k), (*batches(), k if draw.random() < 0.8 else m, m)
    if draw.random() < 0.2:
        a = a[-1:]
    if draw.random() < 0.2:
        b = b[-2:-1]
    return "found at random", a, b


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    for reason, a, b in TRAPS + [random_case(draw) for _ in range(200)]:
        expect_shape(answer, a, b, reason)
    asked = operations(answer.matmul_shape, (5, 2, 3), (3, 4))
    expect(not asked, f"right, but matmul_shape asked torch ({', '.join(asked)}); work it out from the two tuples")


def expect_shape(answer: Any, a: Shape, b: Shape, reason: str) -> None:
    call, right = f"matmul_shape({a}, {b})", multiplied(a, b)
    try:
        found = answer.matmul_shape(a, b)
    except (ValueError, IndexError) as error:
        if right is None and isinstance(error, ValueError) and blamed(a, b) in str(error):
            return
        wanted = f"return {right}" if right is not None else f'say "{blamed(a, b)}"'
        expect(False, f"{call} raised {type(error).__name__}: {error}; it should {wanted}: {reason}")
    if right is None:
        expect(False, f'{call} returned {shown(found)}; raise ValueError with "{blamed(a, b)}": {reason}')
    is_shape = isinstance(found, tuple) and all(isinstance(size, int) for size in found)
    expect(is_shape, f"{call} returned {shown(found)}; return a tuple of sizes")
    expect(found == right, f"{call} is {found}, and torch gives {right}: {reason}")


def rule(
    counts_axis: int = -2,
    stretches_summed: bool = False,
    stretches: bool = True,
    keeps_vectors: bool = False,
    from_the_left: bool = False,
) -> dict[str, object]:
    """The shape rule with one mistake."""

    def matmul_shape(a: Shape, b: Shape) -> Shape:
        for name, shape in (("a", a), ("b", b)):
            if not shape:
                raise ValueError(f"{name} has no axes")
        left, right = a if len(a) > 1 else (1, *a), b if len(b) > 1 else (*b, 1)
        if left[-1] != right[-2] and not (stretches_summed and 1 in (left[-1], right[-2])):
            axis = max(counts_axis, -len(b))
            raise ValueError(f"axis -1 of a is {left[-1]}, axis {axis} of b is {right[-2]}")
        batch_a, batch_b = left[:-2], right[:-2]
        count = max(len(batch_a), len(batch_b))
        ones_a, ones_b = (1,) * (count - len(batch_a)), (1,) * (count - len(batch_b))
        pairs = list(zip(ones_a + batch_a, ones_b + batch_b, strict=True))
        for number, (size_a, size_b) in enumerate(pairs if from_the_left else reversed(pairs)):
            if size_a != size_b and not (stretches and 1 in (size_a, size_b)):
                axis = -count + number - 2 if from_the_left else -number - 3
                raise ValueError(f"axis {axis} of a is {size_a}, axis {axis} of b is {size_b}")
        batch = tuple(size_b if size_a == 1 else size_a for size_a, size_b in pairs)
        rows = left[-2:-1] if len(a) > 1 or keeps_vectors else ()
        columns = right[-1:] if len(b) > 1 or keeps_vectors else ()
        return batch + rows + columns

    return {"matmul_shape": matmul_shape}


def takes_the_ends(a: Shape, b: Shape) -> Shape:
    return a[:-1] + b[-1:]


def blames_shapes(a: Shape, b: Shape) -> Shape:
    found = multiplied(a, b)
    if found is None:
        raise ValueError(f"the shapes {a} and {b} do not fit; look at their axes")
    return found


def asks_torch(a: Shape, b: Shape) -> Shape:
    found = multiplied(a, b)
    if found is None:
        raise ValueError(blamed(a, b))
    return found


WRONG = {
    "takes what is left over": ({"matmul_shape": takes_the_ends}, "one matrix and a batch of matrices"),
    "keeps the axis of a vector": (rule(keeps_vectors=True), "two vectors give a number, which has no axes"),
    "never stretches a batch": (rule(stretches=False), "it should return (5, 2, 4)"),
    "stretches the axis that is summed": (rule(stretches_summed=True), "a size of 1 as well"),
    "names axis -1 of b": (rule(counts_axis=-1), 'it should say "axis -1 of a is 3, axis -2 of b is 4"'),
    "names the first pair": (rule(from_the_left=True), "the last ones are named"),
    "names no axis": ({"matmul_shape": blames_shapes}, 'it should say "axis -1 of a is 3, axis -2 of b is 4"'),
    "asks torch": ({"matmul_shape": asks_torch}, "work it out from the two tuples"),
}
