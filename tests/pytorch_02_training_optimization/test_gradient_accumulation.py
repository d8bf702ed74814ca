"""gradient_accumulation: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src import gradient_accumulation
from pytorch_02_training_optimization.src.accumulation import (
    clipping,
    layers,
    loops,
    memory,
    noise,
    spikes,
    task,
    unequal,
)
from pytorch_02_training_optimization.src.letters.rows import load_letters
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
import torch.nn.functional as F
from torch import nn

SECTIONS = [
    "One batch of 64, or eight of 8",
    "Hundreds of steps later",
    "What it saves, and what it costs",
    "Three lines in the wrong place",
    "Forgetting to divide, and who hides it",
    "A schedule that runs eight times too fast",
    "The end of an epoch: parts of unequal size",
    "Sentences of unequal length",
    "Layers that see the part and not the batch",
    "Clip the sum, not the parts",
    "By norm and by value",
    "Clipping in a handful of operations",
    "One bad batch, and what each optimizer makes of it",
    "Where the threshold comes from",
    "How large a batch is worth it",
]
PICTURES = (
    "weights_apart",
    "schedule_by_part",
    "clipping_directions",
    "bad_batch",
    "gradient_norms",
    "batch_size_worth",
)
CPU = torch.device("cpu")

run = partial(run_quick, gradient_accumulation)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("gradient_accumulation")
    return *run(folder), folder / "gradient_accumulation"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=60)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    expect_pictures(record, folder, [f"{name}.png" for name in PICTURES])
    names = {measurement["name"] for measurement in record["measurements"]}
    assert names == {"weights apart", "kept for backward", "time of a sample", "gradient off by",
                     "operations of clipping", "noise scale"}  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(gradient_accumulation, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_for_the_norm(tmp_path: Path) -> None:
    record, _ = run(tmp_path, "--device", "cuda", "--no-plots")
    evidence = {check["claim"]: check["evidence"] for check in record["checks"]}
    assert "200 waits" in evidence["it never waits, nor does ours"]
    parameters = clipping.with_gradients([torch.randn(5, 5, device="cuda") for _ in range(3)])
    torch.cuda.set_sync_debug_mode("error")
    try:
        clipping.clip_by_norm(parameters, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# The task


def small_batch(size: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, task.PIXELS, generator=generator, dtype=torch.float64)
    return x, torch.randint(task.CLASSES, (size,), generator=generator)


def small_model(seed: int = 0, **options: Any) -> nn.Sequential:
    return task.make_model(6, seed, CPU, torch.float64, **options)


def gradient_of(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    return task.joined(torch.autograd.grad(loss, list(model.parameters())))


def test_letters_are_normalised_and_batches_repeat() -> None:
    letters = load_letters(100)
    assert letters.x.shape == (100, task.PIXELS)
    assert letters.x.mean(1).abs().max() < 1e-4
    first, again = (task.draw_batches(letters, 2, 7, 5) for _ in range(2))
    assert all(
        torch.equal(a, b) for one, other in zip(first, again, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert not torch.equal(first[0][0], first[1][0])


@pytest.mark.parametrize("name", ["momentum", "Adam"])
def test_the_rules_are_those_of_torch_optim(name: str) -> None:
    models = [small_model() for _ in range(2)]
    own: Any = (task.Momentum if name == "momentum" else task.Adam)(models[0].parameters(), 0.01)
    library: Any = (torch.optim.SGD(models[1].parameters(), lr=0.01, momentum=0.9) if name == "momentum"
                    else torch.optim.Adam(models[1].parameters(), lr=0.01))  # fmt: skip
    for step in range(12):
        x, y = small_batch(seed=step)
        for model, rule in zip(models, (own, library), strict=True):
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            rule.step()
    assert task.off_by(*(task.joined(model.parameters()) for model in models)) < 1e-12


def test_rules_skip_what_has_no_gradient() -> None:
    for make in (task.Momentum, task.Adam):
        weight = nn.Parameter(torch.ones(2))
        make([weight], 0.1).step()
        assert weight.tolist() == [1, 1]


# The loop


@pytest.mark.parametrize("parts", [1, 2, 3, 12])
def test_parts_give_gradient_and_loss_of_the_batch(parts: int) -> None:
    model, (x, y) = small_model(), small_batch()
    loss = F.cross_entropy(model(x), y)
    right = gradient_of(model, loss)
    assert loops.fill_gradients(model, x, y, parts).item() == pytest.approx(loss.item(), rel=1e-12)
    assert task.off_by(task.joined(task.gradients_of(model)), right) < 1e-13


def test_each_mistake_is_the_one_it_is_named_for() -> None:
    model, (x, y) = small_model(), small_batch()
    right = gradient_of(model, F.cross_entropy(model(x), y))
    last = gradient_of(model, F.cross_entropy(model(x[8:]), y[8:]))
    expected = {loops.fill_without_dividing: 3 * right, loops.clear_before_each_part: last / 3}
    for fill, gradient in expected.items():
        fill(model, x, y, 3)
        assert task.off_by(task.joined(task.gradients_of(model)), gradient) < 1e-12
    model.zero_grad()
    for times in (1, 2, 3):
        loops.never_clear(model, x, y, 3)
        assert task.off_by(task.joined(task.gradients_of(model)), times * right) < 1e-12


def test_the_two_ways_drift_by_rounding_and_a_mistake_does_not() -> None:
    batches = [small_batch(16, seed) for seed in range(5)]
    apart, moved = gradient_accumulation.weights_apart("momentum", 4, batches, 6, 0)
    assert len(apart) == 5
    assert max(apart) < 1e-15
    assert moved > 1e-4


def test_training_with_a_limit_steps_no_further() -> None:
    batches = [small_batch(16, seed) for seed in range(3)]
    _, losses, norms = loops.train("momentum", loops.fill_gradients, batches, 6, 0)
    assert losses.shape == norms.shape == (3,)
    free, _, _ = loops.train("momentum", loops.fill_gradients, batches[:1], 6, 0)
    bound, _, _ = loops.train("momentum", loops.fill_gradients, batches[:1], 6, 0, norms[0].item() / 4)
    start = task.joined(small_model().parameters())
    way = task.joined(free.parameters()) - start
    assert task.off_by(task.joined(bound.parameters()) - start, way / 4) < 1e-5


def test_rates_are_those_of_the_scheduler() -> None:
    for parts, rates in ((1, loops.rates_by_step(20)), (8, loops.rates_by_part(20, 8))):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
        found = []
        for _ in range(20):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            for _ in range(parts):
                scheduler.step()
        assert found == pytest.approx(rates, abs=1e-9)


# Memory


def test_saved_bytes_follow_what_lives() -> None:
    x, weight = torch.randn(8, 4), nn.Parameter(torch.randn(4, 4))
    saved = memory.SavedBytes([weight])
    with saved:
        y = x @ weight  # keeps x
        z = y.exp().sum()  # keeps its result
        assert saved.now == x.nbytes + y.nbytes
        z.backward()
        assert saved.now == 0
        (x @ weight).sum().backward()
    assert saved.peak == x.nbytes + y.nbytes
    again = memory.SavedBytes([weight, x])
    with again:
        kept = [(x @ weight).sum(), (x * x * weight[0]).sum()]
        assert again.now == x.nbytes  # of x * x
        del kept
    assert again.now == 0


def test_a_storage_that_is_saved_twice_counts_once() -> None:
    weight = nn.Parameter(torch.ones(6))
    saved = memory.SavedBytes([weight])
    with saved:
        y = weight.exp()
        z = (y * y[2:3]).sum() + (y * y).sum()
        assert saved.now == y.nbytes
        z.backward()
    assert saved.now == 0


@pytest.mark.parametrize(("samples", "width", "parts"), [(8, 5, 1), (8, 5, 2), (12, 7, 4)])
def test_bytes_are_as_expected(samples: int, width: int, parts: int) -> None:
    model, x = task.make_model(width, 0, CPU), torch.randn(samples, task.PIXELS)
    y = torch.randint(task.CLASSES, (samples,))
    found = memory.saved_at_most(memory.backward_for_each_part, model, x, y, parts)
    assert found == memory.expected_bytes(samples // parts, width)
    late = memory.saved_at_most(memory.add_losses_first, model, x, y, parts)
    assert late == parts * memory.expected_bytes(samples // parts, width)


# Unequal parts


def random_parts(sizes: Sequence[int]) -> tuple[list[unequal.Part], unequal.Part]:
    x, y = small_batch(sum(sizes))
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True)), (x, y)


@pytest.mark.parametrize("sizes", [[12], [5, 7], [1, 1, 10], [4, 4, 4]])
def test_a_count_makes_any_parts_equal(sizes: list[int]) -> None:
    model = small_model()
    parts, (x, y) = random_parts(sizes)
    loss = F.cross_entropy(model(x), y)
    right = gradient_of(model, loss)
    assert unequal.fill_by_count(model, parts).item() == pytest.approx(loss.item())
    assert task.off_by(task.joined(task.gradients_of(model)), right) < 1e-13
    unequal.fill_with_mean_of_means(model, parts)
    off = task.off_by(task.joined(task.gradients_of(model)), right)
    assert (off < 1e-13) == (len(set(sizes)) == 1)
    assert task.off_by(unequal.weighted_by_letter(model, parts), task.joined(task.gradients_of(model))) < 1e-12


def test_ignored_targets_do_not_count() -> None:
    torch.manual_seed(0)
    model = unequal.NextSign(4).double()
    lines = [torch.randint(unequal.SIGNS, (length,)) for length in (3, 9, 5, 2)]
    loss = (
        torch.stack([F.cross_entropy(model(line[None, :-1])[0], line[1:], reduction="sum") for line in lines]).sum()
        / 15
    )
    right = gradient_of(model, loss)
    parts = [unequal.padded(lines[:2]), unequal.padded(lines[2:])]
    assert [unequal.tokens_in(part) for part in parts] == [10, 5]
    assert unequal.fill_by_count(model, parts).item() == pytest.approx(loss.item())
    assert task.off_by(task.joined(task.gradients_of(model)), right) < 1e-13


def test_the_network_does_not_see_what_is_to_come() -> None:
    torch.manual_seed(0)
    model, x = unequal.NextSign(4), torch.randint(unequal.SIGNS, (2, 7))
    changed = x.clone()
    changed[:, 4] = (x[:, 4] + 1) % unequal.SIGNS
    before, after = model(x), model(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4], after[:, 4])
    assert not torch.equal(before[:, 5], after[:, 5])
    assert torch.equal(before[:, 6], after[:, 6])


def test_groups_and_the_end_of_an_epoch() -> None:
    parts: Any = list(range(10))
    assert list(unequal.groups_of(parts, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(unequal.groups_of([], 4)) == []
    assert unequal.parts_of_an_epoch(20, 8) == [8, 8, 4]
    assert unequal.parts_of_an_epoch(16, 8) == [8, 8]
    assert unequal.parts_of_an_epoch(3, 8) == [3]


def test_lines_are_short_ascii_and_repeat() -> None:
    lines = unequal.lines_of_code(50, 3)
    assert all(3 <= len(line) <= 120 and int(line.max()) < unequal.SIGNS for line in lines)
    assert all(torch.equal(a, b) for a, b in zip(lines, unequal.lines_of_code(50, 3), strict=True))


# Layers


@pytest.mark.parametrize(("parts", "momentum"), [(1, 0.1), (4, 0.1), (8, 0.3)])
def test_running_statistics_forget_in_every_part(parts: int, momentum: float) -> None:
    assert layers.old_share_left(parts, momentum) == pytest.approx((1 - momentum) ** parts)
    assert layers.old_share_left(parts, layers.slower_momentum(momentum, parts)) == pytest.approx(1 - momentum)


def test_handed_masks_are_taken_in_order_and_again() -> None:
    mask = layers.draw_mask(3, torch.Generator().manual_seed(0))
    layer, x = layers.MaskFromList(mask), torch.ones(task.BATCH_SIZE, 3).double()
    assert set(mask.unique().tolist()) == {0, 2}
    for parts in (1, 4, 8):
        assert torch.equal(torch.cat([layer(part) for part in x.chunk(parts)]), mask)


# Clipping

KINDS = [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 0.01)]


@pytest.mark.parametrize(("dtype", "tolerance"), KINDS)
@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 4.0, math.inf])
def test_clip_by_norm_is_the_librarys(dtype: torch.dtype, tolerance: float, order: float) -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(6, 10, generator=generator).to(dtype)
    gradients = [base, None, base.T[::2], base[0, 0].clone(), None, 100 * base[1]]
    for max_norm in (0.0, 0.3, 1e6):
        assert clipping.clip_both_ways(gradients, max_norm, order) <= tolerance


def test_clip_by_norm_takes_generators_and_nothing() -> None:
    model = small_model()
    assert clipping.clip_by_norm(model.parameters(), 1.0) == 0
    assert clipping.clip_by_norm([], 1.0) == 0
    x, y = small_batch()
    F.cross_entropy(model(x), y).backward()
    norm = clipping.clip_by_norm(model.parameters(), 0.01)
    assert norm > 0.01
    assert task.joined(task.gradients_of(model)).norm() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("broken", [math.inf, -math.inf, math.nan])
def test_broken_numbers_do_as_in_the_library(broken: float) -> None:
    gradients = [torch.tensor([1.0, broken]), torch.ones(2, 2)]
    assert clipping.clip_both_ways(gradients, 1.0, 2.0) == 0
    own, library = clipping.with_gradients(gradients), clipping.with_gradients(gradients)
    clipping.clip_by_value(own, 0.5)
    nn.utils.clip_grad_value_(library, 0.5)
    for a, b in zip(clipping.gradients_in(own), clipping.gradients_in(library), strict=True):
        assert torch.equal(a.nan_to_num(nan=9), b.nan_to_num(nan=9))


def test_angles() -> None:
    x = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for degrees in (1e-7, 1.0, 45.0, 90.0, 179.0):
        radians = torch.tensor(math.radians(degrees), dtype=torch.float64)
        assert clipping.angle(3 * x, torch.stack([radians.cos(), radians.sin()])) == pytest.approx(degrees, rel=1e-6)


def test_parts_one_by_one_and_their_ways_to_be_clipped() -> None:
    model, (x, y) = small_model(), small_batch()
    rows = clipping.gradient_of_each_part(model, x, y, 4)
    right = gradient_of(model, F.cross_entropy(model(x), y))
    assert task.off_by(rows.mean(0), right) < 1e-13
    for clip in clipping.CLIPS.values():
        assert task.off_by(clip(rows, 1e6), right) < 1e-13
    limit = float(right.norm()) / 3
    assert task.off_by(clipping.clip_the_sum(rows, limit), right / 3) < 1e-13
    for parts in x, y:
        assert len(parts) == 12
    model.zero_grad()
    for some_x, some_y in zip(x.chunk(4), y.chunk(4), strict=True):  # the mistake as people write it
        (F.cross_entropy(model(some_x), some_y) / 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), limit)
    assert task.off_by(clipping.clip_after_each_part(rows, limit), task.joined(task.gradients_of(model))) < 1e-4
    shares = torch.tensor(clipping.shares_after_each_part(rows, limit), dtype=torch.float64)
    assert task.off_by((rows * shares[:, None]).mean(0), clipping.clip_after_each_part(rows, limit)) < 1e-12


def test_asking_gives_the_same_gradients() -> None:
    gradients = [torch.randn(3, 4), torch.randn(5)]
    for max_norm in (0.1, 1e6):
        own, asked = clipping.with_gradients(gradients), clipping.with_gradients(gradients)
        clipping.clip_by_norm(own, max_norm)
        clipping.clip_and_ask(asked, max_norm)
        for a, b in zip(clipping.gradients_in(own), clipping.gradients_in(asked), strict=True):
            assert torch.allclose(a, b, rtol=1e-4)
    assert clipping.count_operations(lambda parameters: clipping.clip_and_ask(parameters, 0.1), 7, CPU)[1] == 7


# The limit


def test_a_running_percentile_looks_back_only() -> None:
    norms = [3.0, 1.0, 2.0, 100.0, 5.0]
    assert spikes.running_percentile(norms, 0.5, 2) == [math.inf, math.inf, 2.0, 2.0, 2.5]
    assert spikes.share_above(norms, [math.inf, 0.5, 2.0, 2.0, 2.5]) == pytest.approx(3 / 5)


def test_a_bad_batch_changes_nothing_before_it() -> None:
    letters = load_letters(100)
    calm, bad = (spikes.train("Adam", letters, 6, 8, 0, bad_step=step) for step in (None, 3))
    assert calm.loss[:3] == bad.loss[:3]
    assert calm.norm[:3] == bad.norm[:3]
    assert bad.norm[3] > 20 * calm.norm[3]
    assert len(calm.moved) == 6
    clipped = spikes.train("momentum", letters, 1, 8, 0, max_norm=0.01)
    assert clipped.moved[0] == pytest.approx(0.01 * task.RULES["momentum"][1], rel=1e-3)


def test_helpers_for_curves() -> None:
    assert spikes.smooth([1.0, 3.0, 5.0], 2) == [1, 2, 4]
    assert spikes.finite([1.0, math.nan, math.inf]) == [1, math.inf, math.inf]


# Noise


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_squared_norms_are_those_of_single_letters(activation: type[nn.Module]) -> None:
    model, (x, y) = small_model(activation=activation), small_batch()
    found = noise.squared_norms_by_letter(model, x, y)
    right = [
        gradient_of(model, F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])).square().sum() for i in range(len(y))
    ]
    assert torch.allclose(found.detach(), torch.stack(right), rtol=1e-10)


def test_exact_noise_is_the_variance() -> None:
    model, (x, y) = small_model(), small_batch()
    found = noise.exact_noise(model, task.Letters(x, y))
    rows = clipping.gradient_of_each_part(model, x, y, len(y))
    assert found.signal == pytest.approx(float(rows.mean(0).square().sum()))
    assert found.variance == pytest.approx(float(rows.var(0, correction=0).sum()))
    assert found.scale == pytest.approx(found.variance / found.signal)


def test_the_estimate_is_right_on_average_over_all_batches() -> None:
    model, (x, y) = small_model(), small_batch(3)
    exact = noise.exact_noise(model, task.Letters(x, y))
    every = [noise.two_sizes(model, x[list(index)], y[list(index)], 2)
             for index in ((i, j) for i in range(3) for j in range(3))]  # fmt: skip
    signal, variance = (sum(pair[i] for pair in every) / len(every) for i in (0, 1))
    assert (signal, variance) == pytest.approx((exact.signal, exact.variance), rel=1e-9)


def test_progress_leaves_the_weights_and_a_whole_batch_descends() -> None:
    letters, generator = load_letters(100), torch.Generator().manual_seed(0)
    model = task.make_model(8, 0, CPU)
    start = task.joined(model.parameters())
    falls = noise.progress_by_batch(model, letters, (2, 400), (0.01, 0.1), generator)
    assert torch.equal(task.joined(model.parameters()), start)
    assert falls[400] > 0
    assert falls[400] > falls[2]


def test_the_batch_of_half_the_progress() -> None:
    assert noise.batch_of_half({4: 0.1, 16: 0.3, 64: 0.7}, 1.0) == pytest.approx(32)
    assert noise.batch_of_half({4: 0.6, 16: 0.8}, 1.0) == 4
