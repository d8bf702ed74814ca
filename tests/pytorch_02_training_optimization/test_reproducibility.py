"""reproducibility: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import itertools
import math
import os
import random
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src import reproducibility
from pytorch_02_training_optimization.src.letters.rows import Letters, load_letters
from pytorch_02_training_optimization.src.repeatability import (
    bits,
    determinism,
    luck,
    streams,
    sums,
    surroundings,
    task,
)
from shared.generators import rng_state
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import numpy as np
import pytest
import torch

SECTIONS = [
    "The same bits twice",
    "One change at a time",
    "Sums in another order",
    "One thread, two threads",
    "A generator for each purpose",
    "Paused, and gone on",
    "Sets, names and hash seeds",
    "The number of workers",
    "Additions that meet in memory",
    "Only deterministic algorithms",
    "What determinism costs",
    "One bit, and what becomes of it",
    "Reproducible is not significant",
]
CPU = torch.device("cpu")


run = partial(run_quick, reproducibility)


def switches() -> dict[str, Any]:
    """Everything global that the lesson touches."""
    state = rng_state()
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "fills": torch.utils.deterministic.fill_uninitialized_memory,
        "benchmark": torch.backends.cudnn.benchmark,
        "workspace": os.environ.get(bits.WORKSPACE),
        "hash seed": os.environ.get("PYTHONHASHSEED"),
        "python": state["python"],
        "numpy": state["numpy"],
        "torch": state["torch"].tolist(),
    }


@pytest.fixture(autouse=True)
def same_switches() -> Iterator[None]:
    """A test that forgot a switch would change the tests after it."""
    names = ("threads", "deterministic", "fills", "benchmark")
    before = switches()
    yield
    after = switches()
    assert {name: after[name] for name in names} == {name: before[name] for name in names}


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("reproducibility")
    return *run(folder), folder / "reproducibility"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=50)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    names = {measurement["name"] for measurement in record["measurements"]}
    assert names == {"deterministic / any", "distance", "spread over seeds", "difference of settings"}
    expect_pictures(record, folder, ["divergence.png", "seeds.png"])


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    expect_any_seed(reproducibility, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_the_lesson_on_a_gpu(tmp_path: Path) -> None:
    _, text = run(tmp_path, "--device", "cuda", "--no-plots")
    assert "cudnn.benchmark" in text
    assert "Not run here" not in text


# Switches


def leave_a_mess(threads: int) -> None:
    assert os.environ[bits.WORKSPACE] == ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(threads)
    torch.rand(3)
    np.random.rand()
    random.random()
    raise KeyError


def test_all_switches_and_generators_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(bits.WORKSPACE, raising=False)
    before = switches()
    with pytest.raises(KeyError), bits.switches_restored(CPU):
        leave_a_mess(before["threads"] + 1)
    assert switches() == before


def test_a_workspace_that_was_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bits.WORKSPACE, ":16:8")
    with bits.switches_restored(CPU):
        assert os.environ[bits.WORKSPACE] == ":16:8"
    assert os.environ[bits.WORKSPACE] == ":16:8"


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_algorithms_are_nested(mode: int) -> None:
    torch.set_deterministic_debug_mode(mode)
    try:
        with bits.algorithms(deterministic=True):
            assert torch.get_deterministic_debug_mode() == 2
            with bits.algorithms(deterministic=False):
                assert torch.get_deterministic_debug_mode() == 0
            with bits.algorithms(deterministic=True, warn_only=True):
                assert torch.get_deterministic_debug_mode() == 1
        assert torch.get_deterministic_debug_mode() == mode
    finally:
        torch.set_deterministic_debug_mode(0)


# Bits


def bits_apart(a: float, b: float, form: str) -> int:
    first, second = (int.from_bytes(struct.pack(form, value), "little") for value in (a, b))
    return (first ^ second).bit_count()


@pytest.mark.parametrize(("dtype", "form"), [(torch.float32, "<f"), (torch.float64, "<d")])
def test_bits_are_counted_as_python_counts_them(dtype: torch.dtype, form: str) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(50, generator=generator, dtype=dtype) for _ in range(2))
    b[::3] = a[::3]
    found = bits.difference(a, b)
    expected = [bits_apart(x, y, form) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert found.bits == sum(expected)
    assert found.different == sum(count > 0 for count in expected)
    assert found.share == found.different / 50
    assert found.largest == pytest.approx((a.double() - b.double()).abs().max().item())
    assert found.relative == pytest.approx(((a - b).norm() / a.norm()).item(), rel=1e-5)


def test_minus_zero_has_other_bits_and_no_distance() -> None:
    found = bits.difference(torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0]))
    assert (found.different, found.bits, found.largest) == (1, 1, 0.0)


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(2, dtype=torch.float64)])
def test_what_has_no_partner_is_refused(other: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        bits.difference(torch.zeros(2), other)


def test_the_hash_is_that_of_the_bytes() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert bits.digest(x) == bits.digest(x.flatten().clone()) != bits.digest(x.T)
    assert bits.digest(x.T) == bits.digest(x.T.contiguous())
    flipped = reproducibility.with_one_bit_flipped(x.flatten())
    assert bits.difference(x.flatten(), flipped).bits == 1
    assert flipped[:-1].equal(x.flatten()[:-1])


# One change


@pytest.fixture(scope="module")
def letters() -> Letters:
    return load_letters(64)


def test_letters_are_centred_and_scaled(letters: Letters) -> None:
    assert letters.x.mean(dim=1).abs().max() < 1e-5
    assert (letters.x.std(dim=1) - 1).abs().max() < 1e-4


def test_halves_have_the_gradient_of_the_whole(letters: Letters) -> None:
    model = task.make_model(CPU).double()
    x, y = letters.x[:32].double(), letters.y[:32]
    for whole, halves in zip(
        reproducibility.whole_batch(model, x, y), reproducibility.half_batches(model, x, y), strict=True
    ):
        torch.testing.assert_close(whole, halves, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", list(reproducibility.CHANGES))
def test_looking_changes_the_generator_or_not(name: str, letters: Letters) -> None:
    recipe, model = reproducibility.CHANGES[name], task.make_model(CPU)
    before = torch.get_rng_state()
    recipe.look(model, letters)
    draws = not torch.get_rng_state().equal(before)
    assert draws == (name == "validation by a DataLoader, not shuffled")


def test_a_training_is_torch_sgd(letters: Letters) -> None:
    model = reproducibility.train(reproducibility.Recipe(), letters, letters, seed=5, epochs=2)
    torch.manual_seed(5)
    own = task.make_model(CPU)
    optimizer = torch.optim.SGD(own.parameters(), lr=task.LR)
    for _ in range(2):
        for batch in torch.randperm(64).split(task.BATCH_SIZE):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(own(letters.x[batch]), letters.y[batch]).backward()
            optimizer.step()
    torch.testing.assert_close(bits.weights_of(model), bits.weights_of(own), rtol=1e-5, atol=1e-6)


# Sums


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1001])
def test_sums_by_hand_are_sums(n: int) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    exact = math.fsum(x.tolist())
    for add in (sums.summed_one_by_one, sums.summed_in_pairs):
        assert add(x).item() == pytest.approx(exact, abs=n * 2**-22)


def test_one_by_one_is_numpys_running_sum() -> None:
    x = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    assert sums.summed_one_by_one(x).item() == np.cumsum(x.numpy(), dtype=np.float32)[-1]


@pytest.mark.parametrize("name", list(sums.operations(64)))
def test_each_operation_draws_anew_and_repeats(name: str) -> None:
    operation = sums.operations(1280)[name]
    first = operation.results(3)
    assert first.isfinite().all()
    assert first.equal(operation.results(3))
    assert not first.equal(operation.results(4))


# Streams


def test_streams_share_nothing_and_have_63_bits() -> None:
    seeds = {streams.stream_seed(seed, purpose) for seed in range(200) for purpose in ("init", "order", "dropout")}
    assert len(seeds) == 600
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_every_purpose_is_its_own_stream() -> None:
    base = streams.from_streams(4)
    for name, change in streams.CHANGES.items():
        changed = streams.from_streams(4, **change)
        lost = {purpose for purpose in base if purpose in changed} - set(streams.kept(base, changed))
        assert lost == ({"first layer"} if "hidden" in name else set())
    assert streams.kept(base, streams.from_streams(5)) == []


def test_one_generator_hands_out_one_row_of_numbers() -> None:
    drawn = streams.from_one_generator(9)
    generator = torch.Generator().manual_seed(9)
    assert drawn["first layer"].equal(torch.randn(32, task.PIXELS, generator=generator))
    assert drawn["last layer"].equal(torch.randn(10, 32, generator=generator))
    assert drawn["order 0"].equal(torch.randperm(100, generator=generator))


@pytest.mark.parametrize("at", [0, 1, 2, 3, 5, 6])
def test_a_pause_anywhere_changes_nothing(at: int, letters: Letters) -> None:
    total = 6  # three epochs of two batches
    whole = streams.Run(1, letters, total)
    whole.train(total)
    paused = streams.Run(1, letters, total)
    paused.train(at)
    state = paused.state() | {"total": total, "at": at}
    torch.rand(5)
    assert bits.digest(bits.weights_of(streams.resumed(1, letters, state).model)) == bits.digest(
        bits.weights_of(whole.model)
    )


def test_an_epoch_sees_every_letter_once(letters: Letters) -> None:
    training = streams.Run(0, letters, 4)
    training.train(1)
    assert len(training.order) == len(letters.y) - task.BATCH_SIZE
    training.train(1)
    assert len(training.order) == 0


def test_initialising_apart_leaves_the_generator(letters: Letters) -> None:
    before = torch.get_rng_state()
    a, b, c = (bits.weights_of(streams.initialised_apart(seed, CPU)) for seed in (0, 0, 1))
    assert torch.get_rng_state().equal(before)
    assert a.equal(b)
    assert not a.equal(c)


# Surroundings


def test_a_child_with_a_fixed_hash_seed_repeats() -> None:
    first, second = surroundings.in_a_child("7"), surroundings.in_a_child("7")
    assert first == second
    assert sorted(first["list(set(names))"]) == first["sorted(set(names))"] == sorted(surroundings.NAMES)


def test_a_sample_seeded_by_its_index_does_not_depend_on_who_asks(letters: Letters) -> None:
    one, other = (surroundings.Noisy(letters, 3, surroundings.INDEX) for _ in range(2))
    other[5], other[1]  # asked in another order
    for index in (0, 1, 63):
        assert all(map(torch.equal, one[index], other[index]))
    other.epoch = 1
    assert not torch.equal(one[0][2], other[0][2])


@pytest.mark.parametrize("way", [surroundings.GLOBAL, surroundings.OWN, surroundings.INDEX])
def test_noise_is_what_was_drawn(way: str, letters: Letters) -> None:
    dataset = surroundings.Noisy(letters, 3, way)
    x, y, drawn = dataset[4]
    assert 0 <= drawn < 1
    torch.testing.assert_close(x, letters.x[4] * (1 + surroundings.STRENGTH * drawn))
    assert y == letters.y[4]


# Determinism


@pytest.mark.parametrize("add", list(determinism.ADDERS.values()))
def test_adders_are_scatter_add(add: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    values, slots = torch.randn(500, generator=generator), torch.randint(determinism.SLOTS, (500,), generator=generator)
    expected = torch.zeros(determinism.SLOTS).scatter_add(0, slots, values)
    found = add(values, slots, torch.randperm(500, generator=generator))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_results_are_counted_and_refusals_are_none() -> None:
    numbers = itertools.count()
    assert determinism.different_results(lambda: torch.tensor(next(numbers) // 2), 6, deterministic=False)[0] == 3
    place, value = torch.tensor([0]), torch.ones(1)
    refused = determinism.different_results(lambda: torch.zeros(2).put_(place, value), 3, deterministic=True)
    assert refused == (0, None)


# Luck


def test_one_ulp_is_the_next_number() -> None:
    weights = luck.start_weights(torch.float32, torch.Generator().manual_seed(0))
    moved = luck.one_ulp_up(weights)
    found = bits.difference(bits.flat(weights), bits.flat(moved))
    assert found.different == 1
    assert moved[0].max().item() == np.nextafter(np.float32(weights[0].max().item()), np.float32(np.inf))


@pytest.mark.parametrize("relu", [False, True])
def test_without_a_difference_runs_stay_together(relu: bool, letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(luck, "one_ulp_up", lambda weights: [weight.clone() for weight in weights])
    setting = luck.Setting("", relu, 0.9, 0.1, torch.float32)
    found = luck.diverge(setting, letters, 12, seed=0)
    assert found.distances == [0.0] * 12
    assert found.disagreement == 0
    assert found.accuracies[0] == found.accuracies[1]


def test_the_network_is_a_chain_of_linear_layers(letters: Letters) -> None:
    weights = luck.start_weights(torch.float32, torch.Generator().manual_seed(0))
    x = letters.x[:5]
    expected = torch.tanh(torch.tanh(x @ weights[0].T) @ weights[1].T) @ weights[2].T
    torch.testing.assert_close(luck.forward(weights, x, relu=False), expected)


def test_growth_and_jumps_are_read_from_the_distances() -> None:
    distances = [9.0] * 9 + [1.0, 2.0, 1.0, 5.0, 6.0]
    found = luck.Divergence(distances, 0.0, (0.0, 0.0))
    assert luck.growth(found) == 6
    assert luck.largest_jump(found) == 5


@pytest.mark.parametrize("paired", [False, True])
def test_needed_seeds_follow_the_textbook(paired: bool) -> None:
    # Two-sided 5 %, power 80 %: 15.7 for each of two groups at an effect of one standard deviation, 7.8 for pairs.
    assert luck.seeds_needed(1.0, 1.0, paired=paired) == (8 if paired else 16)
    assert luck.seeds_needed(1.0, 100.0, paired=paired) == 2
    fine, coarse = (luck.seeds_needed(2.0, effect, paired=paired) for effect in (0.1, 0.2))
    assert fine / coarse == pytest.approx(4, rel=0.02)


def test_simulated_studies_find_nothing_where_there_is_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    assert luck.found_share(0.0, 1.0, 9, 40_000, generator) == pytest.approx(0.05, abs=0.006)
    assert luck.found_share(10.0, 1.0, 9, 100, generator) == 1


def test_equal_rates_give_equal_results(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(luck, "RATES", (0.01, 0.01))
    found = luck.final_accuracies(3, 8, letters, letters, seed=0)
    assert found.shape == (2, 3)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=2 / 64)
