"""The oracle keeps free blocks by address, as the allocator does. Each rule has a case of its own, then come long runs."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from shared.practice import Wrong, expect
from shared.traps import expect_integer, shown
from shared.units import bytes_text

Event = tuple[str, int | None]

KIB, MIB = 2**10, 2**20
SEGMENT_GAP = 2**40  # no segment's addresses run into the next one's


class Allocator:
    """The six rules; the keywords are the mistakes of WRONG."""

    def __init__(
        self,
        rounds: bool = True,
        has_pools: bool = True,
        picks: Callable[..., Any] = min,
        splits: bool = True,
        keeps_scraps: bool = False,
        merges: bool = True,
        returns_segments: bool = False,
    ) -> None:
        self.rounds, self.has_pools, self.picks, self.splits = rounds, has_pools, picks, splits
        self.keeps_scraps, self.merges, self.returns_segments = keeps_scraps, merges, returns_segments
        self.free: dict[tuple[bool, int], int] = {}  # (is small, address): size
        self.held: dict[str, tuple[bool, int, int]] = {}
        self.segments: list[int] = []

    def take(self, name: str, requested: int) -> None:
        size = -(-requested // 512) * 512 if self.rounds else requested
        is_small = size <= MIB
        pool = is_small if self.has_pools else True
        fitting = [(room, address) for (where, address), room in self.free.items() if where == pool and room >= size]
        if fitting:
            room, address = self.picks(fitting)
            del self.free[pool, address]
        else:
            room = 2 * MIB if is_small else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
            address = len(self.segments) * SEGMENT_GAP
            self.segments.append(room)
        rest = room - size
        if self.splits and (rest >= 512 if is_small else rest > MIB or (self.keeps_scraps and rest > 0)):
            self.free[pool, address + size] = rest
            room = size
        self.held[name] = (pool, address, room)

    def give_back(self, name: str) -> None:
        pool, address, size = self.held.pop(name)
        if self.merges:
            size += self.free.pop((pool, address + size), 0)
            before = [at for (where, at), room in self.free.items() if where == pool and at + room == address]
            for start in before:
                size += self.free.pop((pool, start))
                address = start
        self.free[pool, address] = size
        segment, inside = divmod(address, SEGMENT_GAP)
        if self.returns_segments and inside == 0 and size == self.segments[segment]:
            del self.free[pool, address]
            self.segments[segment] = 0

    def replay(self, events: Sequence[Event]) -> tuple[int, int]:
        for name, size in events:
            if size is None:
                self.give_back(name)
            else:
                self.take(name, size)
        return sum(size for _, _, size in self.held.values()), sum(self.segments)


FIVE: list[Event] = [(name, 4 * MIB) for name in "abcde"]  # they fill a segment of 20 MiB
CASES: list[tuple[str, list[Event]]] = [
    ("100 bytes take 512", [("a", 100)]),
    ("513 bytes take 1,024", [("a", 513)]),
    ("1 MiB is still small", [("a", MIB)]),
    ("one byte more than 1 MiB is large, and reserves 20 MiB", [("a", MIB + 1)]),
    ("one byte more than 1 MiB minus 512 becomes 1 MiB, which is small", [("a", MIB - 511)]),
    ("just below 10 MiB a segment has 20 MiB", [("a", 10 * MIB - 512)]),
    ("from 10 MiB on a segment has a multiple of 2 MiB", [("a", 10 * MIB)]),
    ("one byte more than 10 MiB reserves 12 MiB and leaves the rest free", [("a", 10 * MIB + 1)]),
    ("of a large block, a rest of 1 MiB or less is not cut off (rule 4)", [("a", 11 * MIB + 1)]),
    ("a rest of exactly 1 MiB is not cut off either", [("a", 11 * MIB)]),
    (
        "of a small block, a rest of 512 bytes is cut off, and serves a request",
        [("a", MIB), ("b", MIB - 512), ("c", 9)],
    ),
    ("two large requests share 20 MiB", [("a", 9 * MIB), ("b", 9 * MIB)]),
    ("small and large requests never share a segment", [("a", 3 * MIB), ("b", 3 * KIB)]),
    ("what is given back stays reserved", [("a", 64 * MIB), ("a", None)]),
    ("what is given back serves the next request", [("a", 64 * MIB), ("a", None), ("b", 40 * MIB), ("c", 24 * MIB)]),
    (
        "the smallest block that fits is taken: c fits into b's old place, which leaves a's for d",
        [("a", 40 * MIB), ("b", 30 * MIB), ("a", None), ("b", None), ("c", 30 * MIB), ("d", 40 * MIB)],
    ),
    (
        "a given-back block becomes one with the free block behind it and before it",
        [("a", 6 * MIB), ("b", 6 * MIB), ("c", 8 * MIB), ("a", None), ("c", None), ("b", None), ("d", 20 * MIB)],
    ),
    (
        "12 MiB are free and 9 do not fit, because b and d lie between the free blocks",
        [*FIVE, ("a", None), ("c", None), ("e", None), ("f", 9 * MIB)],
    ),
    (
        "blocks of two segments never become one",
        [("a", 10 * MIB), ("b", 10 * MIB), ("a", None), ("b", None), ("c", 20 * MIB)],
    ),
    (
        "of equal blocks the first is taken, so d stays free and becomes one with e",
        [*FIVE, ("a", None), ("d", None), ("f", 4 * MIB), ("e", None), ("g", 8 * MIB)],
    ),
    (
        "of equal blocks the one in the oldest segment is taken, so c stays free and becomes one with d",
        [
            *(("a", 10 * MIB), ("b", 20 * MIB), ("b", None), ("c", 10 * MIB), ("d", 10 * MIB)),
            *(("a", None), ("c", None), ("e", 10 * MIB), ("d", None), ("f", 20 * MIB)),
        ],
    ),
    ("nothing happened", []),
]


def random_events(draw: random.Random, count: int) -> list[Event]:
    """A program that holds about ten tensors at a time, most of sizes that come again."""
    sizes = [
        draw.choice([512, KIB, 100 * KIB, MIB, 3 * MIB, 7 * MIB, 12 * MIB]) + draw.randint(-512, 512) for _ in range(9)
    ]
    events: list[Event] = []
    held: list[str] = []
    for number in range(count):
        if held and draw.random() < len(held) / 20:
            events.append((held.pop(draw.randrange(len(held))), None))
        else:
            held.append(f"t{number}")
            events.append((held[-1], max(1, draw.choice(sizes))))
    return events


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    for reason, events in CASES:
        expect_replayed(answer, events, reason)
    for _ in range(8):
        events = random_events(draw, 60)
        for count in range(1, len(events) + 1):
            if not is_right(answer, events[:count]):
                expect_replayed(answer, without_what_is_not_needed(answer, events[:count]), "found by random events")


def expect_replayed(answer: Any, events: list[Event], reason: str) -> None:
    call = f"replay({written(events)})"
    found, right = answer.replay(list(events)), Allocator().replay(events)
    is_pair = isinstance(found, tuple | list) and len(found) == 2
    expect(is_pair, f"{call} returned {shown(found)}; return (bytes allocated, bytes reserved)")
    for value, wanted, name in zip(found, right, ("allocated", "reserved"), strict=True):
        expect_integer(value, f"{call}: for the bytes {name} it", "a whole number")
        expect(value == wanted, f"{call}: {in_bytes(value)} {name}, and it should be {in_bytes(wanted)}: {reason}")


def is_right(answer: Any, events: list[Event]) -> bool:
    try:
        expect_replayed(answer, events, "")
    except Wrong:
        return False
    return True


def without_what_is_not_needed(answer: Any, events: list[Event]) -> list[Event]:
    """The events that are answered wrongly still when each name that plays no part in it is left out."""
    for name in dict(events):
        fewer = [event for event in events if event[0] != name]
        if not is_right(answer, fewer):
            events = fewer
    return events


def written(events: Sequence[Event]) -> str:
    """The events as Python, with sizes as people write them."""
    return "[" + ", ".join(f'("{name}", {size_written(size)})' for name, size in events) + "]"


def size_written(size: int | None) -> str:
    whole = round((size or 0) / MIB)
    rest = (size or 0) - whole * MIB
    if whole == 0 or abs(rest) > 512:
        return str(size)
    return f"{whole} * 2**20" + (f" {'-+'[rest > 0]} {abs(rest)}" if rest else "")


def in_bytes(count: int) -> str:
    return f"{count:,} bytes ({bytes_text(count)})" if count >= KIB else f"{count:,} bytes"


def mistaken(**mistake: Any) -> dict[str, object]:
    def replay(events: Sequence[Event]) -> tuple[int, int]:
        return Allocator(**mistake).replay(events)

    return {"replay": replay}


def counts_requests(events: Sequence[Event]) -> tuple[int, int]:
    """Reserved is what was allocated at the peak."""
    held: dict[str, int] = {}
    peak = 0
    for name, size in events:
        held[name] = -(-(size or 0) // 512) * 512
        peak = max(peak, sum(held.values()))
    return sum(held.values()), peak


WRONG = {
    "takes the peak for what is reserved": (
        {"replay": counts_requests},
        "512 bytes reserved, and it should be 2,097,152 bytes",
    ),
    "counts the bytes asked for": (mistaken(rounds=False), "100 bytes take 512"),
    "knows one pool": (mistaken(has_pools=False), "small and large requests never share"),
    "cuts off every rest": (mistaken(keeps_scraps=True), "a rest of 1 MiB or less is not cut off"),
    "hands out whole segments": (mistaken(splits=False), "should be 512 bytes"),
    "takes the largest free block": (mistaken(picks=max), "the smallest block that fits"),
    "never merges": (mistaken(merges=False), "becomes one with the free block"),
    "gives segments back": (mistaken(returns_segments=True), "stays reserved"),
}
