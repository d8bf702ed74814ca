"""The parts of the training, each in the slow form in which it is often met and in the forms that replace it."""

from collections.abc import Iterator

from pytorch_02_training_optimization.src.profiling.training import SIDE, Batch, Recipe, Split

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

LR = 5e-3
FARTHEST = 2  # pixels that a training image may be shifted by, each way; what leaves on one side returns on the other
SHIFTS = 2 * FARTHEST + 1
GREY = (0.299, 0.587, 0.114)  # how bright the eye finds red, green and blue (ITU-R BT.601)


# Data: from (…, 3, 32, 32) bytes to (…, 16, 16) numbers. Each transform takes one image or a batch.


def scale(x: torch.Tensor) -> torch.Tensor:
    return x.float() / 255


def to_grey(x: torch.Tensor) -> torch.Tensor:
    return (x * torch.tensor(GREY, device=x.device)[:, None, None]).sum(-3)


def halve(x: torch.Tensor) -> torch.Tensor:
    """Each 2 x 2 pixels become their mean."""
    return x.unflatten(-1, (SIDE, 2)).unflatten(-3, (SIDE, 2)).mean((-1, -3))


def stretch_contrast(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean((-1, -2), keepdim=True)) / (x.std((-1, -2), keepdim=True) + 1e-3)


TRANSFORMS = (scale, to_grey, halve, stretch_contrast)


def transform(x: torch.Tensor) -> torch.Tensor:
    for function in TRANSFORMS:
        x = function(x)
    return x


class ImagesOneByOne(Dataset[Batch]):
    """Most datasets look like this: one image comes in, and every transform is a call for this image."""

    def __init__(self, split: Split, generator: torch.Generator | None) -> None:
        self.split, self.generator = split, generator

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> Batch:
        x = transform(self.split.images[index])
        if self.generator is not None:
            dy, dx = (torch.randint(SHIFTS, (2,), generator=self.generator) - FARTHEST).tolist()
            x = torch.roll(x, (dy, dx), (0, 1))
        return x, self.split.labels[index]


class SampleBySample:
    """Slow: as many calls as there are images, times the calls for one."""

    def __init__(self, split: Split, batch_size: int, device: torch.device) -> None:
        self.split, self.batch_size, self.device = split, batch_size, device

    def batches(self, generator: torch.Generator | None) -> Iterator[Batch]:
        images = ImagesOneByOne(self.split, generator)
        # A sampler may be any list of indices. RandomSampler would draw one permutation more than it uses.
        order = None if generator is None else torch.randperm(len(images), generator=generator).tolist()
        for x, y in DataLoader(images, self.batch_size, sampler=order):
            yield x.to(self.device), y.to(self.device)


def shift_sources(device: torch.device) -> torch.Tensor:
    """For each of the SHIFTS² shifts, where each pixel comes from: (SHIFTS², SIDE²), as places in a flat image."""
    place = torch.arange(SIDE)
    rolled = [(place - step) % SIDE for step in range(-FARTHEST, FARTHEST + 1)]
    return torch.stack([(dy[:, None] * SIDE + dx).flatten() for dy in rolled for dx in rolled]).to(device)


def draw_epoch(
    count: int, generator: torch.Generator | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Order of the images and shift of each, (count,) both: the same numbers that ImagesOneByOne draws one by one."""
    if generator is None:
        return torch.arange(count, device=device), torch.full((count,), SHIFTS * FARTHEST + FARTHEST, device=device)
    order = torch.randperm(count, generator=generator)
    steps = torch.randint(SHIFTS, (count, 2), generator=generator)
    return order.to(device), (steps[:, 0] * SHIFTS + steps[:, 1]).to(device)


class BatchByBatch:
    """Better: the same transforms, each called once for a whole batch. The bytes lie on the device from the start."""

    def __init__(self, split: Split, batch_size: int, device: torch.device) -> None:
        self.batch_size = batch_size
        self.images, self.labels = split.images.to(device), split.labels.to(device)
        self.sources = shift_sources(device)

    def batches(self, generator: torch.Generator | None) -> Iterator[Batch]:
        order, shifts = draw_epoch(len(self.labels), generator, self.labels.device)
        for index, shift in zip(order.split(self.batch_size), shifts.split(self.batch_size), strict=True):
            x = transform(self.images[index]).flatten(1).gather(1, self.sources[shift])
            yield x.unflatten(1, (SIDE, SIDE)), self.labels[index]


class PreparedOnce:
    """Best: what is the same in every epoch is computed before the first, and a batch only picks its pixels."""

    def __init__(self, split: Split, batch_size: int, device: torch.device) -> None:
        self.batch_size = batch_size
        self.pixels, self.labels = transform(split.images.to(device)).flatten(1), split.labels.to(device)
        self.sources = shift_sources(device)

    def batches(self, generator: torch.Generator | None) -> Iterator[Batch]:
        order, shifts = draw_epoch(len(self.labels), generator, self.labels.device)
        for index, shift in zip(order.split(self.batch_size), shifts.split(self.batch_size), strict=True):
            x = self.pixels[index[:, None], self.sources[shift]]
            yield x.unflatten(1, (SIDE, SIDE)), self.labels[index]


# Model and loss


def forward_with_copies(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Slow: two copies to be on the safe side, from nothing."""
    logits: torch.Tensor = model(x.clone().contiguous())
    return logits.clone()


def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(x)
    return logits


def loss_by_hand(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Slow: cross entropy as its formula reads, one operator for each sign in it."""
    wanted = F.one_hot(y, logits.shape[1]).float()
    shifted = logits - logits.max(1, keepdim=True).values
    log_probability = shifted - shifted.exp().sum(1, keepdim=True).log()
    return -(wanted * log_probability).sum(1).mean()


# Optimizer


def optimizer_one_by_one(model: nn.Module) -> torch.optim.Optimizer:
    """Slow: some ten operators for each parameter, in a Python loop."""
    return torch.optim.AdamW(model.parameters(), lr=LR, foreach=False)


def optimizer_fused(model: nn.Module) -> torch.optim.Optimizer:
    """One operator updates all parameters. A CUDA graph needs its step count on the GPU: capturable."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(parameters, lr=LR, fused=True, capturable=parameters[0].is_cuda)


# Metrics


class MeterBySample:
    """Slow: asks for each image whether it was right, and waits for each answer."""

    def __init__(self, device: torch.device) -> None:
        self.loss, self.correct = 0.0, 0

    def add(self, logits: torch.Tensor, y: torch.Tensor, loss: torch.Tensor) -> None:
        for scores, label in zip(logits.cpu(), y.cpu(), strict=True):
            self.correct += int(scores.argmax() == label)
        self.loss += loss.item()

    def read(self, steps: int, images: int) -> tuple[float, float]:
        loss, correct = self.loss / steps, self.correct / images
        self.loss, self.correct = 0.0, 0
        return loss, correct


class MeterByBatch(MeterBySample):
    """Better: one comparison for a batch. It still reads two numbers in every step."""

    def add(self, logits: torch.Tensor, y: torch.Tensor, loss: torch.Tensor) -> None:
        self.correct += int((logits.argmax(1) == y).sum())
        self.loss += loss.item()


class MeterOnDevice:
    """Best: the sums stay on the device and are read once, at the end of the epoch."""

    def __init__(self, device: torch.device) -> None:
        self.loss, self.correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)

    def add(self, logits: torch.Tensor, y: torch.Tensor, loss: torch.Tensor) -> None:
        self.correct += (logits.argmax(1) == y).sum()
        self.loss += loss.detach()

    def read(self, steps: int, images: int) -> tuple[float, float]:
        loss, correct = self.loss.item() / steps, self.correct.item() / images
        self.loss.zero_()
        self.correct.zero_()
        return loss, correct


# Validation


def validate_with_graphs(model: nn.Module, batches: Iterator[Batch]) -> int:
    """Slow: autograd notes every operator for a backward pass that never comes, and each batch is waited for."""
    correct = 0
    for x, y in batches:
        correct += int((model(x).argmax(1) == y).sum())
    return correct


@torch.inference_mode()
def validate(model: nn.Module, batches: Iterator[Batch]) -> torch.Tensor | int:
    """Right: nothing is noted, and the number is read by the caller, at the end."""
    return sum((model(x).argmax(1) == y).sum() for x, y in batches)


SLOW = Recipe(
    source=SampleBySample,
    forward=forward_with_copies,
    loss=loss_by_hand,
    make_optimizer=optimizer_one_by_one,
    meter=MeterBySample,
    validate=validate_with_graphs,
)
