"""regularization: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src import regularization
from pytorch_02_training_optimization.src.generalization import (
    amount,
    capacity,
    confidence,
    cures,
    diagnosis,
    selection,
    stack,
    stopping,
    tasks,
)
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
import torch.nn.functional as F
from torch import nn

SECTIONS = [
    "Two curves and a diagnosis",
    "Eight seeds in one stack",
    "How large should the network be?",
    "Labels by lot, learned by heart",
    "What each cure is worth",
    "How strong",
    "Cures together",
    "What more data is worth",
    "Patience",
    "Which curve decides?",
    "How sure, and how often right",
    "The winner's curse",
    "A test set that is looked at",
    "Dropout left on",
    "Augmented validation",
    "Weight decay is for matrices",
]
PICTURES = ["diagnosis.png", "capacity.png", "strengths.png", "amount_of_data.png", "stopping.png", "calibration.png"]
CPU = torch.device("cpu")

run = partial(run_quick, regularization)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def clouds() -> tasks.Task:
    return tasks.draw_clouds(tasks.Sizes(300, 200, 200), 0, CPU)


PLAIN = stack.Recipe(steps=12, count=100, width=8)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("regularization")
    return *run(folder), folder / "regularization"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=45)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    expect_pictures(record, folder, PICTURES)
    names = {measurement["name"] for measurement in record["measurements"]}
    assert {"gain", "test accuracy", "test error", "ECE", "best seen", "true loss", "winner's curse"} <= names
    gains = [kept["params"] for kept in record["measurements"] if kept["name"] == "gain"]
    assert all(gain["error"] >= 0 for gain in gains)
    assert {gain["task"] for gain in gains} == {"letters", "clouds"}


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(regularization, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    run(tmp_path, "--device", "cuda", "--no-plots")


# Tasks


def test_wrong_labels_are_as_many_as_asked_and_never_the_right_ones() -> None:
    samples = tasks.Samples(torch.zeros(20_000, 1), torch.randint(10, (20_000,), generator=seeded()))
    for share in (0.0, 0.3, 0.9, 1.0):
        noisy = tasks.with_wrong_labels(samples, share, seeded(1))
        assert (noisy.y != samples.y).float().mean().item() == pytest.approx(share, abs=0.02)
        assert noisy.y.min() >= 0
        assert noisy.y.max() <= 9
    assert torch.bincount(noisy.y, minlength=10).min() > 1500


def test_the_limit_of_the_clouds_is_that_of_the_known_densities() -> None:
    task = tasks.draw_clouds(tasks.Sizes(4000, 10, 4000), 3, CPU, wrong=0)
    assert task.limit is not None
    assert task.limit_loss is not None
    means = torch.stack([task.pool.x[task.pool.y == label].mean(dim=0) for label in range(10)])
    nearest = torch.cdist(task.test.x, means).argmin(dim=1)
    assert (nearest == task.test.y).float().mean().item() == pytest.approx(task.limit, abs=0.03)
    normal = torch.distributions.Normal(means[:, None], 1.0)  # (10, 1, D): densities from the estimated centres
    log_density = normal.log_prob(task.test.x).sum(dim=-1).T
    assert F.cross_entropy(log_density, task.test.y).item() == pytest.approx(task.limit_loss, abs=0.05)


def test_letters_are_normalised_and_the_parts_are_apart() -> None:
    task = tasks.load_letters(tasks.Sizes(30, 20, 25), CPU)
    assert (len(task.pool), len(task.validation), len(task.test)) == (30, 20, 25)
    assert task.pool.x.shape == (30, 256)
    assert task.pool.x.mean(dim=1).abs().max() < 1e-5
    assert torch.allclose(task.test.x.std(dim=1), torch.ones(25), atol=1e-4)
    assert torch.cdist(task.pool.x, task.validation.x).min() > 1


def test_the_error_of_an_accuracy_is_that_of_a_coin() -> None:
    coins = (torch.rand(4000, 50, generator=seeded()) < 0.3).float().mean(dim=1)
    assert coins.std().item() == pytest.approx(tasks.accuracy_error(0.3, 50), rel=0.05)


# The stack


@pytest.mark.parametrize(("seeds", "samples", "width"), [(1, 1, 1), (3, 5, 7), (2, 64, 16)])
def test_logits_are_those_of_linear_layers(seeds: int, samples: int, width: int) -> None:
    parameters = stack.start_weights(seeds, 6, width, seeded())
    parameters = [parameter + 0.1 * torch.randn(parameter.shape, generator=seeded(1)) for parameter in parameters]
    x = torch.randn(seeds, samples, 6, generator=seeded(2))
    found = stack.logits_of(parameters, x)
    for s in range(seeds):
        weight, bias, out_weight, out_bias = (parameter[s] for parameter in parameters)
        right = F.linear(F.relu(F.linear(x[s], weight.T, bias[0])), out_weight.T, out_bias[0])
        assert torch.allclose(found[s], right, atol=1e-5)


def test_the_stack_is_the_network_alone(clouds: tasks.Task) -> None:
    found = stack.train(clouds, PLAIN, 3, 5).parameters
    alone = regularization.train_alone(clouds, PLAIN, 3, 5)
    for own, right in zip(found, alone.parameters(), strict=True):
        assert torch.allclose(own[0].T.squeeze(), right.squeeze(), atol=1e-5)


def test_a_network_is_the_same_among_others(clouds: tasks.Task) -> None:
    parameters = [start.requires_grad_() for start in stack.start_weights(2, 32, 4, seeded())]
    x, targets = clouds.pool.x[:20].expand(2, -1, -1), F.one_hot(clouds.pool.y[:20], 10).float().expand(2, -1, -1)
    both = torch.autograd.grad(stack.soft_loss(stack.logits_of(parameters, x), targets), parameters)
    first = [parameter[:1].detach().requires_grad_() for parameter in parameters]
    alone = torch.autograd.grad(stack.soft_loss(stack.logits_of(first, x[:1]), targets[:1]), first)
    assert all(torch.allclose(a[:1], b, atol=1e-6) for a, b in zip(both, alone, strict=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_the_smoothed_loss_is_pytorchs(smoothing: float) -> None:
    logits, y = torch.randn(1, 40, 10, generator=seeded()), torch.randint(10, (40,), generator=seeded(1))
    targets = stack.smooth(F.one_hot(y, 10).float(), smoothing)
    right = F.cross_entropy(logits[0], y, label_smoothing=smoothing)
    assert stack.soft_loss(logits, targets[None]).item() == pytest.approx(right.item(), rel=1e-5)


def test_score_is_the_libraries() -> None:
    parameters = stack.start_weights(2, 6, 5, seeded())
    x, y = torch.randn(30, 6, generator=seeded(1)), torch.randint(10, (30,), generator=seeded(2))
    found = stack.score(parameters, x, y)
    logits = stack.logits_of(parameters, x.expand(2, -1, -1))
    for s in range(2):
        assert found.loss[s].item() == pytest.approx(F.cross_entropy(logits[s], y).item(), rel=1e-5)
        assert found.accuracy[s].item() == pytest.approx((logits[s].argmax(1) == y).float().mean().item())


def test_dropout_keeps_the_mean_and_scales() -> None:
    x = torch.ones(1, 100, 1000)
    for share in (0.2, 0.8):
        dropped = stack.drop(x, share, seeded())
        assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - share)])
        assert dropped.mean().item() == pytest.approx(1, abs=0.02)


def test_every_shift_is_a_roll_without_its_edge() -> None:
    image = torch.arange(1.0, 257).view(1, 1, 256).expand(1, 200, 256)
    moved = stack.shift(image, seeded()).view(200, 16, 16)
    whole = F.pad(image[0, 0].view(16, 16), (1,) * 4)
    allowed = torch.stack([whole[i : i + 16, j : j + 16] for i in range(3) for j in range(3)])
    is_same = (moved[:, None] == allowed).all(dim=(2, 3))  # (200, 9)
    assert (is_same.sum(dim=1) == 1).all()
    assert is_same.any(dim=0).all()


def test_flips_and_cuts() -> None:
    x = torch.rand(2, 300, 256, generator=seeded()) + 1
    flipped = stack.flip(x, seeded(1))
    mirrored = x.view(2, 300, 16, 16).flip(-1).view(2, 300, 256)
    same, other = (flipped == x).all(-1), (flipped == mirrored).all(-1)
    assert (same | other).all()
    assert 0.4 < same.float().mean() < 0.6
    cut = stack.cut_out(x, seeded(2))
    assert ((cut == 0).sum(-1) == 16).all()
    assert torch.equal(cut[cut != 0], x[cut != 0])
    holes = (cut == 0).view(-1, 16, 16)
    assert (holes.any(1).sum(-1) == 4).all()  # four columns,
    assert (holes.any(2).sum(-1) == 4).all()  # four rows: a square
    assert holes.any(dim=0).all()


def test_mixup_blends_both_in_one_share() -> None:
    x = torch.randn(3, 6, 4, generator=seeded())
    targets = F.one_hot(torch.arange(6).expand(3, -1), 10).float()
    mixed, soft = stack.mix(x, targets, seeded(1))
    share = soft[:, 0, 0]  # of the first sample in itself
    for s in range(3):
        right = share[s] * x[s] + (1 - share[s]) * x[s].roll(1, 0)
        assert torch.allclose(mixed[s], right, atol=1e-5)
    assert torch.allclose(soft.sum(-1), torch.ones(3, 6), atol=1e-5)


def test_subsets_are_nested_and_without_repetition() -> None:
    small, large = stack.draw_subsets(4, 10, 50, 7), stack.draw_subsets(4, 30, 50, 7)
    assert torch.equal(small, large[:, :10])
    assert all(len(set(row)) == 30 for row in large.tolist())
    assert not torch.equal(large[0], large[1])


def test_each_cure_changes_the_training_and_no_start(clouds: tasks.Task) -> None:
    bench = stack.Bench(clouds, PLAIN, 2, 0)
    plain = bench.run()
    assert bench.run() is plain
    for name, cure in cures.list_cures(bench).items():
        if name in cures.LETTERS_ONLY or name == "four times the data":
            continue
        treated = bench.run(**cure)
        assert not torch.equal(treated.end.test.loss, plain.end.test.loss), name
    assert torch.equal(bench.run(decay=0.0, dropout=0.0).end.test.loss, plain.end.test.loss)


def test_decay_is_for_weights_and_multiplies(clouds: tasks.Task) -> None:
    still = stack.train(clouds, replace(PLAIN, lr=1e-6, decay=1e4, steps=3), 2, 0).parameters
    start = stack.start_weights(2, 32, PLAIN.width, torch.Generator().manual_seed(2))
    assert torch.allclose(still[0], start[0] * (1 - 1e-2) ** 3, atol=1e-4)


def test_an_average_of_one_point_is_the_last(clouds: tasks.Task) -> None:
    last = stack.train(clouds, PLAIN, 2, 0).parameters
    own = replace(PLAIN, averaging=1e-7)
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(stack.train(clouds, own, 2, 0).parameters, last, strict=True)
    )
    frozen = stack.train(clouds, replace(PLAIN, averaging=1.0), 2, 0).parameters
    start = stack.start_weights(2, 32, PLAIN.width, torch.Generator().manual_seed(2))
    assert all(torch.equal(a, b) for a, b in zip(frozen, start, strict=True))


def test_a_paired_gain_is_that_of_the_differences() -> None:
    base = torch.rand(8, generator=seeded())
    gain = stack.paired_gain(base + 0.03, base)
    assert gain.points == pytest.approx(3, abs=1e-3)
    assert gain.error < 1e-3 < stack.unpaired_error(base + 0.03, base)
    a, b = torch.randn(2, 100_000, generator=seeded(1))
    assert stack.paired_gain(a, b).error == pytest.approx(stack.unpaired_error(a, b), rel=0.02)  # nothing in common


# Diagnosis

STEPS = torch.arange(24.0)


@pytest.mark.parametrize(
    ("name", "trained", "validated"),
    [
        ("underfitting", 1.8 + torch.exp(-STEPS / 2), 1.85 + torch.exp(-STEPS / 2)),
        ("overfitting", 2 * torch.exp(-STEPS / 3), 1 + torch.exp(-STEPS / 2) + 0.03 * STEPS),
        ("overfitting", 2 * torch.exp(-STEPS / 3), 1 + torch.exp(-STEPS / 2)),
        ("stopped too soon", 3 - 0.08 * STEPS, 3.1 - 0.08 * STEPS),
        ("a good fit", 0.3 + 2 * torch.exp(-STEPS / 2), 0.35 + 2 * torch.exp(-STEPS / 2)),
        ("diverged", STEPS * math.inf, STEPS),
        ("diverged", STEPS, torch.full((24,), math.nan)),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_known_curves_have_their_diagnosis(
    name: str, trained: torch.Tensor, validated: torch.Tensor, noise: float
) -> None:
    for seed in range(10):
        lots = noise * torch.randn(2, 24, generator=seeded(seed))
        found = diagnosis.diagnose((trained + lots[0]).tolist(), (validated + lots[1]).tolist(), wanted=0.35)
        assert found.name == name, found.evidence
        assert found.evidence
        assert found.advice


def test_noise_is_no_disease() -> None:
    for seed in range(20):
        flat = 0.4 + 0.05 * torch.randn(2, 40, generator=seeded(seed))
        assert diagnosis.diagnose(flat[0].tolist(), flat[1].tolist(), wanted=0.4).name == "a good fit"


@pytest.mark.parametrize("lengths", [(7, 7), (9, 10), (0, 0)])
def test_curves_that_say_nothing_are_refused(lengths: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="two curves of one length"):
        diagnosis.diagnose([1.0] * lengths[0], [1.0] * lengths[1], 0.1)


def test_wobble_is_the_spread_of_the_noise() -> None:
    line = torch.linspace(3, 1, 4000, dtype=torch.float64)
    assert diagnosis.wobble(line) < 1e-12
    noisy = line + 0.2 * torch.randn(4000, generator=seeded(), dtype=torch.float64)
    assert diagnosis.wobble(noisy) == pytest.approx(0.2, rel=0.1)


# Capacity, cures and data


@pytest.mark.parametrize(
    ("means", "words"),
    [
        ([2.0, 1.5, 2.5, 1.2], "double descent"),
        ([2.0, 1.5, 2.5, 2.5], "no clear second descent"),
        ([2.5, 2.2, 1.9, 1.2], "no U"),
        ([1.5, 1.5, 1.5, 1.5], "no clear U"),
    ],
)
def test_widths_in_words(means: list[float], words: str) -> None:
    noise = 0.01 * torch.randn(8, generator=seeded())
    losses = {2**i: mean + noise * (-1) ** i for i, mean in enumerate(means)}
    assert words in capacity.what_the_widths_say(losses, dict.fromkeys(losses, 0.9))


def test_early_stopping_takes_each_seed_at_its_own_step() -> None:
    def at(step: int, losses: list[float], accuracies: list[float]) -> stack.Point:
        one = stack.Score(torch.tensor(losses), torch.tensor(accuracies))
        return stack.Point(step, one, one, one)

    run_ = stack.Run([], [at(1, [3.0, 1.0], [0.1, 0.2]), at(2, [2.0, 2.0], [0.3, 0.4]), at(3, [9.0, 9.0], [0.5, 0.6])])
    assert cures.lowest_loss(run_).tolist() == [1, 0]
    assert cures.stopped_early(run_)[1].tolist() == pytest.approx([0.3, 0.2])
    assert capacity.first_step_above(run_, 0.5) == 3
    assert capacity.first_step_above(run_, 0.99) == "never"


def test_a_power_law_is_found_again() -> None:
    counts = [10, 40, 200, 3000]
    law = amount.fit_power_law(counts, [5 * count**-0.4 for count in counts])
    assert (law.factor, law.exponent) == pytest.approx((5, 0.4))
    assert law.count(law.error(777)) == pytest.approx(777)
    for bad in (([5, 5], [1.0, 2.0]), ([5, 6], [0.0, 1.0])):
        with pytest.raises(ValueError, match="a line needs"):
            amount.fit_power_law(*bad)


def test_worth_in_samples() -> None:
    counts, accuracies = [100, 200, 400], [0.2, 0.3, 0.5]
    assert amount.worth_in_samples(counts, accuracies, 0.3) == pytest.approx(200)
    assert amount.worth_in_samples(counts, accuracies, 0.4) == pytest.approx(200 * math.sqrt(2))
    assert math.isnan(amount.worth_in_samples(counts, accuracies, 0.6))


# Stopping


def stop_by_search(losses: list[float], patience: int) -> tuple[int, int]:
    """The first place that has more than `patience` measurements since the lowest so far."""
    for end in range(len(losses)):
        seen = losses[: end + 1]
        best = min(range(len(seen)), key=lambda i: (math.isnan(seen[i]), seen[i]))
        if end - best > patience:
            return best, end
    best = min(range(len(losses)), key=lambda i: (math.isnan(losses[i]), losses[i]))
    return best, len(losses) - 1


@pytest.mark.parametrize("patience", [0, 1, 3, 100])
def test_stopping_is_what_a_search_finds(patience: int) -> None:
    for seed in range(30):
        losses = torch.randn(40, generator=seeded(seed)).tolist()
        if seed % 3 == 0:
            losses[5] = math.nan
        stop = stopping.stop_early(losses, patience)
        assert (stop.best, stop.end) == stop_by_search(losses, patience)
        assert stopping.keep_the_best(stop) == stop.best
        assert stopping.keep_the_last(stop) == stop.end


def test_stopping_without_an_end() -> None:
    assert stopping.stop_early([3, 2, 1], 0) == stopping.Stop(2, 2)
    assert stopping.stop_early([1, 1, 1], 0) == stopping.Stop(0, 1)  # a tie is no improvement


# Choosing


@pytest.mark.parametrize(("candidates", "accuracy", "count"), [(1, 0.3, 7), (5, 0.5, 3), (40, 0.1, 20)])
def test_the_expected_best_by_enumeration(candidates: int, accuracy: float, count: int) -> None:
    chances = [math.comb(count, k) * accuracy**k * (1 - accuracy) ** (count - k) for k in range(count + 1)]
    right = 0.0
    for k in range(count + 1):
        at_most, below = sum(chances[: k + 1]) ** candidates, sum(chances[:k]) ** candidates
        right += k / count * (at_most - below)
    assert selection.expected_best(candidates, accuracy, count) == pytest.approx(right, rel=1e-9)


def test_one_candidate_has_no_curse() -> None:
    assert selection.expected_best(1, 0.37, 10_000) == pytest.approx(0.37, abs=1e-9)


def test_looking_lifts_only_what_is_looked_at() -> None:
    labels = torch.randint(10, (2000,), generator=seeded())
    right = selection.tune_on_the_test_set(labels, 500, 400, seeded(1)) == labels
    assert right[:500].float().mean() > 0.17
    assert 0.06 < right[500:].float().mean() < 0.14


# Confidence


def test_the_calibration_error_bin_by_bin() -> None:
    confidence_, right = torch.rand(500, generator=seeded()), torch.rand(500, generator=seeded(1)) < 0.5
    total = 0.0
    for m in range(10):
        inside = (confidence_ > m / 10) & (confidence_ <= (m + 1) / 10)
        if inside.any():
            total += inside.sum().item() * abs(confidence_[inside].mean() - right[inside].float().mean()).item()
    assert confidence.calibration_error(confidence_, right, 10) == pytest.approx(total / 500, abs=1e-5)
    assert confidence.calibration_bins(confidence_, right, 10)[:, 0].sum() == 500


def test_calibration_at_its_ends() -> None:
    sure = torch.ones(100)
    assert confidence.calibration_error(sure, torch.ones(100, dtype=torch.bool)) == 0
    assert confidence.calibration_error(sure, torch.zeros(100, dtype=torch.bool)) == 1
    assert confidence.calibration_error(torch.zeros(5), torch.zeros(5, dtype=torch.bool)) == 0
    many = torch.rand(100_000, generator=seeded())
    assert confidence.chance_floor(many, seeded(1), rounds=2) < 0.01
    assert confidence.chance_floor(many[:50], seeded(1)) > 0.05


def test_the_temperature_undoes_a_scale() -> None:
    logits = 2 * torch.randn(4000, 10, generator=seeded())
    y = torch.multinomial(logits.softmax(-1), 1, generator=seeded(1)).squeeze(1)
    assert confidence.fit_temperature(logits, y) == pytest.approx(1, abs=0.08)
    assert confidence.fit_temperature(5 * logits, y) == pytest.approx(5, rel=0.08)


# Mistakes


def test_dropout_left_on_is_drawn_again_and_off_is_not(clouds: tasks.Task) -> None:
    parameters = stack.train(clouds, PLAIN, 2, 0).parameters
    lot = seeded()
    first, again = (regularization.predict_with_dropout_on(parameters, clouds.test.x, 0.5, lot) for _ in range(2))
    assert first.shape == (2, 200)
    assert not torch.equal(first, again)
    right = stack.logits_of(parameters, clouds.test.x.expand(2, -1, -1)).argmax(-1)
    assert torch.equal(regularization.predict(parameters, clouds.test.x), right)


def test_two_groups_for_an_optimizer() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 4))
    groups = regularization.decay_matrices(model, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [parameter.ndim for parameter in groups[0]["params"]] == [4, 2]
    assert all(parameter.ndim == 1 for parameter in groups[1]["params"])
    (everything,) = regularization.decay_everything(model, 0.1)
    assert len(everything["params"]) == sum(len(group["params"]) for group in groups)
    assert len(torch.optim.SGD(groups, lr=0.1).param_groups) == 2


def test_descent_on_groups_is_torchs_sgd() -> None:
    x, y = torch.randn(20, 3, generator=seeded()), torch.randn(20, 1, generator=seeded(1))
    torch.manual_seed(0)
    own, right = nn.Linear(3, 1), nn.Linear(3, 1)
    right.load_state_dict(own.state_dict())
    regularization.descend(regularization.decay_matrices(own, 0.2), lambda: F.mse_loss(own(x), y), 5, 0.1)
    optimizer = torch.optim.SGD(regularization.decay_matrices(right, 0.2), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        F.mse_loss(right(x), y).backward()
        optimizer.step()
    assert torch.allclose(own.weight, right.weight, atol=1e-6)  # without momentum, decay and L2 are one
    assert torch.allclose(own.bias, right.bias, atol=1e-6)
