"""Images per second: every setting of the loader, and what is faster than any of them."""

import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.pipelines.sets import (
    LettersByBatch,
    Sample,
    as_it_is,
    load_all,
    make_loader,
    normalized,
    without_worker_warnings,
)
from shared.datasets import ImageData
from shared.hardware import link_bandwidth, memory_bandwidth
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.timing import compare, measure, ratio
from shared.traps import operations
from shared.units import bytes_text, percent, rate_text, significant

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

CPU = torch.device("cpu")
SHAPE = (3, 32, 32)


class PackedLetters(Dataset[Sample]):
    """Compressed images, as PNG compresses them: decoded, cropped, mirrored and normalised one by one.

    All of them in one row of bytes, with the place where each begins: nothing that a forked worker would copy.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        packed = [zlib.compress(image.numpy().tobytes(), level=1) for image in images]
        self.ends = np.cumsum([0, *map(len, packed)])
        self.bytes, self.labels = b"".join(packed), labels

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, index: int) -> bytearray:
        return bytearray(zlib.decompress(self.bytes[self.ends[index] : self.ends[index + 1]]))

    def __getitem__(self, index: int) -> Sample:
        image = torch.frombuffer(self.decode(index), dtype=torch.uint8).view(SHAPE)
        down, right, is_mirrored = np.random.default_rng(index).integers((5, 5, 2)).tolist()
        cropped = F.pad(image, (2, 2, 2, 2))[:, down : down + 32, right : right + 32]
        return normalized(cropped.flip(-1) if is_mirrored else cropped), self.labels[index]


class Remote(Dataset[int]):
    """Samples that take no computing but waiting, as from a network: `delay_s` each."""

    def __init__(self, count: int, delay_s: float) -> None:
        self.count, self.delay_s = count, delay_s

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        time.sleep(self.delay_s)
        return index


class LettersAsBytes(LettersByBatch):
    """Batches of bytes, to be made float32 where the model is: a quarter of the bytes to send."""

    def __getitems__(self, indices: Sequence[int]) -> Sample:
        batch = torch.as_tensor(indices)
        return self.images[batch], self.labels[batch]


@dataclass(frozen=True)
class Setting:
    """What is varied of a DataLoader."""

    workers: int
    batch_size: int
    prefetch: int = 2

    def options(self) -> dict[str, Any]:
        more = {"persistent_workers": True, "prefetch_factor": self.prefetch} if self.workers else {}
        return {"batch_size": self.batch_size, "num_workers": self.workers, **more}

    def line(self, *, pins: bool) -> str:
        """As one types it; the batch size is the training's business."""
        parts = ["batch_size=batch_size", "shuffle=True", "drop_last=True", f"num_workers={self.workers}"]
        if self.workers:
            parts += ["persistent_workers=True", f"prefetch_factor={self.prefetch}"]
        first = f"loader = DataLoader(dataset, {', '.join(parts[:4])}"
        rest = [*parts[4:], *(["pin_memory=True"] if pins else [])]
        return first + (",\n                    " + ", ".join(rest) if rest else "") + ")"


def cores() -> int:
    """How many this process may use; a container or a batch system may allow fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_counts(most: int) -> list[int]:
    """0, 1, 2, 4, 8, …, at most `most`, but always up to 2."""
    return [0, *(2**i for i in range(8) if 2**i <= max(2, most))]


def images_per_second(lesson: Lesson, dataset: Dataset[Any], setting: Setting, count: int, budget_s: float) -> float:
    """The rate of whole epochs once the workers are there, recorded."""
    with without_worker_warnings():
        loader = make_loader(dataset, **setting.options())
        timing = measure(lambda: [None for _ in loader], CPU, budget_s=budget_s)
    return lesson.record("images", count / timing.median_s, "images/s", timing, workers=setting.workers,
                         batch_size=setting.batch_size, prefetch=setting.prefetch)  # fmt: skip


def show_settings(lesson: Lesson, letters: ImageData) -> Setting:
    """Measures the settings and returns the fastest."""
    count, budget_s = lesson.pick(full=(1024, 1.0), quick=(64, 0.01))
    usual = lesson.pick(full=64, quick=16)
    lesson.section(
        "Images per second, by setting",
        f"{count} compressed letters are decoded, cropped, mirrored and normalised, one by one, on {cores()} cores. "
        "Workers divide this work; each needs a core, and sends its batches through shared memory, which costs too. The "
        "limit is what decoding alone would allow on as many cores as are at work: bare zlib, no tensor.",
    )
    dataset = PackedLetters(letters.images[:count], letters.labels[:count])
    decoding = measure(lambda: [dataset.decode(i) for i in range(count)], CPU, budget_s=budget_s / 4)
    bare = count / decoding.median_s
    found: dict[Setting, float] = {}

    def try_out(settings: Iterable[Setting]) -> None:
        for setting in settings:
            if setting not in found:
                found[setting] = images_per_second(lesson, dataset, setting, count, budget_s)

    most = lesson.pick(full=min(cores(), 16), quick=2)
    try_out(Setting(workers, usual) for workers in lesson.progress(worker_counts(most), "workers"))
    by_workers = dict(found)
    fastest = max(found, key=lambda setting: found[setting])
    try_out(Setting(fastest.workers, size) for size in lesson.pick(full=(16, 256), quick=()))
    if fastest.workers:
        try_out([Setting(fastest.workers, usual, prefetch=lesson.pick(full=4, quick=2))])
    best = max(found, key=lambda setting: found[setting])
    table = []
    for setting, rate in found.items():
        limit = bare * min(max(1, setting.workers), cores())
        table.append({"workers": setting.workers, "batch_size": setting.batch_size,
                      "prefetch_factor": setting.prefetch if setting.workers else None, "images/s": rate,
                      "limit": limit, "share": percent(rate / limit)})  # fmt: skip
    lesson.table(table, best=list(found).index(best))
    settings = [Setting(0, 16), Setting(1, 16)]
    epochs = [load_all(dataset, shuffle=True, generator=torch.Generator().manual_seed(lesson.options.seed),
                       **setting.options()) for setting in settings]  # fmt: skip
    lesson.check("workers change neither the samples nor their order",
                 all(torch.equal(a, b) for pair in zip(*epochs, strict=True) for a, b in zip(*pair, strict=True)),
                 f"{len(epochs[0])} shuffled batches with 0 and with 1 worker")  # fmt: skip
    waiting, delay_s, patient = 24, 0.005, 3
    loaders = {
        workers: make_loader(Remote(waiting, delay_s), **Setting(workers, 4).options()) for workers in (0, patient)
    }
    with without_worker_warnings():
        timings = compare({str(workers): lambda loader=loader: [None for _ in loader] for workers, loader in loaders.items()},
                          CPU, rounds=3, budget_s=0.01)  # fmt: skip
    faster = ratio(timings["0"], timings[str(patient)])
    lesson.check("workers that only wait can be more than the cores", faster.median > 1.3,
                 f"{patient} of them: {faster.median:.1f} times as fast on {waiting} samples of 5 ms")  # fmt: skip
    lesson.figure("images_per_second", lambda axis: draw_rates(axis, by_workers, bare))
    alone = found[Setting(0, usual)]
    fewest = min(found.values())
    verdict = "no number of workers was faster than none"
    if best.workers:
        gain = significant(found[best] / alone, 2)
        verdict = f"{best.workers} worker{'s' * (best.workers > 1)} were the fastest, {gain} times as fast as none"
    lesson.shows(
        f"{verdict}; between the slowest setting and the best lies a factor of {significant(found[best] / fewest, 2)}. "
        f"Decoding is {percent(alone / bare)} of a sample's time without workers; the rest are small tensor calls, a fixed "
        "price for each sample. Workers only help while the loader is slower than the model: if a step takes 20 ms for a "
        f"batch of {best.batch_size}, {significant(best.batch_size / 0.02)} images/s are enough, and the best setting here "
        f"gives {significant(found[best])}. Picture: images_per_second.png."
    )
    return best


def draw_rates(axis: Any, rates: Mapping[Setting, float], bare: float) -> None:
    workers = [setting.workers for setting in rates]
    axis.plot(workers, list(rates.values()), label="decoded, augmented, collated")
    axis.plot(workers, [bare * min(max(1, n), cores()) for n in workers], color="black", linestyle="--", marker="",
              label="limit: decoding alone, on as many cores")  # fmt: skip
    axis.set(xlabel="workers", ylabel="images per second", title=f"Loading on {cores()} cores", yscale="log")
    axis.set_xticks(workers)
    axis.legend()


# To the device


def show_handing_over(lesson: Lesson, letters: ImageData, best: Setting) -> None:
    count, budget_s = lesson.pick(full=(4096, 0.5), quick=(512, 0.01))
    device, batch_size = lesson.device, 128
    lesson.section(
        "From the loader to the device",
        "If the decoded data fit, decode once. Bytes in main memory can be fetched a batch at a time, sent as bytes (a "
        "quarter of float32) and normalised where the model is. If they fit into the device's memory, nothing has to be "
        "sent at all: 50,000 images of CIFAR-10's size are 146 MiB.",
    )
    images, labels = letters.images[:count], letters.labels[:count]
    resident, resident_labels = images.to(device), labels.to(device)
    as_bytes, as_floats = LettersAsBytes(images, labels), LettersByBatch(images, labels)
    can_pin = device.type == "cuda" and torch.accelerator.is_available()

    def from_loader(dataset: Dataset[Any], *, pins: bool) -> Iterable[Sample]:
        for x, y in DataLoader(dataset, batch_size, collate_fn=as_it_is, pin_memory=pins):
            x, y = x.to(device, non_blocking=pins), y.to(device, non_blocking=pins)
            yield (x if x.is_floating_point() else normalized(x)), y

    def from_device() -> Iterable[Sample]:
        for batch in torch.arange(count, device=device).split(batch_size):
            yield normalized(resident[batch]), resident_labels[batch]

    ways: dict[str, Callable[[], Iterable[Sample]]] = {
        "loader, float32 sent": lambda: from_loader(as_floats, pins=False),
        "loader, bytes sent": lambda: from_loader(as_bytes, pins=False),
        "on the device already": from_device,
    }
    if can_pin:
        ways["loader, bytes sent, pinned"] = lambda: from_loader(as_bytes, pins=True)
    # The least that has to be moved for an image: read as bytes and written as floats by the device's memory, or sent.
    pixels = images[0].numel()
    link, memory = (link_bandwidth(device) if device.type == "cuda" else None), memory_bandwidth(device)
    table, rates = [], {}
    for name, way in ways.items():
        timing = measure(lambda way=way: [None for _ in way()], device, budget_s=budget_s, cold_cache=False)
        rates[name] = lesson.record("images", count / timing.median_s, "images/s", timing, way=name)
        limits = [memory.value / (5 * pixels)] if memory else []
        if link and "sent" in name:
            limits.append(link.value / (pixels * (4 if "float32" in name else 1)))
        limit = min(limits, default=None)
        table.append({"way": name, "images/s": rates[name], "limit": limit, "share": percent(limit and rates[name] / limit),
                      "pixels": rate_text(rates[name] * pixels, "B/s")})  # fmt: skip
    lesson.table(table, best=max(range(len(table)), key=lambda row: list(rates.values())[row]))
    batches = {name: list(way()) for name, way in ways.items()}
    reference = batches["loader, float32 sent"]
    lesson.check("all ways give the same batches",
                 all(torch.allclose(a[0], b[0], atol=1e-6) and a[1].equal(b[1]) for others in batches.values()
                     for a, b in zip(reference, others, strict=True)),
                 f"{len(reference)} batches on {device.type}")  # fmt: skip
    sent = [
        sum(x.nbytes for x, _ in load_all(d, batch_size=batch_size, collate_fn=as_it_is)) for d in (as_floats, as_bytes)
    ]
    lesson.check("bytes need a quarter of the way", sent[0] == 4 * sent[1],
                 f"{bytes_text(sent[1])} instead of {bytes_text(sent[0])}")  # fmt: skip
    few = torch.arange(batch_size, device=device)
    calls = len(operations(lambda: normalized(resident[few])))
    lesson.check("a batch that is there costs a handful of operations", calls <= 6,
                 f"{calls}: one to index, the rest to normalise")  # fmt: skip
    if can_pin:
        pinned = next(iter(DataLoader(as_bytes, batch_size, collate_fn=as_it_is, pin_memory=True)))[0]
        lesson.check(
            "pin_memory=True gives batches in pinned memory", pinned.is_pinned(), "so that a copy need not wait"
        )
    else:
        warning = complaint(lambda: next(iter(DataLoader(as_bytes, batch_size, collate_fn=as_it_is, pin_memory=True))))
        lesson.check(
            "without an NVIDIA GPU pin_memory=True only warns", "pin_memory" in warning, warning.partition(",")[0]
        )
        lesson.skip(
            "Pinned memory against ordinary memory.",
            "an NVIDIA GPU; gpu_benchmarks of project 00 measures the copy alone",
        )
    lesson.text("For data that must be decoded sample by sample, from the table of settings, for this machine:")
    lesson.drawing(best.line(pins=can_pin))
    lesson.text("For data that fit into memory, as bytes:")
    lesson.drawing(
        "order = torch.randperm(len(images), device=images.device)\n"
        "for batch in order.split(batch_size):\n"
        "    x, y = normalized(images[batch]), labels[batch]"
    )
    most = max(rates, key=lambda name: rates[name])
    lesson.shows(
        f"'{most}' was the fastest, {significant(max(rates.values()) / min(rates.values()), 2)} times the slowest. The "
        "records for CIFAR-10 all keep the whole set on the GPU and augment there, on batches. A DataLoader with workers is "
        "for what does not fit or must be decoded anew; then the line above is measured, not guessed."
    )
