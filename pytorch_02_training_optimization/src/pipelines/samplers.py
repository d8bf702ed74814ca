"""Who is drawn: a weighted sampler and a stratified one, beside plain random order."""

import math
from collections.abc import Iterator, Sequence

from shared.datasets import ImageData
from shared.lesson import Lesson
from shared.units import percent

import torch
from torch.utils.data import Sampler, WeightedRandomSampler


class WeightedSampler(Sampler[int]):
    """`count` indices an epoch, with replacement, each with a probability in proportion to its weight.

    A random number falls on a line on which every sample has a piece as long as its weight; searchsorted finds whose.
    """

    def __init__(self, weights: torch.Tensor, count: int, generator: torch.Generator) -> None:
        self.weights, self.count, self.generator = weights, count, generator

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        ends = self.weights.double().cumsum(0)
        places = torch.rand(self.count, dtype=torch.float64, generator=self.generator) * ends[-1]
        # right=True: a piece does not own its end, so that a sample of weight 0 is never drawn.
        yield from torch.searchsorted(ends, places, right=True).tolist()


class StratifiedBatches(Sampler[list[int]]):
    """Batches in which every class has its share, as nearly as whole samples allow; each index once an epoch.

    The members of a class, in random order, are spread evenly over the epoch: number k of n stands at (k + 1/2) / n.
    """

    def __init__(self, labels: torch.Tensor, batch_size: int, generator: torch.Generator) -> None:
        self.labels, self.batch_size, self.generator = labels, batch_size, generator

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        places = torch.empty(len(self.labels), dtype=torch.float64)
        for label in self.labels.unique():
            members = (self.labels == label).nonzero().squeeze(1)
            order = torch.randperm(len(members), generator=self.generator)
            places[members[order]] = (torch.arange(len(members)) + 0.5).double() / len(members)
        for batch in places.argsort(stable=True).split(self.batch_size):
            yield batch.tolist()


def class_counts(batches: Sequence[Sequence[int]], labels: torch.Tensor) -> torch.Tensor:
    """How often each class is in each batch: (batches, classes)."""
    classes = int(labels.max()) + 1
    return torch.stack([labels[list(batch)].bincount(minlength=classes) for batch in batches])


def long_tail(labels: torch.Tensor, largest: int, ratio: float, generator: torch.Generator) -> torch.Tensor:
    """Indices of a subset in which class 0 has `largest` samples and each class fewer, down to `largest` / `ratio`."""
    classes = int(labels.max()) + 1
    chosen = []
    for label in range(classes):
        members = (labels == label).nonzero().squeeze(1)
        wanted = round(largest * ratio ** (-label / (classes - 1)))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:wanted]])
    return torch.cat(chosen)


def show_samplers(lesson: Lesson, letters: ImageData) -> None:
    batch_size = 32
    lesson.section(
        "Samplers: who is drawn",
        "A sampler is anything that can be iterated and gives indices; a batch sampler gives lists of them. Three rules "
        "for the same letters, of which A is 20 times as frequent as U: a random order, weights of one over the class "
        "size, and strata, where each batch has every class in proportion.",
    )
    generator = torch.Generator().manual_seed(lesson.options.seed)
    largest = len(letters.labels) // 11
    labels = letters.labels[long_tail(letters.labels, largest, 20, generator)]
    n, sizes = len(labels), labels.bincount()
    weights = 1 / sizes[labels].double()
    weighted = list(WeightedSampler(weights, n, generator))
    orders = {
        "random order": [batch.tolist() for batch in torch.randperm(n, generator=generator).split(batch_size)],
        "weighted": [weighted[start : start + batch_size] for start in range(0, n, batch_size)],
        "strata": list(StratifiedBatches(labels, batch_size, generator)),
    }
    whole = {name: class_counts(batches[: n // batch_size], labels) for name, batches in orders.items()}
    used = {name: len({index for batch in batches for index in batch}) for name, batches in orders.items()}
    lesson.table(
        [
            {"sampler": name, "A's in a batch": counts[:, 0].float().mean().item(),
             "spread": counts[:, 0].float().std().item(), "U's": counts[:, -1].float().mean().item(),
             "batches without U": percent((counts[:, -1] == 0).float().mean().item()),
             "samples used": f"{used[name]:,} of {n:,}"}
            for name, counts in whole.items()
        ]
    )  # fmt: skip
    draws = lesson.pick(full=200_000, quick=50_000)
    off = {}
    for name, sampler in {
        "ours": WeightedSampler(weights, draws, generator),
        "PyTorch's": WeightedRandomSampler(weights.tolist(), draws, generator=generator),
    }.items():
        drawn = labels[list(sampler)].bincount(minlength=10).double() / draws
        off[name] = (drawn - 0.1).abs().max().item() / math.sqrt(0.09 / draws)
    lesson.check("weights 1/size draw every class equally often", max(off.values()) < 5,
                 ", ".join(f"{name}: {value:.1f} standard errors off" for name, value in off.items()))  # fmt: skip
    unseen = 1 - len(set(WeightedSampler(torch.ones(draws), draws, generator))) / draws
    error = math.sqrt((math.exp(-1) - 2 * math.exp(-2)) / draws)
    lesson.check("with replacement, 1/e of the data is not seen in an epoch", abs(unseen - math.exp(-1)) < 5 * error,
                 f"equal weights: {percent(unseen)}, 1/e = {percent(math.exp(-1))}")  # fmt: skip
    lesson.check("random order and strata use each sample once", used["random order"] == used["strata"] == n,
                 f"{n:,} of {n:,}; weighted {used['weighted']:,}")  # fmt: skip
    spread = {name: counts.float().std(dim=0).mean().item() for name, counts in whole.items()}
    lesson.check("strata: batches hardly differ", spread["strata"] < 0.5 * spread["random order"],
                 f"spread of a class {spread['strata']:.2f}, random order {spread['random order']:.2f}")  # fmt: skip
    again = (len(weighted) * sizes[-1] * weights[-1] / weights.sum() / sizes[-1]).item()
    lesson.shows(
        f"the weighted epoch shows each of the {sizes[-1]} U's about {again:.1f} times, and {percent(1 - used['weighted'] / n)} "
        "of all samples not at all: it repeats the few and skips the many. Strata change no frequency, they only take "
        "the luck out of a batch. What weights do for the rare letters comes below, with numbers."
    )
