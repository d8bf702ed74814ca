"""lr_schedules: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import itertools
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src import lr_schedules
from pytorch_02_training_optimization.src.letters.rows import load_letters
from pytorch_02_training_optimization.src.schedules import (
    batch,
    curves,
    effect,
    letters,
    range_test,
    resuming,
    stepping,
    warmup,
    without_end,
)
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
import torch.nn.functional as F
from torch.optim import lr_scheduler

SECTIONS = [
    "A schedule is a function of the step",
    "Step for step with torch.optim.lr_scheduler",
    "Plateau: a schedule of the loss",
    "Which rate does the first step use?",
    "Per epoch or per step",
    "Chained or closed",
    "Resuming: the schedule has a state of its own",
    "A parameter group that comes later",
    "Why a warm-up: Adam's first steps",
    "What a warm-up changes",
    "The learning-rate range test",
    "What a decay is for: noise",
    "Constant against decay, fairly",
    "A larger batch, a larger rate, and where that ends",
    "Warm-up, stable, decay: no end needed",
]
CPU = torch.device("cpu")

run = partial(run_quick, lr_schedules)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("lr_schedules")
    return *run(folder), folder / "lr_schedules"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=58)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    names = {measurement["name"] for measurement in record["measurements"]}
    assert names == {"accuracy", "test loss"}
    assert all(measurement["value"] > 0 for measurement in record["measurements"])
    pictures = ("all_curves", "per_epoch_or_per_step", "first_steps", "warmup", "range_test", "effect", "batch_size",
                "without_end")  # fmt: skip
    expect_pictures(record, folder, [f"{name}.png" for name in pictures])


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(lr_schedules, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    run(tmp_path, "--device", "cuda", "--no-plots")


# Curves against the library, with random settings

Case = tuple[Callable[[int], float], Callable[[Any], Any]]


def random_case(name: str, draw: random.Random) -> Case:
    every, first = draw.randint(1, 30), draw.randint(1, 20)
    gamma, share = draw.uniform(0.3, 0.99), draw.uniform(0.05, 0.9)
    if name == "StepLR":
        return partial(curves.step_decay, every=every, gamma=gamma), lambda o: lr_scheduler.StepLR(o, every, gamma)
    if name == "MultiStepLR":
        at = [draw.randint(1, 80) for _ in range(draw.randint(1, 5))]  # one step may stand twice
        return partial(curves.multi_step, milestones=at, gamma=gamma), lambda o: lr_scheduler.MultiStepLR(o, at, gamma)
    if name == "ExponentialLR":
        return partial(curves.exponential, gamma=gamma), lambda o: lr_scheduler.ExponentialLR(o, gamma)
    if name == "LinearLR":
        return (
            partial(curves.warmup, over=every, first=share),
            lambda o: lr_scheduler.LinearLR(o, share, total_iters=every),
        )
    if name == "PolynomialLR":
        return (
            partial(curves.polynomial, over=every, power=2 * share),
            lambda o: lr_scheduler.PolynomialLR(o, every, 2 * share),
        )
    if name == "CosineAnnealingLR":
        return (
            partial(curves.cosine, over=every, floor=share),
            lambda o: lr_scheduler.CosineAnnealingLR(o, every, eta_min=0.2 * share),
        )
    if name == "CosineAnnealingWarmRestarts":
        times = draw.randint(1, 3)
        return (
            partial(curves.warm_restarts, first=first, times=times, floor=share),
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, first, times, eta_min=0.2 * share),
        )
    total = draw.randint(80, 120)
    if name == "OneCycleLR":
        return (
            partial(curves.one_cycle, total=total, low=0.1, end=0.01, rise=share),
            lambda o: lr_scheduler.OneCycleLR(o, 0.2, total, pct_start=share, div_factor=10, final_div_factor=10),
        )

    def sequential(optimizer: Any) -> Any:
        rise = lr_scheduler.LinearLR(optimizer, share, total_iters=first)
        fall = lr_scheduler.CosineAnnealingLR(optimizer, total - first)
        return lr_scheduler.SequentialLR(optimizer, [rise, fall], [first])

    return partial(curves.warmup_then_cosine, over=first, total=total, first=share), sequential


@pytest.mark.parametrize(
    "name",
    ["StepLR", "MultiStepLR", "ExponentialLR", "LinearLR", "PolynomialLR", "CosineAnnealingLR",
     "CosineAnnealingWarmRestarts", "OneCycleLR", "SequentialLR"],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(6))
def test_a_curve_is_the_librarys(name: str, seed: int) -> None:
    own, make = random_case(name, random.Random(seed))
    optimizer = stepping.make_optimizer(0.2, momentum=0.9)
    found = stepping.rates_used(optimizer, make(optimizer), 79)
    assert found == pytest.approx([0.2 * own(step) for step in range(79)], rel=1e-9, abs=1e-12)


def test_all_of_the_tables_curves_stay_between_0_and_1() -> None:
    for name, curve in lr_schedules.CURVES.items():
        assert all(0 <= curve(step) <= 1 + 1e-12 for step in range(lr_schedules.TOTAL)), name


def test_warmup_stable_decay_and_inverse_root_at_their_ends() -> None:
    wsd = [curves.warmup_stable_decay(step, 4, 20, 5) for step in range(20)]
    assert wsd[:4] == [0.25, 0.5, 0.75, 1]
    assert wsd[4:16] == [1] * 12
    assert wsd[15:] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    root = [curves.inverse_root(step, 4) for step in range(16)]
    assert root[3] == 1 == max(root)
    assert root[15] == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(8))
def test_the_plateau_is_the_librarys(seed: int) -> None:
    draw = random.Random(seed)
    losses = [draw.choice([1.0, 0.9, draw.random(), math.nan]) for _ in range(200)]
    options = {"factor": draw.uniform(0.1, 0.9), "patience": draw.randint(0, 5), "cooldown": draw.randint(0, 4),
               "threshold": draw.choice([0.0, 1e-4, 0.1])}  # fmt: skip
    lowest = draw.choice([0.0, 1e-3])
    own = stepping.own_plateau(losses, 0.1, lowest=lowest, **options)
    assert own == stepping.library_plateau(losses, 0.1, min_lr=lowest, **options)


# Stepping


def test_cuts_and_rises() -> None:
    assert stepping.cuts([3, 3, 2, 2, 1]) == [2, 4]
    assert stepping.count_rises([1, 2, 3, 1, 1, 2, 2, 3]) == 3
    assert stepping.count_rises([3, 2, 1]) == stepping.count_rises([1.0]) == 0


def test_the_order_of_the_calls() -> None:
    for order, expected in (
        (stepping.rates_used, [1, 0.5, 0.25]),
        (stepping.schedule_before_optimizer, [0.5, 0.25, 0.125]),
    ):
        optimizer = stepping.make_optimizer(1.0)
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
        optimizer.step()  # so that PyTorch has nothing to say
        assert order(optimizer, scheduler, 3) == expected
    assert [stepping.warmup_from_one(step, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert [stepping.warmup_from_nothing(step, 4) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]


def test_stepped_every_epoch_holds_the_rate() -> None:
    rates = stepping.stepped_every_epoch(4, 4, 3)
    assert [len(list(group)) for _, group in itertools.groupby(rates)] == [3] * 4
    assert stepping.stepped_every_step(12, 4, 3)[6] == pytest.approx(0.05)


@pytest.mark.parametrize("name", list(stepping.FORMS))
def test_a_rate_halved_by_hand(name: str) -> None:
    form, make = stepping.FORMS[name]
    alone, halved = stepping.rate_after_halving(make, 20, 5)
    assert halved == pytest.approx(alone * (0.5 if form == "chained" else 1))


def test_two_chained_schedulers_are_the_librarys_chain() -> None:
    first, second = (stepping.FORMS[name][1] for name in ("StepLR(40)", "ExponentialLR(0.99)"))
    optimizer = stepping.make_optimizer(0.1)
    chain: Any = lr_scheduler.ChainedScheduler([first(optimizer), second(optimizer)], optimizer)
    assert stepping.rates_under_two(first, second, 90) == stepping.rates_used(optimizer, chain, 90)


@pytest.mark.parametrize("name", list(resuming.RESUMED))
def test_a_resumed_schedule(name: str) -> None:
    make = resuming.RESUMED[name]
    whole = stepping.library_rates(make, resuming.PEAK, resuming.TOTAL)
    saved = resuming.train_until_stopped(make)
    assert resuming.resume(make, saved) == whole[resuming.STOPPED :]
    assert resuming.resume_without_scheduler(make, saved) != whole[resuming.STOPPED :]
    assert resuming.resume_scheduler_last(make, saved) != whole[resuming.STOPPED :]


def test_groups_from_the_start_have_a_plan_each() -> None:
    rates = resuming.groups_from_the_start(10)
    assert [second for _, second in rates[:4]] == [0] * 4
    assert rates[4:] == [[first, first] for first, _ in rates[4:]]
    assert rates[5][0] == pytest.approx(0.05)


# Networks side by side


def noise_letters(count: int) -> letters.Letters:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, letters.PIXELS, generator=generator)
    return letters.Letters(x, torch.randint(letters.CLASSES, (count,), generator=generator))


@pytest.mark.parametrize("name", ["SGD", "momentum", "Adam"])
@pytest.mark.parametrize("layers", [2, 4])
def test_a_run_of_the_stack_is_the_run_alone_with_torch(name: str, layers: int) -> None:
    data, steps, seeds = noise_letters(100), 6, 2
    own = {"SGD": partial(letters.Momentum, momentum=0.0), "momentum": letters.Momentum, "Adam": letters.Adam}[name]
    library = {"SGD": torch.optim.SGD, "momentum": partial(torch.optim.SGD, momentum=0.9), "Adam": torch.optim.Adam}
    peaks = (0.001, 0.01)
    rates = torch.tensor([[peak / (step + 1) for peak in peaks for _ in range(seeds)] for step in range(steps)])
    batches = letters.draw_batches(5, steps, seeds, 100, 8)
    stack = own(letters.start_weights(3, seeds, len(peaks), CPU, layers))
    losses = letters.train(stack, data, batches, rates)
    for number in range(len(peaks) * seeds):
        starts = letters.start_weights(3, seeds, len(peaks), CPU, layers)
        parameters = [w[number].detach().squeeze(0).clone().requires_grad_() for w in starts]
        optimizer = library[name](parameters, lr=1.0)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rates[step, number].item()
            x, y = data.x[batches[step, number % seeds]], data.y[batches[step, number % seeds]]
            for at in range(0, len(parameters), 2):
                x = F.linear(torch.relu(x) if at else x, parameters[at], parameters[at + 1])
            loss = F.cross_entropy(x, y)
            assert losses[step, number].item() == pytest.approx(loss.item(), rel=1e-4)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for found, expected in zip(stack.parameters, parameters, strict=True):
            torch.testing.assert_close(found[number].squeeze(0), expected, rtol=1e-3, atol=1e-4)


def test_judging_counts_letters_and_a_run_that_diverged() -> None:
    data = noise_letters(50)
    parameters = letters.start_weights(0, 2, 1, CPU)
    with torch.no_grad():
        parameters[0][1] = math.nan
    loss, right = letters.judge(parameters, data)
    expected = letters.scores(parameters, data.x.expand(2, -1, -1))[0]
    assert loss[0].item() == pytest.approx(F.cross_entropy(expected, data.y).item(), rel=1e-5)
    assert loss[1] == math.inf
    assert right[0].item() == pytest.approx((expected.argmax(1) == data.y).float().mean().item())


def test_letters_are_normalised() -> None:
    data = load_letters(60)
    assert data.x.shape == (60, letters.PIXELS)
    assert data.x.mean(1).abs().max() < 1e-5
    assert (data.x.std(1) - 1).abs().max() < 1e-4


# What is measured


def test_first_steps_of_adam_and_momentum() -> None:
    data = noise_letters(64)
    assert warmup.adam_step_sizes(data, 0, 3, 0.001)[0] == pytest.approx(1, abs=0.1)
    sizes = warmup.momentum_step_sizes(data, 0, 3, 1e-6)  # the weights stand still, so gradients differ by batch alone
    assert sizes[0] == pytest.approx(1, abs=1e-4)
    assert 1 < sizes[1] < 1.9001
    assert 0 <= warmup.moved_alike(data, 0) <= 1


def test_silent_units_are_counted() -> None:
    parameters = letters.start_weights(0, 2, 1, CPU)
    data = noise_letters(200)
    assert warmup.silent_share(parameters, data.x).tolist() == [0, 0]
    with torch.no_grad():
        parameters[1][1] = -1e4  # every unit of the second network's first hidden layer
        parameters[3][1] = 1.0  # and none of its second
    assert warmup.silent_share(parameters, data.x).tolist() == [0, 0.5]


def test_the_range_test_reads_its_curve() -> None:
    steps = 101
    rates = range_test.rising_rates(steps)
    assert (rates[0].item(), rates[-1].item()) == pytest.approx((range_test.LOW, range_test.HIGH))
    assert torch.allclose(rates[1:] / rates[:-1], rates[1] / rates[0])
    constant = torch.full((30, 2), 1.7)
    assert torch.allclose(range_test.smoothed(constant), constant)
    valley = (torch.linspace(-1, 1, steps)[:, None] - 0.3).abs() + 1
    lowest = range_test.rate_of_the_minimum(valley)
    assert 60 <= int((rates - lowest).abs().argmin()) <= 85  # the mean lags behind
    assert torch.equal(range_test.rate_of_the_test(valley), lowest / 10)


@pytest.mark.parametrize("rates", [[0.5] * 30, [0.3, 0.1, 0.9], [1.0], []])
def test_noise_is_predicted(rates: list[float]) -> None:
    left, variance = effect.predict_noisy(rates)
    assert left == pytest.approx(effect.START**2 * math.prod((1 - rate) ** 2 for rate in rates))
    walks = effect.walk_noisy(rates, 40_000, torch.Generator().manual_seed(0))
    assert walks.mean().item() == pytest.approx(math.sqrt(left), abs=5 * math.sqrt(variance / 40_000) + 1e-9)
    assert walks.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / 40_000), abs=1e-12)


@pytest.mark.parametrize("name", effect.NAMES)
def test_schedules_that_are_compared_begin_at_the_peak(name: str) -> None:
    values = [effect.curve(name, step, 60) for step in range(60)]
    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    assert (values[-1] < 0.11) == (name != "constant")


def test_a_larger_batch_sees_as_many_letters() -> None:
    data = noise_letters(128)
    found = batch.train_with_batches_of(batch.SMALLEST, letters.Adam, 0.001, data, data, 0, 2, 160)
    assert found.shape == (3, 2)
    assert torch.allclose(found[0], found[1])  # k = 1: all rules say the same
    assert torch.allclose(found[0], found[2])


def test_a_branch_is_the_training_planned_for_its_length() -> None:
    data, seeds = noise_letters(128), 2
    batches = letters.draw_batches(0, 40, seeds, 128, 8)
    branches, spent = without_end.train_branches(data, batches, (20, 40), 7)
    assert spent == 32 + 4 + 8
    for length, branch in zip((20, 40), branches, strict=True):
        alone = letters.Momentum(letters.start_weights(7, seeds, 1, CPU))
        curve = [without_end.STABLE_PEAK * curves.warmup_stable_decay(step, without_end.WARMUP, length, length // 5)
                 for step in range(length)]  # fmt: skip
        letters.train(alone, data, batches[:length], without_end.spread(curve, seeds))
        for found, expected in zip(branch.parameters, alone.parameters, strict=True):
            torch.testing.assert_close(found, expected)
