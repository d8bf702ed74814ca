"""Right first, against float64 on all numbers at once; then what is alive, what is computed and in which dtype is watched."""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from shared.dispatch import Watcher, name_of, tensors_in
from shared.practice import expect
from shared.traps import expect_tensor, shown
from shared.units import significant

import torch

Tensors = list[torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]
MOST = 20  # operations a batch
DIGITS = 1e-3
ROOM = 5  # times the bytes of a batch: the last one, and what was made of it


class Memory(Watcher):
    """Which storages are alive, by the batches and results that have them; operations by name; float64 among the results."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}  # address: bytes
        self.names: list[str] = []
        self.wide = ""

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        self.names.append(name_of(operation).partition(".")[0])
        for x in tensors_in(result):
            self.follow(x)
            if x.dtype is torch.float64 and not self.wide:
                self.wide = self.names[-1]

    def follow(self, x: torch.Tensor) -> None:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.alive:
            self.alive[storage.data_ptr()] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, storage.data_ptr(), None)


def whole(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """(C, numbers) in float64."""
    return torch.cat([batch.double().transpose(0, 1).flatten(1) for batch in batches], dim=1)


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, mean: float = 0.0) -> torch.Tensor:
        return mean + torch.randn(shape, generator=generator)

    example = [torch.tensor([[0.0], [2.0]]), torch.tensor([[7.0]])]
    drifting = [draw(4, 3, 2, 2, mean=float(i)) for i in range(6)]
    cases: list[tuple[str, Tensors]] = [
        ("the example", example),
        ("one batch", [draw(5, 3, 2, 4)]),
        ("equal batches", [draw(4, 3, 5) for _ in range(3)]),
        ("a short last batch, with another mean", [draw(8, 3, 4, 4), draw(8, 3, 4, 4), draw(1, 3, 4, 4, mean=6)]),
        ("batches whose means differ", drifting),
        ("images of different sizes", [draw(2, 4, 3, 3), draw(3, 4, 7, 2, mean=2), draw(1, 4, 1, 1, mean=-1)]),
        ("vectors", [draw(6, 5), draw(3, 5, mean=3), draw(1, 5)]),
        ("videos", [draw(2, 3, 2, 3, 4), draw(1, 3, 2, 2, 2, mean=1)]),
        ("channels that lie last in memory", [draw(4, 5, 5, 3).permute(0, 3, 1, 2), draw(2, 4, 4, 3).permute(0, 3, 1, 2)]),
        ("numbers about 10,000 with a spread of 1", [draw(16, 2, 8, 8, mean=1e4) for _ in range(8)]),
        ("outputs of a layer, with a graph", [draw(3, 4, 2).requires_grad_() * 2 for _ in range(3)]),
        ("numbers about 0.0001", [1e-4 * draw(6, 2, 4), 1e-4 * draw(6, 2, 4, mean=1)]),
    ]  # fmt: skip
    for case, batches in cases:
        expect_right(answer, case, batches)
    expect_lean(answer, lambda: draw(4, 3, 16, 16), 12)


def expect_right(answer: Any, case: str, batches: Tensors) -> None:
    sizes = ", ".join(str(tuple(batch.shape)) for batch in batches[:3]) + (" …" if len(batches) > 3 else "")
    call = f"mean_and_variance of {case}, {sizes}"
    kept = [batch.detach().clone() for batch in batches]
    found = answer.mean_and_variance(iter(batches))
    pair = expect_pair(found, call, batches[0].shape[1])
    for batch, before in zip(batches, kept, strict=True):
        expect(torch.equal(batch, before), f"{call} changed a batch")
    has_graph = any(x.requires_grad for x in pair)
    expect(not has_graph, f"{call}: the results have a graph, which holds all batches; keep torch.no_grad()")
    numbers = whole(kept)
    variance, mean = torch.var_mean(numbers, dim=1)
    off = ((pair[0].double() - mean).abs() / variance.sqrt()).max().item()
    expect(
        off < 0.01,
        f"{call}: the mean is off by {significant(off, 2)} standard deviations; each number counts the same, not each batch",
    )
    for channel, (value, right) in enumerate(zip(pair[1].tolist(), variance.tolist(), strict=True)):
        is_close = math.isclose(value, right, rel_tol=DIGITS)
        expect(is_close, f"{call}: the variance of channel {channel} is {value:.6g} and should be {right:.6g}"
               f"{reason(pair[1].double(), variance, kept)}")  # fmt: skip


def reason(found: torch.Tensor, right: torch.Tensor, batches: Tensors) -> str:
    """For a variance that is off: which of the usual mistakes gives it."""
    parts = [whole([batch]) for batch in batches]
    squares = torch.stack([part.var(dim=1, correction=0) * part.shape[1] for part in parts]).sum(dim=0)
    n = sum(part.shape[1] for part in parts)

    def is_found(wrong: torch.Tensor) -> bool:
        return torch.allclose(found, wrong, rtol=DIGITS, atol=0)

    if is_found(right * (n - 1) / n):
        return ": it was divided by n, not by n - 1"
    if is_found(squares / n) or is_found(squares / (n - 1)):
        return ": that is what the batches vary around their own means, and these lie apart, too"
    if batches[0].abs().max() > 1000 * right.sqrt().max():
        return ": the difference of two large numbers has no digits left"
    return ""


def expect_pair(found: object, call: str, channels: int) -> Pair:
    is_pair = isinstance(found, tuple | list) and len(found) == 2
    expect(is_pair, f"{call} returned {shown(found)}; return two tensors, mean and variance")
    for name, x in zip(("mean", "variance"), cast(Pair, found), strict=True):
        expect_tensor(x, f"{call}, as {name},", (channels,), torch.float32)
    return cast(Pair, found)


def expect_lean(answer: Any, make: Callable[[], torch.Tensor], count: int) -> None:
    memory, held = Memory(), list[int]()
    size = make().nbytes

    def fresh() -> torch.Tensor:
        before = len(memory.names)
        batch = make()
        del memory.names[before:]  # what it takes to make a batch is not the learner's
        return batch

    def read_once() -> Iterator[torch.Tensor]:
        for _ in range(count):
            held.append(sum(memory.alive.values()))
            yield fresh()

    call = f"mean_and_variance of {count} batches"
    with memory:
        found = answer.mean_and_variance(read_once())
    expect_pair(found, call, 3)
    most = max(range(count), key=lambda number: held[number])
    times = held[most] / size
    expect(times <= ROOM, f"{call} is right, but when number {most + 1} is read, {significant(times, 3)} times the bytes of a "
           f"batch are still in memory; the last one and what was made of it are {ROOM} times at most")  # fmt: skip
    expect(
        not memory.wide,
        f"{call} is right, but an operation ({memory.wide}) makes float64 numbers; not every device has them",
    )
    each, common = len(memory.names) / count, max(set(memory.names), key=memory.names.count)
    expect(
        each <= MOST,
        f"{call} is right, but takes {significant(each, 3)} operations a batch, most of them {common}; at most {MOST}",
    )


def written(merge: Callable[[Any, torch.Tensor], Any], finish: Callable[[Any], Pair]) -> dict[str, object]:
    """An answer that goes from batch to batch with a state, None at first."""

    @torch.no_grad()
    def mean_and_variance(batches: Iterable[torch.Tensor]) -> Pair:
        state = None
        for batch in batches:
            state = merge(state, batch)
        return finish(state)

    return {"mean_and_variance": mean_and_variance}


def keeps_the_graph(batches: Iterable[torch.Tensor]) -> Pair:
    state = None
    for batch in batches:
        state = merged(state, batch)
    return from_squares(state)


def of_batch(batch: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Count, mean and sum of squared distances of each channel."""
    n = batch.numel() // batch.shape[1]
    variance, mean = torch.var_mean(batch, dim=[0, *range(2, batch.ndim)], correction=0)
    return n, mean, n * variance


def merged(state: Any, batch: torch.Tensor) -> Any:
    n, mean, squares = of_batch(batch)
    if state is None:
        return n, mean, squares
    m, old, old_squares = state
    delta = mean - old
    return n + m, old + n / (n + m) * delta, squares + old_squares + n * m / (n + m) * delta**2


def pooled(state: Any, batch: torch.Tensor) -> Any:
    """Right means, and the variances inside the batches only."""
    squares = 0 if state is None else state[2]
    return *merged(state, batch)[:2], squares + of_batch(batch)[2]


def summed(state: Any, batch: torch.Tensor, dtype: torch.dtype = torch.float32) -> Any:
    n, axes, wide = batch.numel() // batch.shape[1], [0, *range(2, batch.ndim)], batch.to(dtype)
    m, total, squares = state or (0, 0, 0)
    return m + n, total + wide.sum(axes), squares + wide.square().sum(axes)


def from_sums(state: Any) -> Pair:
    n, total, squares = state
    return (total / n).float(), ((squares - total * total / n) / (n - 1)).float()


def from_squares(state: Any) -> Pair:
    n, mean, squares = state
    return mean, squares / (n - 1)


def averaged(state: Any, batch: torch.Tensor) -> Any:
    n, mean, squares = of_batch(batch)
    count, means, variances = state or (0, 0, 0)
    return count + 1, means + mean, variances + squares / n


def kept(state: Any, batch: torch.Tensor) -> Any:
    return (state or []) + [batch.transpose(0, 1).flatten(1)]


def one_channel_at_a_time(state: Any, batch: torch.Tensor) -> Any:
    rows = [summed_up(row) for row in batch.transpose(0, 1).flatten(1)]
    n, mean, squares = len(batch.transpose(0, 1).flatten(1)[0]), *(torch.stack(x) for x in zip(*rows, strict=True))
    if state is None:
        return n, mean, squares
    m, old, old_squares = state
    delta = mean - old
    return n + m, old + n / (n + m) * delta, squares + old_squares + n * m / (n + m) * delta**2


def summed_up(row: torch.Tensor) -> Pair:
    mean = row.mean()
    return mean, (row - mean).square().sum()


def of_all(state: Tensors) -> Pair:
    variance, mean = torch.var_mean(torch.cat(state, dim=1), dim=1)
    return mean, variance


WRONG = {
    "is as it was": (written(kept, of_all), "when number 12 is read, 12.0 times the bytes"),
    "counts each batch the same": (
        written(averaged, lambda state: (state[1] / state[0], state[2] / state[0])),
        "each number counts the same, not each batch",
    ),
    "averages the variances": (written(pooled, from_squares), "around their own means, and these lie apart, too"),
    "divides by n": (
        written(merged, lambda state: (state[1], state[2] / state[0])),
        "it was divided by n, not by n - 1",
    ),
    "subtracts the square of the mean": (written(summed, from_sums), "the difference of two large numbers"),
    "keeps the graph": ({"mean_and_variance": keeps_the_graph}, "which holds all batches"),
    "does so in float64": (
        written(lambda state, batch: summed(state, batch, torch.float64), from_sums),
        "(_to_copy) makes float64 numbers",
    ),
    "takes one channel at a time": (written(one_channel_at_a_time, from_squares), "operations a batch, most of them"),
}
