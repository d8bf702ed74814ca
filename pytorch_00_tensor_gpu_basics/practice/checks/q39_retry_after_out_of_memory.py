"""A pretended device knows at each attempt what is still held of the attempts before it."""

import gc
import random
import weakref
from collections.abc import Callable
from typing import Any

from shared.practice import expect
from shared.traps import shown

import torch

Step = Callable[[torch.Tensor], torch.Tensor]
LAYERS = 4


class Device:
    """Memory for `fits` samples of a model that keeps one tensor for each layer."""

    def __init__(self, fits: int) -> None:
        self.room, self.used = LAYERS * fits, 0  # in tensors of one sample
        self.attempts: list[int] = []
        self.used_before: list[int] = []

    def step(self, part: torch.Tensor) -> torch.Tensor:
        """The sum of each sample."""
        self.attempts.append(len(part))
        self.used_before.append(self.used)
        activations = [part]
        for _ in range(LAYERS):
            activations.append(self.allocate(len(part)))
        return part.sum(dim=1)

    def allocate(self, samples: int) -> torch.Tensor:
        if self.used + samples > self.room:
            raise torch.OutOfMemoryError(f"{samples} asked for, {self.room - self.used} free")
        self.used += samples
        activation = torch.empty(samples)
        weakref.finalize(activation, self.release, samples)
        return activation

    def release(self, samples: int) -> None:
        self.used -= samples


def attempts_needed(samples: int, fits: int) -> list[int]:
    if samples <= fits:
        return [samples]
    half = (samples + 1) // 2
    return [samples, *attempts_needed(half, fits), *attempts_needed(samples - half, fits)]


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    sizes = [(5, 9), (1, 1), (5, 2), (8, 3), (7, 1), *((draw.randint(1, 40), draw.randint(1, 9)) for _ in range(20))]
    for samples, fits in sizes:
        expect_run(answer, samples, fits)
    expect_raises(answer, torch.OutOfMemoryError, "a single sample does not fit")
    expect_raises(answer, RuntimeError, "the step stops with an error of another kind", "shapes do not match")


def expect_run(answer: Any, samples: int, fits: int) -> None:
    device = Device(fits)
    batch = torch.randn(samples, 3)
    call = f"run_in_parts of {samples} samples where {fits} fit"
    try:
        results = answer.run_in_parts(device.step, batch)
    except torch.OutOfMemoryError:
        results = None
    for number, used in enumerate(device.used_before):
        expect(
            used == 0,
            f"{call}: when the attempt with {device.attempts[number]} samples begins, {100 * used // device.room} % of the "
            f"memory is still held by failed attempts before it; what keeps their local variables alive?",
        )
    wanted = attempts_needed(samples, fits)
    expect(device.attempts == wanted, f"{call} tried {device.attempts} samples, and should try {wanted}")
    is_list = isinstance(results, list) and all(isinstance(result, torch.Tensor) for result in results)
    expect(is_list, f"{call} returned {shown(results)}; return the list of what step returned")
    found = torch.cat(results)  # type: ignore[arg-type]
    expect(torch.equal(found, batch.sum(dim=1)), f"{call} returned other results than those of its samples in order")


def expect_raises(answer: Any, kind: type[Exception], when: str, message: str = "no room") -> None:
    attempts = 0

    def step(part: torch.Tensor) -> torch.Tensor:
        nonlocal attempts
        attempts += 1
        if len(part) < 3 or kind is RuntimeError:
            raise kind(message)
        raise torch.OutOfMemoryError(message)

    call = f"run_in_parts, where {when},"
    try:
        found = answer.run_in_parts(step, torch.ones(4, 3))
    except kind as error:
        expect(str(error) == message, f"{call} raised {shown(error)} in place of the step's own {kind.__name__}")
    else:
        expect(False, f"{call} returned {shown(found)}; raise the step's own {kind.__name__}")
    expect(attempts == 1 or kind is torch.OutOfMemoryError, f"{call} tried again; only out-of-memory is worth a retry")


def as_shipped(step: Step, batch: torch.Tensor) -> list[torch.Tensor]:
    try:
        return [step(batch)]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        gc.collect()
        first, second = batch.tensor_split(2)
        return as_shipped(step, first) + as_shipped(step, second)


def keeps_the_error(step: Step, batch: torch.Tensor) -> list[torch.Tensor]:
    try:
        return [step(batch)]
    except torch.OutOfMemoryError as error:
        failure = error
    if len(batch) == 1:
        raise failure
    first, second = batch.tensor_split(2)
    return keeps_the_error(step, first) + keeps_the_error(step, second)


def catches_everything(step: Step, batch: torch.Tensor) -> list[torch.Tensor]:
    try:
        return [step(batch)]
    except RuntimeError:
        if len(batch) == 1:
            raise
    first, second = batch.tensor_split(2)
    return catches_everything(step, first) + catches_everything(step, second)


def skips_what_does_not_fit(step: Step, batch: torch.Tensor) -> list[torch.Tensor]:
    try:
        return [step(batch)]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            return []
    first, second = batch.tensor_split(2)
    return skips_what_does_not_fit(step, first) + skips_what_does_not_fit(step, second)


def goes_to_single_samples(step: Step, batch: torch.Tensor) -> list[torch.Tensor]:
    try:
        return [step(batch)]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    return [step(sample[None]) for sample in batch]


WRONG = {
    "collects the garbage in the except block": ({"run_in_parts": as_shipped}, "is still held by failed attempts"),
    "keeps the error under another name": ({"run_in_parts": keeps_the_error}, "is still held by failed attempts"),
    "catches every error": ({"run_in_parts": catches_everything}, "only out-of-memory is worth a retry"),
    "skips what does not fit": ({"run_in_parts": skips_what_does_not_fit}, "raise the step's own OutOfMemoryError"),
    "goes to single samples at once": ({"run_in_parts": goes_to_single_samples}, "and should try [5, 3, 2, 1, 2]"),
}
