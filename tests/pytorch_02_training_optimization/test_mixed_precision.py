"""mixed_precision: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import copy
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src import mixed_precision
from pytorch_02_training_optimization.src.precision import casting, costs, scaling, task, training, underflow, weights
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

SECTIONS = [
    "Three formats, and what they make of a training",
    "The error of a product",
    "Totals that stop, losses that overflow, masks that are infinite",
    "Where the gradients of a network lie",
    "Loss scaling: one factor, every gradient",
    "The rule of GradScaler, in thirty lines",
    "Unscale before you clip, and a schedule that waits",
    "What autocast does to which operation",
    "The copies of the weights",
    "backward() belongs outside",
    "The update that vanishes",
    "Stochastic rounding",
    "What model.half() leaves behind",
    "One network, trained in seven ways",
    "What 16 bits save in memory",
    "What 16 bits save in time: one product",
    "Where it does not help",
    "A residual network, a whole step",
]
PICTURES = ["gradient_sizes.png", "loss_scale_window.png", "swallowed_updates.png", "training_by_precision.png"]
CPU = torch.device("cpu")
HALVES = [torch.float16, torch.bfloat16]

run = partial(run_quick, mixed_precision)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("mixed_precision")
    return *run(folder), folder / "mixed_precision"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=70)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    expect_pictures(record, folder, PICTURES)
    names = {measurement["name"] for measurement in record["measurements"]}
    assert {"error of a product", "kept for backward", "product", "accuracy", "gain over float32"} <= names
    rates = [kept for kept in record["measurements"] if kept["unit"] == "GFLOP/s"]
    assert rates
    assert all(kept["limit"] is None or kept["limit"]["share"] <= 1 for kept in rates)  # or it would be no limit


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(mixed_precision, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_on_a_gpu_the_real_rules_are_those_of_the_stand_ins(tmp_path: Path) -> None:
    record, text = run(tmp_path, "--device", "cuda", "--no-plots")
    assert "this GPU's own tensors" in text
    ways = {kept["params"]["way"] for kept in record["measurements"] if kept["name"] == "gain over float32"}
    assert any("channels_last" in way for way in ways)


@pytest.mark.gpu
def test_tf32_is_switched_on_and_off_again() -> None:
    x = torch.randn(64, 512, device="cuda")
    exact = (x.double() @ x.double().T).float()
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    with costs.float32_as("ieee"):
        assert scaling.relative_error([x @ x.T], [exact]) < 1e-6
    if torch.cuda.get_device_capability() >= (8, 0):
        with costs.float32_as("tf32"):
            assert scaling.relative_error([x @ x.T], [exact]) > 1e-5
    assert before == (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)


# Formats, products and sums


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_smallest_number_is_numpys(dtype: torch.dtype) -> None:
    kind = np.dtype(str(dtype).removeprefix("torch."))
    assert mixed_precision.smallest_number(dtype) == float(np.finfo(kind).smallest_subnormal)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize(("rows", "terms"), [(1, 1), (3, 17), (40, 333), (2, 5000)])
def test_no_product_passes_its_bound(dtype: torch.dtype, rows: int, terms: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    for scale in (1.0, 5.0):
        x, w = (scale * torch.randn(shape, generator=generator) for shape in ((rows, terms), (terms, rows)))
        entries, whole = mixed_precision.product_errors(x, w, dtype)
        assert entries.max() <= mixed_precision.product_error_bound(dtype, terms)
        assert whole < (4 if dtype in HALVES else terms + 1) * torch.finfo(dtype).eps


def test_the_bound_is_near_where_nothing_cancels() -> None:
    x = torch.full((1, 1), 1 + 2.0**-8)  # a tie in bfloat16, rounded down; twice, and the product again
    entries, _ = mixed_precision.product_errors(x, x, torch.bfloat16)
    assert mixed_precision.product_error_bound(torch.bfloat16, 1) / 2 < entries.item()


@pytest.mark.parametrize("dtype", HALVES)
def test_a_running_total_is_that_of_a_plain_loop(dtype: torch.dtype) -> None:
    losses, total = torch.rand(200), torch.zeros((), dtype=dtype)
    for value in losses.tolist():
        total = (total.float() + torch.tensor(value).to(dtype).float()).to(dtype)  # exact, then rounded once
    assert mixed_precision.running_total_in(losses, dtype) == total.item()


def test_a_sum_in_float64_by_hand_is_the_product() -> None:
    x, w = torch.randn(5, 40).double(), torch.randn(40, 7).double()
    assert torch.allclose(mixed_precision.dot_summed_in(x, w, torch.float64), x @ w)


def test_masks() -> None:
    scores, hidden = torch.randn(4, 6).half(), torch.rand(4, 6) > 0.5
    hidden[:, 0] = False
    right = torch.softmax(scores.float().masked_fill(hidden, -math.inf), -1)
    assert torch.allclose(mixed_precision.mask_with_the_smallest(scores, hidden).float(), right, atol=2e-3)
    assert torch.allclose(
        mixed_precision.mask_with_a_billion(scores.float(), hidden), right, atol=2e-3
    )  # meant for this
    assert mixed_precision.mask_with_a_billion(scores, hidden).isnan().all()
    hidden[1] = True
    assert mixed_precision.mask_with_the_smallest(scores, hidden).isfinite().all()


def test_a_loss_in_half() -> None:
    prediction, target = torch.tensor([300.0, 1.0]), torch.tensor([0.0, 1.0])
    assert mixed_precision.loss_in_half(prediction, target) == math.inf
    assert mixed_precision.loss_in_float32(prediction, target) == 45_000
    with torch.autocast("cpu", torch.bfloat16):
        assert F.mse_loss(prediction.bfloat16(), target.bfloat16()) == 45_000  # as the docstring says


# Underflow


@pytest.mark.parametrize("exponent", [-26, -25, -24, -20])
def test_lost_is_foreseen_around_the_edge(exponent: int) -> None:
    edge = 2.0**exponent
    numbers = torch.tensor([edge, np.nextafter(np.float32(edge), np.float32(1)), -edge, -1.5 * edge])
    for scale in (1.0, 0.5, 2.0):
        assert underflow.lost_share(numbers, scale) == underflow.foreseen_lost_share(numbers, scale)


def test_lost_and_subnormal_shares_of_all_small_numbers() -> None:
    numbers = 2.0 ** torch.arange(-30.0, 0)
    assert underflow.lost_share(numbers) == pytest.approx(6 / 30)  # 2^-30 to 2^-25
    assert underflow.subnormal_share(numbers) == pytest.approx(16 / 30)  # 2^-30 to 2^-15
    assert underflow.lost_share(numbers, dtype=torch.bfloat16) == 0


def test_the_gradients_on_the_way_are_autograds() -> None:
    torch.manual_seed(0)
    read, clean = underflow.make_tasks(40, CPU).values()
    found = underflow.gradients_on_the_way(read)
    x = read.x[: underflow.BATCH_SIZE]
    logits = read.model(x)
    right = (torch.softmax(logits, 1) - F.one_hot(read.y[: len(x)], task.CLASSES)) / len(x)
    assert torch.allclose(found["5 Linear"], right.flatten(), atol=1e-7)
    pixels = clean.model(clean.x[: underflow.BATCH_SIZE])
    right = 2 * (pixels - clean.y[: len(pixels)]) / pixels.numel()
    assert torch.allclose(underflow.gradients_on_the_way(clean)["4 Conv2d"], right[right != 0].flatten(), atol=1e-9)


def test_training_a_little_lowers_the_loss() -> None:
    torch.manual_seed(0)
    for name, little in underflow.make_tasks(40, CPU).items():
        first = little.loss(little.model(little.x), little.y).item()
        underflow.train_a_little(little, 12)
        assert little.loss(little.model(little.x), little.y).item() < first, name


# Scaling


def both_scalers(**options: Any) -> tuple[scaling.OwnGradScaler, torch.amp.GradScaler]:
    return scaling.OwnGradScaler(**options), torch.amp.GradScaler("cpu", **options)


@pytest.mark.parametrize("seed", range(4))
def test_the_own_scaler_is_pytorchs_on_random_gradients(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    interval = 1 + seed * 2
    own, library = both_scalers(init_scale=2.0**10, growth_interval=interval)
    for _ in range(60):
        kind = torch.randint(6, (), generator=generator).item()
        gradient = torch.randn(3, 4, generator=generator)
        if kind < 2:
            gradient[1, 2] = (math.inf, math.nan)[kind]
        after = []
        for scaler in (own, library):
            weight, unused = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(2))
            optimizer: Any = task.GradientDescent([weight], 0.1)
            optimizer.param_groups.append({"params": [unused], "lr": 0.1})
            optimizer.param_groups[1]["params"] = [unused] if kind == 5 else []
            unused.grad = torch.zeros(2) if kind == 5 else None
            weight.grad = scaler.scale(gradient.clone())  # type: ignore[assignment]
            if kind % 2:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            after.append((weight.detach().clone(), scaler.get_scale()))
        assert torch.equal(after[0][0], after[1][0])
        assert after[0][1] == after[1][1]


def test_both_scalers_refuse_a_second_unscale() -> None:
    for scaler in both_scalers():
        weight = nn.Parameter(torch.ones(2))
        optimizer: Any = task.GradientDescent([weight], 0.1)
        scaler.scale(weight.sum()).backward()
        scaler.unscale_(optimizer)
        assert weight.grad is not None
        assert weight.grad.tolist() == [1, 1]
        with pytest.raises(RuntimeError, match="already been called"):
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert weight.tolist() == pytest.approx([0.9, 0.9])
        weight.grad = torch.ones(2) * scaler.get_scale()
        scaler.unscale_(optimizer)  # after update() it may be called again


def test_a_scaler_takes_torchs_optimizers_and_a_skipped_first_step_makes_the_scheduler_warn() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = copy.deepcopy(model.state_dict())
    scaler.scale(100 * model(torch.ones(1, 2)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()
    assert scaler.get_scale() == 2.0**126
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_relative_error() -> None:
    a, b = [torch.tensor([3.0]), torch.tensor([[4.0]])], [torch.tensor([3.0]), torch.tensor([[0.0]])]
    assert scaling.relative_error(a, a) == 0
    assert scaling.relative_error(b, a) == pytest.approx(4 / 5)
    assert not math.isfinite(scaling.relative_error([torch.tensor([math.nan])], [torch.ones(1)]))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_logits_by_hand_are_autocasts(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = task.make_mlp(24, CPU), torch.randn(5, 1, 16, 16)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        right = model(x)
    assert torch.equal(task.logits_by_hand(model, x, dtype), right)


def test_a_scale_in_the_window_gives_the_gradient_and_none_loses_it() -> None:
    torch.manual_seed(0)
    model, x = task.make_mlp(24, CPU), torch.randn(16, 1, 16, 16)
    y = torch.randint(task.CLASSES, (16,))
    right = list(torch.autograd.grad(scaling.tiny_loss(model(x), y), list(model.parameters())))
    errors = {
        scale: scaling.relative_error(scaling.gradients_in_half(model, x, y, scale), right) for scale in (1.0, 2.0**20)
    }
    assert errors[2.0**20] < 0.01 < 0.5 < errors[1.0]
    units = scaling.logit_gradient_in_half(model, x, y) / 2.0**-24
    assert torch.equal(units, -F.one_hot(y, task.CLASSES).float())


@pytest.mark.parametrize("interval", [1, 3, 10])
def test_one_step_in_interval_plus_one_is_skipped(interval: int) -> None:
    assert scaling.skipped_share(2.0**5, interval, 20 * (interval + 1)) == pytest.approx(1 / (interval + 1))


def test_clipping_before_unscaling_divides_the_step_by_the_scale() -> None:
    letters = task.load_letters(64, CPU)
    right, wrong = (scaling.update_length(clip, letters, 0.05, 3)
                    for clip in (scaling.unscale_clip_then_step, scaling.clip_then_step))  # fmt: skip
    assert right == pytest.approx(0.05, rel=1e-3)
    assert right / wrong == pytest.approx(2**12, rel=0.01)


@pytest.mark.parametrize("searched", [0, 2, 5])
def test_rates_of_a_warm_up(searched: int) -> None:
    warmup = [float(step + 1) for step in range(8)]
    rates = partial(scaling.rates_used, first_scale=2.0**10, largest_scale=2.0 ** (10 - searched), warmup=warmup)
    assert rates(scaling.step_scheduler_always) == warmup[searched:]
    assert rates(scaling.step_scheduler_with_the_optimizer) == warmup[: 8 - searched]


def test_the_drawing_of_scales() -> None:
    lines = scaling.draw_scales([4, 3, 3, 4], [True, False, False, True]).splitlines()
    assert lines[:2] == ["2^4   ×  ×", "2^3    oo"]


# Casting


def test_the_stand_ins_rules_are_those_of_the_cpu_and_change_no_state() -> None:
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cpu")
    for half in HALVES:
        answers = casting.autocast_answers("cpu", half)
        for name, operation in casting.OPERATIONS.items():
            x = torch.rand(4, 4) + 0.5
            with torch.autocast("cpu", half):
                assert answers[name] == (operation(x).dtype, operation(x.to(half)).dtype), name
    casting.autocast_answers("cuda", torch.bfloat16)
    assert before == (
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cuda"),
        torch.is_autocast_enabled("cpu"),
    )


def test_the_cuda_rules_of_the_documentation() -> None:
    answers = casting.autocast_answers("cuda", torch.float16)
    for name in ("x @ x", "F.linear(x, x)", "F.conv1d(x, x[..., None])", "scaled_dot_product_attention"):
        assert answers[name] == (torch.float16,) * 2, name
    for name in ("torch.softmax(x, 1)", "F.layer_norm(x)", "x ** 2", "x.sum()", "x.cumsum(0)", "F.mse_loss(x, x)"):
        assert answers[name] == (torch.float32,) * 2, name
    for name in ("torch.relu(x)", "x + x", "F.dropout(x)"):
        assert answers[name] == (torch.float32, torch.float16), name


def test_a_stand_in_computes_only_where_it_is_told_how() -> None:
    x = casting.StandIn(torch.ones(2), "cuda:0")
    assert (x.device.type, x.dtype, x.shape) == ("cuda", torch.float32, (2,))
    with pytest.raises(NotImplementedError, match="Computed"):
        x + x
    with casting.Computed("cuda:0"):
        y = x + x
    assert isinstance(y, casting.StandIn)
    assert y.on_cpu.tolist() == [2, 2]


def test_casts_are_counted() -> None:
    x = torch.ones(3)
    assert casting.count_casts(lambda: x + 1) == 0
    assert casting.count_casts(lambda: (x.half(), x.double(), x.float())) == 2


@pytest.mark.parametrize("half", HALVES)
def test_a_step_inside_is_not_seen_and_outside_it_is(half: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 256)
    before, after = casting.step_inside_autocast(task.make_mlp(8, CPU), x, half)
    assert torch.equal(before, after)
    model = task.make_mlp(8, CPU)
    before, after = casting.step_outside_autocast(model, x, half)
    assert not torch.equal(before, after)
    with torch.autocast("cpu", half):
        assert torch.equal(after, model(x))


def test_backward_inside_and_after() -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(shape, requires_grad=True) for shape in ((30, 20), (20, 10)))
    exact = casting.exact_gradients(x, weight)
    after = casting.backward_after_autocast(x, weight, torch.bfloat16)
    inside = casting.backward_under_autocast(x, weight, torch.bfloat16)
    assert scaling.relative_error(after, exact) < 1e-6 < 1e-4 < scaling.relative_error(inside, exact)


# Weights


@pytest.mark.parametrize("seed", range(3))
def test_rounding_to_the_nearest_is_torchs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31 - 1, (20_000,), generator=generator).to(torch.int32)
    x = bits.view(torch.float32)
    x = x[x.abs() < 3e38]  # finite, and not rounded up to inf
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0.0, -0.0, 2.0**-140])
    for values in (x, ties, x[::3], x[:12].view(3, 4).T):
        assert torch.equal(weights.round_to_nearest(values), values.to(torch.bfloat16))


@pytest.mark.parametrize("value", [1.0, 1.003, -2.7182818, 3e-5, -1e20])
def test_stochastic_rounding_gives_the_neighbours_with_the_right_mean(value: float) -> None:
    torch.manual_seed(0)
    n = 40_000
    x = torch.full((n,), value)
    drawn = weights.round_stochastically(x).double()
    exact, low = x[0].double().item(), (x[:1].view(torch.int32) & ~0xFFFF).view(torch.float32).double().item()
    high = (x[:1].view(torch.int32) & ~0xFFFF).add(0x10000).view(torch.float32).double().item()
    assert set(drawn.unique().tolist()) <= {low, high}
    share = (exact - low) / (high - low)
    assert abs((drawn == high).double().mean().item() - share) <= 5 * math.sqrt(share * (1 - share) / n)
    assert set(weights.round_stochastically(torch.ones(1000)).tolist()) == {1}  # exact numbers stay


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_swallowed_share_by_brute_force(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, update = torch.randn(300), 0.003 * torch.randn(300)
    update[:20] = 0
    stuck = 0
    for w, u in zip(weight.to(dtype), update, strict=True):
        stuck += u != 0 and (w.float() - u).to(dtype) == w
    assert weights.swallowed_share([weight], [update], dtype) == pytest.approx(int(stuck) / 280)


def test_averages_and_steps_in_float64_are_exact() -> None:
    assert weights.average_of_zeros(torch.float64, 0.9, 50) == pytest.approx(0.9**50)
    assert weights.steps_until_stuck(torch.float64, 0.5, 7) == 4.5
    assert weights.average_of_zeros(torch.bfloat16, 0.999, 50) == 1


def test_writing_weights() -> None:
    torch.manual_seed(0)
    rounded, lot = torch.ones(50_000, dtype=torch.bfloat16), torch.ones(50_000, dtype=torch.bfloat16)
    weights.write_rounded(rounded, torch.full((50_000,), 1.001))
    weights.write_stochastically(lot, torch.full((50_000,), 1.001))
    assert set(rounded.tolist()) == {1}
    assert lot.float().mean().item() == pytest.approx(1.001, abs=1e-4)


def test_half_is_in_place_and_a_deep_copy_is_not() -> None:
    model = nn.Linear(3, 2)
    copied = weights.keep_a_real_half_copy(model)
    assert (model.weight.dtype, copied.weight.dtype) == (torch.float32, torch.float16)
    assert weights.keep_a_half_copy(model) is model
    assert model.weight.dtype == torch.float16


@pytest.mark.parametrize(("gradient", "is_finite"), [(1e-2, True), (1e-4, False), (1e-6, False)])
def test_adam_in_float16_is_torchs(gradient: float, is_finite: bool) -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float16))
    parameter.grad = torch.full((1,), gradient, dtype=torch.float16)
    torch.optim.Adam([parameter], lr=1.0).step()
    assert bool(parameter.isfinite().all()) == is_finite == math.isfinite(weights.adam_step(gradient, torch.float16))
    wide = nn.Parameter(torch.zeros(1))
    wide.grad = torch.full((1,), gradient)
    torch.optim.Adam([wide], lr=1.0).step()
    assert weights.adam_step(gradient, torch.float32) == pytest.approx(-wide.item(), rel=1e-4)


def test_the_running_variance_is_batch_norms_own() -> None:
    x = torch.randn(100, 3)
    norm = weights.train_statistics(torch.float32, x)
    assert not norm.training
    assert norm.running_var is not None
    assert torch.allclose(norm.running_var, x.var(0), rtol=0.02)


# Training


def test_float32_is_plain_gradient_descent() -> None:
    letters, unseen = task.load_letters(200, CPU), task.load_letters(100, CPU, train=False)
    run_ = training.train(training.WAYS["float32"], letters, unseen, 16, 5, 3)
    torch.manual_seed(3)
    model, generator, losses = task.make_mlp(16, CPU), torch.Generator().manual_seed(3), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for step in range(5):
        x, y = letters.batch(scaling.BATCH_SIZE, generator)
        optimizer.param_groups[0]["lr"] = task.LR * (1 - step / 5)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert run_.losses == pytest.approx(losses, rel=1e-4)


def test_every_way_runs_and_only_the_scaled_one_leaves_steps_out() -> None:
    letters, unseen = task.load_letters(200, CPU), task.load_letters(100, CPU, train=False)
    for name, way in training.WAYS.items():
        done = training.train(way, letters, unseen, 8, 4, 0)
        assert len(done.losses) == 4
        assert 0 <= done.accuracy <= 1
        assert done.scale == (2.0**16 if way.scaled else 1.0), name
        assert done.skipped == 0


def test_letters_are_normalised_and_batches_repeat() -> None:
    letters = task.load_letters(200, CPU)
    assert letters.x.shape == (200, 1, 16, 16)
    assert letters.x.mean((1, 2, 3)).abs().max() < 1e-4
    first, again = (letters.batch(9, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert task.accuracy(lambda x: F.one_hot(letters.y, 10), letters) == 1


# Costs


def test_bytes_kept_counts_each_storage_once_and_no_parameters() -> None:
    x, weight = torch.randn(8, 4, requires_grad=True), nn.Parameter(torch.randn(4, 4))
    assert costs.bytes_kept(lambda: (x * x).sum(), []) == x.nbytes
    assert costs.bytes_kept(lambda: (x @ weight).sum(), [weight]) == x.nbytes
    assert costs.bytes_kept(lambda: (x @ weight).sum(), []) == x.nbytes + weight.nbytes
    assert costs.bytes_kept(lambda: (x[2:] * x[:6]).sum(), []) == x.nbytes  # two views of one storage
    assert costs.bytes_kept(lambda: x.exp().sum(), []) == x.nbytes  # the result
    assert costs.bytes_kept(lambda: (x + 1).sum(), []) == 0


@pytest.mark.parametrize("batch", [1, 3])
def test_convolutions_keep_half_and_their_copies(batch: int) -> None:
    model, x = costs.make_stacks(CPU)["convolution, ReLU"], torch.randn(batch, 32, 8, 8)
    wide = costs.measure_kept(model, x, costs.nullcontext)
    assert wide == 4 * x.nbytes  # x, and what comes out of each ReLU
    narrow = costs.measure_kept(model, x, costs.narrowed(CPU))
    assert narrow == wide // 2 + 2 * 3 * 32 * 32 * 9


def test_attention_is_the_librarys_block() -> None:
    torch.manual_seed(0)
    ours, x = costs.Attention(16, 4).eval(), torch.randn(2, 5, 16)
    library = nn.TransformerEncoderLayer(16, 4, 64, 0.0, F.gelu, batch_first=True, norm_first=True).train()
    first, last = ours.mlp[1], ours.mlp[3]
    pairs = [(library.self_attn.in_proj_weight, ours.to_qkv.weight), (library.self_attn.in_proj_bias, ours.to_qkv.bias),
             (library.self_attn.out_proj.weight, ours.out.weight), (library.self_attn.out_proj.bias, ours.out.bias),
             (library.linear1.weight, first.weight), (library.linear1.bias, first.bias),
             (library.linear2.weight, last.weight), (library.linear2.bias, last.bias)]  # fmt: skip
    with torch.no_grad():
        for target, source in pairs:
            target.copy_(source)  # type: ignore[arg-type]
    assert torch.allclose(ours(x), library(x), atol=1e-5)


def test_operations_of_a_step() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 3 * 3, 4))
    x = torch.randn(2, 3, 8, 8)
    forward = 2 * (2 * 5 * 3 * 3 * 27 + 2 * 4 * 45)
    assert costs.step_operations(model, x) == 3 * forward
    assert not any(layer._forward_hooks for layer in model)


@pytest.mark.parametrize(("widths", "blocks"), [((4,), 1), ((4, 8), 2), ((2, 4, 8), 1)])
def test_the_residual_network_has_its_shapes(widths: tuple[int, ...], blocks: int) -> None:
    model, x = costs.make_residual_network(widths, blocks, CPU), torch.randn(2, 3, 16, 16)
    assert model(x).shape == (2, task.CLASSES)
    assert sum(isinstance(layer, costs.Block) for layer in model) == blocks * len(widths)
    features = model[:-3](x)
    assert features.shape == (2, widths[-1], 16 // 2 ** (len(widths) - 1), 16 // 2 ** (len(widths) - 1))


def test_a_block_is_the_sum_of_path_and_shortcut() -> None:
    block, x = costs.Block(3, 3, 1).eval(), torch.randn(1, 3, 4, 4)
    assert torch.equal(block(x), F.relu(block.path(x) + x))
    nn.init.zeros_(block.path[3].weight)  # type: ignore[arg-type]
    assert torch.equal(block(x), F.relu(x))


def test_residual_steps_train() -> None:
    x, y = torch.randn(4, 3, 8, 8), torch.randint(task.CLASSES, (4,))
    for dtype, precision, channels_last in costs.ways_to_train(CPU).values():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            costs.residual_step(dtype, precision, channels_last, (4, 8), 1, x, y)()


def test_float32_as_puts_everything_back() -> None:
    kinds: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [kind.fp32_precision for kind in kinds]

    def fail_inside(precision: str) -> None:
        with costs.float32_as(precision):
            assert [kind.fp32_precision for kind in kinds] == [precision] * 2
            raise ValueError("on purpose")

    for precision in ("ieee", "tf32"):
        with pytest.raises(ValueError, match="on purpose"):
            fail_inside(precision)
        assert [kind.fp32_precision for kind in kinds] == before


def test_a_measured_limit_gives_way_and_a_data_sheet_does_not() -> None:
    measured, sheet = (costs.Limit(10.0, "FLOP/s", "somewhere", kind) for kind in ("measured", "data sheet"))
    for limit, rate, expected in ((measured, 12.0, 12.0), (measured, 8.0, 10.0), (sheet, 12.0, 10.0)):
        raised = costs.at_least(limit, rate)
        assert raised is not None
        assert raised.value == expected
    assert costs.at_least(None, 12.0) is None


def test_features_of_this_processor() -> None:
    assert all(value in (True, False, None) for value in costs.processor_features().values())
    assert "AMX" in costs.device_features(CPU)
