"""The batches are collected first and compared with the samples afterwards, as a shuffling program would do."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from shared.practice import expect
from shared.traps import expect_close, expect_tensor, shown

import numpy as np
import torch


def check(answer: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch_size, features = int(rng.integers(3, 6)), int(rng.integers(2, 7))
    for count in (2 * batch_size + 1, 3 * batch_size, 1, batch_size, 0):
        expect_samples_kept(answer, rng.standard_normal((count, features)).astype(np.float32), batch_size)
    expect_samples_kept(answer, rng.integers(-100, 100, (2 * batch_size, features)), batch_size)  # integers too
    expect_reads_as_needed(answer, batch_size)
    expect_owned(answer, batch_size)


def collect(answer: Any, samples: Iterable[np.ndarray], batch_size: int, features: int) -> list[torch.Tensor]:
    batches = answer.read_batches(samples, batch_size, features)
    expect(hasattr(batches, "__iter__"), f"read_batches returned {shown(batches)}; yield one tensor per batch")
    return list(batches)


def expect_samples_kept(answer: Any, samples: np.ndarray, batch_size: int) -> None:
    count, features = samples.shape
    batches = collect(answer, iter(samples), batch_size, features)
    call = f"read_batches of {count} samples with batch_size {batch_size}"
    expected = -(-count // batch_size)
    expect(len(batches) == expected, f"{call} gave {len(batches)} batches instead of {expected}")
    for number, batch in enumerate(batches):
        right = torch.tensor(samples[number * batch_size : (number + 1) * batch_size], dtype=torch.float32)
        expect_tensor(batch, f"{call}: batch {number}", tuple(right.shape), torch.float32)
        expect_close(batch, right, f"{call}: once all are read, batch {number} no longer holds its samples: batch")


def expect_reads_as_needed(answer: Any, batch_size: int) -> None:
    taken = 0

    def camera() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(10 * batch_size):
            taken += 1
            yield np.ones(3, dtype=np.float32)

    next(iter(answer.read_batches(camera(), batch_size, 3)))
    expect(
        taken <= batch_size + 1,
        f"before the first batch of {batch_size}, {taken} samples were read; yield each batch as soon as it is full",
    )


def expect_owned(answer: Any, batch_size: int) -> None:
    samples = np.ones((3 * batch_size, 3), dtype=np.float32)
    first, second, _ = collect(answer, samples, batch_size, 3)
    first.zero_()
    expect(bool((second == 1).all()), "writing into the first batch changed the second; each needs memory of its own")
    expect(bool((samples == 1).all()), "writing into a batch changed the samples it was read from; copy them")


def fill_and_hand_over(hand_over: Callable[[np.ndarray], torch.Tensor]) -> dict[str, object]:
    def read_batches(samples: Iterable[np.ndarray], batch_size: int, features: int) -> Iterator[torch.Tensor]:
        buffer = np.empty((batch_size, features), dtype=np.float32)
        filled = 0
        for sample in samples:
            buffer[filled] = sample
            filled += 1
            if filled == batch_size:
                yield hand_over(buffer)
                filled = 0
        if filled:
            yield hand_over(buffer[:filled])

    return {"read_batches": read_batches}


def drops_the_rest(samples: Iterable[np.ndarray], batch_size: int, features: int) -> Iterator[torch.Tensor]:
    batch: list[np.ndarray] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == batch_size:
            yield torch.tensor(np.stack(batch), dtype=torch.float32)
            batch = []


def reads_all_first(samples: Iterable[np.ndarray], batch_size: int, features: int) -> list[torch.Tensor]:
    rows = [torch.tensor(sample, dtype=torch.float32) for sample in samples]
    return [torch.stack(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]


WRONG = {
    "trusts contiguous() to copy": (
        fill_and_hand_over(lambda a: torch.from_numpy(a).contiguous()),
        "batch 0 no longer holds its samples",
    ),
    "trusts as_tensor to copy": (
        fill_and_hand_over(lambda a: torch.as_tensor(a, device="cpu")),
        "batch 0 no longer holds its samples",
    ),
    "drops the last samples": ({"read_batches": drops_the_rest}, "2 batches instead of 3"),
    "reads everything first": ({"read_batches": reads_all_first}, "samples were read; yield each batch"),
}
