"""Images in three parts, and batches that depend on a seed and a position alone.

A training that shall go on where it was killed must get the batches that it would have got. Here batch 17 of epoch 2
is a function of (seed, epoch, index): no generator has to be wound forward, no matter how many processes share the
batch, how many workers prepare it, and into how many pieces it is cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pytorch_02_training_optimization.src.training.settings import Settings
from shared.datasets import IMAGE_SETS, load_images
from shared.errors import CannotRun
from shared.image_folders import part_folder, read_image_folder

import torch
from torch.utils.data import DataLoader, Dataset

Pair = tuple[torch.Tensor, torch.Tensor]  # images (B, C, H, W) uint8, labels (B,) int64
SHIFT = 2  # pixels, the farthest that an image is moved


@dataclass(frozen=True)
class Data:
    """Images and labels of each part, and the mean and deviation of the training images' channels, 0 to 255."""

    name: str
    train: Pair
    validation: Pair
    test: Pair
    classes: tuple[str, ...]
    mean: torch.Tensor  # (C, 1, 1)
    deviation: torch.Tensor  # (C, 1, 1)
    notice: str | None

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train[0].shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> "Data":
        """On the GPU as bytes, once: all of CIFAR-10 is 180 MB there, and no batch has to be sent any more."""
        parts = [(images.to(device), labels.to(device)) for images, labels in (self.train, self.validation, self.test)]
        return Data(self.name, *parts, self.classes, self.mean.to(device), self.deviation.to(device), self.notice)


def load_data(settings: Settings, test_images: int | None = None) -> Data:
    """The data set that the settings name, divided. Raises CannotRun where a part would be empty."""
    limit = settings.train_images or None
    if settings.dataset in IMAGE_SETS:
        found = load_images(settings.dataset, train=True, count=limit)
        tested = load_images(settings.dataset, train=False, count=test_images)
        train, test, notice = (found.images, found.labels), (tested.images, tested.labels), found.notice
        name, classes = found.name, found.class_names
    else:
        train, test, classes = _load_folder(Path(settings.dataset).expanduser(), settings.image_size)
        name, notice = Path(settings.dataset).name, None
    # Always the same division, whatever the seed: otherwise the best of ten seeds has seen the others' validation.
    order = torch.randperm(len(train[1]), generator=torch.Generator().manual_seed(0))
    order = order[:limit]
    kept = max(1, round(settings.validation_share * len(order)))
    chosen, held = order[kept:], order[:kept]
    if len(chosen) < settings.batch_size:
        raise CannotRun(
            f"{name} leaves {len(chosen)} images for training, less than one batch of {settings.batch_size}; "
            "use a smaller --batch-size or more images"
        )
    images = train[0][chosen]
    mean, deviation = channel_statistics(images)
    return Data(
        name, (images, train[1][chosen]), (train[0][held], train[1][held]), test, classes, mean, deviation, notice
    )


def _load_folder(folder: Path, size: int) -> tuple[Pair, Pair, tuple[str, ...]]:
    if not folder.is_dir():
        raise CannotRun(f"{folder} is neither a data set ({', '.join(IMAGE_SETS)}) nor a folder of images")
    images, labels, classes = read_image_folder(part_folder(folder, train=True) or folder, size)
    part = torch.from_numpy(images), torch.from_numpy(labels)
    if tested := part_folder(folder, train=False):
        images, labels, names = read_image_folder(tested, size)
        if names != classes:
            raise CannotRun(f"{tested} has the classes {', '.join(names)} and training has {', '.join(classes)}")
        return part, (torch.from_numpy(images), torch.from_numpy(labels)), classes
    order = torch.randperm(len(part[1]), generator=torch.Generator().manual_seed(1))
    held = max(1, len(order) // 5)  # without a test part: every fifth image becomes one
    return (part[0][order[held:]], part[1][order[held:]]), (part[0][order[:held]], part[1][order[:held]]), classes


def channel_statistics(images: torch.Tensor) -> Pair:
    """Mean and standard deviation of each channel, twice (C, 1, 1) float32, from the exact sums of the bytes."""
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
    values = torch.arange(256, dtype=torch.float64)
    total = counts.sum(1)
    mean = (counts * values).sum(1) / total
    deviation = ((counts * values**2).sum(1) / total - mean**2).clamp_min(1.0).sqrt()  # a constant channel has none
    return mean.float()[:, None, None], deviation.float()[:, None, None]


def keyed(*key: int) -> torch.Generator:
    """A generator for one purpose: near keys give streams as different as any two."""
    seed = 0
    for number in key:
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**64  # Knuth's linear step
    return torch.Generator().manual_seed(seed % 2**63)


@dataclass(frozen=True)
class Batches(Dataset[list[Pair]]):
    """The batches of one epoch, for one of several processes: each a list of `pieces` for one step."""

    part: Pair
    batch_size: int  # over all processes and pieces
    seed: int
    epoch: int
    augment: bool = False
    pieces: int = 1
    rank: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return len(self.part[1]) // self.batch_size  # images that are left over have their turn in another epoch

    def __getitem__(self, index: int) -> list[Pair]:
        images, labels = self.part
        rows = self.order[index * self.batch_size :][: self.batch_size].to(images.device)
        flips, shifts = self._draw(index, images.device)
        mine = torch.arange(self.batch_size, device=images.device).view(self.pieces, self.processes, -1)[:, self.rank]
        batches = []
        for piece in mine:
            chosen = images[rows[piece]]
            if self.augment:
                chosen = flipped_and_shifted(chosen, flips[piece], shifts[piece])
            batches.append((chosen, labels[rows[piece]]))
        return batches

    @cached_property
    def order(self) -> torch.Tensor:
        return torch.randperm(len(self.part[1]), generator=keyed(self.seed, 0, self.epoch))

    def _draw(self, index: int, device: torch.device) -> Pair:
        """For the whole batch, whoever takes which part of it."""
        generator = keyed(self.seed, 1, self.epoch, index)
        flips = torch.rand(self.batch_size, generator=generator) < 0.5
        shifts = torch.randint(-SHIFT, SHIFT + 1, (self.batch_size, 2), generator=generator)
        return flips.to(device), shifts.to(device)

    def starting_at(self, index: int, workers: int) -> Iterator[list[Pair]]:
        """Batch `index` and all after it; by `workers` other processes, or by this one."""
        if not workers:
            return (self[i] for i in range(index, len(self)))
        # The loader takes single indices (batch_size=None), and each of its items is a whole batch. The generator is for
        # the seeds of its workers: without one it would draw them from the generator that dropout draws from.
        loader = DataLoader(self, batch_size=None, sampler=range(index, len(self)), num_workers=workers,
                            pin_memory=torch.cuda.is_available(), generator=keyed(self.seed, 2, self.epoch))  # fmt: skip
        return iter(loader)


def flipped_and_shifted(images: torch.Tensor, flips: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Each of `images` (B, C, H, W) mirrored where `flips` (B,) says, then moved by `shifts` (B, 2) pixels.

    What comes in at an edge repeats the edge. One gather for the whole batch, on any device.
    """
    batch, channels, height, width = images.shape
    down = torch.arange(height, device=images.device) - shifts[:, :1]
    right = torch.arange(width, device=images.device) - shifts[:, 1:]
    right = torch.where(flips[:, None], width - 1 - right, right)
    down, right = down.clamp(0, height - 1), right.clamp(0, width - 1)
    from_pixel = (down[:, :, None] * width + right[:, None, :]).view(batch, 1, -1)  # (B, 1, H * W)
    flat = images.view(batch, channels, -1).gather(2, from_pixel.expand(-1, channels, -1))
    return flat.view(images.shape)
