"""Workers are played by copies, which is what they get: what these say is compared, no process is started."""

import copy
import math
import random
from typing import Any

from shared.practice import Wrong, expect
from shared.traps import shown

import numpy as np
import torch

COUNT, EPOCHS = 48, 3


def check(answer: Any, seed: int) -> None:
    images = torch.rand(COUNT, 2, 3, 4, generator=torch.Generator().manual_seed(seed)) + 0.5
    expect_samples(answer, images, seed)
    expect_same_for_all_workers(answer, images, seed)
    expect_repeatable(answer, images, seed)
    expect_spread(answer, seed)


def make(answer: Any, images: torch.Tensor, strength: float, seed: int) -> Any:
    dataset = answer.Brightened(images, strength, seed)
    call = f"Brightened(images, {strength}, {seed})"
    expect(
        hasattr(dataset, "__getitem__") and hasattr(dataset, "set_epoch"), f"{call} is {shown(dataset)}; keep the class"
    )
    expect(len(dataset) == len(images), f"len of {call} is {len(dataset)}, and there are {len(images)} images")
    return dataset


def copied(dataset: Any) -> Any:
    """As it arrives in a worker."""
    try:
        return copy.deepcopy(dataset)  # as a pickle of it would be, also where its module is not to be imported
    except TypeError as error:
        raise Wrong(f"the data set cannot be sent to a worker: {error}") from None


def amounts(dataset: Any, indices: list[int], images: torch.Tensor) -> list[float]:
    """What each sample was brightened by; raises Wrong for a sample that is no brightened image."""
    found = []
    for index in indices:
        sample = dataset[index]
        is_like = isinstance(sample, torch.Tensor) and (sample.shape, sample.dtype) == (images[0].shape, images.dtype)
        expect(is_like, f"sample {index} is {shown(sample)}; it should be {shown(images[0])}")
        factors = sample / images[index]
        is_even = torch.allclose(factors, factors.flatten()[0].expand_as(factors), atol=1e-5)
        expect(
            is_even,
            f"sample {index}: its pixels were multiplied by different numbers; one amount brightens a whole image",
        )
        found.append(round(factors.mean().item() - 1, 5))
    return found


def expect_samples(answer: Any, images: torch.Tensor, seed: int) -> None:
    dataset, kept, indices = make(answer, images, 0.5, seed), images.clone(), list(range(COUNT))
    dataset.set_epoch(0)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[union-attr]
    first = amounts(dataset, indices, images)
    same = (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]  # type: ignore[union-attr]
    same = same and torch.get_rng_state().equal(states[2])
    expect(same, "a generator of the whole program was used or seeded; other code draws from it, too")
    expect(images.equal(kept), "the images were changed; the next epoch would brighten what is brightened already")
    different = len(set(first))
    expect(different > COUNT - 3, f"without workers {different} of {COUNT} samples have an amount of their own")


def expect_repeatable(answer: Any, images: torch.Tensor, seed: int) -> None:
    dataset, indices = make(answer, images, 0.5, seed), list(range(COUNT))
    before = amounts(dataset, indices, images)
    dataset.set_epoch(0)
    first, second = amounts(dataset, indices, images), amounts(dataset, indices, images)
    expect(
        second == first,
        "a sample has another amount when it is fetched again in the same epoch, and should have the same",
    )
    backwards = amounts(dataset, indices[::-1], images)[::-1]
    expect(backwards == first, "the amounts depend on the order in which samples are fetched")
    expect(before == first, "before set_epoch was called the amounts are not those of epoch 0")


def expect_same_for_all_workers(answer: Any, images: torch.Tensor, seed: int) -> None:
    epochs: dict[int, list[list[float]]] = {}
    for workers in (2, 1, 3):
        team = f"{workers} worker{'s' * (workers > 1)}"
        dataset = make(answer, images, 0.5, seed)
        epochs[workers] = []
        for epoch in range(EPOCHS):
            dataset.set_epoch(epoch)
            copies = [copied(dataset) for _ in range(workers)]
            dealt = {index: amounts(copies[index % workers], [index], images)[0] for index in range(COUNT)}
            epochs[workers].append([dealt[index] for index in range(COUNT)])
        twins = COUNT - len(set(epochs[workers][0]))
        expect(twins < 3, f"with {team} {twins} of {COUNT} samples share their amount with another one")
        for epoch in range(1, EPOCHS):
            repeated = len(set(epochs[workers][epoch]) & set(epochs[workers][epoch - 1]))
            expect(
                repeated < 5,
                f"with {team} epoch {epoch} repeats {repeated} of the {COUNT} amounts of epoch {epoch - 1}",
            )
    expect(
        epochs[1] == epochs[2] == epochs[3],
        "the amounts depend on the number of workers; seed, epoch and index decide alone",
    )
    others = [make(answer, images, 0.5, other) for other in (seed, seed + 1)]
    for dataset in others:
        dataset.set_epoch(0)
    same, other = (amounts(dataset, list(range(COUNT)), images) for dataset in others)
    expect(same == epochs[1][0], "the same seed, epoch and index gave another amount in a second run")
    shared = len(set(other) & set(same))
    expect(shared < 5, f"seeds {seed} and {seed + 1} share {shared} of {COUNT} amounts")


def expect_spread(answer: Any, seed: int) -> None:
    images, strength = torch.ones(400, 1, 1, 1), 0.2
    dataset = make(answer, images, strength, seed)
    dataset.set_epoch(5)
    found = torch.tensor(amounts(dataset, list(range(400)), images))
    largest = found.abs().max().item()
    expect(largest <= strength + 1e-5, f"with strength {strength} an amount is {largest:.3f}")
    mean, spread = found.mean().item(), found.std().item()
    wanted = strength / math.sqrt(3)
    is_uniform = abs(mean) < 6 * wanted / 20 and abs(spread / wanted - 1) < 0.2
    expect(is_uniform, f"with strength {strength} the amounts have mean {mean:.3f} and spread {spread:.3f}; uniform ones "
           f"have 0 and {wanted:.3f}")  # fmt: skip


class Base:
    def __init__(self, images: torch.Tensor, strength: float, seed: int) -> None:
        self.images, self.strength, self.seed, self.epoch = images, strength, seed, 0
        self.random = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def brightened(self, index: int, generator: Any) -> torch.Tensor:
        return self.images[index] * (1 + generator.uniform(-self.strength, self.strength))

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.brightened(index, np.random.default_rng([self.seed, self.epoch, index]))


class SeedsInSetEpoch(Base):
    def set_epoch(self, epoch: int) -> None:
        self.random = np.random.default_rng([self.seed, epoch])

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.brightened(index, self.random)


class DrawsInSetEpoch(Base):
    """Right with any number of workers, and with seeds that are not the caller's."""

    def __init__(self, images: torch.Tensor, strength: float, seed: int) -> None:
        super().__init__(images, strength, seed)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.amounts = self.random.uniform(-self.strength, self.strength, len(self.images)).tolist()

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index] * (1 + self.amounts[index])


class ForgetsTheEpoch(Base):
    def __getitem__(self, index: int) -> torch.Tensor:
        return self.brightened(index, np.random.default_rng([self.seed, index]))


class AddsThemUp(Base):
    def __getitem__(self, index: int) -> torch.Tensor:
        return self.brightened(index, np.random.default_rng(self.seed + self.epoch + index))


class UsesTheGlobalOne(Base):
    def __getitem__(self, index: int) -> torch.Tensor:
        return self.brightened(index, np.random)


class SeedsTheGlobalOne(Base):
    def __getitem__(self, index: int) -> torch.Tensor:
        torch.manual_seed(hash((self.seed, self.epoch, index)))
        return self.images[index] * (1 + self.strength * (2 * torch.rand(()) - 1))


class DrawsInAdvance(Base):
    """Every epoch the same table."""

    def __init__(self, images: torch.Tensor, strength: float, seed: int) -> None:
        super().__init__(images, strength, seed)
        self.amounts = self.random.uniform(-strength, strength, len(images)).tolist()

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index] * (1 + self.amounts[index])


WRONG = {
    "seeds in set_epoch": ({"Brightened": SeedsInSetEpoch}, "share their amount with another one"),
    "draws on in set_epoch": ({"Brightened": DrawsInSetEpoch}, "before set_epoch was called"),
    "forgets the epoch": ({"Brightened": ForgetsTheEpoch}, "with 2 workers epoch 1 repeats 48"),
    "adds seed, epoch and index": ({"Brightened": AddsThemUp}, "repeats 47 of the 48 amounts"),
    "uses the global generator": ({"Brightened": UsesTheGlobalOne}, "a generator of the whole program"),
    "seeds the global generator": ({"Brightened": SeedsTheGlobalOne}, "a generator of the whole program"),
    "draws a table in advance": ({"Brightened": DrawsInAdvance}, "with 2 workers epoch 1 repeats 48"),
}
