"""activations_and_dropout: the lesson as a whole, and each of its functions against an oracle."""

import math
from functools import partial

from pytorch_01_neural_networks.src import activations_and_dropout as script
from pytorch_01_neural_networks.src.activations import dead_units, dropout, softmax
from shared.agreement import agreement, deviation
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
import torch.nn.functional as F
from torch import nn

run = partial(run_quick, script)

SECTIONS = [
    "Without an activation there is one layer",
    "Six curves and their slopes",
    "Saturation: where the gradient stops",
    "What a curve costs",
    "Units that are off for everything, by depth",
    "How ReLUs die, and of what",
    "Softmax: where it overflows, and over which axis",
    "Temperature: how sure the same scores are",
    "Dropout: the mean stays, the variance grows",
    "What dropout amounts to: a penalty on large weights",
    "The mode that was forgotten",
    "Dropout as a regulariser",
]


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    folder = tmp_path_factory.mktemp("activations")
    record, text = run(folder)
    return record, text, folder / "activations_and_dropout"


def test_lesson_is_whole(lesson):
    record, text, folder = lesson
    expect_whole(record, text, SECTIONS, least_checks=44)
    expect_pictures(record, folder, ["activations.png", "dead_units.png", "dropout.png"])


def test_every_curve_is_recorded_beside_the_memory_limit(lesson):
    measured = [m for m in lesson[0]["measurements"] if m["name"] == "activation"]
    assert [m["params"]["curve"] for m in measured] == [*script.ACTIVATIONS, "GELU by hand"]
    assert all(m["limit"]["kind"] == "measured" and m["value"] > 0 for m in measured)


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed, tmp_path, monkeypatch):
    expect_any_seed(script, seed, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", script.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_curves_equal_the_library(name, dtype):
    activation = script.ACTIVATIONS[name]
    generator = torch.Generator().manual_seed(len(name))
    shape = torch.randint(1, 9, (3,), generator=generator).tolist()
    x = 8 * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).transpose(0, 2)
    assert agreement(activation.own, activation.library, x).within(1e-5 if dtype is torch.float32 else 1e-12)


@pytest.mark.parametrize("name", script.ACTIVATIONS)
def test_slopes_are_finite_differences(name):
    activation = script.ACTIVATIONS[name]
    x, step = torch.randn(50, dtype=torch.float64) + 0.001, 1e-6
    x = x[x.abs() > 10 * step]  # at 0 a ReLU has none
    difference = (activation.own(x + step) - activation.own(x - step)) / (2 * step)
    assert deviation(activation.slope(x), difference) < 1e-8


@pytest.mark.parametrize("name", ["GELU", "SiLU", "Tanh", "Sigmoid"])
def test_extreme_inputs_give_finite_values_and_gradients(name):
    x = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], requires_grad=True)
    y = script.ACTIVATIONS[name].own(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(y, script.ACTIVATIONS[name].library(x))
    assert gradient.isfinite().all()


def test_the_mistaken_sigmoid_is_right_in_value_and_loses_its_gradient():
    x = torch.tensor([-100.0, 2.0], requires_grad=True)
    y = script.sigmoid_by_the_formula(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(y, torch.sigmoid(x))
    assert gradient.isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sigmoid_becomes_one_between_the_two_predictions(dtype):
    found = script.first_exactly_one(dtype, torch.device("cpu"))
    low, high = script.where_sigmoid_becomes_one(dtype)
    assert torch.sigmoid(torch.tensor(found, dtype=dtype)) == 1
    assert torch.sigmoid(torch.tensor(found - 0.5, dtype=dtype)) < 1
    assert low - 0.1 < found < high + 0.1


def test_angles_between_random_directions_follow_the_map():
    angle, features, width = 1.1, 64, 200_000
    first = torch.zeros(features)
    first[0] = 1
    second = torch.zeros(features)
    second[0], second[1] = math.cos(angle), math.sin(angle)
    y = torch.relu(torch.stack([first, second]) @ torch.randn(features, width))
    assert math.acos(F.cosine_similarity(*y, dim=0)) == pytest.approx(dead_units.next_angle(angle), abs=0.01)
    assert (y == 0).all(dim=0).float().mean().item() == pytest.approx(dead_units.both_off(angle), abs=0.01)
    assert dead_units.next_angle(0.0) == 0


def test_dead_shares_of_known_inputs():
    x = torch.randn(4, 30)
    pairs, everywhere = dead_units.share_of_units_off(torch.cat([x, x]), 400)
    assert len(pairs) == len(everywhere) == dead_units.DEPTH
    assert pairs[0] == pytest.approx(0.5, abs=0.1)  # both halves are the same images
    assert all(both >= always for both, always in zip(pairs, everywhere, strict=True))


def test_training_on_inputs_of_one_sign_kills_and_centred_inputs_do_not():
    x, labels = 100 + 50 * torch.rand(200, 40), torch.arange(200) % 10
    _, dead = dead_units.train(x, labels, F.relu, lr=0.1, steps=20, seed=0)
    _, alive = dead_units.train((x - x.mean()) / x.std(), labels, F.relu, lr=0.01, steps=20, seed=0)
    assert dead > 0.9
    assert alive < 0.1


def test_softmax_equals_the_library_also_for_large_scores():
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        x = (1e3 * torch.randn(3, 9, 5)).to(dtype).transpose(0, 1)
        assert agreement(softmax.softmax, lambda x: x.softmax(-1), x).within(tolerance)
    assert softmax.softmax_that_overflows(torch.tensor([1e3, 0.0])).isnan().any()
    assert softmax.softmax_over_the_batch(torch.randn(4, 3)).sum(dim=0).allclose(torch.ones(3))


def test_first_overflow_is_the_first():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        found = softmax.first_overflow(dtype, torch.device("cpu"))
        assert torch.tensor(found, dtype=dtype).exp().isinf()
        below = torch.nextafter(torch.tensor(found, dtype=dtype), torch.tensor(0.0, dtype=dtype))
        assert below.sub(1 / 64 if dtype is torch.float32 else 0).exp().isfinite()


def test_entropy_has_its_known_ends():
    assert softmax.entropy(torch.full((8,), 0.125, dtype=torch.float64)) == pytest.approx(3)
    assert softmax.entropy(torch.tensor([1.0, 0.0], dtype=torch.float64)) == 0


def test_own_dropout_keeps_the_mean_and_zeroes_the_share():
    x = torch.ones(100_000)
    for p in (0.1, 0.5, 0.9):
        y = dropout.Dropout(p)(x)
        assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.01)
        assert y[y != 0].unique().tolist() == pytest.approx([1 / (1 - p)])
    assert torch.equal(dropout.Dropout(1.0)(x), nn.Dropout(1.0)(x))
    assert dropout.Dropout(0.0)(x) is x
    assert dropout.Dropout(0.5).eval()(x) is x


def test_the_dropout_that_knows_no_mode_drops_in_eval():
    layer = dropout.DropoutThatIsNeverOff().eval()
    assert (layer(torch.ones(1000)) == 0).any()


def test_predicting_without_eval_leaves_the_mode_alone():
    model = dropout.Network(6, 16, lambda: nn.Dropout(0.5)).train()
    predictions = dropout.predict_without_eval(model, torch.randn(5, 6))
    assert predictions.shape == (5,)
    assert model.training


def test_training_lowers_the_loss_and_evaluate_agrees_with_the_library():
    x, labels = torch.randn(300, 6), torch.randint(10, (300,))
    x[torch.arange(300), labels % 6] += 4
    model = dropout.Network(6, 32, nn.Identity)
    before, _ = dropout.evaluate(model, (x, labels))
    dropout.train_steps(model, (x, labels), 100, lr=0.05)
    loss, accuracy = dropout.evaluate(model, (x, labels))
    assert loss < before
    assert loss == pytest.approx(F.cross_entropy(model(x), labels).item())
    assert accuracy == pytest.approx((model(x).argmax(1) == labels).float().mean().item())


@pytest.mark.gpu
def test_on_cuda(tmp_path):
    record, _ = run(tmp_path, "--device", "cuda", "--no-plots")
    assert all(check["holds"] for check in record["checks"])
