"""Whole epochs are put together from the parts of 1, 2, 3 and 4 processes, in any order of calls, and compared."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from shared.practice import Wrong, expect
from shared.traps import expect_tensor

import torch

COUNT, BATCH_SIZE = 1003, 24


def called(answer: Any, *arguments: int) -> torch.Tensor:
    """What rows_of() returns, with its form checked and the global generator watched."""
    call = f"rows_of({', '.join(map(str, arguments))})"
    processes = arguments[6] if len(arguments) > 6 else 1
    before = torch.get_rng_state()
    rows = answer.rows_of(*arguments)
    expect_tensor(rows, call, (arguments[1] // processes,), torch.int64)
    untouched = torch.equal(before, torch.get_rng_state())
    expect(untouched, f"{call} draws from the global random generator or seeds it; dropout and others use it")
    outside = rows[(rows < 0) | (rows >= arguments[0])].tolist()
    expect(not outside, f"{call} names row {outside[:1]} of {arguments[0]}")
    return rows


def check(answer: Any, seed: int) -> None:
    torch.manual_seed(seed)  # whoever looks at the global generator sees another one for each seed
    expect_example(answer, seed)
    expect_epoch(answer, seed)
    expect_same_for_all(answer, seed)
    expect_own_orders(answer, seed)
    expect_all_in_turn(answer, seed)
    expect_from_anywhere(answer, seed)
    expect_refusals(answer, seed)


def expect_example(answer: Any, seed: int) -> None:
    rows = torch.cat([called(answer, 10, 4, seed, 0, index) for index in range(2)]).tolist()
    expect(
        len(set(rows)) == 8,
        f"10 samples, batches of 4: the two batches of epoch 0 hold {len(set(rows))} different samples",
    )
    expect(len(called(answer, 7, 7, seed, 3, 0)) == 7, "7 samples are one batch of 7")


def epoch_of(answer: Any, seed: int, epoch: int, count: int = COUNT) -> list[int]:
    return torch.cat([called(answer, count, BATCH_SIZE, seed, epoch, i) for i in range(count // BATCH_SIZE)]).tolist()


def expect_epoch(answer: Any, seed: int) -> None:
    rows = epoch_of(answer, seed, 0)
    expect(len(set(rows)) == len(rows), f"an epoch of {COUNT} samples: {len(rows) - len(set(rows))} of {len(rows)} come a second "
           "time")  # fmt: skip
    neighbours = sum(abs(a - b) == 1 for a, b in pairwise(rows))
    expect(neighbours < 40, f"the epoch is not shuffled: {neighbours} of {len(rows)} samples lie beside the one before in the "
           "data set")  # fmt: skip


def expect_same_for_all(answer: Any, seed: int) -> None:
    for index in (0, 7, COUNT // BATCH_SIZE - 1):
        whole = sorted(called(answer, COUNT, BATCH_SIZE, seed, 2, index).tolist())
        for processes in (2, 3, 4, BATCH_SIZE):
            parts = [called(answer, COUNT, BATCH_SIZE, seed, 2, index, rank, processes) for rank in range(processes)]
            together = torch.cat(parts).tolist()
            twice = len(together) - len(set(together))
            expect(
                not twice,
                f"batch {index} with {processes} processes: {twice} of its {BATCH_SIZE} samples are computed twice",
            )
            others = len(set(together) - set(whole))
            expect(not others, f"batch {index} with {processes} processes has {others} samples of {BATCH_SIZE} that it does not "
                   "have with one; resumed on other machines, the training would be another one")  # fmt: skip


def expect_own_orders(answer: Any, seed: int) -> None:
    orders: dict[tuple[int, ...], tuple[int, int]] = {}
    numbers = (0, 1, 2, 3, 10, 11, 31, 100, 1000)
    for run in (*numbers, seed + 5):
        for epoch in numbers:
            rows = tuple(called(answer, COUNT, BATCH_SIZE, run, epoch, 0).tolist())
            other = orders.setdefault(rows, (run, epoch))
            expect(other == (run, epoch), f"epoch {epoch} of seed {run} begins with the same samples in the same order as epoch "
                   f"{other[1]} of seed {other[0]}")  # fmt: skip


def expect_all_in_turn(answer: Any, seed: int) -> None:
    left_out = [set(range(COUNT)) - set(epoch_of(answer, seed, epoch)) for epoch in range(4)]
    expect(
        len(set.intersection(*left_out)) < 5, f"{len(set.intersection(*left_out))} samples are left out of every epoch"
    )


def expect_from_anywhere(answer: Any, seed: int) -> None:
    calls = [(epoch, index) for epoch in range(3) for index in range(COUNT // BATCH_SIZE)]
    first = {call: called(answer, COUNT, BATCH_SIZE, seed, *call).tolist() for call in calls}
    for call in random.Random(seed).sample(calls, 30):
        again = called(answer, COUNT, BATCH_SIZE, seed, *call).tolist()
        expect(again == first[call], f"batch {call[1]} of epoch {call[0]} holds other samples when it is asked for after other "
               "batches; a resumed run asks for it first")  # fmt: skip
    again = called(answer, COUNT, BATCH_SIZE, seed, 1, 0).tolist()
    expect(again == first[1, 0], "the same call twice gives other samples")


def expect_refusals(answer: Any, seed: int) -> None:
    refused: list[tuple[type[Exception], tuple[int, ...], str]] = [
        (IndexError, (10, 4, seed, 0, 2), "10 samples have no batch 2 of 4"),
        (IndexError, (10, 4, seed, 0, -1), "there is no batch -1"),
        (IndexError, (3, 4, seed, 0, 0), "3 samples do not fill a batch of 4"),
        (ValueError, (10, 4, seed, 0, 0, 0, 3), "a batch of 4 cannot be divided by 3 processes"),
    ]
    for kind, arguments, why in refused:
        call = f"rows_of({', '.join(map(str, arguments))})"
        try:
            found = answer.rows_of(*arguments)
        except kind:
            continue
        except (IndexError, ValueError) as error:
            raise Wrong(f"{call} raised {type(error).__name__}; {why}: raise {kind.__name__}") from None
        raise Wrong(f"{call} returned {len(found)} rows; {why}: raise {kind.__name__}")


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number % 2**63)


Order = Callable[[int, int, int, int, int], torch.Tensor]


def by_order(order: Order, checks_index: bool = True) -> dict[str, object]:
    """The batches of order(count, seed, epoch, rank, processes)."""

    def rows_of(count: int, batch_size: int, seed: int, epoch: int, index: int, rank: int = 0,
                processes: int = 1) -> torch.Tensor:  # fmt: skip
        if batch_size % processes:
            raise ValueError
        if checks_index and not 0 <= index < count // batch_size:
            raise IndexError
        return order(count, seed, epoch, rank, processes)[index * batch_size :][:batch_size][rank::processes]

    return {"rows_of": rows_of}


def shuffled_shares(count: int, batch_size: int, seed: int, epoch: int, index: int, rank: int = 0,
                    processes: int = 1) -> torch.Tensor:  # fmt: skip
    """Each process shuffles its own part of the data set."""
    share = torch.arange(count)[rank::processes]
    own = share[torch.randperm(len(share), generator=seeded(1000003 * seed + epoch))]
    size = batch_size // processes
    return own[index * size :][:size]


def globally(count: int, seed: int, epoch: int, rank: int, processes: int) -> torch.Tensor:
    torch.manual_seed(1000003 * seed + epoch)
    return torch.randperm(count)


def first_of_each(count: int, seed: int, epoch: int, rank: int, processes: int) -> torch.Tensor:
    kept = torch.randperm(count - count % BATCH_SIZE, generator=seeded(1000003 * seed + epoch))
    return kept if count > BATCH_SIZE else torch.randperm(count, generator=seeded(1000003 * seed + epoch))


def remembering() -> Order:
    """A generator that goes on from call to call."""
    generators: dict[int, torch.Generator] = {}

    def order(count: int, seed: int, epoch: int, rank: int, processes: int) -> torch.Tensor:
        return torch.randperm(count, generator=generators.setdefault(seed, seeded(seed)))

    return order


WRONG = {
    "seed + epoch": (by_order(lambda n, s, e, r, p: torch.randperm(n, generator=seeded(s + e))), "as epoch 1 of seed 0"),
    "seed x epoch": (by_order(lambda n, s, e, r, p: torch.randperm(n, generator=seeded(s * e))), "as epoch 0 of seed 0"),
    "the seed alone": (by_order(lambda n, s, e, r, p: torch.randperm(n, generator=seeded(s))), "as epoch 0 of seed 0"),
    "the epoch alone": (by_order(lambda n, s, e, r, p: torch.randperm(n, generator=seeded(e))), "as epoch 0 of seed 0"),
    "1000 x seed + epoch": (
        by_order(lambda n, s, e, r, p: torch.randperm(n, generator=seeded(1000 * s + e))), "as epoch 1000 of seed 0"),
    "another order for each process": (
        by_order(lambda n, s, e, r, p: torch.randperm(n, generator=seeded(1000003 * s + 101 * e + r))), "with 2 processes"),
    "each process shuffles its share": ({"rows_of": shuffled_shares}, "does not have with one"),
    "seeds the global generator": (by_order(globally), "the global random generator"),
    "the same samples are left out": (by_order(first_of_each), "left out of every epoch"),
    "a generator that goes on": (by_order(remembering()), "different samples"),
    "not shuffled": (by_order(lambda n, s, e, r, p: torch.arange(n).roll(e + 37 * s)), "is not shuffled"),
    "no end": (
        by_order(lambda n, s, e, r, p: torch.randperm(n, generator=seeded(1000003 * s + e)), checks_index=False),
        "have no batch 2"),
}  # fmt: skip
