"""How do samples become batches, which samples are they, and how fast can they come?

A model sees nothing of the world but its batches. You will rebuild the DataLoader in fifteen lines, fetch a batch in
one call, meet samples that come twice and samples of unequal length, choose who is drawn and what rare classes need,
catch a split that leaks, read a file that does not fit into memory, watch workers copy random numbers, die and run out
of files, and measure images per second for every setting of this machine: the best DataLoader line is printed to copy.
The chapters are in pipelines/.

    python src/data_pipelines.py            about 40 seconds
    python src/data_pipelines.py --quick    the same path with tiny sizes, a few seconds
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.pipelines.imbalance import show_rare_classes
from pytorch_02_training_optimization.src.pipelines.leaks import show_leaks
from pytorch_02_training_optimization.src.pipelines.lengths import show_buckets, show_padding
from pytorch_02_training_optimization.src.pipelines.limits import show_deaths, show_limits
from pytorch_02_training_optimization.src.pipelines.mapped import show_maps, show_reading_order
from pytorch_02_training_optimization.src.pipelines.samplers import show_samplers
from pytorch_02_training_optimization.src.pipelines.sets import (
    Letters,
    LettersByBatch,
    LettersByIndices,
    as_it_is,
    load_all,
    make_loader,
)
from pytorch_02_training_optimization.src.pipelines.throughput import show_handing_over, show_settings
from pytorch_02_training_optimization.src.pipelines.workers import show_randomness, show_workers
from shared.datasets import ImageData, load_images
from shared.hardware import memory_bandwidth
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.timing import measure
from shared.traps import operations
from shared.units import percent, significant

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    get_worker_info,
)

CPU = torch.device("cpu")  # where data sets and loaders work, whatever the model's device


# From samples to batches


def own_collate(samples: Sequence[Any]) -> Any:
    """A list of samples as one sample of batches: tensors are stacked, numbers become a tensor, text stays a list."""
    first = samples[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(list(samples))
    if isinstance(first, float):
        return torch.tensor(samples, dtype=torch.float64)  # Python's floats have 64 bits, and they are kept
    if isinstance(first, int):
        return torch.tensor(samples)
    if isinstance(first, Mapping):
        return {key: own_collate([sample[key] for sample in samples]) for key in first}
    if isinstance(first, tuple):
        return [own_collate(column) for column in zip(*samples, strict=True)]
    return list(samples)


def own_loader(dataset: Any, batch_size: int, generator: torch.Generator) -> Iterator[Any]:
    """What a DataLoader without workers does."""
    order = torch.randperm(len(dataset), generator=generator).tolist()  # the sampler
    for start in range(0, len(order), batch_size):  # the batch sampler
        samples = [dataset[index] for index in order[start : start + batch_size]]  # the fetcher
        yield own_collate(samples)


def same_batches(first: Iterable[Any], second: Iterable[Any]) -> int:
    """How many batches the two have in common, one after the other; -1 where they differ in number."""
    pairs = list(first), list(second)
    if len(pairs[0]) != len(pairs[1]):
        return -1
    return sum(all(map(torch.equal, a, b)) for a, b in zip(*pairs, strict=True))


def show_loader(lesson: Lesson, letters: ImageData) -> None:
    lesson.section(
        "What a DataLoader does",
        "Between your data set and a batch there are four steps, and each has a name under which you can replace it. A "
        "data set needs only two methods: __len__ and __getitem__, which returns one sample. Knowing who does what is "
        "what you need when a batch looks wrong.",
    )
    dataset = Letters(letters.images[:10], letters.labels[:10])
    order = torch.randperm(10, generator=torch.Generator().manual_seed(lesson.options.seed)).tolist()
    groups = [order[start : start + 4] for start in range(0, 10, 4)]
    batch = own_collate([dataset[index] for index in groups[0]])
    lesson.table(
        [
            {"step": "sampler=", "asks or returns": "the order of an epoch", "ten letters, batch_size=4": str(order)},
            {"step": "batch_sampler=", "asks or returns": "lists of indices",
             "ten letters, batch_size=4": "  ".join(map(str, groups))},
            {"step": "dataset[i]", "asks or returns": "one sample, for each index",
             "ten letters, batch_size=4": f"{tuple(dataset[0][0].shape)} and a label"},
            {"step": "collate_fn=", "asks or returns": "the samples as one batch",
             "ten letters, batch_size=4": " and ".join(str(tuple(x.shape)) for x in batch)},
        ]
    )  # fmt: skip
    dataset = Letters(letters.images[:200], letters.labels[:200])
    seeds = [torch.Generator().manual_seed(lesson.options.seed) for _ in range(2)]
    sampler = RandomSampler(dataset, generator=seeds[1])
    equal = same_batches(own_loader(dataset, 16, seeds[0]), load_all(dataset, batch_size=16, sampler=sampler))
    lesson.check("two small functions give the DataLoader's batches", equal == 13, f"{equal} of 13, from one seed")
    mixed = [({"x": torch.randn(2), "length": i, "weight": 0.5 * i}, f"letter {i}") for i in range(3)]
    own, library = own_collate(mixed), default_collate(mixed)
    lesson.check("collate goes into tuples and dicts, and leaves text alone",
                 all(torch.equal(own[0][key], library[0][key]) and own[0][key].dtype == library[0][key].dtype
                     for key in library[0]) and own[1] == list(library[1]),
                 f"{', '.join(own[0])}: as default_collate")  # fmt: skip
    wide = library[0]["weight"].dtype
    refused = complaint(lambda: torch.nn.Linear(3, 1)(library[0]["weight"]))
    lesson.check("a Python float arrives as float64, which no model takes", wide == torch.float64 and "dtype" in refused,
                 refused.rpartition(", ")[2])  # fmt: skip
    short = [len(load_all(dataset, batch_size=64, drop_last=drop)[-1][1]) for drop in (False, True)]
    lesson.check("drop_last leaves the short batch out", short == [8, 64], f"last batch of 200: {short[0]}, {short[1]}")
    lesson.shows(
        f"the last of {200 // 64 + 1} batches had {short[0]} samples. In training drop it: one gradient of few samples "
        "is noisy, and BatchNorm can fail on a batch of one. In evaluation keep it, or you skip the same samples every "
        "time. Return tensors from __getitem__, with the dtype that the model wants."
    )


# One call for a batch


def show_batched_fetch(lesson: Lesson, letters: ImageData) -> None:
    count, batch_size = lesson.pick(full=(2048, 64), quick=(256, 64))
    lesson.section(
        "One call for a whole batch",
        f"By default a batch of {batch_size} is {batch_size} calls of __getitem__, and each tensor operation in it costs "
        "a microsecond or more before it touches a pixel. Two doors lead out. A data set with __getitems__ is asked once "
        "for the whole list; what it returns goes to collate_fn. Or the batch sampler takes the sampler's place, and "
        "batch_size=None says that batches need no collating.",
    )
    images, labels = letters.images[:count], letters.labels[:count]

    def make(count: int) -> dict[str, Callable[[], Iterable[Any]]]:
        few = images[:count], labels[:count]
        one, batched, listed = Letters(*few), LettersByBatch(*few), LettersByIndices(*few)
        batches = BatchSampler(SequentialSampler(one), batch_size, drop_last=False)
        return {
            "__getitem__": lambda: DataLoader(one, batch_size),
            "__getitems__": lambda: DataLoader(batched, batch_size, collate_fn=as_it_is),
            "batch_size=None": lambda: DataLoader(listed, batch_size=None, sampler=batches),
            "no loader": lambda: (batched.__getitems__(indices) for indices in torch.arange(count).split(batch_size)),
        }

    limit = memory_bandwidth(CPU)
    bytes_moved = images[0].nbytes + 4 * images[0].numel()  # each byte read once, each float written once
    ceiling = limit.value / bytes_moved if limit else None
    table, counts, rates = [], {}, {}
    for name, epoch in make(count).items():
        counts[name] = len(operations(lambda name=name: list(make(batch_size)[name]())))
        timing = measure(lambda epoch=epoch: [None for _ in epoch()], CPU, budget_s=lesson.pick(full=0.3, quick=0.02))
        rates[name] = lesson.record("images", count / timing.median_s, "images/s", timing, way=name, batch=batch_size)
        table.append(
            {"fetched by": name, "operations a batch": counts[name], "µs an image": 1e6 / rates[name],
             "images/s": rates[name], "limit": ceiling, "share": percent(ceiling and rates[name] / ceiling)}
        )  # fmt: skip
    lesson.table(table, best=max(range(len(table)), key=lambda row: list(rates.values())[row]))
    ways = {name: list(epoch()) for name, epoch in make(count).items()}
    first = ways["__getitem__"]
    lesson.check("all four give the same batches",
                 all(same_batches(first, batches) == len(first) for batches in ways.values()),
                 f"{len(first)} batches of {batch_size}, to the last bit")  # fmt: skip
    lesson.check("one call costs a tenth of the operations or less", 10 * counts["__getitems__"] <= counts["__getitem__"],
                 f"{counts['__getitem__']} and {counts['__getitems__']} for a batch")  # fmt: skip
    message = complaint(lambda: next(iter(DataLoader(LettersByBatch(images, labels), batch_size))))
    lesson.check("default_collate takes such a batch for a list of samples", "equal size" in message, message)
    faster = rates["__getitems__"] / rates["__getitem__"]
    lesson.shows(
        f"the work is the same, the calls are not: {significant(faster, 2)} times as many images per second here. The "
        f"limit is what main memory allows when every pixel is read once as a byte and written once as float32. Whatever "
        "can be done for all samples alike (conversion, normalisation, a flip by a mask) belongs behind the indexing, on "
        "the whole batch, or even later on the GPU."
    )


# Streams


class UnshardedStream(IterableDataset[int]):
    """The mistake: every worker has a copy of the data set, and every copy begins at the beginning."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        yield from range(self.count)


class ShardedStream(UnshardedStream):
    """Right: worker w of W takes samples w, w + W, w + 2W, …; with files instead of numbers, every W-th file."""

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        yield from range(first, self.count, step)


def shuffled(stream: Iterable[int], size: int, generator: torch.Generator) -> Iterator[int]:
    """A stream can only be shuffled through a buffer: hold `size` samples, give a random one away for each new one."""
    buffer: list[int] = []
    for sample in stream:
        buffer.append(sample)
        if len(buffer) == size:
            place = int(torch.randint(size, (), generator=generator))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            yield buffer.pop()
    yield from (buffer[i] for i in torch.randperm(len(buffer), generator=generator).tolist())


def classes_in_a_batch(order: Sequence[int], class_size: int, batch_size: int) -> float:
    """How many classes a batch has on average, where sample i belongs to class i // class_size."""
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return sum(len({sample // class_size for sample in batch}) for batch in batches) / len(batches)


def count_and_load(loader: DataLoader[Any]) -> int:
    """What a progress bar does: asks how many batches there will be, and then loads them."""
    expected = len(loader)
    return sum(1 for _ in loader) - expected


def show_streams(lesson: Lesson) -> None:
    count, batch_size = 10, 4
    lesson.section(
        "Streams, and samples that come twice",
        "Logs, archives and network streams have no index. An IterableDataset has only __iter__, so nobody but you can "
        "divide it among workers. Below, ten samples in batches of 4. Nothing warns you of the third line: an epoch is "
        "longer, the loss looks fine, and with W workers every sample counts W times.",
    )
    workers = (0, 2)
    delivered = {
        (kind.__name__, n): [batch.tolist() for batch in load_all(kind(count), batch_size=batch_size, num_workers=n)]
        for kind in (UnshardedStream, ShardedStream)
        for n in workers
    }
    lesson.table(
        [
            {"data set": name, "workers": n, "samples": sum(map(len, batches)),
             "different": len({sample for batch in batches for sample in batch}), "batches": " ".join(map(str, batches))}
            for (name, n), batches in delivered.items()
        ]
    )  # fmt: skip
    flat = {key: [sample for batch in batches for sample in batch] for key, batches in delivered.items()}
    lesson.check("without shards every sample comes once for each worker",
                 sorted(flat["UnshardedStream", 2]) == sorted([*range(count)] * 2),
                 f"{len(flat['UnshardedStream', 2])} samples from {count}, with 2 workers")  # fmt: skip
    lesson.check("with shards each comes once, whatever the workers",
                 all(sorted(flat["ShardedStream", n]) == list(range(count)) for n in workers), f"workers {workers}")  # fmt: skip
    short = sum(len(batch) < batch_size for batch in delivered["ShardedStream", 2])
    lesson.check(
        "each worker has a short last batch of its own", short == 2, f"{short} batches with fewer than {batch_size}"
    )
    warning = complaint(lambda: count_and_load(make_loader(UnshardedStream(count), batch_size=1, num_workers=2)))
    lesson.check("whoever asks for the length first is warned", "was reported to be" in warning,
                 "as a progress bar does; otherwise silence")  # fmt: skip
    refused = complaint(lambda: DataLoader(ShardedStream(count), shuffle=True))
    lesson.check(
        "shuffle=True is refused: a stream has no order to draw", "shuffle" in refused, refused.partition(":")[0]
    )
    lesson.items({"too many": f"… {warning.partition(' object at ')[2].partition(' ')[2]}", "shuffle": refused})
    classes, class_size = 10, lesson.pick(full=1000, quick=200)
    total = classes * class_size
    lesson.text(
        f"Streams are often sorted, and a model that sees one class for a thousand steps forgets the others. A buffer "
        f"mixes only over its own length. {total:,} samples, sorted by class; how many of the {classes} classes are in a "
        "batch of 32?"
    )
    generator = torch.Generator().manual_seed(lesson.options.seed)
    orders = {size: list(shuffled(range(total), size, generator)) for size in (1, 100, class_size, total)}
    found = {size: classes_in_a_batch(order, class_size, 32) for size, order in orders.items()}
    lesson.table([{"buffer": size, "classes in a batch": share} for size, share in found.items()])
    lesson.check("a buffer loses and doubles nothing", all(sorted(order) == [*range(total)] for order in orders.values()),
                 f"{len(orders)} permutations of {total:,}")  # fmt: skip
    early = {size: max(sample - place for place, sample in enumerate(order)) for size, order in orders.items()}
    lesson.check("no sample comes earlier than the buffer is long", all(early[size] < size for size in orders),
                 f"at most {early[100]} places, with 100")  # fmt: skip
    lesson.check("a buffer of a tenth of a class mixes hardly any", found[100] < 0.5 * found[total],
                 f"{found[100]:.1f} classes in a batch, of {found[total]:.1f}")  # fmt: skip
    lesson.shows(
        f"a buffer of 100 left {found[100]:.1f} classes in a batch where a full shuffle has {found[total]:.1f}. Shuffle "
        "the order of the files first, which costs nothing, and let the buffer do the rest. A stream is divided twice in "
        "distributed training: among the processes, then among the workers of each."
    )


def main(argv: list[str] | None = None) -> int:
    with Lesson(__file__, argv) as lesson:
        letters = load_images("glyphs", train=True, count=lesson.pick(full=5000, quick=720))
        show_loader(lesson, letters)
        show_batched_fetch(lesson, letters)
        show_streams(lesson)
        show_samplers(lesson, letters)
        show_padding(lesson)
        show_buckets(lesson)
        show_leaks(lesson, letters)
        show_rare_classes(lesson, letters)
        show_maps(lesson)
        show_reading_order(lesson)
        show_workers(lesson, letters)
        show_randomness(lesson)
        show_deaths(lesson)
        show_limits(lesson, letters)
        rates = show_settings(lesson, letters)
        show_handing_over(lesson, letters, rates)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
