"""Against a count of the nanoseconds themselves: each belongs to the innermost span that runs in it."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from shared.practice import expect
from shared.traps import expect_integer, shown

Spans = list[tuple[str, int, int, int]]

# Each rule once, by what is special about it.
CASES: dict[str, Spans] = {
    "the example": [("step", 0, 0, 100), ("forward", 0, 10, 60), ("mm", 0, 20, 50)],
    "no spans": [],
    "two beside each other, touching": [("step", 0, 0, 100), ("a", 0, 10, 40), ("b", 0, 40, 70)],
    "the inner ones listed first": [("mm", 0, 20, 50), ("forward", 0, 10, 60), ("step", 0, 0, 100)],
    "two threads at the same time": [("forward", 0, 0, 100), ("backward", 1, 10, 60), ("mm", 1, 20, 50)],
    "two that begin together, the shorter listed first": [("mm", 0, 0, 60), ("linear", 0, 0, 100)],
    "two that end together": [("mm", 0, 30, 100), ("linear", 0, 0, 100)],
    "two that begin and end together": [("linear", 0, 0, 80), ("mm", 0, 0, 80)],
    "a name inside itself": [("add", 0, 0, 50), ("add", 0, 10, 30), ("add", 0, 60, 70)],
    "one after the other, in none": [("a", 0, 0, 10), ("b", 0, 10, 30), ("a", 0, 50, 60)],
}


def by_nanosecond(spans: Spans) -> dict[str, int]:
    own = dict.fromkeys((name for name, *_ in spans), 0)
    for thread in {span[1] for span in spans}:
        here = sorted((span for span in spans if span[1] == thread), key=lambda span: (span[2], -span[3]))
        for moment in range(max(span[3] for span in here)):
            inside = [name for name, _, start, end in here if start <= moment < end]
            if inside:
                own[inside[-1]] += 1
    return own


def make(generator: random.Random) -> Spans:
    """A trace of two threads, five deep, with names that come again, in random order; no two spans are alike."""
    spans: dict[tuple[int, int, int], str] = {}

    def grow(thread: int, start: int, end: int, depth: int) -> None:
        at = start
        while at < end - 1 and depth < 5:
            left = generator.choice([at, generator.randint(at, end - 1)])
            right = generator.choice([end, generator.randint(left + 1, end)])
            spans.setdefault((thread, left, right), generator.choice("abcdef"))
            grow(thread, left, right, depth + 1)
            at = right

    for thread in (3, 8):
        grow(thread, 0, 120, 0)
    made = [(name, *place) for place, name in spans.items()]
    generator.shuffle(made)
    return made


def check(answer: Any, seed: int) -> None:
    for case, spans in CASES.items():
        expect_right(answer, spans, f"self_times({spans}), {case},")
    generator = random.Random(seed)
    for _ in range(5):
        spans = make(generator)
        expect_right(answer, spans, f"self_times of {len(spans)} spans in two threads and in random order")


def expect_right(answer: Any, spans: Spans, call: str) -> None:
    given = list(spans)
    found = answer.self_times(given)
    expect(isinstance(found, dict), f"{call} returned {shown(found)}; return a dict of name and nanoseconds")
    expect(given == spans, f"{call} changed the list that it was given; sort a copy")
    right = by_nanosecond(spans)
    expect(
        found.keys() == right.keys(),
        f"{call} returned the names {sorted(map(str, found))} and should return {sorted(right)}",
    )
    for name in right:
        expect_integer(found[name], f"{call}[{name!r}]", "an int")
    added, total = sum(found.values()), sum(right.values())
    for name, wanted in right.items():
        expect(
            found[name] == wanted,
            f"{call} gives {name!r} {found[name]} ns and should give it {wanted}; the spans cover {total} ns, and your times "
            f"add up to {added}",
        )


def written(key: Callable[[Any], Any], touches: bool = False, threads: bool = True, all_around: bool = False,
            keeps: bool = False) -> dict[str, object]:  # fmt: skip
    """An answer with a stack, with the mistake that the arguments ask for."""

    def self_times(spans: Sequence[tuple[str, int, int, int]]) -> dict[str, int]:
        own: dict[str, int] = {}
        around: list[tuple[str, int, int]] = []
        for name, thread, start, end in sorted(spans, key=key):
            while around and ((threads and around[-1][1] != thread) or
                              (around[-1][2] < start if touches else around[-1][2] <= start)):  # fmt: skip
                around.pop()
            own[name] = own.get(name, 0) + end - start
            if not keeps:
                for outer in around if all_around else around[-1:]:
                    own[outer[0]] -= end - start
            around.append((name, thread, end))
        return own

    return {"self_times": self_times}


def in_order(span: tuple[str, int, int, int]) -> tuple[int, ...]:
    return span[1], span[2], -span[3]


def sorts_in_place(spans: Spans) -> dict[str, int]:
    spans.sort(key=in_order)
    return by_nanosecond(spans)


WRONG = {
    "adds up totals": (written(in_order, keeps=True), "add up to 180"),
    "takes from all around": (written(in_order, all_around=True), "gives 'step' 20 ns and should give it 50"),
    "takes a neighbour for a child": (written(in_order, touches=True), "touching"),
    "trusts the order of the list": (written(lambda span: 0), "the inner ones listed first"),
    "mixes the threads": (written(in_order, threads=False), "two threads at the same time"),
    "sorts by begin alone": (written(lambda span: span[1:3]), "the shorter listed first"),
    "sorts the list itself": ({"self_times": sorts_in_place}, "sort a copy"),
}
