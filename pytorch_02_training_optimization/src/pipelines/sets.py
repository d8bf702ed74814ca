"""Data sets of this lesson, all at module level, so that any start method can send them to a worker."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

# Linux copies this process for a worker; elsewhere a new Python imports everything again.
START = "fork" if sys.platform == "linux" else "spawn"
MEAN, SPREAD = 0.45, 0.25  # of the pixels of most photographs, and near enough for letters

Sample = tuple[torch.Tensor, torch.Tensor]


@contextmanager
def without_worker_warnings() -> Iterator[None]:
    """Of more workers than cores, which this lesson needs to show, and of forks beside other threads.

    Python 3.12 and later warn of the latter; a worker uses none of those threads.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes", UserWarning)
        warnings.filterwarnings("ignore", "This process .*is multi-threaded", DeprecationWarning)
        yield


def make_loader(dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
    """A DataLoader whose workers, if it has any, start as START says."""
    if options.get("num_workers"):
        options.setdefault("multiprocessing_context", START)
    with without_worker_warnings():
        return DataLoader(dataset, **options)


def load_all(dataset: Dataset[Any], **options: Any) -> list[Any]:
    """All batches of one epoch."""
    with without_worker_warnings():
        return list(make_loader(dataset, **options))


def normalized(images: torch.Tensor) -> torch.Tensor:
    """Bytes (..., 3, H, W) as float32 around 0: four operations, whether for one image or for a thousand."""
    return images.float().div_(255).sub_(MEAN).div_(SPREAD)


class Letters(Dataset[Sample]):
    """Images (N, 3, 32, 32) of bytes and labels (N,); one sample at a time."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return normalized(self.images[index]), self.labels[index]


class LettersByBatch(Letters):
    """The same; where a loader asks for a list of samples it gets them in one piece."""

    def __getitems__(self, indices: Sequence[int]) -> Sample:
        batch = torch.as_tensor(indices)
        return normalized(self.images[batch]), self.labels[batch]


class LettersByIndices(Letters):
    """The same, for a sampler that hands over whole batches: `index` is a list."""

    def __getitem__(self, index: Sequence[int]) -> Sample:  # type: ignore[override]
        batch = torch.as_tensor(index)
        return normalized(self.images[batch]), self.labels[batch]


def as_it_is(batch: Any) -> Any:
    """A collate_fn for what is a batch already. A function and no lambda: spawned workers need its name."""
    return batch
