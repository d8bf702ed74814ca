"""How workers die, what they say, and the three things that they run out of."""

import gc
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pytorch_02_training_optimization.src.pipelines.sets import (
    START,
    Letters,
    load_all,
    make_loader,
    without_worker_warnings,
)
from shared.datasets import ImageData
from shared.lesson import Lesson
from shared.units import bytes_text

import numpy as np
import torch
from torch.utils.data import Dataset

BROKEN = 5  # the index of the sample at which things go wrong
HANGS_S, TIMEOUT_S = 0.8, 0.3


class Fragile(Dataset[int]):
    """Eight samples; sample BROKEN raises, kills its process, or does not come back for a while."""

    def __init__(self, how: Literal["raises", "is killed", "hangs"]) -> None:
        self.how = how

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == BROKEN:
            if self.how == "raises":
                return int("label: seven")
            if self.how == "hangs":
                time.sleep(HANGS_S)
            elif hasattr(signal, "SIGKILL"):
                os.kill(os.getpid(), signal.SIGKILL)  # what Linux does to a process when memory runs out
            else:
                os._exit(1)
        return index


class NamesItsSample(Fragile):
    """Right: whoever reads the message knows which file to open."""

    def __getitem__(self, index: int) -> int:
        try:
            return super().__getitem__(index)
        except Exception as error:
            raise RuntimeError(f"sample {index} cannot be read") from error


def last_words(dataset: Dataset[Any], **options: Any) -> str:
    """What a loader that fails says, "" if it does not fail."""
    words = ""
    try:
        load_all(dataset, batch_size=4, num_workers=1, **options)
    except (RuntimeError, ValueError) as error:
        words = f"{type(error).__name__}: {error}"
        # Its frames hold the loader's iterator, in a circle: found late by the collector, workers would be waited for.
        error.__traceback__ = None
    return words


def shortened(words: str, lines: int = 3) -> str:
    """The first line of a traceback and its last ones, without the stack of PyTorch's own calls."""
    all_lines = [line.strip() for line in words.splitlines() if line.strip() and set(line.strip()) - set("^~")]
    if len(all_lines) <= lines + 1:
        return " ".join(all_lines)
    return f"{all_lines[0]} … {' '.join(all_lines[-lines:])}"


def show_deaths(lesson: Lesson) -> None:
    lesson.section(
        "When a worker dies",
        f"Sooner or later a sample is broken, in another process, in the middle of the night. Sample {BROKEN} of eight "
        "raises an error, kills its worker as Linux does when memory runs out, or never comes. What do you get to read?",
    )
    raised, named = last_words(Fragile("raises")), last_words(NamesItsSample("raises"))
    killed, late = last_words(Fragile("is killed")), last_words(Fragile("hangs"), timeout=TIMEOUT_S)
    where = f"{Path(__file__).parent.name}/{Path(__file__).name}"  # without the folders before it
    said = [line for line in named.splitlines() if f"sample {BROKEN}" in line]
    lesson.items({"raises": shortened(raised.replace(str(Path(__file__)), where)), "names its sample": said[-1] if said else "",
                  "is killed": shortened(killed), "hangs": shortened(late)})  # fmt: skip
    lesson.check("an error brings its own traceback from the worker",
                 raised.startswith("ValueError") and "worker process 0" in raised and "limits.py" in raised,
                 "Original Traceback, with file and line")  # fmt: skip
    lesson.check("but the index only where you put it in", f"sample {BROKEN}" in named and f"sample {BROKEN}" not in raised,
                 f"raise …(f'sample {{index}}') from error: sample {BROKEN}")  # fmt: skip
    lesson.check("a killed worker leaves only its number", "DataLoader worker" in killed and "Traceback" not in killed,
                 "no traceback: look into the system's log for its memory")  # fmt: skip
    lesson.check("timeout= turns waiting for ever into an error", "timed out" in late, f"after {TIMEOUT_S} s")
    alone = ""
    try:
        load_all(Fragile("raises"), batch_size=4)
    except ValueError as error:
        alone = str(error)
    lesson.check("num_workers=0 gives the plain error, for a debugger",
                 alone and "worker" not in alone, f"ValueError: {alone}")  # fmt: skip
    lesson.shows(
        "the first move with any of these is num_workers=0, where a breakpoint works too. Put the index into the "
        f"message. The default timeout is 0, which waits for ever: {TIMEOUT_S} s is for this lesson, a few minutes are for "
        "real data."
    )


# What runs out


class Counted(Letters):
    """Letters, and in shared memory how many were fetched by all workers together."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        super().__init__(images, labels)
        self.fetched = torch.zeros((), dtype=torch.int64).share_memory_()

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.fetched += 1  # with one worker; more of them could add at the same moment
        return super().__getitem__(index)


class Names(Dataset[tuple[int, int]]):
    """One sample: how many bytes this process had to itself before and after it read every name."""

    def __init__(self, names: Sequence[str], packed: bool) -> None:
        self.names: Sequence[str] | np.ndarray[Any, Any] = np.array(names) if packed else list(names)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[int, int]:
        before = private_bytes()
        total = sum(len(name) for name in self.names)
        assert total
        return before, private_bytes()


def private_bytes() -> int:
    """Memory that this process has written to and shares with no other; 0 where the system does not tell."""
    with suppress(OSError, ValueError):
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty"))
    return 0


def open_files() -> int | None:
    """How many file descriptors this process has; None where the system does not tell."""
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return None


def descriptors_kept(dataset: Dataset[Any], *, cloned: bool) -> int:
    """By how many the open files of this process grew while all batches of an epoch are kept, or copies of them."""
    gc.collect()  # loaders that are not yet collected have open files, too
    before = open_files() or 0
    kept: list[torch.Tensor] = []
    with without_worker_warnings():
        for images, _ in make_loader(dataset, batch_size=2, num_workers=1):
            kept.append(images.clone() if cloned else images)
        del images, _
    return (open_files() or 0) - before


def show_limits(lesson: Lesson, letters: ImageData) -> None:
    lesson.section(
        "Three things that run out",
        "Workers put finished batches into shared memory (on Linux files in /dev/shm) and send a file descriptor. So three "
        "things can run out that have nothing to do with your model: room in shared memory, open files, and main memory, "
        "which forked workers seem to share. Each has a message that does not say so.",
    )
    batch_size, prefetch = 4, 3
    dataset = Counted(letters.images[:80], letters.labels[:80])
    with without_worker_warnings():
        batches = iter(make_loader(dataset, batch_size=batch_size, num_workers=1, prefetch_factor=prefetch))
        next(batches)
        ahead = int(dataset.fetched)
    del batches
    most = (prefetch + 1) * batch_size
    lesson.check("workers run ahead by prefetch_factor batches each", batch_size <= ahead <= most,
                 f"{ahead} samples fetched for the first {batch_size}, at most {most}")  # fmt: skip
    photos = 3 * 224 * 224
    rows = []
    for workers, numbers, name in ((2, 4, "float32"), (8, 4, "float32"), (8, 1, "bytes")):
        rows.append({"workers": workers, "prefetch_factor": 2, "a batch of 256 photos in": name,
                     "in flight": bytes_text(workers * 2 * 256 * photos * numbers)})  # fmt: skip
    lesson.table(rows)
    if Path("/dev/shm").is_dir():
        room = shutil.disk_usage("/dev/shm")
        lesson.text(
            f"/dev/shm here has {bytes_text(room.free)} free of {bytes_text(room.total)}. A container gets 64 MiB of it unless "
            "it is started with --shm-size=8g or --ipc=host; what you then read is 'Bus error' or 'unable to write to file'."
        )
    few = Letters(letters.images[:80], letters.labels[:80])
    if open_files() is not None and torch.multiprocessing.get_sharing_strategy() == "file_descriptor":
        grown = {cloned: descriptors_kept(few, cloned=cloned) for cloned in (False, True)}
        lesson.check("a batch that you keep keeps a file open", grown[False] > 30 > 10 > grown[True],
                     f"40 batches: {grown[False]} more open files; of clones {grown[True]}")  # fmt: skip
    else:
        lesson.skip("Every batch that is kept holds a file open.", "Linux, where tensors travel as file descriptors")
    count = lesson.pick(full=200_000, quick=20_000)
    names = [f"letters/part_{i % 97:02d}/image_{i:08d}.png" for i in range(count)]
    size = sum(map(sys.getsizeof, names))
    if START == "fork" and private_bytes():
        copied = {}
        for packed in (False, True):
            ((before, after),) = load_all(Names(names, packed), num_workers=1)
            copied[packed] = int(after) - int(before)
        lesson.check("reading a list of objects copies it into the worker", copied[False] > 0.7 * size,
                     f"{count:,} names, {bytes_text(size)}: {bytes_text(copied[False])} written")  # fmt: skip
        lesson.check("reading one array copies nothing", copied[True] < 0.1 * size,
                     f"{bytes_text(max(0, copied[True]))} written")  # fmt: skip
        costs = [bytes_text(max(0, copied[packed])) for packed in (False, True)]
        told = f"Reading {count:,} names cost {costs[0]} in one worker, as an array {costs[1]}"
    else:
        lesson.skip("Forked workers copy a list of objects by reading it.", "Linux")
        told = "Forked workers copy every Python object that they look at"
    lesson.shows(
        f"{told}: each look at an object changes its reference count, and a page that is written to is no longer shared. It "
        "looks like a leak that grows over the first epoch. Keep file names and labels in arrays, keep numbers of a batch "
        "(loss.item()) or clones rather than batches, and send bytes where bytes will do."
    )
