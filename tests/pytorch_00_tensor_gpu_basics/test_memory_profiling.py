"""memory_profiling: the whole lesson runs and all its checks hold; its counts and its allocator agree with oracles.

No GPU is at hand in most runs: the lesson's CUDA branches run on the CPU too, with the allocator's model in the place of
the allocator. What a GPU really does is tested where there is one.
"""

import gc
import itertools
import json
import pickle
import random
import subprocess
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytorch_00_tensor_gpu_basics.src import memory_profiling
from pytorch_00_tensor_gpu_basics.src.memory import (
    allocator,
    gpu_allocator,
    kept_for_backward,
    ledger,
    out_of_memory,
    training_step,
    whose_memory,
)
from pytorch_00_tensor_gpu_basics.src.memory.caching_allocator import (
    MIB,
    CachingAllocator,
    ExpandableAllocator,
    OutOfSegments,
    Step,
    draw,
    layout,
    run_trace,
)
from pytorch_00_tensor_gpu_basics.src.memory.ledger import Ledger, bytes_kept_for_backward
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick
from tests.pretend_cuda import H200, Machine

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
SECTIONS = [
    "Who counts the memory",
    "What keeps a tensor alive",
    "A training step, byte by byte",
    "What autograd keeps",
    "Keeping less",
    "Keeping nothing: checkpointing",
    "The caching allocator, drawn",
    "Fragmentation",
    "Whose memory is it?",
    "Out of memory, and on",
]
PICTURES = ["training_step.png", "checkpointing.png", "fragmentation.png"]


run = partial(run_quick, memory_profiling)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("memory_profiling")
    return *run(folder, "--device", "cpu"), folder / "memory_profiling"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=60)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    names = {measurement["name"] for measurement in record["measurements"]}
    assert names == {
        "alive",
        "kept for backward",
        "forward peak",
        "checkpointing peak",
        "forward and backward",
        "reserved at the end",
        "held by the list of losses",
        "part that fits",
    }
    assert all(measurement["value"] >= 0 for measurement in record["measurements"])
    expect_pictures(record, folder, PICTURES)


def test_the_text_fits_and_says_what_is_missing(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    notes = " ".join(record["notes"])
    for said in ("memory_snapshot.pickle", "pytorch.org/memory_viz", "GPU's own allocator"):
        assert said in notes
    assert "allocate memory" in " ".join(text.split())
    assert "None" not in text


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(memory_profiling, seed, tmp_path, monkeypatch)


# The ledger


def bytes_of_storages(tensors: list[torch.Tensor]) -> int:
    """The oracle: distinct storages by address, of the tensors that are known to be alive."""
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


@pytest.mark.parametrize("seed", range(8))
def test_a_random_program_is_counted_as_its_tensors_are(seed: int) -> None:
    generator = random.Random(seed)
    before = torch.ones(4, 4)
    with Ledger(CPU, keeps_history=True) as count:
        alive = [torch.ones(4, 4)]
        peak = bytes_of_storages(alive)
        for _ in range(60):
            x = generator.choice(alive)
            new = generator.choice([
                lambda x=x: x + 1,
                lambda x=x: x.t(),
                lambda x=x: x[1:],
                lambda x=x: x.detach(),
                lambda x=x: x.double(),
                lambda x=x: x.add_(1),
                lambda x=x: x.sum(),
                lambda x=x: torch.cat([x.flatten(), x.flatten()]),
                lambda x=x: torch.tensor([1.0, 2.0, 3.0]),
                lambda x=x: torch.empty(generator.randint(1, 9), dtype=torch.uint8),
                lambda x=x: x.sort().values,
                lambda x=x: before * 2,
            ])()  # fmt: skip
            alive.append(new if new.ndim else new.view(1))
            del new, x
            if generator.random() < 0.5 and len(alive) > 1:
                alive.pop(generator.randrange(len(alive)))
            assert count.live_bytes == bytes_of_storages(alive)
            peak = max(peak, count.live_bytes)
    assert count.peak_bytes >= peak
    assert sum(holding.size_bytes for holding in count.holdings()) == count.live_bytes
    assert count.history
    assert count.history[-1].live_bytes == count.live_bytes
    assert max(moment.live_bytes for moment in count.history) == count.peak_bytes
    alive.clear()
    assert count.live_bytes == 0


def test_what_was_there_before_is_not_counted() -> None:
    x = torch.ones(100)
    model = nn.Linear(10, 10)
    with Ledger(CPU) as count:
        views = [x[1:], x.view(10, 10), x.add_(1), model.weight.t(), model.weight.detach()]
        assert count.live_bytes == 0
        new = views[1] @ model.weight.T
        assert count.live_bytes == new.untyped_storage().nbytes()


def test_memory_is_written_off_after_the_block_too() -> None:
    with Ledger(CPU) as count:
        x = torch.ones(10)
        (held,) = count.holdings()
    assert (held.size_bytes, held.operation) == (40, "ones.default")
    assert held.function == "test_memory_is_written_off_after_the_block_too"
    y = torch.ones(10)
    assert count.live_bytes == 40
    del x
    assert count.live_bytes == 0
    assert y.sum() == 10


def test_the_backward_pass_is_counted() -> None:
    w = torch.ones(1000, requires_grad=True)
    with Ledger(CPU) as count:
        (w * w).sum().backward()
    assert w.grad is not None
    assert count.live_bytes == w.grad.nbytes
    assert count.peak_bytes > w.grad.nbytes


def test_one_size_only() -> None:
    with Ledger(CPU, only_size=400) as count:
        kept = [torch.ones(100), torch.ones(101), torch.ones(50, dtype=torch.float64)]
    assert count.live_bytes == 800
    assert len(kept) == 3


def test_other_devices_are_not_counted() -> None:
    with Ledger(torch.device("meta")) as count:
        kept = torch.ones(10), torch.ones(3, device="meta")
    assert count.live_bytes == kept[1].nbytes


def test_a_limit_refuses_and_the_refused_tensor_is_gone() -> None:
    with Ledger(CPU, limit_bytes=1000) as count:
        kept = torch.empty(100, dtype=torch.uint8)
        with pytest.raises(
            torch.OutOfMemoryError, match=r"tried to allocate 901 bytes of 1,000, of which 900 are free"
        ):
            torch.empty(901, dtype=torch.uint8)
        gc.collect()
        assert count.live_bytes == 100
        assert torch.empty(900, dtype=torch.uint8).nbytes == 900
    assert kept.nbytes == 100


def test_the_allocator_is_asked_at_each_moment_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: asked.append(device) or 512 * len(asked))
    count = Ledger(torch.device("cuda"), keeps_history=True)
    count.counted = "cpu"
    with count:
        x = torch.ones(3)
        del x
    assert count.history == [ledger.Moment(12, 512), ledger.Moment(0, 1024)]
    assert asked == [torch.device("cuda")] * 2


# What autograd keeps


@pytest.mark.parametrize("seed", range(10))
def test_kept_bytes_are_predicted_for_random_networks(seed: int) -> None:
    generator = random.Random(seed)
    sizes = tuple(generator.randint(1, 90) for _ in range(generator.randint(2, 6)))
    batch_size, dtype = generator.randint(1, 40), generator.choice([torch.float32, torch.float64, torch.bfloat16])
    for activation in kept_for_backward.NEEDS_ITS_INPUT:
        kept = kept_for_backward.measure_kept_bytes(sizes, batch_size, activation, dtype, CPU)
        assert kept == kept_for_backward.predict_kept_bytes(sizes, batch_size, activation, dtype)


@pytest.mark.parametrize("seed", range(5))
def test_kept_bytes_under_autocast_are_predicted(seed: int) -> None:
    generator = random.Random(seed)
    sizes = tuple(generator.randint(1, 90) for _ in range(generator.randint(2, 6)))
    batch_size = generator.randint(1, 40)
    model = kept_for_backward.make_mlp(sizes, "nn.ReLU()", torch.float32, CPU)
    x, targets = kept_for_backward.make_batch(sizes, batch_size, torch.float32, CPU)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x), targets)

    kept = bytes_kept_for_backward(forward, model.parameters())
    assert kept == kept_for_backward.predict_kept_bytes_under_autocast(sizes, batch_size)


@pytest.mark.parametrize("activation", kept_for_backward.NEEDS_ITS_INPUT)
def test_the_hooks_and_the_ledger_agree(activation: str) -> None:
    """Two ways to count: what autograd saves, and what is alive after the forward pass."""
    sizes = (30, 50, 40, 10)
    model = kept_for_backward.make_mlp(sizes, activation, torch.float32, CPU)
    x, targets = kept_for_backward.make_batch(sizes, 16, torch.float32, CPU)
    kept = bytes_kept_for_backward(lambda: F.cross_entropy(model(x), targets), [*model.parameters(), x, targets])
    with Ledger(CPU) as count:
        loss = F.cross_entropy(model(x), targets)
    assert count.live_bytes == kept + loss.nbytes


def test_a_tensor_that_is_saved_twice_counts_once() -> None:
    x = torch.ones(100, requires_grad=True)
    assert bytes_kept_for_backward(lambda: (x * x * x.exp()).sum(), []) == 3 * x.nbytes  # x, x², exp(x)
    assert bytes_kept_for_backward(lambda: (x[1:] * x[:-1]).sum(), []) == x.nbytes
    assert bytes_kept_for_backward(lambda: (x * x).sum(), [x]) == 0
    with torch.no_grad():
        assert bytes_kept_for_backward(lambda: x.exp().sum(), []) == 0


def test_names_of_what_is_kept() -> None:
    x = torch.ones(3, requires_grad=True)
    assert kept_for_backward.what_is_kept(x.exp()) == "result"
    assert kept_for_backward.what_is_kept(x * x) == "other, self"
    assert kept_for_backward.what_is_kept(x + 1) == "–"
    assert kept_for_backward.what_is_kept((x.exp() + 1).sin()) == "result, self"


@pytest.mark.parametrize(("blocks", "segments"), [(1, 1), (4, 2), (6, 3), (12, 4), (12, 6), (9, 9), (10, 1)])
def test_checkpointing_holds_the_predicted_number_of_activations(blocks: int, segments: int) -> None:
    chain = [kept_for_backward.Block(7, CPU) for _ in range(blocks)]
    x = torch.randn(100, 7)
    alive = kept_for_backward.activations_alive(
        lambda start: kept_for_backward.run_checkpointed(chain, segments, start), x
    )
    assert alive == tuple(x.nbytes * count for count in kept_for_backward.predict_activations(blocks, segments))
    assert [block.calls for block in chain] == [2] * blocks


@pytest.mark.parametrize("segments", [1, 2, 3, 5, 7])
def test_segments_of_any_number_give_the_same_gradients(segments: int) -> None:
    chain = nn.ModuleList(kept_for_backward.Block(7, CPU) for _ in range(7))
    x = torch.randn(5, 7)
    plain = torch.autograd.grad(kept_for_backward.run(list(chain), x).sum(), list(chain.parameters()))
    result = kept_for_backward.run_checkpointed(list(chain), segments, x)
    again = torch.autograd.grad(result.sum(), list(chain.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_half_precision_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert kept_for_backward.half_dtype(torch.device("cuda")) == torch.float16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert kept_for_backward.half_dtype(torch.device("cuda")) == torch.bfloat16
    assert kept_for_backward.half_dtype(torch.device("mps")) == torch.float16
    assert kept_for_backward.half_dtype(CPU) == torch.bfloat16


# A training step


@pytest.mark.parametrize(("sizes", "batch_size"), [((5, 10), 3), ((20, 30, 10), 7)])
def test_the_phases_of_a_step(sizes: tuple[int, ...], batch_size: int) -> None:
    count, phases, parameters, counters = training_step.train_under_watch(
        SimpleNamespace(device=CPU), sizes, batch_size  # type: ignore[arg-type]
    )  # fmt: skip
    names = ["parameters", "batch", *["forward", "backward", "step", "zero_grad"] * 2]
    assert [phase for phase, _, _ in phases] == names
    assert parameters == sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(sizes))
    ends = [live for _, _, live in phases]
    batch = batch_size * (4 * sizes[0] + 8)
    assert ends[0] == 4 * parameters
    assert ends[1] == 4 * parameters + batch
    assert ends[3] == 8 * parameters + batch
    assert ends[4] == ends[8] == 16 * parameters + batch + counters
    assert ends[5] == ends[9] == 12 * parameters + batch + counters
    assert count.history is not None
    assert all(count.history[stop - 1].live_bytes == live for _, stop, live in phases)


@pytest.mark.parametrize("allocated", [None, 10**6])
def test_the_picture_of_a_step(allocated: int | None) -> None:
    from matplotlib.figure import Figure

    history = [ledger.Moment(live, allocated) for live in (100, 150, 170, 190, 180, 160, 150)]
    phases = [("parameters", 1, 100), ("batch", 2, 150), ("forward", 4, 190), ("backward", 5, 180),
              ("step", 6, 160), ("zero_grad", 7, 150)]  # fmt: skip
    axis = Figure().subplots()
    training_step.draw_step(axis, history, phases, 25)
    assert axis.lines[0].get_ydata() * MIB == pytest.approx([100, 120, 140, 130, 110, 100])
    assert list(axis.lines[0].get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert (axis.get_legend() is not None) == (allocated is not None)


# What keeps a tensor alive


def test_the_error_keeps_the_frames_of_the_function() -> None:
    data = torch.ones(3)
    alive = weakref.ref(data.untyped_storage())
    error = memory_profiling.caught(lambda data=data: memory_profiling.fail_with(data))
    del data
    assert isinstance(error, ValueError)
    assert alive() is not None
    error.__traceback__ = None
    assert alive() is None
    with pytest.raises(AssertionError):
        memory_profiling.caught(lambda: None)


def test_a_loop_holds_two_batches_or_one() -> None:
    peaks = [memory_profiling.peak_of_loop(lambda: torch.ones(10), CPU, lets_go) for lets_go in (False, True)]
    assert peaks == [80, 40]


@pytest.mark.parametrize(("before", "now", "mib"), [(None, 5, None), (5, None, None), (MIB, 3 * MIB, 2), (MIB, 0, -1)])
def test_since(before: int | None, now: int | None, mib: float | None) -> None:
    assert memory_profiling.since(before, now) == mib


# The allocator's model


class ByTheUnit:
    """The oracle: each segment a row of 512-byte units, each unit the number of the request that holds it, or 0.

    Nothing is split or merged; free runs are looked for each time. The rests that stay with their block are kept apart.
    """

    def __init__(self) -> None:
        self.segments: list[tuple[bool, list[int]]] = []

    def malloc(self, number: int, requested: int) -> None:
        units = -(-requested // 512)
        is_small = units <= 2048
        runs = [(end - start, i, start) for i, (small, row) in enumerate(self.segments) if small == is_small
                for start, end in free_runs(row) if end - start >= units]  # fmt: skip
        if not runs:
            new = 4096 if is_small else 40960 if units < 20480 else -(-units // 4096) * 4096
            self.segments.append((is_small, [0] * new))
            runs = [(new, len(self.segments) - 1, 0)]
        length, i, start = min(runs)
        if not is_small and length - units <= 2048:
            units = length
        self.segments[i][1][start : start + units] = [number] * units

    def free(self, number: int) -> None:
        for _, row in self.segments:
            row[:] = [0 if unit == number else unit for unit in row]

    def empty_cache(self) -> None:
        self.segments = [(small, row) for small, row in self.segments if any(row)]

    def blocks(self) -> list[list[tuple[int, bool]]]:
        """For each segment the sizes of its blocks, and whether they are used."""
        rows = ([(number, len(list(units))) for number, units in itertools.groupby(row)] for _, row in self.segments)
        return sorted([(512 * units, number != 0) for number, units in row] for row in rows)


def free_runs(row: list[int]) -> Iterator[tuple[int, int]]:
    place = 0
    for number, units in itertools.groupby(row):
        length = len(list(units))
        if number == 0:
            yield place, place + length
        place += length


@pytest.mark.parametrize("seed", range(6))
def test_the_model_agrees_with_a_count_by_the_unit(seed: int) -> None:
    trace = allocator.random_trace(random.Random(seed), 40)
    model, oracle = CachingAllocator(), ByTheUnit()
    numbers = {step.name: i for i, step in enumerate(trace, 1) if step.size}
    blocks = {}
    for step in trace:
        if not step.name:
            model.empty_cache()
            oracle.empty_cache()
        elif step.size:
            blocks[step.name] = model.malloc(step.size)
            oracle.malloc(numbers[step.name], step.size)
        else:
            model.free(blocks.pop(step.name))
            oracle.free(numbers[step.name])
        assert sorted([(size, asked > 0) for size, asked in row] for row in layout(model.segments)) == oracle.blocks()
        assert allocator.is_tidy(model, [block.requested for block in blocks.values()])
    assert model.reserved_bytes == 512 * sum(len(row) for _, row in oracle.segments)
    assert model.allocated_bytes == 512 * sum(unit > 0 for _, row in oracle.segments for unit in row)


@pytest.mark.parametrize("seed", range(40))
def test_the_random_program_does_not_depend_on_addresses(seed: int) -> None:
    class FromTheOtherEnd(CachingAllocator):
        def _preference(self, segment: Any, block: Any) -> Any:
            return block.size, -self.segments.index(segment)

    trace = allocator.random_trace(random.Random(seed), 150)
    assert allocator.model_layout(trace) == allocator.model_layout(trace, FromTheOtherEnd())


@pytest.mark.parametrize(
    ("requested", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),  # a rest of more than 1 MiB is split off
        (11 * MIB, 12 * MIB, 12 * MIB),  # one of 1 MiB is not
        (12 * MIB + 1, 12 * MIB + 512, 14 * MIB),
        (2**30, 2**30, 2**30),
    ],
)
def test_first_request(requested: int, block: int, segment: int) -> None:
    model = CachingAllocator()
    assert model.malloc(requested).size == block
    assert (model.allocated_bytes, model.reserved_bytes) == (block, segment)


def test_best_fit_takes_the_smallest_hole_that_is_large_enough() -> None:
    model = CachingAllocator()
    blocks = run_trace(model, [Step("a", 3 * MIB), Step("x", 2 * MIB), Step("b", 5 * MIB), Step("y", 2 * MIB),
                               Step("c", 4 * MIB), Step("z", 4 * MIB), Step("a"), Step("b"), Step("c")])  # fmt: skip
    assert draw(model.segments[0], blocks) == "│···│xx│·····│yy│····│zzzz│"
    assert [block.size // MIB for _, block in model.fitting(4 * MIB)] == [4, 5]
    d = model.malloc(4 * MIB)
    assert draw(model.segments[0], blocks | {"d": d}) == "│···│xx│·····│yy│dddd│zzzz│"
    assert model.reserved_bytes == 20 * MIB


def test_out_of_memory_empties_the_cache_first() -> None:
    model = CachingAllocator(capacity=40 * MIB)
    run_trace(model, [Step("a", 30 * MIB), Step("a"), Step("b", 32 * MIB)])
    assert model.reserved_bytes == 32 * MIB
    with pytest.raises(OutOfSegments) as caught:
        model.malloc(10 * MIB)
    assert str(caught.value) == (
        "tried to allocate 10 MiB; 8 MiB free, 32 MiB allocated, 0 MiB reserved but unallocated"
    )


@pytest.mark.parametrize("seed", range(5))
def test_an_expandable_segment_tiles_and_never_moves(seed: int) -> None:
    generator = random.Random(seed)
    model = ExpandableAllocator()
    blocks, places, sizes = {}, {}, {}
    for i in range(80):
        sizes[i] = generator.randint(1, generator.choice((MIB, 24 * MIB)))
        blocks[i] = model.malloc(sizes[i])
        if generator.random() < 0.5:
            dying = generator.choice(list(blocks))
            model.free(blocks.pop(dying))
        if generator.random() < 0.1:
            model.empty_cache()
        assert len(model.segments) <= 2
        assert allocator.is_tidy(model, [sizes[name] for name in blocks])
        assert all(segment.size % (2 * MIB if segment.is_small else 20 * MIB) == 0 for segment in model.segments)
        for name, block in blocks.items():
            (segment,) = (segment for segment in model.segments if block in segment.blocks)
            place = sum(piece.size for piece in segment.blocks[: segment.blocks.index(block)])
            assert places.setdefault(name, place) == place
            assert block.size == -(-sizes[name] // 512) * 512  # no rest stays with a block


def test_expandable_segments_grow_at_their_free_end() -> None:
    model = ExpandableAllocator(capacity=60 * MIB)
    blocks = run_trace(model, [Step("a", 12 * MIB), Step("b", 14 * MIB), Step("a"), Step("c", 16 * MIB)])
    assert draw(model.segments[0], blocks, 2 * MIB) == "│······│bbbbbbb│cccccccc│·········│"
    assert model.reserved_bytes == 60 * MIB
    run_trace(model, [Step("d", 12 * MIB)])
    assert model.reserved_bytes == 60 * MIB
    with pytest.raises(OutOfSegments):
        model.malloc(20 * MIB)
    model.free(blocks["c"])
    model.empty_cache()
    assert model.reserved_bytes == 40 * MIB


def test_growth_as_a_loop_of_cat() -> None:
    assert [str(step) for step in allocator.growing([12 * MIB, 14 * MIB, 16 * MIB])] == [
        "t0 = 12 MiB",
        "t1 = 14 MiB",
        "del t0",
        "t2 = 16 MiB",
        "del t1",
    ]
    assert str(Step()) == "empty_cache()"
    sizes = [size * MIB for size in (12, 14, 16)]
    assert allocator.reserved_over(allocator.growing(sizes), CachingAllocator()) == [12 * MIB, 26 * MIB, 42 * MIB]


@pytest.mark.parametrize(
    ("size", "text"),
    [(1, "1 B"), (512, "512 B"), (1024, "1 KiB"), (MIB + 1, "1,048,577 B"), (3 * MIB // 2, "1.50 MiB")],
)
def test_sizes_are_shown_exactly(size: int, text: str) -> None:
    assert allocator.exact(size) == text


# The GPU's allocator, with the model in its place


class OnCpu(TorchFunctionMode):
    """What is asked for on cuda is made on the CPU; on a side stream, the model notes it."""

    def __init__(self, gpu: "Gpu") -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.device:
            return function(*args, **kwargs)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs["device"] = CPU
        args = [CPU if isinstance(arg, torch.device) and arg.type == "cuda" else arg for arg in args]
        result = function(*args, **kwargs)
        if function is torch.empty and self.gpu.is_aside:
            self.gpu.take(result)
        return result


class Gpu(Machine):
    """torch.cuda with the lesson's model of the allocator, a limit that is kept, and snapshots in PyTorch's form."""

    STREAM = 7

    def __init__(self) -> None:
        super().__init__(H200)
        self.allocator = CachingAllocator()
        self.is_aside = False
        self.fraction = 1.0
        self.limit: Ledger | None = None
        self.is_expandable = False

    def take(self, tensor: torch.Tensor) -> None:
        weakref.finalize(tensor, self.allocator.free, self.allocator.malloc(tensor.nbytes))

    @contextmanager
    def on_stream(self, stream: object) -> Iterator[None]:
        self.is_aside = True
        try:
            yield
        finally:
            self.is_aside = False

    def snapshot(self) -> list[dict[str, Any]]:
        own = [
            {
                "stream": self.STREAM,
                "is_expandable": self.is_expandable,
                "blocks": [
                    {
                        "size": block.size,
                        "requested_size": block.requested,
                        "state": "active_allocated" if block.requested else "inactive",
                    }
                    for block in segment.blocks
                ],
            }
            for segment in self.allocator.segments
        ]
        return [{"stream": 0, "is_expandable": False, "blocks": []}, *own]

    def set_fraction(self, fraction: float) -> None:
        self.fraction = fraction
        if self.limit is not None:
            self.limit.__exit__(None, None, None)
            self.limit = None
        if fraction < 1:
            self.limit = Ledger(CPU, limit_bytes=int(fraction * H200.total_memory) - 2**30)
            self.limit.__enter__()

    def functions(self) -> dict[str, Any]:
        return super().functions() | {
            "get_allocator_backend": lambda: "native",
            "memory_allocated": lambda device=None: 2**30,
            "memory_reserved": lambda device=None: 2**30,
            "max_memory_allocated": lambda device=None: 2**30,
            "memory_snapshot": self.snapshot,
            "empty_cache": self.allocator.empty_cache,
            "Stream": lambda: SimpleNamespace(cuda_stream=self.STREAM),
            "stream": self.on_stream,
            "get_per_process_memory_fraction": lambda: self.fraction,
            "set_per_process_memory_fraction": self.set_fraction,
        }


def dump_snapshot(path: str) -> None:
    """In the form of torch.cuda.memory._dump_snapshot: two blocks with stack traces, one free, one of somebody else."""
    elsewhere = {"filename": "/elsewhere/linear.py", "name": "forward", "line": 1}
    line = {"filename": whose_memory.__file__, "name": "validate_and_keep_graphs", "line": 28}
    blocks = [
        {"size": 2**30, "state": "active_allocated", "frames": [elsewhere, line]},
        {"size": 2**20, "state": "active_allocated", "frames": [line, elsewhere]},
        {"size": 2**40, "state": "inactive", "frames": [line]},
        {"size": 2**40, "state": "active_allocated", "frames": [elsewhere]},
        {"size": 2**40, "state": "active_allocated"},
    ]
    traces = [[{"action": "alloc"}] * 30 + [{"action": "free_completed"}]]
    Path(path).write_bytes(pickle.dumps({"segments": [{"blocks": blocks}], "device_traces": traces}))


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    machine = Gpu()
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in gpu_allocator.SETTINGS:
            patch.delenv(name, raising=False)
        for name, stand_in in machine.functions().items():
            patch.setattr(torch.cuda, name, stand_in)
        machine.recording = []  # type: ignore[attr-defined]
        patch.setattr(torch.cuda.memory, "_record_memory_history",
                      lambda **options: machine.recording.append(options))  # type: ignore[attr-defined]  # fmt: skip
        patch.setattr(torch.cuda.memory, "_dump_snapshot", dump_snapshot)
        stack.enter_context(OnCpu(machine))
        yield machine


@pytest.fixture
def counted_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Ledger.__init__

    def counting_cpu(self: Ledger, device: torch.device, **options: Any) -> None:
        make(self, device, **options)
        self.counted = "cpu"

    monkeypatch.setattr(Ledger, "__init__", counting_cpu)
    monkeypatch.setattr(ledger, "NOT_THE_LEARNERS", (*ledger.NOT_THE_LEARNERS, __file__))


def expandable_replay(trace: list[Step]) -> Any:
    return allocator.model_layout(trace, ExpandableAllocator())


def test_the_branches_for_a_gpu(
    gpu: Gpu, counted_on_cpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each line that a GPU would run, with numbers that mean nothing except for the tensors."""
    monkeypatch.setattr(allocator, "replay_with_expandable_segments", expandable_replay)
    monkeypatch.setattr(out_of_memory, "ON_A_GPU", (64, 512))
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: torch.amp.autocast("cpu", dtype))
    for check in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        monkeypatch.setattr(torch.optim.Optimizer, check, lambda self: None, raising=False)
    record, text = run(tmp_path, "--device", "cuda")
    claims = {check["claim"] for check in record["checks"]}
    assert claims >= {
        "tensors <= allocated <= reserved <= in use on the GPU",
        "torch.cuda.max_memory_allocated() has seen it",
        "the GPU's allocator never counts less than the tensors",
        "the GPU's allocator holds the same blocks after each step",
        "and after the random program",
        "the GPU's allocator reserves as much",
        "with expandable_segments:True too",
        "the snapshot accounts for every tensor of the list",
        "its history has every request",
    }
    assert not any("Not run here" in note for note in record["notes"])
    assert "GPU in use" in text
    assert (tmp_path / "memory_profiling" / "memory_snapshot.pickle").exists()
    assert gpu.fraction == 1.0
    assert gpu.recording[-1] == {"enabled": None}  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(3))
def test_a_replay_is_read_from_the_snapshot(gpu: Gpu, seed: int) -> None:
    trace = allocator.random_trace(random.Random(seed), 30)
    found = gpu_allocator.replay(trace)
    assert found == allocator.model_layout(trace)
    assert gpu.allocator.segments == []  # it leaves nothing behind


def test_a_replay_notices_the_wrong_kind_of_segments(gpu: Gpu) -> None:
    gpu.is_expandable = True
    with pytest.raises(RuntimeError, match="this GPU's segments are expandable"):
        gpu_allocator.replay([Step("a", 5)])
    gpu.is_expandable = False
    with pytest.raises(RuntimeError, match="this GPU's segments are not expandable"):
        gpu_allocator.replay([Step("a", 5)], expandable=True)


def test_a_block_that_waits_for_another_stream_is_not_allocated() -> None:
    states = {"active_allocated": 40, "active_pending_free": 0, "inactive": 0}
    segment = {"blocks": [{"size": 512, "requested_size": 40, "state": state} for state in states]}
    assert gpu_allocator.blocks_of(segment) == [(512, asked) for asked in states.values()]


@pytest.mark.parametrize("name", gpu_allocator.SETTINGS)
def test_other_settings_are_not_compared(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert gpu_allocator.why_not_comparable() == ""
    monkeypatch.setenv(name, "max_split_size_mb:100")
    assert name in gpu_allocator.why_not_comparable()
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    assert "native" in gpu_allocator.why_not_comparable()


def test_the_expandable_replay_starts_a_process_with_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = [Step("a", 12 * MIB), Step("a"), Step()]
    calls = []

    def answer(command: list[str], **options: Any) -> SimpleNamespace:
        calls.append((command, options))
        compile(command[2], "program", "exec")
        return SimpleNamespace(returncode=0, stdout="noise\n[[[512, 1], [1024, 0]]]\n", stderr="")

    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:100")
    monkeypatch.setattr(subprocess, "run", answer)
    assert gpu_allocator.replay_with_expandable_segments(trace) == [[(512, 1), (1024, 0)]]
    ((command, options),) = calls
    assert json.loads(command[-1]) == [["a", 12 * MIB], ["a", 0], ["", 0]]
    assert options["env"]["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in options["env"]
    failure = SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nRuntimeError: no such thing")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: failure)
    with pytest.raises(RuntimeError, match="no such thing"):
        gpu_allocator.replay_with_expandable_segments(trace)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_that_process_fails_in_one_line() -> None:
    with pytest.raises(RuntimeError, match="the process with expandable segments failed: "):
        gpu_allocator.replay_with_expandable_segments([Step("a", 1)])


# Whose memory


def test_bytes_by_line_of_a_snapshot(tmp_path: Path) -> None:
    dump_snapshot(str(tmp_path / "snapshot"))
    held = whose_memory.held_by_line(pickle.loads((tmp_path / "snapshot").read_bytes()))
    assert held == {("validate_and_keep_graphs", 28): 2**30 + 2**20}


def test_recording_ends_when_the_function_fails(gpu: Gpu, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        whose_memory.record_snapshot(lambda: 1 / 0, tmp_path / "snapshot")
    assert [options.get("enabled", "all") for options in gpu.recording] == ["all", None]  # type: ignore[attr-defined]


def test_both_validations_agree_and_only_one_keeps_graphs() -> None:
    model = nn.Linear(5, 3)
    batches = [(torch.randn(4, 5), torch.randint(0, 3, (4,))) for _ in range(3)]
    kept, numbers = whose_memory.validate_and_keep_graphs(model, batches), whose_memory.validate(model, batches)
    assert [loss.item() for loss in kept] == pytest.approx(numbers)
    assert all(loss.grad_fn is not None for loss in kept)
    assert all(isinstance(number, float) for number in numbers)


def test_operators_add_up_to_what_is_left() -> None:
    kept = []
    net = whose_memory.net_by_operator(lambda: kept.append(torch.ones(100) + torch.ones(100)), CPU)
    assert sum(net.values()) == 400
    assert whose_memory.shortened("autograd::engine::evaluate_function: MulBackward0") == "MulBackward0"


# Out of memory


def test_the_limit_of_a_gpu_is_set_and_restored(gpu: Gpu) -> None:
    gpu.fraction = 0.5
    with out_of_memory.memory_limit(torch.device("cuda"), 2**28):
        assert gpu.fraction * H200.total_memory == pytest.approx(2**30 + 2**28)
    assert gpu.fraction == 0.5
    with pytest.raises(ZeroDivisionError), out_of_memory.memory_limit(torch.device("cuda"), 2**28):
        _ = 1 / 0
    assert gpu.fraction == 0.5
    gpu.fraction = 1.0
    with out_of_memory.memory_limit(torch.device("cuda"), 2**50):
        assert gpu.fraction == 1.0


def test_the_limit_elsewhere_is_the_ledgers() -> None:
    with out_of_memory.memory_limit(CPU, 1000):
        assert len(torch.empty(1000, dtype=torch.uint8)) == 1000
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(1001, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB."), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("not enough memory: you tried to allocate 1 bytes"), True),  # Windows
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_which_errors_are_out_of_memory(error: RuntimeError, expected: bool) -> None:
    assert out_of_memory.is_out_of_memory(error) == expected


def test_the_real_refusal_of_a_cpu_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(out_of_memory.IMPOSSIBLE, dtype=torch.uint8)
    assert out_of_memory.is_out_of_memory(caught.value)


def test_the_message_without_advice_and_stack() -> None:
    cuda = (
        "CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 79.25 GiB of which 9.31 GiB is "
        "free. Process 7 has 69.9 GiB memory in use. 1.20 GiB allowed; Of the allocated memory 44.1 GiB is allocated by "
        "PyTorch, and 25.05 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try "
        "setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    )

    def fail(text: str) -> None:
        raise torch.OutOfMemoryError(text)

    shown = out_of_memory.refusal(lambda: fail(cuda))
    assert shown.endswith("reserved by PyTorch but unallocated.")
    assert all(words in shown for words in out_of_memory.WORDS)
    assert out_of_memory.refusal(lambda: fail("no\nmemory Exception raised from alloc (first frame)")) == "no memory"
    assert out_of_memory.refusal(lambda: None) == ""


def fits_up_to(most: int, calls: list[int]) -> Any:
    def attempt(part: int) -> None:
        calls.append(part)
        if part > most:
            raise torch.OutOfMemoryError("out of memory")

    return attempt


@pytest.mark.parametrize(("batch_size", "most", "tried"), [
    (64, 64, [64]), (64, 63, [64, 32]), (100, 13, [100, 50, 25, 12]), (7, 1, [7, 3, 1]), (1, 1, [1]),
])  # fmt: skip
def test_halving(batch_size: int, most: int, tried: list[int]) -> None:
    calls: list[int] = []
    assert out_of_memory.largest_part_that_fits(fits_up_to(most, calls), batch_size, CPU) == tried == calls
    assert out_of_memory.retry_inside_except(fits_up_to(most, []), batch_size) == tried[-1]


def test_halving_gives_up_at_one_sample_and_lets_other_errors_through() -> None:
    calls: list[int] = []
    with pytest.raises(torch.OutOfMemoryError):
        out_of_memory.largest_part_that_fits(fits_up_to(0, calls), 8, CPU)
    assert calls == [8, 4, 2, 1]
    with pytest.raises(torch.OutOfMemoryError):
        out_of_memory.retry_inside_except(fits_up_to(0, []), 8)

    def wrong(part: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    for find in (lambda: out_of_memory.largest_part_that_fits(wrong, 8, CPU),
                 lambda: out_of_memory.retry_inside_except(wrong, 8)):  # fmt: skip
        with pytest.raises(RuntimeError, match="mat1"):
            find()


def test_each_attempt_finds_the_memory_of_the_last_one_free() -> None:
    """And inside `except` it does not: the same attempts, under the same limit."""

    def attempt(part: int) -> None:
        first = torch.empty(6 * part, dtype=torch.uint8)
        second = torch.empty(6 * part, dtype=torch.uint8)
        del first, second

    with Ledger(CPU, limit_bytes=100):
        assert out_of_memory.largest_part_that_fits(attempt, 16, CPU) == [16, 8]
    with Ledger(CPU, limit_bytes=100), pytest.raises(torch.OutOfMemoryError):
        out_of_memory.retry_inside_except(attempt, 16)


@pytest.mark.parametrize("part", [1, 3, 7, 10, 64])
def test_accumulated_parts_give_the_gradient_of_the_whole(part: int) -> None:
    model = kept_for_backward.make_mlp((6, 5, 4), "nn.Tanh()", torch.float64, CPU)
    batch = kept_for_backward.make_batch((6, 5, 4), 10, torch.float64, CPU)
    whole = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))
    out_of_memory.accumulate(model, batch, part)
    for parameter, gradient in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


# On a GPU


@pytest.mark.gpu
def test_the_whole_lesson_on_a_gpu(tmp_path: Path) -> None:
    record, text = run(tmp_path, "--device", "cuda")
    assert list(dict.fromkeys(check["section"] for check in record["checks"])) == SECTIONS
    assert "reserved by PyTorch but unallocated" in text
    assert (tmp_path / "memory_profiling" / "memory_snapshot.pickle").stat().st_size > 0
    assert torch.cuda.get_per_process_memory_fraction() == 1.0


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(10))
def test_the_model_and_the_real_allocator_hold_the_same_blocks(seed: int) -> None:
    if reason := gpu_allocator.why_not_comparable():
        pytest.skip(reason)
    trace = allocator.random_trace(random.Random(seed), 200)
    assert gpu_allocator.replay(trace) == allocator.model_layout(trace)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(3))
def test_the_model_and_real_expandable_segments_hold_the_same_blocks(seed: int) -> None:
    generator = random.Random(seed)
    sizes = sorted(generator.sample(range(2 * MIB, 60 * MIB, 512), 20))
    trace = allocator.growing(sizes)
    assert gpu_allocator.replay_with_expandable_segments(trace) == expandable_replay(trace)


@pytest.mark.gpu
def test_a_limit_on_a_gpu_raises_and_is_lifted() -> None:
    device = torch.device("cuda")
    with out_of_memory.memory_limit(device, 64 * MIB):
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(128 * MIB, dtype=torch.uint8, device=device)
        assert torch.empty(32 * MIB, dtype=torch.uint8, device=device).nbytes == 32 * MIB
    assert torch.empty(128 * MIB, dtype=torch.uint8, device=device).nbytes == 128 * MIB


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(5))
def test_kept_bytes_are_predicted_on_a_gpu(seed: int) -> None:
    generator, device = random.Random(seed), torch.device("cuda")
    sizes = tuple(generator.randint(1, 90) for _ in range(generator.randint(2, 6)))
    batch_size = generator.randint(1, 40)
    for activation, dtype in itertools.product(kept_for_backward.NEEDS_ITS_INPUT, (torch.float32, torch.float16)):
        kept = kept_for_backward.measure_kept_bytes(sizes, batch_size, activation, dtype, device)
        assert kept == kept_for_backward.predict_kept_bytes(sizes, batch_size, activation, dtype)
