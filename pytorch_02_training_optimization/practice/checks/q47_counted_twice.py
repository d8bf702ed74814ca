"""The ranks run one after another; one that needs a sum it cannot have yet is stopped, and started again with it.

Image number i holds i, so that the model knows which images it was shown, and how often.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from shared.practice import expect
from shared.traps import expect_number, shown

import torch
from torch.utils.data import DistributedSampler

AllReduce = Callable[[torch.Tensor], torch.Tensor]
CLASSES, MOST_SUMS = 4, 2


class Reader:
    """Gives the logits of each image, from a table, and notes which it has seen."""

    def __init__(self, table: torch.Tensor, batch_size: int, call: str) -> None:
        self.table, self.batch_size, self.call = table, batch_size, call
        self.seen: list[int] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        expect(
            isinstance(images, torch.Tensor) and images.ndim == 4,
            f"{self.call}: the model was given {shown(images)}; give it a batch of images",
        )
        expect(
            len(images) <= self.batch_size,
            f"{self.call}: the model was given {len(images)} images at once, and batch_size is {self.batch_size}",
        )
        numbers = images[:, 0, 0, 0].long()
        self.seen += numbers.tolist()
        return self.table[numbers]


class Waits(BaseException):
    """Stops a rank at an all_reduce whose sum is not known yet."""


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = [
        (8, 4, 1),
        (5, 2, 1),
        (5, 2, 2),
        (12, 2, 4),
        (10, 3, 4),
        (3, 2, 5),
        (2, 4, 8),
        (1, 1, 3),
        (29, 3, 4),
        (40, 7, 3),
    ]
    for count, batch_size, ranks in sizes:
        images = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).float()
        labels = torch.randint(CLASSES, (count,), generator=generator)
        table = torch.rand(count, CLASSES, generator=generator)
        table[torch.arange(count), labels] += (torch.arange(count) % 3 > 0) * 2.0 - 1  # two of three are read right
        call = f"evaluate, {count} image{'s' * (count > 1)}, {ranks} rank{'s' * (ranks > 1)}, batch_size {batch_size}"
        expect_evaluated(answer, images, labels, table, batch_size, ranks, call)


def expect_evaluated(
    answer: Any, images: torch.Tensor, labels: torch.Tensor, table: torch.Tensor, batch_size: int, ranks: int, call: str
) -> None:
    readers, results = run_ranks(answer, images, labels, table, batch_size, ranks, call)
    times = Counter(number for reader in readers for number in reader.seen)
    most = math.ceil(len(labels) / ranks)
    for number in range(len(labels)):
        expect(
            times[number] == 1,
            f"{call}: image {number} was read {times[number]} times; wanted is once, by one rank",
        )
    for rank, reader in enumerate(readers):
        expect(
            len(reader.seen) <= most, f"{call}: rank {rank} reads {len(reader.seen)} images, and {most} are its share"
        )
    right = (table.argmax(dim=1) == labels).double().mean().item()
    for rank, result in enumerate(results):
        expect_number(result, f"{call}: rank {rank}", "the share that is read right, a float")
        is_right = math.isclose(result, right, rel_tol=1e-6, abs_tol=1e-9)
        expect(is_right, f"{call}: every image was read once, and rank {rank} returned {result:.4f} in place of {right:.4f}; "
               "what weighs as much as what?")  # fmt: skip


def run_ranks(
    answer: Any, images: torch.Tensor, labels: torch.Tensor, table: torch.Tensor, batch_size: int, ranks: int, call: str
) -> tuple[list[Reader], list[float]]:
    """What each rank read and returned; each time that all ask for a sum, they start again and find it there."""
    sums: list[torch.Tensor] = []
    while True:
        readers, results, given = [], list[float](), list[torch.Tensor]()
        for rank in range(ranks):
            readers.append(Reader(table, batch_size, f"{call}, rank {rank}"))
            all_reduce = summing(sums, given, call)
            with suppress(Waits):
                results.append(
                    answer.evaluate(readers[-1], images.clone(), labels.clone(), batch_size, rank, ranks, all_reduce)
                )
        if not given:
            return readers, results
        expect(
            len(given) == ranks,
            f"{call}: {len(given)} of {ranks} ranks call all_reduce once more than the others, and wait for ever; each must "
            "call it as often as every other, however many images it has",
        )
        expect(len(sums) < MOST_SUMS, f"{call}: all_reduce was called more than twice; keep it out of the loop")
        shapes = {x.shape for x in given}
        expect(len(shapes) == 1, f"{call}: the ranks gave all_reduce tensors of different shapes: {shapes}")
        sums.append(torch.stack(given).sum(0))


def summing(sums: Sequence[torch.Tensor], given: list[torch.Tensor], call: str) -> AllReduce:
    """An all_reduce for one rank: knows `sums` already, and writes the next one's part into `given`."""
    known = iter(sums)

    def all_reduce(x: torch.Tensor) -> torch.Tensor:
        expect(isinstance(x, torch.Tensor), f"{call}: all_reduce was given {shown(x)}; give it a tensor")
        for found in known:
            return found.clone()
        given.append(x.clone())
        raise Waits

    return all_reduce


def share(labels: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    return torch.arange(len(labels))[rank::ranks]


def padded(images: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    numbers: Any = range(len(images))
    return torch.tensor(list(DistributedSampler(numbers, ranks, rank, shuffle=False)))


def counted(
    model: Any, images: torch.Tensor, labels: torch.Tensor, mine: torch.Tensor, batch_size: int
) -> torch.Tensor:
    batches = [batch for batch in mine.split(batch_size) if len(batch)]
    right = sum(int((model(images[batch]).argmax(1) == labels[batch]).sum()) for batch in batches)
    return torch.tensor([right, len(mine)], dtype=torch.float64)


def sums_over_padded(
    model: Any, images: Any, labels: Any, batch_size: int, rank: int, ranks: int, all_reduce: AllReduce
) -> float:
    right, count = all_reduce(counted(model, images, labels, padded(images, rank, ranks), batch_size)).tolist()
    return float(right / count)


def drops_the_rest(
    model: Any, images: Any, labels: Any, batch_size: int, rank: int, ranks: int, all_reduce: AllReduce
) -> float:
    mine = share(labels[: len(labels) // ranks * ranks], rank, ranks)
    right, count = all_reduce(counted(model, images, labels, mine, batch_size)).tolist()
    return float(right / max(count, 1))


def averages_the_ranks(
    model: Any, images: Any, labels: Any, batch_size: int, rank: int, ranks: int, all_reduce: AllReduce
) -> float:
    right, count = counted(model, images, labels, share(labels, rank, ranks), batch_size).tolist()
    return all_reduce(torch.tensor(right / max(count, 1))).item() / ranks


def averages_the_batches(
    model: Any, images: Any, labels: Any, batch_size: int, rank: int, ranks: int, all_reduce: AllReduce
) -> float:
    batches = [batch for batch in share(labels, rank, ranks).split(batch_size) if len(batch)]
    shares = [counted(model, images, labels, batch, batch_size) for batch in batches]
    sums = torch.tensor([sum(float(right / count) for right, count in shares), len(batches)])
    total, count = all_reduce(sums).tolist()
    return float(total / count)


def asks_for_each_batch(
    model: Any, images: Any, labels: Any, batch_size: int, rank: int, ranks: int, all_reduce: AllReduce
) -> float:
    total = torch.zeros(2, dtype=torch.float64)
    for batch in share(labels, rank, ranks).split(batch_size):
        total += all_reduce(counted(model, images, labels, batch, batch_size))
    return float(total[0] / total[1])


def leaves_when_it_has_nothing(
    model: Any, images: Any, labels: Any, batch_size: int, rank: int, ranks: int, all_reduce: AllReduce
) -> float:
    mine = share(labels, rank, ranks)
    if len(mine) == 0:
        return 0.0
    right, count = all_reduce(counted(model, images, labels, mine, batch_size)).tolist()
    return float(right / count)


def reads_everything_everywhere(
    model: Any, images: Any, labels: Any, batch_size: int, rank: int, ranks: int, all_reduce: AllReduce
) -> float:
    right, count = counted(model, images, labels, torch.arange(len(labels)), batch_size).tolist()
    return float(right / count)


def returns_its_own_share(
    model: Any, images: Any, labels: Any, batch_size: int, rank: int, ranks: int, all_reduce: AllReduce
) -> float:
    right, count = counted(model, images, labels, share(labels, rank, ranks), batch_size).tolist()
    return float(right / max(count, 1))


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "sums over padded samples": ({"evaluate": sums_over_padded}, "image 0 was read 2 times"),
    "drops the rest": ({"evaluate": drops_the_rest}, "image 4 was read 0 times"),
    "averages the ranks": ({"evaluate": averages_the_ranks}, "what weighs as much as what"),
    "averages the batches": (
        {"evaluate": averages_the_batches},
        "5 images, 1 rank, batch_size 2: every image was read once",
    ),
    "asks for a sum for each batch": ({"evaluate": asks_for_each_batch}, "all_reduce was called more than twice"),
    "leaves when it has nothing to read": ({"evaluate": leaves_when_it_has_nothing}, "wait for ever"),
    "reads everything in every rank": ({"evaluate": reads_everything_everywhere}, "was read 2 times"),
    "returns its own share": ({"evaluate": returns_its_own_share}, "what weighs as much as what"),
}
