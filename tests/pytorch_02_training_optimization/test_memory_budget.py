"""memory_budget: the whole lesson runs and all its checks hold; its counts and predictions agree with oracles."""

import random
import weakref
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src import memory_budget
from pytorch_02_training_optimization.src.budget import (
    anatomy,
    checkpoints,
    errors,
    lean,
    ledger,
    messages,
    network,
    offload,
    packing,
    plan,
    search,
    states,
)
from pytorch_02_training_optimization.src.budget.ledger import Ledger, SavedBytes
from shared.agreement import agreement
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CPU = torch.device("cpu")
MIB, GIB = 2**20, 2**30
SECTIONS = [
    "What each parameter costs",
    "What each sample costs",
    "Where the peak is",
    "What the message says",
    "What the error keeps",
    "The largest batch, found",
    "The largest batch, predicted",
    "The same batch in parts",
    "Compute it again",
    "What is worth keeping",
    "Fewer bits for what waits",
    "Somewhere else: offloading",
    "Gradients that never meet",
    "Memory against time",
    "Before you rent",
]
PICTURES = ["step_by_kind.png", "largest_batch.png", "memory_against_time.png"]


run = partial(run_quick, memory_budget)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("memory_budget")
    return *run(folder), folder / "memory_budget"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=60)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    assert {measurement["name"] for measurement in record["measurements"]} >= {
        "optimizer state",
        "activations of a sample",
        "peak of a step",
        "largest batch",
        "largest batch, predicted",
        "peak in parts",
        "kept after forward",
        "products of a step",
        "time of a step",
    }
    assert any(measurement["limit"] for measurement in record["measurements"])
    expect_pictures(record, folder, PICTURES)


def test_the_page_says_what_matters(lesson: tuple[dict[str, Any], str, Path]) -> None:
    _, text, _ = lesson
    flat = " ".join(text.split())
    for said in (
        "PYTORCH_ALLOC_CONF=expandable_segments:True",
        "def recompute(",
        "8-bit Adam",
        "None of the inputs have",
    ):
        assert said in flat


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(memory_budget, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_the_gpu_has_a_limit_of_its_own(tmp_path: Path) -> None:
    record, text = run(tmp_path, "--device", "cuda", "--no-plots")
    assert "CUDA's own limit is reached no later" in {check["claim"] for check in record["checks"]}
    assert "Not run here" not in text


# The ledger


def test_the_ledger_counts_storages_once_and_as_long_as_they_live() -> None:
    outside = torch.zeros(100)
    with Ledger(CPU) as account:
        a = torch.zeros(10)
        view, b = a[2:], outside.view(10, 10)
        outside.add_(1)
        assert account.live_bytes == 40
        c = torch.tensor([1.0, 2.0])
        assert account.live_bytes == 48
        del a
        assert account.live_bytes == 48
        del view
        assert account.live_bytes == 8
    del c
    assert (account.live_bytes, account.peak_bytes, b.numel()) == (0, 48, 100)


@pytest.mark.parametrize("seed", range(5))
def test_kinds_and_series_agree_with_a_replay(seed: int) -> None:
    generator = random.Random(seed)
    with Ledger(CPU) as account:
        alive: list[torch.Tensor] = []
        for _ in range(60):
            if alive and generator.random() < 0.4:
                del alive[generator.randrange(len(alive))]
            else:
                alive.append(torch.empty(generator.randint(1, 50)))
                account.label(generator.choice(ledger.KINDS), alive[-1:])
    start, stop = 10, account.moment
    series = account.series(start, stop)
    for moment in range(start, stop):
        assert account.by_kind(moment) == {kind: values[moment - start] for kind, values in series.items()}
    assert sum(account.by_kind(account.moment - 1).values()) == account.live_bytes
    assert sum(account.by_kind(account.peak_moment).values()) == account.peak_bytes


def test_the_limit_speaks_as_cuda_does() -> None:
    with Ledger(CPU, limit_bytes=2 * MIB) as account:
        kept = torch.zeros(MIB // 4)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.zeros(MIB // 2)
        assert account.live_bytes == kept.nbytes
    parts = messages.read_message(str(caught.value))
    assert parts == {"asked for": 2 * MIB, "the card has": 2 * MIB, "free": MIB, "in tensors": MIB, "in holes": 0}


def test_saved_bytes_count_a_storage_once_and_not_the_others() -> None:
    x, weight = torch.randn(7, 5, requires_grad=True), torch.randn(5, 5, requires_grad=True)
    saved = SavedBytes([weight])
    with saved:
        ((x @ weight) * x).sum()
    assert saved.size_bytes == 2 * x.nbytes  # x for both products, and x @ weight


# Formulas


@pytest.mark.parametrize("seed", range(6))
def test_parameters_activations_and_products_are_what_the_formulas_say(seed: int) -> None:
    generator = random.Random(seed)
    batch_size, channels, depth = generator.randint(1, 40), generator.randint(1, 40), generator.randint(0, 4)
    dtype = generator.choice([torch.float32, torch.float64, torch.bfloat16])
    model, batch = network.make_network(channels, depth, CPU, dtype), network.random_batch(batch_size, CPU, dtype)
    assert sum(p.numel() for p in model.parameters()) == network.count_parameters(channels, depth)
    assert anatomy.saved_bytes(model, batch) == network.activation_bytes(batch_size, channels, depth, dtype, CPU)
    products = network.ProductFlops()
    with FlopCounterMode(display=False) as library:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
    with products:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
    assert products.count == library.get_total_flops() == network.product_flops(batch_size, channels, depth)[1]


@pytest.mark.parametrize("name", states.OPTIMIZERS)
def test_optimizer_states_of_random_shapes(name: str) -> None:
    generator = random.Random(name)
    shapes = [(generator.randint(2, 20), generator.randint(2, 20)) for _ in range(3)]
    kind = states.OPTIMIZERS[name]
    for dtype in (torch.float32, torch.bfloat16):
        assert states.state_after_a_step(kind, shapes, dtype, CPU) == states.state_bytes(kind, shapes, dtype)


def test_the_peak_moves_from_the_step_to_backward_with_the_batch() -> None:
    phases = []
    for batch_size in (1, 400):
        step = anatomy.train_under_watch(16, 2, batch_size, CPU)
        phases.append(step.phase_of(step.ledger.peak_moment))
        assert max(live for _, _, live in anatomy.peaks_of_phases(step)) == step.ledger.peak_bytes
    assert phases == ["step", "backward"]


# Messages


@pytest.mark.parametrize("seed", range(20))
def test_the_reader_reads_what_was_written(seed: int) -> None:
    generator = random.Random(seed)
    asked, others, tensors, holes = (generator.choice([1, 700, 3 * MIB, 2 * GIB]) for _ in range(4))
    parts = messages.read_message(messages.cuda_message(asked, 40 * GIB, others, tensors, holes))
    for name, size in {"asked for": asked, "in tensors": tensors, "in holes": holes, "the card has": 40 * GIB}.items():
        assert parts[name] == pytest.approx(size, rel=0.01, abs=6)


REAL = {
    # The form of torch 2.11 to 2.15 with a limit, with graphs and a neighbour, then MPS and the CPU.
    "CUDA out of memory. Tried to allocate 1024.00 MiB. GPU 0 has a total capacity of 139.80 GiB of which 138.00 GiB is "
    "free. Including non-PyTorch memory, this process has 598.00 MiB memory in use. 64.00 MiB allowed; Of the allocated "
    "memory 3.50 KiB is allocated by PyTorch, and 2.00 MiB is reserved by PyTorch but unallocated.": (
        {"asked for": GIB, "allowed": 64 * MIB, "in holes": 2 * MIB},
        "shape",
    ),
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 24.00 GiB of which 10.00 MiB is free. "
    "Process 41 has 20.00 GiB memory in use. Including non-PyTorch memory, this process has 3.90 GiB memory in use. Of the "
    "allocated memory 3.00 GiB is allocated by PyTorch, with 22.00 MiB allocated in private pools (e.g., CUDA Graphs), and "
    "9.00 MiB is reserved by PyTorch but unallocated.": (
        {"this process": round(3.9 * GIB), "in private pools": 22 * MIB},
        "neighbour",
    ),
    "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.20 GB, max allowed: 9.07 GB). Tried to allocate "
    "512.00 MB on private pool.": ({"asked for": 512 * MIB, "allowed": round(9.07 * GIB)}, "full"),
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1125899906842624 bytes. Error code 12 (Cannot allocate memory)": ({"asked for": 2**50}, "full"),
}  # fmt: skip


@pytest.mark.parametrize("message", REAL)
def test_messages_of_all_devices(message: str) -> None:
    said, cure = REAL[message]
    parts = messages.read_message(message)
    assert said.items() <= parts.items()
    assert messages.choose_cure(parts) == cure


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        messages.own_message(lambda: (_ for _ in ()).throw(RuntimeError("on purpose")))
    assert messages.own_message(lambda: None) == ""


# Errors


@pytest.mark.parametrize("name", errors.CATCHERS)
def test_each_catcher_holds_what_it_says(name: str) -> None:
    catch, held = errors.CATCHERS[name]
    assert catch(CPU) == held


def test_a_weak_reference_does_not_hold() -> None:
    x = torch.ones(3)
    seen = [weakref.ref(x)]
    assert errors.alive(seen) == 1
    del x
    assert errors.alive(seen) == 0


# The largest batch


@pytest.mark.parametrize("most", [1, 2, 7, 64, 1000])
def test_the_search_finds_every_answer(most: int) -> None:
    for answer in range(min(most, 70) + 1):
        found, tried = search.largest_that_fits(lambda size: size <= answer, most)
        assert found == answer
        assert all(fits == (size <= answer) and 1 <= size <= most for size, fits in tried)
        assert len({size for size, _ in tried}) == len(tried) <= 2 * most.bit_length() + 2


def test_the_search_passes_other_errors_on() -> None:
    def fits(size: int) -> bool:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        search.largest_that_fits(fits)


@pytest.mark.parametrize("seed", range(3))
def test_found_and_predicted_are_the_same_batch(seed: int) -> None:
    generator = random.Random(seed)
    channels, depth = generator.randint(24, 40), generator.randint(2, 3)
    trial = search.Trial(channels, depth, CPU, 70 * network.count_parameters(channels, depth))
    found, _ = search.largest_that_fits(trial)
    sizes = found // 2, found * 2 // 3
    line = search.Line.through(*((size, search.peak_at(trial, size)) for size in sizes))
    assert line.largest(trial.budget_bytes) == found


def test_the_allocators_limit_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fractions = [0.9]
    for name, stand_in in {
        "empty_cache": lambda: None,
        "get_per_process_memory_fraction": lambda device: fractions[-1],
        "set_per_process_memory_fraction": lambda fraction, device: fractions.append(fraction),
        "get_device_properties": lambda device: type("Card", (), {"total_memory": 100 * MIB}),
        "memory_reserved": lambda device: 10 * MIB,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    with pytest.raises(ValueError, match="on purpose"), search.allocator_limit(torch.device("cuda"), 15 * MIB):
        raise ValueError("on purpose")
    assert fractions == [0.9, 0.25, 0.9]


@pytest.mark.parametrize("parts", [1, 2, 5, 10])
def test_parts_give_the_gradient_of_the_whole(parts: int) -> None:
    model, (x, y) = network.make_network(8, 1, CPU, torch.float64), network.random_batch(10, CPU, torch.float64)
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    for found, right in zip(search.gradients_in_parts(model, (x, y), parts), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)


# Computing again


class Branching(nn.Module):
    """Saves the same tensor twice, a parameter, an output, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.linear(x))
        return F.dropout(h * h, 0.3) + x.exp()


def test_recompute_agrees_in_value_and_gradient() -> None:
    module = Branching()
    again = Branching()
    again.load_state_dict(module.state_dict())
    wrapped = again.forward
    again.forward = lambda x: checkpoints.recompute(wrapped, x)  # type: ignore[method-assign]
    assert agreement(again, module, torch.randn(4, 6)).within(0.0)
    nested = Branching()
    nested.load_state_dict(module.state_dict())
    nested.forward = lambda x: checkpoints.recompute(again, x)  # type: ignore[method-assign]
    loss = nested(torch.randn(4, 6)).sum()
    loss.backward()
    assert all(p.grad is not None for p in again.parameters())


def test_recompute_leaves_the_generator_where_it_was() -> None:
    x = torch.randn(4, 6, requires_grad=True)
    y = checkpoints.recompute(Branching(), x)
    torch.manual_seed(5)
    y.sum().backward()
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))


def test_recompute_of_data_reaches_the_parameters() -> None:
    module = Branching()
    checkpoints.recompute(module, torch.randn(4, 6)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("way", ["recompute_each", "checkpoint_each", "checkpoint_to_the_end", "keep_products",
                                 "cut_after_products"])  # fmt: skip
def test_all_ways_to_run_the_blocks_agree(way: str) -> None:
    model, batch = network.make_network(8, 3, CPU), network.random_batch(5, CPU)
    right, found = (checkpoints.cost_of(run_blocks, model, batch)
                    for run_blocks in (network.keep_all, getattr(checkpoints, way)))  # fmt: skip
    assert checkpoints.error_of(found.gradients, right.gradients) < 1e-6
    assert found.kept_bytes < right.kept_bytes


# Packing and offloading


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e30])
def test_int8_is_off_by_half_a_step_of_its_row_at_most(scale: float) -> None:
    x = scale * torch.randn(50, 33, generator=torch.Generator().manual_seed(0))
    step = x.abs().amax(dim=1, keepdim=True) / 127
    back = packing.from_int8(packing.to_int8(x))
    assert ((back - x).abs() <= 0.501 * step + 1e-30).all()


def test_packing_leaves_weights_statistics_and_whole_numbers_alone() -> None:
    encoded: list[tuple[int, ...]] = []
    model, batch = network.make_network(8, 1, CPU), network.random_batch(5, CPU)

    def encode(x: torch.Tensor) -> torch.Tensor:
        encoded.append(tuple(x.shape))
        return x

    with packing.Packing(encode, lambda x: x, [*model.parameters(), *batch]):
        F.cross_entropy(model(batch[0]), batch[1]).backward()
    assert sorted(encoded) == sorted([(5, 8), (5, 8), (5, 32), (5, 32), (5, 8), (5, 8), (5, 10), (5, 10)])


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_the_shelf_gives_back_what_it_was_given(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    shelf = offload.Shelf(torch.device(kind), tmp_path)  # the way of a GPU works on the CPU, too
    for x in (torch.randn(3, 4), torch.randn(4, 6).T[1:], torch.randn(7)):
        given = (10 * x).to(dtype)
        taken = shelf.take(shelf.put(given))
        assert torch.equal(taken, given)
        assert taken.data_ptr() != given.data_ptr()
    assert shelf.bytes_put == shelf.bytes_taken == (12 + 20 + 7) * dtype.itemsize
    assert list(tmp_path.iterdir()) == []


def test_a_paged_adam_skips_parameters_without_gradient(tmp_path: Path) -> None:
    weights = [torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)]
    optimizer = offload.PagedAdam(weights, offload.Shelf(CPU, tmp_path), lr=0.1)
    weights[0].grad = torch.tensor([1.0, -2.0, 0.5])
    optimizer.step()
    torch.testing.assert_close(weights[0].detach(), torch.tensor([0.9, 1.1, 0.9]))
    assert torch.equal(weights[1].detach(), torch.ones(2))


# Lean steps and the plan


def test_all_steps_are_adams() -> None:
    accounts = [lean.account_for(way, 8, 2, 3, CPU, seed=0) for way in lean.WAYS.values()]
    torch.manual_seed(0)
    x, y = network.random_batch(3, CPU)
    model = network.make_network(8, 2, CPU)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert all(lean.farthest(account.weights, model.parameters()) < 1e-6 for account in accounts)


def test_a_layer_of_the_library_keeps_16_channels() -> None:
    for channels, heads, tokens in [(32, 2, 5), (48, 4, 30)]:
        assert plan.count_layer(channels, heads, tokens, CPU) == plan.layer_numbers(channels, heads)


def test_the_plan_by_hand() -> None:
    model = plan.Model(1e9, layers=2, channels=64, tokens=10, words=100)
    scores = 10 * 10 * 100
    layer = 2 * 10 * (16 * 64 + 5)
    assert plan.activations_gib(model, checkpointed=False) * GIB == pytest.approx(2 * layer + scores)
    assert plan.activations_gib(model, checkpointed=True) * GIB == pytest.approx(2 * 2 * 10 * 64 + layer + scores)
    assert plan.verdict(model, states.RECIPES["float32"], False).startswith("24 GiB: ")
    large = plan.Model(1e12, layers=2, channels=64, tokens=10, words=100)
    assert plan.verdict(large, states.RECIPES["float32"], False) == "14,901 GiB"
