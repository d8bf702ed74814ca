"""All places of small worlds are asked, and their samples compared; then an endless stream that counts its readers."""

from collections.abc import Iterable, Iterator
from itertools import count, islice
from typing import Any

from shared.practice import expect
from shared.traps import shown


def check(answer: Any, seed: int) -> None:
    for length in (11, 0, 1, 6 + seed, 24, 25, 59 + 7 * seed):
        for world_size, workers in ((1, 1), (2, 2), (1, 3), (3, 1), (4, 3), (2, 5)):
            expect_dealt(answer, length, world_size, workers)
    for world_size, workers in ((2, 2), (3, 4)):
        expect_lazy(answer, world_size, workers)


def ask(
    answer: Any, stream: Iterable[Any], rank: int, world_size: int, worker: int, workers: int, call: str
) -> Iterator[Any]:
    found = answer.shard(stream, rank, world_size, worker, workers)
    is_iterator = isinstance(found, Iterator)
    expect(is_iterator, f"{call} returned {shown(found)}; yield the samples, or return an iterator over them")
    return found  # type: ignore[no-any-return]


def expect_dealt(answer: Any, length: int, world_size: int, workers: int) -> None:
    world = f"{length} samples, world_size {world_size}, workers {workers}"
    dealt: list[list[list[int]]] = []
    for rank in range(world_size):
        dealt.append([])
        for worker in range(workers):
            call = f"shard of {world}, rank {rank}, worker {worker}"
            stream = iter(range(100, 100 + length))  # can be read once
            samples = list(ask(answer, stream, rank, world_size, worker, workers, call))
            strange = [sample for sample in samples if not (isinstance(sample, int) and 100 <= sample < 100 + length)]
            expect(not strange, f"{call} gave {shown(strange[:1])}, which is no sample of the stream")
            expect(samples == sorted(samples), f"{call} gave its samples in another order than the stream")
            dealt[-1].append(samples)
    everything = [sample for process in dealt for samples in process for sample in samples]
    doubled = len(everything) - len(set(everything))
    expect(doubled == 0, f"shard of {world}: {doubled} of {length} samples go to more than one place")
    numbers = [sum(map(len, process)) for process in dealt]
    expect(
        len(set(numbers)) == 1,
        f"shard of {world}: the processes get {numbers} samples; with unequal numbers one waits for the others for ever",
    )
    left = length - len(everything)
    expect(left < world_size, f"shard of {world}: {left} samples go to nobody; at most {world_size - 1} may")
    for rank, process in enumerate(dealt):
        loads = [len(samples) for samples in process]
        expect(
            max(loads) - min(loads) <= 1,
            f"shard of {world}: the workers of rank {rank} get {loads} samples; they should differ by one at most",
        )


class Counted:
    """An endless stream that knows how far it was read; it gives up where somebody waits for its end."""

    def __init__(self, call: str) -> None:
        self.call, self.read = call, 0

    def __iter__(self) -> Iterator[int]:
        for number in count():
            expect(number < 10_000, f"{self.call}: 10,000 samples were read without giving one; the stream has no end")
            self.read = number + 1
            yield number


def expect_lazy(answer: Any, world_size: int, workers: int) -> None:
    for rank in range(world_size):
        for worker in range(workers):
            call = f"shard of an endless stream, rank {rank} of {world_size}, worker {worker} of {workers}"
            stream = Counted(call)
            samples = ask(answer, stream, rank, world_size, worker, workers, call)
            for sample in islice(samples, 5):
                ahead = stream.read - 1 - sample
                expect(
                    ahead < world_size,
                    f"{call}: {ahead} more samples had been read when it gave sample {sample}; {world_size - 1} are allowed",
                )


def deals_to_all_places(stream: Iterable[Any], rank: int, world_size: int, worker: int, workers: int) -> Iterator[Any]:
    return islice(stream, rank * workers + worker, None, world_size * workers)


def forgets_the_workers(stream: Iterable[Any], rank: int, world_size: int, worker: int, workers: int) -> Iterator[Any]:
    rounds = zip(*[iter(stream)] * world_size, strict=False)
    return (samples[rank] for samples in rounds)


def forgets_the_rest(stream: Iterable[Any], rank: int, world_size: int, worker: int, workers: int) -> Iterator[Any]:
    for samples in zip(*[iter(stream)] * (world_size * workers), strict=False):
        yield samples[worker * world_size + rank]


def reads_it_all(stream: Iterable[Any], rank: int, world_size: int, worker: int, workers: int) -> Iterator[Any]:
    samples = list(stream)
    rounds = len(samples) // world_size
    yield from samples[rank : rounds * world_size : world_size][worker::workers]


def returns_a_list(stream: Iterable[Any], rank: int, world_size: int, worker: int, workers: int) -> list[Any]:
    return list(reads_it_all(stream, rank, world_size, worker, workers))


WRONG = {
    "deals to all places at once": ({"shard": deals_to_all_places}, "waits for the others for ever"),
    "forgets the workers": ({"shard": forgets_the_workers}, "go to more than one place"),
    "leaves out too many": ({"shard": forgets_the_rest}, "samples go to nobody"),
    "reads the whole stream": ({"shard": reads_it_all}, "the stream has no end"),
    "returns a list": ({"shard": returns_a_list}, "or return an iterator"),
}
