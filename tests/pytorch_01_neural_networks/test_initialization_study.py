"""initialization_study: the whole lesson runs and its checks hold; initialisers and theory agree with oracles."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from pytorch_01_neural_networks.src import initialization_study
from pytorch_01_neural_networks.src.initialization import (
    depth,
    fan_choice,
    initialisers,
    mistakes,
    residual,
    spectrum,
    speed,
    theory,
)
from pytorch_01_neural_networks.src.initialization.theory import RELU, TANH
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import numpy as np
import pytest
import torch
from torch import nn

SECTIONS = [
    "One layer: a sum of many products",
    "Every initialiser in three lines",
    "The gain of an activation",
    "Zeros and constants: one unit, many times",
    "Many layers forwards: the signal",
    "Many layers backwards: the gradient",
    "One network is not the mean",
    "A signal that says nothing",
    "fan_in or fan_out",
    "Orthogonal: the same variance, another spectrum",
    "The residual stream",
    "What it does to training",
    "Three mistakes without a message",
    "What else is initialised",
]
PICTURES = ["signal_by_depth.png", "gradient_by_depth.png", "single_networks.png", "spectrum.png",
            "residual_stream.png", "training_by_init.png"]  # fmt: skip
CPU = torch.device("cpu")

run = partial(run_quick, initialization_study)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("initialization_study")
    return *run(folder), folder / "initialization_study"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, folder = lesson
    expect_whole(record, text, SECTIONS, least_checks=50)
    expect_pictures(record, folder, PICTURES)


def test_what_was_measured_stands_beside_what_was_predicted(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, _ = lesson
    for name, count in (("signal in the last layer", 11), ("gradient in the first layer", 11)):
        found = [measurement for measurement in record["measurements"] if measurement["name"] == name]
        assert len(found) == count
        assert all(abs(x["value"] / x["params"]["predicted"] - 1) < 0.25 for x in found)


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(initialization_study, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    record, _ = run(tmp_path, "--device", "cuda", "--no-plots")
    assert record["device"]["kind"] == "cuda"


# Initialisers

SHAPES = [(1, 1), (7, 3), (3, 7), (64, 64), (5, 2, 3), (4, 6, 3, 3), (16, 2, 1, 5), (2, 3, 2, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_fans_are_the_librarys(shape: tuple[int, ...]) -> None:
    assert initialisers.fans(shape) == nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))


@pytest.mark.parametrize("shape", [(), (5,)])
def test_a_bias_has_no_fans(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no fans"):
        initialisers.fans(shape)


@pytest.mark.parametrize("name", initialization_study.INITIALISERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_seed_gives_the_librarys_numbers(name: str, shape: tuple[int, ...]) -> None:
    own, library, _ = initialization_study.INITIALISERS[name]
    drawn, oracle = (initialization_study.draw(initialize, shape, 3) for initialize in (own, library))
    torch.testing.assert_close(drawn, oracle)


@pytest.mark.parametrize("gain", [0.5, 5 / 3])
def test_a_gain_is_the_librarys(gain: float) -> None:
    for own, library in (
        (initialisers.xavier_uniform_, nn.init.xavier_uniform_),
        (initialisers.xavier_normal_, nn.init.xavier_normal_),
        (initialisers.orthogonal_, nn.init.orthogonal_),
    ):
        drawn, oracle = (initialization_study.draw(partial(init, gain=gain), (6, 9), 5) for init in (own, library))
        torch.testing.assert_close(drawn, oracle)


def test_a_parameter_is_filled_in_place_and_keeps_its_gradient_flag() -> None:
    for initialize in (initialisers.kaiming_uniform_, initialisers.orthogonal_, initialisers.linear_default_):
        parameter = nn.Parameter(torch.zeros(4, 8))
        assert initialize(parameter) is parameter
        assert parameter.is_leaf
        assert parameter.requires_grad
        assert parameter.any()


def test_orthogonal_matrices_have_no_favourite_direction() -> None:
    """Haar: the mean of trace² is 1. Without the signs of R a QR leaves its diagonal mostly of one sign."""
    traces = torch.stack([initialisers.orthogonal_(torch.empty(3, 3)).trace() for _ in range(3000)])
    assert abs(traces.mean()) < 5 / math.sqrt(3000)
    assert abs(traces.square().mean() - 1) < 5 * math.sqrt(2 / 3000) * 1.2


# Theory


def by_gauss_hermite(function: Callable[[np.ndarray], np.ndarray], q: float) -> float:
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    return float((weights * function(math.sqrt(q) * nodes)).sum() / math.sqrt(2 * math.pi))


@pytest.mark.parametrize("q", [0.01, 0.5, 1.0, 3.0])
def test_gaussian_means(q: float) -> None:
    assert theory.gaussian_mean(lambda h: h**2, q) == pytest.approx(q)
    assert theory.gaussian_mean(lambda h: h**4, q) == pytest.approx(3 * q * q)
    assert theory.gaussian_mean(lambda h: torch.relu(h) ** 2, q) == pytest.approx(q / 2)
    assert theory.gaussian_mean(RELU.slope, q) == pytest.approx(0.5)
    assert theory.gaussian_mean(lambda h: torch.tanh(h) ** 2, q) == pytest.approx(
        by_gauss_hermite(lambda h: np.tanh(h) ** 2, q), rel=1e-6
    )


def test_a_saturated_tanh_needs_the_grid() -> None:
    """For large q the slope is a spike of area 4/3 / √(2πq); sparse nodes would miss it."""
    assert theory.slope_factor(TANH, 1.0, 1e4) == pytest.approx(4 / 3 / math.sqrt(2 * math.pi * 1e4), rel=1e-3)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("bias", [0.0, 0.1])
def test_the_maps_for_relu_are_products(scale: float, bias: float) -> None:
    signal = theory.predict_signal(RELU, scale, 5, bias)
    assert signal[0] == pytest.approx(scale + bias)
    assert all(after == pytest.approx(scale * before / 2 + bias) for before, after in pairwise(signal))
    assert theory.predict_gradient(RELU, scale, signal) == pytest.approx([(scale / 2) ** k for k in (4, 3, 2, 1, 0)])


def test_the_maps_for_tanh_agree_with_gauss_hermite() -> None:
    signal = theory.predict_signal(TANH, 2.0, 6, 0.05)
    for before, after in pairwise(signal):
        assert after == pytest.approx(2 * by_gauss_hermite(lambda h: np.tanh(h) ** 2, before) + 0.05, rel=1e-6)
    gradient = theory.predict_gradient(TANH, 2.0, signal)
    for k in range(5):
        slope = by_gauss_hermite(lambda h: (1 - np.tanh(h) ** 2) ** 2, signal[k])
        assert gradient[k] / gradient[k + 1] == pytest.approx(2 * slope, rel=1e-6)


def test_slopes_are_derivatives() -> None:
    h = torch.tensor([-2.0, -0.3, 0.4, 3.0], dtype=torch.float64, requires_grad=True)
    for activation in (TANH, RELU):
        (gradient,) = torch.autograd.grad(activation.function(h).sum(), h)
        torch.testing.assert_close(activation.slope(h.detach()), gradient)


def test_wander_of_one_layer() -> None:
    for wander in (theory.forward_wander, theory.backward_wander):
        assert wander(RELU, 0.7) == pytest.approx(5)
        assert wander(RELU, 0.7, orthogonal=True) == pytest.approx(3)
        assert wander(TANH, 1e-6) == pytest.approx(2, abs=1e-3)  # a linear layer
        assert wander(TANH, 1e-6, orthogonal=True) == pytest.approx(0, abs=1e-3)


# Deep networks


@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1.0, 1e30])
def test_second_moments_beyond_the_squares_of_float32(scale: float) -> None:
    x = torch.randn(5, 40) * scale
    expected = x.double().square().mean(dim=1).log()
    torch.testing.assert_close(depth.log_second_moment(x), expected, rtol=1e-5, atol=1e-5)


def test_flipped_signs_are_as_good_as_a_network_for_each() -> None:
    width, layers, count = 16, 4, 600
    sizes = [width] * (layers + 1)
    shared = torch.cat([depth.send_through(depth.KAIMING, RELU, sizes, CPU)[0] for _ in range(4)], dim=1)[-1]
    weight = torch.randn(layers, count, width, width) * math.sqrt(2 / width)
    x = torch.randn(count, width, 1)
    for layer in range(layers):
        h = weight[layer] @ x
        x = torch.relu(h)
    own = depth.log_second_moment(h.squeeze(2))
    error = math.sqrt(own.var() / count + shared.var() / 512)
    assert abs(own.mean() - shared.mean()) < 5 * error
    assert abs(own.std() / shared.std() - 1) < 0.25


def test_gradients_are_those_of_the_sums() -> None:
    """In a linear network of orthogonal layers a gradient keeps its length, so every layer must show the same."""
    linear = theory.Activation("linear", lambda h: h, torch.ones_like)
    scheme = depth.SCHEMES[TANH][4]
    assert scheme.is_orthogonal
    signals, gradients = depth.send_through(scheme, linear, [32] * 6, CPU)
    assert signals.shape == gradients.shape == (5, depth.NETWORKS)
    torch.testing.assert_close(gradients, gradients[-1:].expand_as(gradients), rtol=0, atol=1e-4)
    torch.testing.assert_close(signals, signals[:1].expand_as(signals), rtol=0, atol=1e-4)


def test_the_mean_over_networks_is_taken_of_the_numbers_and_not_of_their_logs() -> None:
    logs = torch.tensor([[1.0, 3.0], [2.0, 2.0]], dtype=torch.float64).log()
    torch.testing.assert_close(depth.log_mean(logs).exp(), torch.tensor([2.0, 2.0], dtype=torch.float64))
    assert depth.worst_value(logs, [2.0, 1.0]) == pytest.approx(1.0)
    assert depth.worst_factor(logs, [1.0, 1.0]) == pytest.approx((2 / 1 + 2 / 3) / 2 - 1)


def test_draws_follow_from_the_width() -> None:
    signal = [2.0] * 50
    needed = [depth.draws_needed(RELU, signal, [width] * 51, orthogonal=False) for width in (256, 512, 1024, 4096)]
    assert needed == sorted(needed, reverse=True)
    assert needed[-1] == 1
    variance = math.expm1(49 * 5 / 512) / depth.NETWORKS + 2 * 50 / 512**2
    assert needed[1] == math.ceil(variance / 0.02**2)


@pytest.mark.parametrize("width", [64, 300])
def test_where_float32_ends(width: int) -> None:
    assert abs(depth.first_infinite_layer(width, CPU) - depth.predicted_infinite_layer(width)) <= 2


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (1.0, "1.00"), (0.001, "0.001"), (2e-39, "2.0e-39"), (12345.0, "1.2e+04")]
)
def test_scientific(value: float, text: str) -> None:
    assert depth.scientific(value).rstrip("0") == text.rstrip("0")


# Fans, spectrum, residual stream


def test_a_taper_ends_where_it_should_and_falls_evenly() -> None:
    sizes = fan_choice.taper(1024, 128, 16)
    assert (len(sizes), sizes[0], sizes[-1]) == (17, 1024, 128)
    assert all(1.1 < a / b < 1.17 for a, b in pairwise(sizes))


@pytest.mark.parametrize("name", fan_choice.CHOICES)
def test_a_taper_without_a_taper_is_a_square_network(name: str) -> None:
    signal, gradient = fan_choice.predict_taper([32] * 5, fan_choice.CHOICES[name])
    assert signal == pytest.approx([2.0] * 4)
    assert gradient == pytest.approx([1.0] * 4)


def test_the_fans_cancel() -> None:
    sizes = [50, 40, 90, 10, 20]
    signal, gradient = fan_choice.predict_taper(sizes, fan_choice.CHOICES["Kaiming, fan_in"])
    assert signal == pytest.approx([2.0] * 4)
    assert gradient == pytest.approx([20 / n for n in sizes[1:]])
    signal, gradient = fan_choice.predict_taper(sizes, fan_choice.CHOICES["Kaiming, fan_out"])
    assert signal == pytest.approx([2 * sizes[0] / n for n in sizes[1:]])
    assert gradient == pytest.approx([1.0] * 4)


def test_lyapunov_exponents_add_up_to_the_determinant() -> None:
    width, count = 6, 4000
    matrices = torch.randn(count, width, width, dtype=torch.float64) / math.sqrt(width)
    logs = torch.linalg.slogdet(matrices).logabsdet
    assert abs(logs.mean() - spectrum.lyapunov_exponents(width).sum()) < 5 * logs.std() / math.sqrt(count)


def test_products_of_orthogonal_matrices_are_orthogonal() -> None:
    values = spectrum.singular_values(True, 9, [1, 7])
    assert list(values) == [1, 7]
    for found in values.values():
        torch.testing.assert_close(found, torch.ones(9, dtype=torch.float64))


def test_a_block_that_writes_nothing_changes_nothing() -> None:
    for normalised in (True, False):
        variances = residual.stream_variances(3, 16, CPU, normalised=normalised, scale=0.0)
        assert len(variances) == 4
        assert variances == pytest.approx([variances[0]] * 4)
    torch.testing.assert_close(residual.unit_size(torch.tensor([[3.0, 4.0]])).square().mean(), torch.tensor(1.0))


# Training and mistakes


def test_clusters() -> None:
    x, y = speed.make_clusters(4000, CPU)
    assert x.shape == (4000, speed.FEATURES)
    assert sorted(set(y.tolist())) == list(range(speed.CLASSES))
    assert abs(x.square().mean() - 1) < 0.15


def test_a_network_has_its_layers_and_biases_as_asked() -> None:
    for has_bias in (False, True):
        model = speed.make_network(initialisers.kaiming_uniform_, RELU, 3, 20, CPU, has_bias=has_bias)
        linears = [layer for layer in model if isinstance(layer, nn.Linear)]
        assert [layer.weight.shape for layer in linears] == [(20, 64), (20, 20), (20, 20), (10, 20)]
        assert isinstance(model[-1], nn.Linear)
        assert all(bool(layer.bias.any()) == has_bias for layer in linears)


def test_training_is_gradient_descent() -> None:
    x, y = torch.randn(8, 5), torch.randint(3, (8,))
    model, oracle = nn.Linear(5, 3), nn.Linear(5, 3)
    oracle.load_state_dict(model.state_dict())
    torch.manual_seed(7)
    losses = speed.train(model, x, y, 4, 6, lr=0.3)
    torch.manual_seed(7)
    optimizer, expected = torch.optim.SGD(oracle.parameters(), lr=0.3), []
    for _ in range(4):
        batch = torch.randint(8, (6,))
        loss = nn.functional.cross_entropy(oracle(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected)
    torch.testing.assert_close(model.weight, oracle.weight)


def test_the_layout_decides_what_a_fan_is() -> None:
    right, wrong = mistakes.initialise_transposed(400, 50), mistakes.initialise_for_the_other_layout(400, 50)
    assert right.shape == wrong.shape == (400, 50)
    assert right.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.05)
    assert wrong.std().item() == pytest.approx(math.sqrt(2 / 50), rel=0.05)


def test_shards() -> None:
    same = mistakes.draw_shards_with_one_seed(4, 12, 5, seed=3)
    assert same.shape == (12, 5)
    assert torch.equal(same[:3], same[9:])
    own = mistakes.draw_shards_with_their_own_seeds(4, 12, 5, seed=3)
    assert torch.equal(own[:3], same[:3])
    assert len(own.unique()) == own.numel()


def test_only_one_of_two_models_forgets() -> None:
    x = torch.randn(4, 3)
    redraws, draws = mistakes.RedrawsInForward(3, 2), mistakes.DrawsOnce(3, 2)
    assert not torch.equal(redraws(x), redraws(x))
    assert torch.equal(draws(x), draws(x))


# The first sections


def test_standard_errors_count_from_the_formula() -> None:
    weight = torch.full((50, 4), 1.1)
    assert initialization_study.standard_errors(weight, 1.1) == pytest.approx(0, abs=1e-4)
    assert initialization_study.standard_errors(weight, 1.0) == pytest.approx(0.21 * 10, rel=1e-3)


def test_orthogonality_error() -> None:
    assert initialization_study.orthogonality_error(torch.eye(4)[:2]) == 0
    assert initialization_study.orthogonality_error(torch.eye(4)[:, :3]) == 0
    assert initialization_study.orthogonality_error(2 * torch.eye(2).reshape(2, 1, 2)) == 3


def test_gains() -> None:
    assert initialization_study.signal_gain(torch.relu) == pytest.approx(math.sqrt(2))
    assert initialization_study.signal_gain(torch.sin) == pytest.approx(1 / math.sqrt((1 - math.exp(-2)) / 2))
    assert initialization_study.gradient_gain(torch.sin) == pytest.approx(
        1 / math.sqrt((1 + math.exp(-2)) / 2), rel=1e-5
    )
    assert initialization_study.library_gain("tanh") == pytest.approx(5 / 3)
    assert initialization_study.library_gain("gelu") is None


def test_equal_units_are_told_from_others() -> None:
    model, x = initialization_study.small_network(CPU), torch.randn(20, 64)
    assert initialization_study.unlike_units(model, x) > 0.1
    initialization_study.fill(model, 0.3)
    assert initialization_study.unlike_units(model, x) < 1e-5
    initialization_study.fill(model, 0.0)
    assert initialization_study.unlike_units(model, x) == 0
