"""A file larger than the memory that may be taken: mapped instead of loaded, and in which order it is best read."""

import json
import mmap
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src.pipelines.sets import load_all
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import bytes_text, significant

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

ROW_BYTES = 3 * 32 * 32  # one image of the size of CIFAR-10's
READER = Path(__file__).with_name("capped_reader.py")


def write_rows(path: Path, count: int, generator: np.random.Generator) -> int:
    """A .npy file of (count, ROW_BYTES) random bytes, whose first four in each row are its number; returns their sum."""
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, ROW_BYTES))
    block = generator.integers(0, 256, (2048, ROW_BYTES), dtype=np.uint8)
    total = 0
    for start in range(0, count, len(block)):
        part = block[: count - start]
        part[:, :4] = np.arange(start, start + len(part), dtype="<u4")[:, None].view(np.uint8)
        rows[start : start + len(part)] = part
        total += int(part.sum(dtype=np.int64))
    rows.flush()
    return total


def row_numbers(rows: NDArray[np.uint8]) -> list[int]:
    """The numbers that write_rows left in the first four bytes."""
    return np.ascontiguousarray(rows[..., :4]).view("<u4").ravel().tolist()


class LoadedRows(Dataset[torch.Tensor]):
    """The mistake, for a file of this size: an array that is opened here is pickled whole for every spawned worker.

    Mapped or not makes no difference: pickle knows a NumPy array, and writes all that is in it.
    """

    def __init__(self, path: Path) -> None:
        self.rows = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.rows[index].copy())


class MappedRows(Dataset[torch.Tensor]):
    """Right: only the path travels, and every process opens its own map at its first read."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self._rows: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        if self._rows is None:
            self._rows = np.load(self.path, mmap_mode="r")
        return torch.from_numpy(self._rows[index].copy())  # a copy: the map is read-only, and stays behind

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_rows": None}


@contextmanager
def rows_on_disk(lesson: Lesson) -> Iterator[tuple[Path, int, int]]:
    """A file of random rows in the lesson's folder, how many they are and the sum of their bytes; deleted afterwards."""
    count = lesson.pick(full=256, quick=32) * 2**20 // ROW_BYTES
    with tempfile.TemporaryDirectory(dir=lesson.folder, ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "rows.npy"
        yield path, count, write_rows(path, count, np.random.default_rng(lesson.options.seed))


def read_capped(path: Path, room: int) -> dict[str, Any]:
    """What capped_reader.py found, in a process of its own."""
    command = [sys.executable, str(READER), str(path), str(room)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return dict(json.loads(answer.stdout))


def show_maps(lesson: Lesson) -> None:
    lesson.section(
        "More data than memory",
        "A map shows a file as if it were an array: a page is fetched from the disk when it is first looked at, and the "
        "system may drop it again at any time. So the data may be larger than the memory, it starts at once, and all "
        "workers share one copy in the system's cache.",
    )
    with rows_on_disk(lesson) as (path, count, total):
        size, room = path.stat().st_size, path.stat().st_size // 4
        if sys.platform == "linux":
            found = read_capped(path, room)
            lesson.items({"np.load(path)": found["loaded"], 'np.load(path, mmap_mode="r")': f"the sum of all bytes: "
                          f"{found['total']:,}"})  # fmt: skip
            lesson.check(f"with {bytes_text(room)} to take, {bytes_text(size)} cannot be loaded",
                         found["loaded"].startswith("MemoryError"), "in a process with that limit")  # fmt: skip
            lesson.check("mapped, every byte of it is read", found["total"] == total, f"{count:,} rows")
            lesson.check("and hardly any memory is taken for it", found["own_bytes"] < size / 8,
                         f"{bytes_text(max(0, found['own_bytes']))} of its own")  # fmt: skip
        else:
            lesson.skip(
                "A process that may take a quarter of the file's size fails to load it and can map it.", "Linux"
            )
        small = path.with_name("small.npy")
        np.save(small, np.load(path, mmap_mode="r")[:1000])
        lazy = MappedRows(small, 1000)
        _ = lazy[0]
        sizes = len(pickle.dumps(LoadedRows(small))), len(pickle.dumps(lazy))
        lesson.check("a map that travels to a worker is copied whole", sizes[0] > 1000 * ROW_BYTES > 1000 * sizes[1],
                     f"pickled: {sizes[0]:,} bytes; its path {sizes[1]:,}")  # fmt: skip
        rows = load_all(MappedRows(path, count), batch_size=64, sampler=range(0, count, count // 256), num_workers=2)
        lesson.check("two workers read the right rows from it",
                     row_numbers(torch.cat(rows).numpy()) == list(range(0, count, count // 256)),
                     f"{sum(map(len, rows))} rows from {count:,}")  # fmt: skip
        read_only = np.load(path, mmap_mode="r")[:2]
        warning = complaint(lambda: torch.from_numpy(read_only))
        lesson.check(
            "a tensor must not be made of the map itself", "not writable" in warning, warning.partition(",")[0]
        )
    lesson.shows(
        f"a dataset of {bytes_text(size)} that travels as {sizes[1]} bytes. Store it as one .npy file (or a few) of fixed "
        "rows, as small as the dtype allows: bytes for pixels, int16 or int32 for tokens. For samples of unequal length "
        "keep one long array and a second one of where each begins."
    )


# The order of reading


def runs(order: NDArray[np.int64]) -> int:
    """How often reading has to go to another place: the number of stretches of rows that follow one another."""
    return 1 + int((np.diff(order) != 1).sum())


def shuffled_blocks(count: int, block: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """All rows, in blocks of `block` neighbours whose order is random: read like this, shuffle in memory afterwards."""
    starts = generator.permutation(-(-count // block)) * block
    order: NDArray[np.int64] = (starts[:, None] + np.arange(block)).ravel()
    return order[order < count]


def forget_cached(path: Path) -> None:
    """Asks the system to drop the file's pages from its cache, so that the next read comes from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def bytes_from_disk() -> int | None:
    """How much this process has had fetched from a disk so far; None where the system does not tell."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
    return None


def cold_read(path: Path, order: NDArray[np.int64], *, is_random: bool = False) -> int | None:
    """Bytes that come from the disk when these rows are read through a map and nothing is cached.

    `is_random` tells the system so (MADV_RANDOM), which then fetches no page that was not asked for.
    """
    if not hasattr(os, "posix_fadvise"):
        return None
    forget_cached(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        if is_random:
            view.madvise(mmap.MADV_RANDOM)
        before, header = bytes_from_disk(), len(view) % ROW_BYTES
        for row in order.tolist():
            view[header + row * ROW_BYTES]
            view[header + (row + 1) * ROW_BYTES - 1]  # with the first byte, all of its pages: a row is smaller than one
        after = bytes_from_disk()
    return None if before is None or after is None else after - before


def show_reading_order(lesson: Lesson) -> None:
    wanted, block = lesson.pick(full=2048, quick=512), 256
    lesson.section(
        "The order of reading",
        "A disk hands over whole pages of 4 KiB, and the system fetches more than was asked for, betting that you will "
        f"go on from there. Shuffling every row makes it lose that bet each time. Here {wanted} rows of {ROW_BYTES} bytes "
        f"are read from the file in four ways, after asking the system to forget it; blocks are {block} neighbours.",
    )
    generator = np.random.default_rng(lesson.options.seed)
    with rows_on_disk(lesson) as (path, count, _):
        blocks = shuffled_blocks(count, block, generator)
        scattered = generator.permutation(count)[:wanted]
        orders = {"scattered": scattered, "scattered, and said so": scattered, "in blocks": blocks[:wanted],
                  "one after another": np.arange(wanted)}  # fmt: skip
        read = {name: cold_read(path, order, is_random="said" in name) for name, order in orders.items()}
    useful = wanted * ROW_BYTES
    seen = [value for value in read.values() if value]
    is_cold = len(seen) == len(read) and (read["scattered"] or 0) > useful
    table: list[dict[str, object]] = [{"rows": name, "jumps": runs(order)} for name, order in orders.items()]
    if is_cold:
        for row, value in zip(table, read.values(), strict=True):
            row |= {"useful (MiB)": useful / 2**20, "from the disk (MiB)": (value or 0) / 2**20,
                    "times": significant((value or 0) / useful)}  # fmt: skip
    lesson.table(table)
    lesson.check("blocks visit every row once", np.array_equal(np.sort(blocks), np.arange(count)), f"{count:,} rows")
    lesson.check("and jump once for a whole block", runs(blocks[:wanted]) <= -(-wanted // block) + 1,
                 f"{runs(blocks[:wanted])} times instead of {runs(scattered)}")  # fmt: skip
    if is_cold:
        for name, value in read.items():
            lesson.record("from the disk", value or 0, "B", order=name, useful_bytes=useful)
        lesson.check("scattered rows fetch several times what they hold", (read["scattered"] or 0) > 2 * useful,
                     f"{bytes_text(read['scattered'] or 0)} for {bytes_text(useful)}")  # fmt: skip
        lost = (read["scattered"] or 0) / (read["one after another"] or 1)
        lesson.check("reading in order never fetches more", lost >= 1, f"{significant(lost, 2)} times less here")
        told = f"Scattered reading fetched {significant((read['scattered'] or 0) / useful, 2)} bytes for each useful one here. "
    else:
        lesson.skip("How many bytes each order fetches from the disk.", "Linux and a file on a disk that it can forget")
        told = ""
    lesson.shows(
        f"{told}When the file is larger than memory, draw blocks at random and shuffle inside a pool of some of them: "
        f"{runs(blocks[:wanted])} jumps instead of {runs(scattered)}, and the batches are mixed nearly as well. When you must "
        "scatter, say so with madvise(MADV_RANDOM). When the file fits into memory, read it once in order and it is cached."
    )
