"""loss_functions: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_01_neural_networks.src import loss_functions
from pytorch_01_neural_networks.src.losses import (
    constants,
    formulas,
    imbalance,
    reductions,
    smoothing,
    softmax_first,
    stability,
    targets,
)
from shared.agreement import agreement
from shared.snippets import complaint, evaluate
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import numpy as np
import pytest
import torch
import torch.nn.functional as F

SECTIONS = [
    "Every loss from its formula",
    "The gradient in words",
    "The number that a loss is content with",
    "Which loss for which noise",
    "Cross-entropy is log-softmax and NLL",
    "Temperature, and the loss of knowing nothing",
    "At which logit each loss breaks",
    "Softmax before cross-entropy",
    "Label smoothing",
    "What the mean divides by",
    "Class weights, and the mean that divides by them",
    "A rare class",
    "Preparing inputs and targets",
    "What a loss says to a wrong target",
    "Wrong and silent",
    "Logits, log-probabilities or probabilities",
    "Which loss when",
]
CPU = torch.device("cpu")

run = partial(run_quick, loss_functions)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("loss_functions")
    return *run(folder), folder / "loss_functions"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=95)


def test_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    expect_pictures(record, folder, ["losses_and_slopes.png", "softmax_before_cross_entropy.png"])


def test_the_text_has_what_pytorch_says(lesson: tuple[dict[str, Any], str, Path]) -> None:
    _, text, _ = lesson
    for said in ("broadcasting", "out of bounds", "does not require grad", "Double and Float", "between 0 and 1"):
        assert said in " ".join(text.split())


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(loss_functions, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_on_cuda_autocast_refuses_bce_of_probabilities(tmp_path: Path) -> None:
    record, text = run(tmp_path, "--device", "cuda", "--no-plots")
    assert "unsafe to autocast" in " ".join(text.split())
    assert any("autocast" in check["claim"] for check in record["checks"])


# Formulas


@pytest.mark.parametrize("seed", range(8))
def test_every_formula_is_the_librarys(seed: int) -> None:
    torch.manual_seed(seed)
    for name, (_, own, library, inputs) in loss_functions.pairs(torch.float64, CPU).items():
        found = agreement(own, library, *inputs)
        assert found.within(1e-10), f"{name}: {found}"


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="avg"):
        formulas.mse(torch.ones(2), torch.ones(2), "avg")


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-30, 40.0, -40.0, 1000.0, -1000.0])
def test_extreme_logits(value: float) -> None:
    z, yes = torch.full((3,), value, dtype=torch.float64), torch.tensor([0.0, 1.0, 0.3], dtype=torch.float64)
    found = agreement(
        lambda z: formulas.binary_cross_entropy_with_logits(z, yes),
        lambda z: F.binary_cross_entropy_with_logits(z, yes),
        z,
    )
    assert found.within(1e-12), found
    rows = torch.tensor([[value, 0.0, -value]], dtype=torch.float64)
    for c in range(3):
        target = torch.tensor([c])
        found = agreement(lambda z: formulas.cross_entropy(z, target), lambda z: F.cross_entropy(z, target), rows)
        assert found.within(1e-12), found


def test_equal_logits_have_the_gradient_of_the_library() -> None:
    z, target = torch.zeros(2, 5, dtype=torch.float64), torch.tensor([0, 4])
    assert agreement(lambda z: formulas.cross_entropy(z, target), lambda z: F.cross_entropy(z, target), z).within(1e-12)


def test_the_kink_is_right_in_value_and_wrong_in_slope_at_zero_alone() -> None:
    z = torch.tensor([-2.0, -1e-6, 0.0, 1e-6, 2.0], dtype=torch.float64)
    assert torch.allclose(formulas.softplus_with_a_kink(z), F.softplus(z))
    wrong = loss_functions.gradient_of(formulas.softplus_with_a_kink, z)
    assert wrong.tolist()[2] == 0
    right = loss_functions.gradient_of(formulas.softplus, z)
    assert torch.allclose(right, torch.sigmoid(z))
    assert torch.allclose(wrong[[0, 1, 3, 4]], right[[0, 1, 3, 4]])


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5), (1, 1)])
@pytest.mark.parametrize("how", ["mean", "sum", "none"])
def test_cross_entropy_of_places_with_weights_and_an_ignored_class(shape: tuple[int, ...], how: str) -> None:
    z, c = normal(*shape), shape[1]
    y = torch.randint(c, (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(1))
    weight = normal(c).exp()
    ignored = 0 if c > 1 else -100
    own = partial(formulas.cross_entropy, weight=weight, ignore_index=ignored, reduction=how)
    library = partial(F.cross_entropy, weight=weight, ignore_index=ignored, reduction=how)
    assert agreement(own, library, z, y).within(1e-12)


def test_a_batch_in_which_all_is_ignored() -> None:
    z, nothing = normal(3, 4).requires_grad_(), torch.full((3,), -100)
    assert formulas.cross_entropy(z, nothing).isnan()
    assert F.cross_entropy(z, nothing).isnan()
    cured = reductions.mean_over_kept(z, nothing)
    (gradient,) = torch.autograd.grad(cured, z)
    assert cured == 0
    assert not gradient.any()


@pytest.mark.parametrize("how", ["batchmean", "sum", "none"])
def test_kl_takes_zeros_in_the_target(how: str) -> None:
    log_p, q = normal(3, 4).log_softmax(1), torch.eye(4, dtype=torch.float64)[:3]
    own, library = partial(formulas.kl_divergence, reduction=how), partial(F.kl_div, reduction=how)
    assert agreement(lambda log_p: own(log_p, q), lambda log_p: library(log_p, q), log_p).within(1e-12)


@pytest.mark.parametrize(("gamma", "alpha"), [(0.0, None), (2.0, None), (2.0, 0.25), (0.5, 0.9)])
def test_focal_is_the_papers_equation(gamma: float, alpha: float | None) -> None:
    z, y = 4 * normal(50), (normal(50, seed=1) > 0).double()

    def paper(z: torch.Tensor) -> torch.Tensor:
        p = torch.sigmoid(z)
        p_t = torch.where(y == 1, p, 1 - p)
        alpha_t = torch.ones_like(y) if alpha is None else alpha * y + (1 - alpha) * (1 - y)
        return (-alpha_t * (1 - p_t) ** gamma * p_t.log()).mean()

    assert agreement(lambda z: formulas.focal(z, y, gamma, alpha), paper, z).within(1e-10)


@pytest.mark.parametrize("c", [2, 10, 1000])
def test_the_floor_of_softmax_before_cross_entropy(c: int) -> None:
    y = torch.randint(c, (200,), generator=torch.Generator().manual_seed(0))
    z = 30 * normal(200, c)
    floor = formulas.softmax_floor(c)
    losses = F.cross_entropy(z.softmax(1), y, reduction="none")
    assert losses.min() >= floor - 1e-12
    best = F.cross_entropy(F.one_hot(y, c).double(), y)
    assert best.item() == pytest.approx(floor, rel=1e-12)


@pytest.mark.parametrize("c", [2, 10, 1000])
@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.5])
def test_at_the_best_lead_of_label_smoothing_the_gradient_is_zero(c: int, epsilon: float) -> None:
    z, y = torch.zeros(1, c, dtype=torch.float64), torch.tensor([c - 1])
    z[0, c - 1] = formulas.smoothing_gap(c, epsilon)
    gradient = loss_functions.gradient_of(lambda z: F.cross_entropy(z, y, label_smoothing=epsilon), z)
    assert gradient.abs().max() < 1e-12


# Gradients


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_by_hand_are_finite_differences(seed: int) -> None:
    torch.manual_seed(seed)
    h = 1e-6
    for name, (_, _, loss, by_hand, x) in loss_functions.slopes(3, 4).items():
        for index in itertools.product(range(3), range(4)):
            step = torch.zeros_like(x)
            step[index] = h
            difference = (loss(x + step).sum() - loss(x - step).sum()) / (2 * h)
            assert by_hand(x)[index].item() == pytest.approx(difference.item(), abs=1e-6), name


def test_squared_error_of_a_probability_gives_up() -> None:
    z, yes = torch.tensor([-30.0, 0.0]), torch.ones(2)
    gradient = loss_functions.gradient_of(lambda z: loss_functions.mse_of_probability(z, yes), z)
    assert abs(gradient[0]) < 1e-10
    assert gradient[1] == pytest.approx(-0.25)


# Constants


@pytest.mark.parametrize("n", [1, 2, 5, 101])
def test_best_constants_are_mean_and_median(n: int) -> None:
    y = normal(7, n)
    ends = y.min().item() - 1, y.max().item() + 1
    means = constants.best_constant(lambda x, y: formulas.mse(x, y, "none"), y, *ends)
    assert torch.allclose(means, y.mean(1), atol=1e-9)
    if n % 2:  # between two middle samples every number is a median
        medians = constants.best_constant(lambda x, y: formulas.mae(x, y, "none"), y, *ends)
        assert torch.allclose(medians, y.median(1).values, atol=1e-9)


@pytest.mark.parametrize("level", [0.05, 0.5, 0.87])
def test_pinball_chooses_the_quantile(level: float) -> None:
    y = normal(501)
    found = constants.choose(lambda x, y: formulas.pinball(x, y, level, "none"), y, -10, 10)
    assert found == pytest.approx(np.quantile(y.numpy(), level), abs=1e-9)


def test_laplace_noise_has_its_variance() -> None:
    noise = constants.NOISES["Laplace"](
        normal(200_000), torch.rand(200_000, generator=torch.Generator().manual_seed(2))
    )
    assert noise.mean().abs() < 0.02
    assert noise.var().item() == pytest.approx(2, abs=0.1)  # of a Laplace distribution of scale 1


# Stability


def test_the_loss_of_a_gap_is_softplus() -> None:
    gaps = torch.linspace(-20, 20, 41, dtype=torch.float64)
    for way in stability.WAYS.values():
        assert torch.allclose(way(gaps), F.softplus(gaps), rtol=1e-6)


def test_the_breaking_point_is_the_first_wrong_gradient() -> None:
    def breaks_at_ten(gap: torch.Tensor) -> torch.Tensor:
        return torch.where(gap < 10, F.softplus(gap), torch.zeros_like(gap))

    assert stability.breaking_point(breaks_at_ten, torch.float64, CPU) == (10, 0, 0)
    assert stability.breaking_point(F.softplus, torch.float64, CPU) is None


@pytest.mark.parametrize("name", stability.FORMATS)
def test_breaking_points_are_where_the_format_says(name: str) -> None:
    dtype = stability.FORMATS[name]
    for way in list(stability.WAYS)[:4]:
        found = stability.breaking_point(stability.WAYS[way], dtype, CPU)
        assert found is not None
        assert abs(found[0] - stability.foreseen_break(way, dtype)) < 1


# Softmax before cross-entropy


def test_gradient_of_an_undecided_sample_is_c_times_too_small() -> None:
    for c in (2, 7, 100):
        right, wrong = softmax_first.gradient_lengths(torch.zeros(1, c), torch.tensor([1]))
        assert right / wrong == pytest.approx(c, rel=1e-4)


def test_the_same_seed_trains_alike_whatever_the_loss() -> None:
    torch.manual_seed(0)
    samples = softmax_first.make_samples(200, 50, CPU)
    first, again = (softmax_first.train(samples, F.cross_entropy, 0.1, 20, seed=3) for _ in range(2))
    assert first == again
    other = softmax_first.train(samples, softmax_first.softmax_before_cross_entropy, 0.1, 20, seed=3)
    assert other.accuracies[0] == first.accuracies[0]
    assert other.losses != first.losses
    assert (len(first.losses), len(first.accuracies)) == (21, 3)


@pytest.mark.parametrize(("accuracies", "steps"), [([0.1, 0.8, 0.7], 10), ([0.9], 0), ([0.1, 0.79], None), ([], None)])
def test_steps_to_a_goal(accuracies: list[float], steps: int | None) -> None:
    assert softmax_first.Learning([], accuracies).steps_to(0.8) == steps


# Label smoothing


def test_free_logits_come_to_the_best_lead() -> None:
    leads = smoothing.learn_logits(0.2, 5, 300)
    assert leads[-1] == pytest.approx(formulas.smoothing_gap(5, 0.2), abs=1e-6)
    endless = smoothing.learn_logits(0.0, 5, 300)
    assert all(a < b for a, b in itertools.pairwise(endless))


# Reductions


@pytest.mark.parametrize("lengths", [(3, 3), (1, 9), (4, 1, 7)])
def test_gradients_of_sequences(lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, tokens = reductions.make_sequences(lengths, 5)
    assert (tokens != reductions.IGNORED).sum(1).tolist() == list(lengths)
    w = normal(reductions.VOCABULARY, 5)
    whole = reductions.gradient_of_batch(w, x, tokens)
    assert torch.allclose(reductions.gradient_by_sum_over_count(w, x, tokens), whole, atol=1e-12)
    equal = len(set(lengths)) == 1
    assert torch.allclose(reductions.gradient_by_mean_of_means(w, x, tokens), whole, atol=1e-6) == equal


def test_the_expected_weighted_mean_differs_by_the_mean_weight() -> None:
    z, y, weight = normal(5, 3), torch.tensor([0, 1, 2, 1, 1]), torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64)
    by_hand = sum(-z[i].log_softmax(0)[y[i]] * weight[y[i]] for i in range(5)) / 5
    expected = reductions.mean_after_weighting(z, y, weight)
    assert torch.allclose(expected, torch.as_tensor(by_hand))
    assert torch.allclose(expected / F.cross_entropy(z, y, weight), weight[y].mean())


# A rare class


def test_average_precision_by_brute_force() -> None:
    for seed in range(5):
        scores, y = normal(60, seed=seed), (normal(60, seed=seed + 100) > 0.8).double()
        precisions = [y[scores >= threshold].mean().item() for threshold in scores[y == 1].tolist()]
        assert imbalance.average_precision(scores, y) == pytest.approx(sum(precisions) / len(precisions))
    assert imbalance.average_precision(torch.tensor([3.0, 2, 1, 0]), torch.tensor([1.0, 1, 0, 0])) == 1
    assert imbalance.average_precision(torch.tensor([0.0, 1, 2, 3]), torch.tensor([1.0, 0, 0, 0])) == 0.25


def test_a_report_counts_hits_and_alarms() -> None:
    z, y = torch.tensor([2.0, -1.0, 1.0, -3.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    found = imbalance.report(z, y)
    assert (found.accuracy, found.recall, found.precision) == (0.5, 0.5, 0.5)
    assert math.isnan(imbalance.report(z - 10, y).precision)
    assert imbalance.report(z, y, threshold=0.0).recall == 1


def test_the_fit_finds_the_true_log_odds() -> None:
    torch.manual_seed(0)
    x, y = imbalance.make_rare(40_000, CPU)
    slope, other, height = imbalance.fit(x, y, formulas.binary_cross_entropy_with_logits, 2.0, 400).tolist()
    assert slope == pytest.approx(imbalance.SHIFT, abs=0.3)
    assert other == pytest.approx(0, abs=0.3)
    true_height = constants.log_odds(imbalance.RARE) - imbalance.SHIFT**2 / 2
    assert height == pytest.approx(true_height, abs=0.6)


# Targets


@pytest.mark.parametrize("mistake", targets.LOUD)
def test_each_mistake_is_answered_and_its_cure_is_quiet(mistake: str) -> None:
    assert complaint(lambda: evaluate(mistake, F=F, **targets.samples()))
    assert not complaint(lambda: evaluate(targets.LOUD[mistake][1], F=F, **targets.samples()))


def test_a_column_and_a_row_make_all_pairs() -> None:
    x, y = normal(6, 1), normal(6, seed=1)
    pairs = [(x[i, 0] - y[j]) ** 2 for i in range(6) for j in range(6)]
    assert targets.mse_of_column_and_row(x, y).item() == pytest.approx(torch.stack(pairs).mean().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_kind_of_scores(dtype: torch.dtype) -> None:
    z = (3 * normal(20, 6)).to(dtype)
    tolerance = 0.05 if dtype.itemsize == 2 else 1e-3
    kinds = [targets.kind_of_scores(x, tolerance) for x in (z, z.log_softmax(1), z.softmax(1))]
    assert kinds == ["logits", "log-probabilities", "probabilities"]
    assert targets.kind_of_scores(z.sigmoid(), tolerance) == "logits"


def test_the_recipes_name_the_losses_that_they_run() -> None:
    for *_, code in loss_functions.RECIPES:
        name = code.partition("(")[0]
        assert name == "pinball" or callable(getattr(F, name))
