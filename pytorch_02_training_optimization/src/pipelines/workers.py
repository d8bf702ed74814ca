"""What a worker is: another process, with a copy of the data set, of its random generator and of its mistakes."""

import multiprocessing
import os
import pickle
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from pytorch_02_training_optimization.src.pipelines.sets import (
    START,
    Letters,
    Sample,
    load_all,
    make_loader,
    without_worker_warnings,
)
from shared.datasets import ImageData
from shared.lesson import Lesson
from shared.units import seconds_text

import numpy as np
import torch
from torch.utils.data import Dataset

LIMIT = 2**62  # so many random numbers that two equal ones are no accident


def mirrored(sample: Sample) -> Sample:
    image, label = sample
    return image.flip(-1), label


class Transformed(Letters):
    """Letters with a function applied to each sample."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform: Callable[[Sample], Sample]) -> None:
        super().__init__(images, labels)
        self.transform = transform

    def __getitem__(self, index: int) -> Sample:
        return self.transform(super().__getitem__(index))


class Diary(Dataset[int]):
    """Returns the number of the process that fetched the sample, and keeps in mind what was fetched."""

    def __init__(self, count: int) -> None:
        self.fetched = [False] * count

    def __len__(self) -> int:
        return len(self.fetched)

    def __getitem__(self, index: int) -> int:
        self.fetched[index] = True
        return os.getpid()


def refusal_to_pickle(value: object) -> str:
    """What pickle says to `value`; "" where it can be sent to another process."""
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def seconds_to_first_batch(dataset: Dataset[Any], method: str) -> float:
    """From asking for an epoch until its first batch, with one worker; a start happens once, so it is timed once."""
    start = time.perf_counter()
    with without_worker_warnings():
        batches = iter(make_loader(dataset, batch_size=8, num_workers=1, multiprocessing_context=method))
        next(batches)
    return time.perf_counter() - start


def processes(dataset: Dataset[Any], epochs: int, *, persistent: bool) -> list[set[int]]:
    """The numbers of the processes that fetched, epoch by epoch."""
    with without_worker_warnings():
        loader = make_loader(dataset, batch_size=2, num_workers=1, persistent_workers=persistent)
        return [{int(number) for batch in loader for number in batch} for _ in range(epochs)]


def show_workers(lesson: Lesson, letters: ImageData) -> None:
    lesson.section(
        "What a worker is",
        "A worker is a process of its own: indices go in, batches come out. With fork it begins as a copy of this "
        "process, as it stands. With spawn, the only way on Windows and the usual one on macOS, a new Python imports your "
        "script and unpickles the data set; so the script needs its `if __name__ == '__main__'`, and the data set must "
        "survive pickle. Python 3.14 starts workers from a clean server process on Linux too, which also pickles.",
    )
    few = letters.images[:64], letters.labels[:64]
    by_lambda = Transformed(*few, lambda sample: sample)
    by_name = Transformed(*few, mirrored)
    message = refusal_to_pickle(by_lambda)
    lesson.items({"a lambda in it": message, "a function of a module": refusal_to_pickle(by_name) or "can be sent"})
    lesson.check("a lambda in the data set stops spawn, and only spawn", "lambda" in message and
                 len(load_all(by_lambda, batch_size=64)) == 1, "define the function at module level")  # fmt: skip
    methods = lesson.pick(full=tuple(dict.fromkeys((START, "spawn"))), quick=(START,))
    starts = {}
    for method in methods:
        times = [seconds_to_first_batch(by_name, method) for _ in range(3 if method == "fork" else 1)]
        starts[method] = lesson.record("first batch", statistics.median(times), "s", method=method)
    usual = multiprocessing.get_all_start_methods()[0]
    lesson.table([{"start": method, "this Python's default": "yes" if method == usual else "no",
                   "first batch after": seconds_text(value)} for method, value in starts.items()])  # fmt: skip
    expected = [mirrored(Letters(*few)[i])[0] for i in range(8)]
    first = load_all(torch.utils.data.Subset(by_name, range(8)), batch_size=8, num_workers=1,
                     multiprocessing_context=methods[-1])[0][0]  # fmt: skip
    lesson.check("what comes from a worker is what the data set gives", first.equal(torch.stack(expected)),
                 f"to the last bit, by {methods[-1]}")  # fmt: skip
    diary = Diary(4)
    anew = processes(diary, 2, persistent=False)
    kept = processes(diary, 2, persistent=True)
    lesson.check("each epoch starts new workers", anew[0] != anew[1], f"processes {show_numbers(anew)}")
    lesson.check("persistent_workers=True keeps them", kept[0] == kept[1] and len(kept[0]) == 1,
                 f"processes {show_numbers(kept)}")  # fmt: skip
    remembered = sum(diary.fetched)
    load_all(diary, batch_size=2)
    lesson.check("what a worker changes in the data set is lost", remembered == 0 and all(diary.fetched),
                 f"{remembered} samples noted by workers, {sum(diary.fetched)} without")  # fmt: skip
    slowest = max(starts, key=lambda method: starts[method])
    lesson.shows(
        f"here {slowest} needs {seconds_text(starts[slowest])} until the first batch, for every epoch unless the workers are "
        "persistent. A cache inside the data set is filled in each worker separately, and thrown away with it. Never touch "
        "the GPU in a data set: a forked copy of CUDA's state does not work, and PyTorch refuses it."
    )


def show_numbers(groups: Sequence[set[int]]) -> str:
    """Process numbers, epoch by epoch."""
    return ", ".join("+".join(map(str, sorted(group))) for group in groups)


# Random numbers


class Dice(Dataset[tuple[int, int, int, int]]):
    """Four ways to draw a random number for a sample."""

    def __init__(self, count: int, seed: int, epoch: torch.Tensor) -> None:
        self.count, self.seed = count, seed
        self.own = np.random.default_rng(seed)  # the mistake: every worker gets a copy of it, in the same state
        self.epoch_here = 0  # the mistake for persistent workers: they have a copy of this, too
        self.epoch = epoch  # in shared memory: what the main process writes, every worker reads

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, int, int, int]:
        told = np.random.default_rng([self.seed, self.epoch_here, index])
        shared = np.random.default_rng([self.seed, int(self.epoch), index])
        return (int(np.random.randint(LIMIT)), int(self.own.integers(LIMIT)), int(told.integers(LIMIT)),
                int(shared.integers(LIMIT)))  # fmt: skip


WAYS = (
    "np.random, the global generator",
    "default_rng(seed) made in __init__",
    "default_rng([seed, epoch, index])",
    "the same, epoch in shared memory",
)


def columns(batches: Sequence[Sequence[torch.Tensor]]) -> list[list[int]]:
    """For each of the four ways its numbers, in the order of the samples."""
    return [torch.cat([batch[way] for batch in batches]).tolist() for way in range(len(WAYS))]


def show_randomness(lesson: Lesson) -> None:
    count = 24
    lesson.section(
        "Random numbers in workers",
        f"Augmentation draws random numbers, and workers are copies. {count} samples each draw one, with 0 and with 2 "
        "workers, over two epochs. PyTorch gives each worker seeds of its own for torch, random and np.random. It cannot "
        "know of a generator that you keep in the data set.",
    )
    epoch = torch.zeros((), dtype=torch.int64).share_memory_()
    found: dict[tuple[int, int], list[list[int]]] = {}
    for workers in (0, 2):
        dice = Dice(count, lesson.options.seed, epoch)
        with without_worker_warnings():
            loader = make_loader(dice, batch_size=4, num_workers=workers, persistent_workers=workers > 0)
            for number in (0, 1):
                epoch.fill_(number)
                dice.epoch_here = number
                found[workers, number] = columns(list(loader))
        del loader
    table = []
    for way, name in enumerate(WAYS):
        numbers = {key: values[way] for key, values in found.items()}
        table.append(
            {"drawn by": name, "different, 0 workers": len(set(numbers[0, 0])), "2 workers": len(set(numbers[2, 0])),
             "as with 0": "yes" if numbers[2, 0] == numbers[0, 0] else "no",
             "new in epoch 2": len({*numbers[2, 1]} - {*numbers[2, 0]})}
        )  # fmt: skip
    lesson.table(table)
    lesson.check("the global generators differ from worker to worker", table[0]["2 workers"] == count,
                 f"{table[0]['2 workers']} different numbers in {count}")  # fmt: skip
    lesson.check("a generator kept in the data set is copied: twins", table[1]["2 workers"] == count // 2,
                 f"{table[1]['2 workers']} different numbers in {count}")  # fmt: skip
    anew = [
        columns(load_all(Dice(count, lesson.options.seed, epoch), batch_size=4, num_workers=1))[1] for _ in range(2)
    ]
    lesson.check("and without persistent workers each epoch repeats it", anew[0] == anew[1],
                 f"epoch 2 draws the {count} numbers of epoch 1")  # fmt: skip
    lesson.check("seeded by its index, a sample never depends on workers",
                 found[0, 0][2] == found[2, 0][2] and table[2]["2 workers"] == count,
                 "0 and 2 workers: the same numbers")  # fmt: skip
    lesson.check("persistent workers do not hear of a new epoch", found[2, 1][2] == found[2, 0][2],
                 f"dataset.epoch = 1 in this process: {table[2]['new in epoch 2']} new numbers")  # fmt: skip
    lesson.check("in shared memory they do", found[2, 1][3] == found[0, 1][3] != found[0, 0][3],
                 f"{table[3]['new in epoch 2']} new numbers")  # fmt: skip
    lesson.shows(
        "with two workers half of the draws were twins, and no error says so: count the different ones, as here. The last "
        "way is the one to copy. Its numbers depend on seed, epoch and index alone, so a run can be repeated on a machine "
        "with other workers, and resumed in the middle of an epoch."
    )
