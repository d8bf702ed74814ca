"""Right first: every image once an epoch and as the formula has it. Then operations are counted, no clock."""

from collections.abc import Iterable, Iterator
from typing import Any

from shared.practice import expect
from shared.traps import largest_made, operations, shown

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

Sample = tuple[torch.Tensor, torch.Tensor]
MOST = 20


def draw(count: int, channels: int, size: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Images in which no two pixels tell the same story, labels, mean and std; the images are a view with gaps."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, channels, size, 2 * size), generator=generator, dtype=torch.uint8)[..., ::2]
    labels = torch.randperm(count, generator=generator) + 100
    mean, std = torch.rand(2, channels, generator=generator) + 0.2
    return images, labels, mean, std


def check(answer: Any, seed: int) -> None:
    for count, channels, size, batch_size in ((10, 3, 4, 4), (7, 1, 5, 7), (5, 2, 3, 8), (64, 3, 2, 16)):
        expect_epochs(answer, draw(count, channels, size, seed), batch_size, seed)
    expect_few_operations(answer, seed)


def read(loader: Iterable[Sample], call: str) -> list[Sample]:
    batches = list(loader)
    for batch in batches:
        is_pair = isinstance(batch, tuple | list) and len(batch) == 2
        expect(
            is_pair and all(isinstance(x, torch.Tensor) for x in batch),
            f"{call}: a batch is {shown(batch)}; make it (x, y)",
        )
    return batches


def make(answer: Any, data: tuple[torch.Tensor, ...], batch_size: int, seed: int, call: str) -> Iterable[Sample]:
    loader = answer.make_loader(*data, batch_size, torch.Generator().manual_seed(seed))
    expect(
        not isinstance(loader, str | tuple | torch.Tensor) and hasattr(loader, "__iter__"),
        f"{call} returned {shown(loader)}; return a loader that can be iterated",
    )
    expect(not getattr(loader, "num_workers", 0), f"{call} has workers; make the work less, not divided")
    expect(not isinstance(loader, Iterator), f"{call} returned an iterator, which is empty after one epoch")
    return loader  # type: ignore[no-any-return]


def expect_epochs(answer: Any, data: tuple[torch.Tensor, ...], batch_size: int, seed: int) -> None:
    images, labels, mean, std = data
    call = f"make_loader of {len(labels)} images {tuple(images.shape[1:])}, batch_size {batch_size}"
    kept = [x.clone() for x in data]
    torch.manual_seed(seed)
    loader = make(answer, data, batch_size, seed, call)
    epochs = [read(loader, call) for _ in range(3)]
    right = (images.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
    sizes = [len(part) for part in labels.split(batch_size)]
    for epoch in epochs:
        found = [len(y) for _, y in epoch]
        expect(found == sizes, f"{call}: the batches have {found} samples, and should have {sizes}")
        y = torch.cat([y for _, y in epoch])
        twice = f"{call}: an epoch does not have every label exactly once"
        expect(y.dtype == labels.dtype and y.sort().values.equal(labels.sort().values), twice)
        x = torch.cat([x for x, _ in epoch])
        is_like = x.shape == right.shape and x.dtype == torch.float32
        expect(is_like, f"{call}: an epoch is {shown(x)}; it should be {tuple(right.shape)} and float32")
        place = torch.stack([(labels == label).nonzero().squeeze() for label in y])
        apart = (x.double() - right[place]).abs().amax(dim=(1, 2, 3))
        others = torch.stack([(x.double() - other).abs().amax(dim=(1, 2, 3)) for other in right]).amin(dim=0)
        if (apart > 1e-4).any():
            mixed = bool((others <= 1e-4).all())
            expect(
                not mixed,
                f"{call}: the images are right and stand beside the labels of others; use one list of indices for both",
            )
            worst = int(apart.argmax())
            expect(False, f"{call}: a normalised image is off by up to {apart[worst]:.3g}; is each channel taken with its own "
                   "mean and std, of pixels from 0 to 1?")  # fmt: skip
    for given, before in zip(data, kept, strict=True):
        expect(given.equal(before), f"{call} changed {shown(given)} that it was given")
    orders = [torch.cat([y for _, y in epoch]).tolist() for epoch in epochs]
    if len(labels) >= 10:  # three equal orders of ten are no accident
        expect(len(set(map(tuple, orders))) > 1, f"{call}: three epochs came in the same order")
        torch.manual_seed(seed + 1)
        again = torch.cat([y for _, y in read(make(answer, data, batch_size, seed, call), call)]).tolist()
        expect(again == orders[0], f"{call}: with a generator of the same seed the first epoch has another order")


def expect_few_operations(answer: Any, seed: int) -> None:
    batch_size, count = 64, 512
    data = draw(count, 3, 8, seed)
    call = f"make_loader of {count} images, batch_size {batch_size}"

    def epoch() -> None:
        for _ in make(answer, data, batch_size, seed, call):
            pass

    used = operations(epoch)
    batches = count // batch_size
    each = len(used) / batches
    expect(each <= MOST, f"right, but {each:.0f} operations for each batch of {batch_size}; at most {MOST}")
    pixels = batch_size * data[0][0].numel()
    largest = largest_made(epoch)
    # A view of the images counts as all of them with their gaps; a copy of them as float32 is a tensor of its own.
    own = data[0].untyped_storage().nbytes()
    expect(
        largest == own or largest <= pixels,
        f"right, but it makes a tensor of {largest:,} numbers, and a batch has {pixels:,}; convert batch by batch",
    )


class PerImage(Dataset[Sample]):
    def __init__(self, *data: torch.Tensor) -> None:
        self.images, self.labels, self.mean, self.std = data

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index].float().div_(255).sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
        return image, self.labels[index]


class ByBatch(PerImage):
    def __getitem__(self, index: Any) -> Sample:
        batch = torch.as_tensor(index)
        x = self.images[batch].float() / 255
        return (x - self.mean[:, None, None]) / self.std[:, None, None], self.labels[batch]


def skips_a_few_copies(
    images: torch.Tensor, labels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, batch_size: int,
    generator: torch.Generator,
) -> Iterable[Sample]:  # fmt: skip
    return DataLoader(PerImage(images, labels, mean, std), batch_size, shuffle=True, generator=generator)


def by_batch(
    *data: torch.Tensor, batch_size: int, generator: torch.Generator, drop_last: bool = False
) -> Iterable[Sample]:
    dataset = ByBatch(*data)
    batches = BatchSampler(RandomSampler(dataset, generator=generator), batch_size, drop_last)
    return DataLoader(dataset, batch_size=None, sampler=batches)


def converts_everything(
    images: torch.Tensor, labels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, batch_size: int,
    generator: torch.Generator,
) -> Iterable[Sample]:  # fmt: skip
    x = (images.float() / 255 - mean[:, None, None]) / std[:, None, None]
    zero, one = torch.zeros_like(mean), torch.ones_like(std)
    return by_batch(x * 255, labels, zero, one, batch_size=batch_size, generator=generator)


def drops_the_rest(
    images: torch.Tensor, labels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, batch_size: int,
    generator: torch.Generator,
) -> Iterable[Sample]:  # fmt: skip
    return by_batch(images, labels, mean, std, batch_size=batch_size, generator=generator, drop_last=True)


def forgets_the_255(
    images: torch.Tensor, labels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, batch_size: int,
    generator: torch.Generator,
) -> Iterable[Sample]:  # fmt: skip
    return by_batch(images, labels, 255 * mean, std, batch_size=batch_size, generator=generator)


def yields_one_epoch(
    images: torch.Tensor, labels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, batch_size: int,
    generator: torch.Generator,
) -> Iterable[Sample]:  # fmt: skip
    return iter(by_batch(images, labels, mean, std, batch_size=batch_size, generator=generator))


def shuffles_labels_apart(
    images: torch.Tensor, labels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, batch_size: int,
    generator: torch.Generator,
) -> Iterable[Sample]:  # fmt: skip
    order = torch.randperm(len(labels), generator=generator)
    return by_batch(images, labels[order], mean, std, batch_size=batch_size, generator=generator)


def shuffles_once(
    images: torch.Tensor, labels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, batch_size: int,
    generator: torch.Generator,
) -> Iterable[Sample]:  # fmt: skip
    dataset = ByBatch(images, labels, mean, std)
    order = torch.randperm(len(labels), generator=generator)
    return [dataset[indices] for indices in order.split(batch_size)]


WRONG = {
    "skips a few copies": ({"make_loader": skips_a_few_copies}, "operations for each batch of 64; at most"),
    "converts everything first": ({"make_loader": converts_everything}, "convert batch by batch"),
    "drops the rest": ({"make_loader": drops_the_rest}, "the batches have [4, 4] samples"),
    "forgets the 255": ({"make_loader": forgets_the_255}, "of pixels from 0 to 1?"),
    "yields one epoch": ({"make_loader": yields_one_epoch}, "empty after one epoch"),
    "shuffles the labels apart": ({"make_loader": shuffles_labels_apart}, "beside the labels of others"),
    "shuffles once": ({"make_loader": shuffles_once}, "three epochs came in the same order"),
}
