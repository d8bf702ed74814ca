"""Make every change that there is, and keep those that work: n + 1 new axes and n (n - 1) / 2 exchanges for each operand.

No clever rule is needed where so few candidates can be tried. What makes the advice good is the shape beside it. Of the
three changes that mend (32, 10) + (32,), one pairs every sample with every sample, one gives the right numbers turned on
their side, and one was meant. A program that picks one in silence is worse than an error. unsqueeze(0) never helps, since
broadcasting adds axes on the left by itself; trying it finds that out. The habit that spares the advice: keep the axis
when you reduce (keepdim=True), and it is there when you divide.
"""

from collections.abc import Iterator
from itertools import combinations, zip_longest

Shape = tuple[int, ...]


def shape_of_sum(a: Shape, b: Shape) -> Shape | None:
    pairs = list(zip_longest(reversed(a), reversed(b), fillvalue=1))
    if any(left != right and 1 not in (left, right) for left, right in pairs):
        return None
    return tuple(right if left == 1 else left for left, right in reversed(pairs))


def changes(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    for d in range(len(shape) + 1):
        yield f"{name}.unsqueeze({d})", (*shape[:d], 1, *shape[d:])
    for d, e in combinations(range(len(shape)), 2):
        exchanged = list(shape)
        exchanged[d], exchanged[e] = shape[e], shape[d]
        yield f"{name}.transpose({d}, {e})", tuple(exchanged)


def changes_that_fit(a: tuple[int, ...], b: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    if shape_of_sum(a, b) is not None:
        return {}
    sums = {change: shape_of_sum(changed, b) for change, changed in changes("a", a)}
    sums |= {change: shape_of_sum(a, changed) for change, changed in changes("b", b)}
    return {change: shape for change, shape in sums.items() if shape is not None}
