"""Each line is run with the samplers and loaders of torch.utils.data; nothing of it needs a second process."""

from functools import cache
from typing import Any

from shared.practice import expect
from shared.traps import expect_integer, expect_predictions

import torch
from torch.utils.data import DataLoader, DistributedSampler

RANKS, BATCH_SIZE = 8, 32
LENGTH = "len(sampler(7))"
DEALT = "len(dealt())"
DIFFERENT = "len(set(dealt()))"
DROPPED = "len(set(dealt(drop_last=True)))"
STEPS = "len(loader(0))"
LAST_BATCH = "len(list(loader(0))[-1])"
LOADERS_DROP = "sum(len(batch) for rank in range(8) for batch in loader(rank, drop_last=True))"
SECOND = "list(sampler(3, shuffle=False))[1]"
LAST = "list(sampler(7, shuffle=False))[-1]"
SEEN = "len(set(seen(0, epochs=10)))"
WITHOUT = "len({index for rank in range(8) for index in first_step(rank)})"
LINES = (LENGTH, DEALT, DIFFERENT, DROPPED, STEPS, LAST_BATCH, LOADERS_DROP, SECOND, LAST, SEEN, WITHOUT)

data: Any = range(1001)


def sampler(rank: int, **options: Any) -> DistributedSampler[int]:
    return DistributedSampler(data, num_replicas=RANKS, rank=rank, **options)


def dealt(**options: Any) -> list[int]:
    return [index for rank in range(RANKS) for index in sampler(rank, **options)]


def loader(rank: int, **options: Any) -> DataLoader[int]:
    return DataLoader(data, batch_size=BATCH_SIZE, sampler=sampler(rank), **options)


def seen(rank: int, epochs: int) -> list[int]:
    one = sampler(rank)
    return [index for _ in range(epochs) for index in one]


def first_step(rank: int) -> list[int]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch: list[int] = next(iter(DataLoader(data, batch_size=BATCH_SIZE, shuffle=True))).tolist()
    return batch


NAMES = {"sampler": sampler, "dealt": dealt, "loader": loader, "seen": seen, "first_step": first_step}


@cache
def count_of(line: str) -> int:
    return int(eval(line, dict(NAMES)))


def check(answer: Any, seed: int) -> None:
    predictions = answer.COUNTS
    expect_predictions(predictions, "COUNTS", LINES, "a whole number")
    for line, prediction in predictions.items():
        expect_integer(prediction, f"COUNTS[{line!r}]", "a whole number")
    missed = [line for line in LINES if predictions[line] != count_of(line)]
    if missed:
        how_many = f"{len(missed)} of {len(LINES)} predictions"
        expect(False, f"{how_many} did not come true; the first: `{missed[0]}` is {count_of(missed[0])}. Why?")


RIGHT = {line: count_of(line) for line in LINES}


def predict(changes: dict[str, int]) -> dict[str, object]:
    return {"COUNTS": RIGHT | changes}


WRONG = {
    "divides without a rest": (predict({LENGTH: 125, DEALT: 1000}), "`len(sampler(7))` is 126"),
    "gives the last ranks fewer": (predict({LENGTH: 125, DEALT: 1001}), "2 of 11 predictions"),
    "takes batch_size for that of all ranks": (
        predict({STEPS: 32, LAST_BATCH: 1}),
        "the first: `len(loader(0))` is 4",
    ),
    "lets the loader drop one batch": (predict({LOADERS_DROP: 992}), "loader(rank, drop_last=True))` is 768"),
    "pads with the last sample": (predict({LAST: 1000}), "`list(sampler(7, shuffle=False))[-1]` is 6"),
    "deals in blocks": (predict({SECOND: 379}), "`list(sampler(3, shuffle=False))[1]` is 11"),
    "takes each epoch for another shuffle": (predict({SEEN: 739}), "`len(set(seen(0, epochs=10)))` is 126"),
    "takes the ranks for different": (predict({WITHOUT: 227}), "first_step(rank)})` is 32"),
}
