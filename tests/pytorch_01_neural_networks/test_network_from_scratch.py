"""network_from_scratch: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_01_neural_networks.src import network_from_scratch
from pytorch_01_neural_networks.src.scratch import (
    cost,
    data,
    drift,
    letters,
    mistakes,
    network,
    spirals,
    three_builds,
    wording,
)
from pytorch_01_neural_networks.src.scratch.network import RELU, TANH, Activation, Parameters
from shared.agreement import agreement, deviation
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
from torch import nn
from torch.nn import functional as F

SECTIONS = [
    "The network and its shapes",
    "The deltas: from the loss back to each weight",
    "Two referees, and any depth",
    "The same network three times",
    "Rounding, a kink, chaos, or a mistake",
    "Two spirals and a straight line",
    "How many hidden units",
    "Ten letters",
    "Six mistakes that raise no error",
    "Two updates that PyTorch refuses",
    "What a step costs",
]
PICTURES = [
    "parting_digits.png",
    "spiral_boundaries.png",
    "spiral_losses.png",
    "letter_weights.png",
    "letter_losses.png",
]
BENDS = pytest.mark.parametrize("f", [RELU, TANH], ids=lambda f: f.name)
SIZES = [(1, 1, 1, 2), (1, 3, 2, 2), (7, 2, 5, 3), (16, 9, 4, 10), (5, 1, 8, 2)]  # B, D, H, K

run = partial(run_quick, network_from_scratch)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("network_from_scratch")
    return *run(folder), folder / "network_from_scratch"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=40)


def test_pictures_and_measurements_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    expect_pictures(record, folder, PICTURES)
    accuracies = [m for m in record["measurements"] if m["name"] == "test accuracy"]
    assert {(m["params"]["data"], m["params"]["model"]) for m in accuracies} == {
        ("spirals", "line"), ("spirals", "two layers"), ("letters", "linear"), ("letters", "two layers"),
    }  # fmt: skip
    steps = [m for m in record["measurements"] if m["name"] == "training step"]
    assert len(steps) == 9
    assert all(m["limit"] is None or m["value"] > 0 for m in steps)


def test_the_page_shows_the_code_that_it_runs(lesson: tuple[dict[str, Any], str, Path]) -> None:
    _, text, _ = lesson
    for line in (
        "delta1 = (delta2 @ net.w2) * f.slope(z1)",
        "loss.backward()",
        "optimizer.step()",
        "@ layers[i][0]) * f",
    ):
        assert line in text
    assert "leaf Variable" in " ".join(text.split())


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(network_from_scratch, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_the_lesson_on_a_gpu(tmp_path: Path) -> None:
    record, _ = run(tmp_path, "--device", "cuda", "--no-plots")
    assert record["device"]["kind"] == "cuda"


# The network


def problem(
    batch: int, inputs: int, hidden: int, classes: int, seed: int = 0
) -> tuple[Parameters, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    net = network.initial_parameters(inputs, hidden, classes, generator).to(torch.float64)
    x = torch.randn(batch, inputs, generator=generator, dtype=torch.float64)
    return net, x, torch.randint(classes, (batch,), generator=generator)


def torch_model(net: Parameters, f: Activation) -> nn.Sequential:
    """Built here and not by the lesson, with F.linear's own layout."""
    first, last = nn.Linear(net.w1.shape[1], len(net.w1)), nn.Linear(len(net.w1), len(net.w2))
    model = nn.Sequential(first, {"ReLU": nn.ReLU, "tanh": nn.Tanh}[f.name](), last).double()
    state = dict(zip(model.state_dict(), net, strict=True))
    model.load_state_dict(state)
    return model


@BENDS
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_by_hand_are_those_of_torch(f: Activation, sizes: tuple[int, int, int, int], seed: int) -> None:
    net, x, y = problem(*sizes, seed=seed)
    model = torch_model(net, f)
    oracle = F.cross_entropy(model(x), y)
    oracle.backward()
    loss, gradients = network.loss_and_gradients(net, x, y, f)
    assert loss.item() == pytest.approx(oracle.item(), abs=1e-14)
    for found, parameter in zip(gradients, model.parameters(), strict=True):
        assert parameter.grad is not None
        assert deviation(found, parameter.grad) < 1e-14


@BENDS
def test_no_part_of_the_hand_written_training_records_anything(f: Activation) -> None:
    net, x, y = problem(8, 3, 4, 2)
    for loss, moved in network.train_by_hand(net, [(x, y)] * 3, 0.1, f):
        assert not loss.requires_grad
        assert not any(tensor.requires_grad for tensor in moved)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e30])
def test_cross_entropy_is_that_of_torch_even_for_huge_logits(scale: float) -> None:
    y = torch.tensor([0, 2, 1, 1])
    logits = scale * torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    same = agreement(lambda z: network.cross_entropy(z, y), lambda z: F.cross_entropy(z, y), logits)
    assert same.within(1e-6)


@BENDS
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_the_recursion_for_any_depth(f: Activation, depth: int) -> None:
    generator = torch.Generator().manual_seed(depth)
    layers = [(w.double(), b.double()) for w, b in network.initial_layers([*[3, 4, 6, 5, 2, 7][:depth], 3], generator)]
    x, y = torch.randn(9, 3, generator=generator, dtype=torch.float64), torch.randint(3, (9,), generator=generator)
    assert network_from_scratch.layers_apart(layers, x, y, f) < 1e-13
    if depth == 2:
        (w1, b1), (w2, b2) = layers
        loss, two = network.loss_and_gradients(Parameters(w1, b1, w2, b2), x, y, f)
        same_loss, layered = network.loss_and_gradients_of_layers(layers, x, y, f)
        assert loss == same_loss
        assert all(torch.equal(a, b) for a, b in zip(two, itertools.chain(*layered), strict=True))


def test_layers_apart_notices_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [(w.double(), b.double()) for w, b in network.initial_layers([3, 4, 3], torch.Generator().manual_seed(0))]
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    wrong = Activation("ReLU", torch.relu, lambda z: 1.001 * (z > 0), nn.ReLU)
    assert network_from_scratch.layers_apart(layers, x, y, wrong) > 1e-5


@BENDS
def test_the_slope_is_the_derivative_of_the_bend(f: Activation) -> None:
    z = torch.linspace(-3, 3, 50, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(f.value(z).sum(), z)
    assert deviation(f.slope(z.detach()), slope) < 1e-15


@pytest.mark.parametrize("sizes", [(2, 64, 2), (256, 64, 10), (3, 1, 1, 5)])
def test_first_weights_are_those_of_torch(sizes: tuple[int, ...]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        modules = [nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes)]
    ours = network.initial_layers(sizes, torch.Generator().manual_seed(7))
    for module, (weight, bias) in zip(modules, ours, strict=True):
        assert deviation(weight, module.weight.detach()) < 1e-6
        assert deviation(bias, module.bias.detach()) < 1e-6


def test_accuracy_counts_the_largest_logits() -> None:
    logits = torch.tensor([[0.1, 0.2], [3.0, -1.0], [-2.0, -1.0]])
    assert network.accuracy(logits, torch.tensor([1, 1, 1])) == pytest.approx(2 / 3)


@BENDS
def test_differences_find_the_same_gradients(f: Activation) -> None:
    net, x, y = problem(40, 3, 5, 3)
    x = network_from_scratch.clear_of_the_kink(net, x, 6)
    found = network_from_scratch.difference_gradients(
        lambda moved: network.cross_entropy(network.forward(moved, x, f), y[:6]), net
    )
    oracle = network_from_scratch.autograd_gradients(net, x, y[:6], f)
    assert all(deviation(a, b) < 1e-8 for a, b in zip(found, oracle, strict=True))


def test_samples_near_the_kink_are_left_out() -> None:
    net = Parameters(torch.eye(2), torch.zeros(2), torch.ones(2, 2), torch.zeros(2))
    x = torch.tensor([[1.0, 1e-5], [1.0, -1.0], [0.0, 2.0], [0.5, 0.5], [2.0, 2.0]])
    assert network_from_scratch.clear_of_the_kink(net, x, 2).tolist() == [[1.0, -1.0], [0.5, 0.5]]


def test_the_printed_recursion_is_the_end_of_the_function() -> None:
    lines = network_from_scratch.recursion_source().splitlines()
    assert lines[0].startswith("delta = (log_p.exp()")
    assert lines[-1] == "return loss, gradients"


# Three builds


@BENDS
@pytest.mark.parametrize("sizes", [(1, 1, 1, 2), (12, 5, 7, 4)])
def test_all_builds_take_the_same_steps(f: Activation, sizes: tuple[int, int, int, int]) -> None:
    net, x, y = problem(*sizes)
    batches = [(x, y), (-x, y), (x[:1], y[:1])] * 5  # of different sizes
    result = three_builds.compare_builds(three_builds.BUILDS, net, batches, 0.3, f)
    assert len(result.losses) == len(result.losses_apart) == len(result.parameters_apart) == 15
    assert result.worst < 1e-13


@pytest.mark.parametrize("build", three_builds.BUILDS.values(), ids=three_builds.BUILDS)
def test_a_build_leaves_its_start_alone_and_keeps_every_step(build: three_builds.Build) -> None:
    net, x, y = problem(6, 3, 4, 2)
    before = [tensor.clone() for tensor in net]
    (_, first), (_, second) = build(net, [(x, y)] * 2, 0.5, TANH)
    assert all(torch.equal(a, b) for a, b in zip(before, net, strict=True))
    assert not torch.equal(first.w1, second.w1)
    gradients = network_from_scratch.autograd_gradients(net, x, y, TANH)
    assert all(deviation(p, old - 0.5 * g) < 1e-14 for p, old, g in zip(first, net, gradients, strict=True))


def test_a_comparison_sees_one_wrong_parameter() -> None:
    net, x, y = problem(6, 3, 4, 2)

    def wrong(*args: Any) -> Any:
        for loss, moved in network.train_by_hand(*args):
            yield loss, moved._replace(b2=moved.b2 + 1e-9)

    builds = {"by hand": network.train_by_hand, "wrong": wrong}
    result = three_builds.compare_builds(builds, net, [(x, y)] * 3, 0.1, RELU)
    assert result.losses_apart == [0, 0, 0]
    assert result.parameters_apart == pytest.approx([1e-9] * 3)


def test_the_printed_loops_are_whole() -> None:
    for build, last in zip(
        three_builds.BUILDS.values(), ("net = Par", "tensor.grad = None", "optimizer.step()"), strict=True
    ):
        lines = three_builds.loop_of(build).splitlines()
        assert lines[0] == "for x, y in batches:"
        assert lines[-1].lstrip().startswith(last)


# Drift


def test_units_switched_apart() -> None:
    a = Parameters(torch.eye(2), torch.zeros(2), torch.ones(2, 2), torch.zeros(2))
    b = a._replace(b1=torch.tensor([0.0, 0.5]))
    x = torch.tensor([[1.0, 1.0], [1.0, -0.2], [-1.0, -0.7]])
    assert drift.units_switched_apart(a, b, x) == 1
    assert drift.units_switched_apart(a, a, x) == 0


def test_the_first_switch_is_a_number_of_steps() -> None:
    assert drift.Drift([1.0, 2.0, 3.0], [0, 4, 0]).first_switch == 2
    assert drift.Drift([1.0, 2.0, 3.0], [0, 0, 0]).first_switch == 3


# Data and spirals


def test_spirals_are_mirrored_arms() -> None:
    x, y = data.make_spirals(4000, torch.Generator().manual_seed(0))
    assert y.bincount().tolist() == [2000, 2000]
    radius, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    expected = 2 * math.pi * (radius - 0.1) / 0.9 + math.pi * y
    off = torch.remainder(angle - expected + math.pi, 2 * math.pi) - math.pi
    assert (off * radius).abs().max() < 10 * data.NOISE * (1 + 2 * math.pi)
    assert (off * radius).std() < 0.2


def test_letters_are_normalised_and_cut_from_the_same_set() -> None:
    x, y = data.read_letters(True, 60)
    assert x.shape == (60, 256)
    assert x.mean(1).abs().max() < 1e-5
    assert (x.std(1) - 1).abs().max() < 1e-5
    assert torch.equal(data.read_letters(True, 20)[1], y[:20])


def test_shuffled_gives_each_sample_once_an_epoch() -> None:
    x = torch.arange(10.0)[:, None]
    batches = list(data.shuffled((x, torch.arange(10)), 4, 2, torch.Generator().manual_seed(0)))
    assert [len(part) for part, _ in batches] == [4, 4, 2] * 2
    for epoch in (batches[:3], batches[3:]):
        assert sorted(torch.cat([part for _, part in epoch]).tolist()) == list(range(10))
    assert all(torch.equal(part[:, 0].long(), y) for part, y in batches)


def test_the_plane_is_read_from_the_upper_left() -> None:
    points = spirals.plane(3, 2, torch.device("cpu")).view(3, 2, 2)
    edge = spirals.EDGE
    assert points[0, 0].tolist() == pytest.approx([-edge, edge])
    assert points[-1, -1].tolist() == pytest.approx([edge, -edge])
    assert points[0, -1].tolist() == pytest.approx([edge, edge])


def test_the_map_shows_the_half_planes_of_a_known_network() -> None:
    net = Parameters(torch.tensor([[1.0, 0.0]]), torch.zeros(1), torch.tensor([[0.0], [1.0]]), torch.tensor([0.1, 0.0]))
    drawn = spirals.draw_map("title", net, rows=2, columns=4)
    assert drawn.splitlines() == ["title", "··██", "··██"]  # class 1 where x[0] > 0.1


@pytest.mark.parametrize(("lines", "pieces"), [(0, 1), (1, 2), (2, 4), (3, 7), (64, 2081)])
def test_most_pieces(lines: int, pieces: int) -> None:
    assert spirals.most_pieces(lines) == pieces


def test_pieces_of_three_crossing_lines() -> None:
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    net = Parameters(weights, torch.tensor([0.01, 0.02, 0.5]), torch.ones(2, 3), torch.zeros(2))
    assert spirals.pieces_seen(net, torch.device("cpu")) == 7


def test_halfway_is_the_first_snapshot_past_the_middle() -> None:
    net = network.initial_parameters(2, 2, 2, torch.Generator())
    snapshots = [spirals.Snapshot(10 * i, value, net) for i, value in enumerate((0.5, 0.7, 0.74, 0.8, 0.7, 1.0))]
    assert spirals.halfway(snapshots).step == 30
    assert spirals.halfway(snapshots[:1]).step == 0


# Letters


def test_trained_logits_are_those_of_a_module() -> None:
    layers = network.initial_layers((6, 5, 4, 3), torch.Generator().manual_seed(0))
    modules: list[nn.Module] = []
    for weight, bias in layers:
        module = nn.Linear(weight.shape[1], len(weight))
        module.load_state_dict({"weight": weight, "bias": bias})
        modules += [module, nn.ReLU()]
    x = torch.randn(7, 6)
    oracle = nn.Sequential(*modules[:-1])(x)
    assert deviation(letters.Trained(layers, []).logits(x), oracle.detach()) < 1e-6


def test_a_linear_model_without_bias_is_never_right_about_both() -> None:
    generator = torch.Generator().manual_seed(0)
    model = letters.Trained([(torch.randn(10, 256, generator=generator), torch.zeros(10))], [])
    x = torch.randn(50, 256, generator=generator)
    assert letters.right_about_both(model, x, model.logits(x).argmax(1)) == 0


def test_the_mosaic_places_every_picture() -> None:
    weights = torch.arange(1.0, 8.0)[:, None].repeat(1, 256) * torch.tensor([1, -1, 1, 1, 1, 1, 1.0])[:, None]
    drawn = letters.mosaic(weights, 5)
    assert drawn.shape == (2 * 17 - 1, 5 * 17 - 1)
    assert drawn[0, 0] == 1
    assert drawn[0, 17] == -1
    assert drawn[:, 16].isnan().all()
    assert drawn[17:, 2 * 17 :].isnan().all()


def test_neighbour_correlation_of_noise_and_of_stripes() -> None:
    noise = torch.randn(200, 256, generator=torch.Generator().manual_seed(0))
    assert abs(letters.neighbour_correlation(noise)) < 0.05
    waves = torch.sin(torch.arange(16) * 0.4)[:, None].repeat(1, 16).reshape(1, 256)
    assert letters.neighbour_correlation(waves) > 0.9


# Mistakes


def test_each_mistake_is_off_by_what_it_is() -> None:
    net, x, y = problem(20, 3, 6, 2)
    off = partial(mistakes.update_off_by, start=net, x=x, y=y, lr=0.1, f=RELU)
    assert off(network.train_by_hand) < 1e-13
    assert off(three_builds.train_by_autograd) < 1e-13
    assert off(three_builds.train_with_nn) < 1e-13
    assert off(mistakes.climb_instead_of_descending) == pytest.approx(2)
    assert off(mistakes.forget_the_batch_size) == pytest.approx(19)
    assert off(mistakes.forget_to_zero) > 0.1
    assert off(mistakes.update_on_the_way_back) > 1e-4


def test_updating_on_the_way_back_uses_the_new_weights() -> None:
    net, x, y = problem(20, 3, 6, 2)
    _, gradients = network.loss_and_gradients(net, x, y, RELU)
    ((_, moved),) = mistakes.update_on_the_way_back(net, [(x, y)], 0.1, RELU)
    assert deviation(moved.w2, net.w2 - 0.1 * gradients.w2) < 1e-14
    z1 = x @ net.w1.T + net.b1
    delta2 = (network.forward(net, x, RELU).softmax(1) - F.one_hot(y, 2)) / 20
    assert deviation(moved.b1, net.b1 - 0.1 * ((delta2 @ moved.w2) * (z1 > 0)).sum(0)) < 1e-14


def test_forgotten_zeroing_adds_all_gradients() -> None:
    net, x, y = problem(20, 3, 6, 2)
    (_, first), (_, second) = mistakes.forget_to_zero(net, [(x, y)] * 2, 0.1, TANH)
    total = [a + b for a, b in zip(network.loss_and_gradients(net, x, y, TANH)[1],
                                   network.loss_and_gradients(first, x, y, TANH)[1], strict=True)]  # fmt: skip
    assert all(deviation(c, b - 0.1 * g) < 1e-14 for c, b, g in zip(second, first, total, strict=True))


def test_wrong_starts() -> None:
    net, x, y = problem(20, 3, 6, 2)
    alike = mistakes.start_all_alike(net)
    assert [a.shape for a in alike] == [b.shape for b in net]
    assert (mistakes.units_that_differ(alike), mistakes.units_that_differ(net)) == (1, 6)
    _, gradients = network.loss_and_gradients(mistakes.start_at_zero(net), x, y, RELU)
    assert [bool(gradient.any()) for gradient in gradients[:3]] == [False, False, False]


def test_losses_are_spelled() -> None:
    assert [mistakes.loss_text(loss) for loss in (0.25, -0.0, 9999.0, 1e213)] == [
        "0.2500",
        "0.0000",
        "9999.0000",
        "1e+213",
    ]
    assert mistakes.loss_text(math.nan) == "nan"
    assert [wording.gap_text(value) for value in (0.0, 2.3e-16)] == ["0", "2e-16"]
    assert wording.share_text(0.99342) == "99.3 %"


# Cost


@pytest.mark.parametrize("sizes", [(3, 2), (2, 5, 3), (4, 4, 4, 4), (7, 1, 3)])
def test_the_formula_counts_every_product(sizes: tuple[int, ...]) -> None:
    layers = network.initial_layers(sizes, torch.Generator().manual_seed(0))
    x, y = torch.randn(6, sizes[0]), torch.randint(sizes[-1], (6,))
    assert cost.flops_of(lambda: network.loss_and_gradients_of_layers(layers, x, y, RELU)) == sum(
        cost.formula(6, sizes)
    )


def test_operations_are_counted_without_views() -> None:
    x = torch.ones(3, 4)
    assert cost.operations_of(lambda: (x.T.reshape(3, 4) + 1, x.view(12), x[0])) == 2  # the copy of reshape, the sum


def test_one_step_of_each_build_does_the_same() -> None:
    builds = cost.one_step_builds(8, (5, 4, 3), torch.device("cpu"))
    assert {name: cost.flops_of(step) for name, step in builds.items()} == dict.fromkeys(
        builds, sum(cost.formula(8, (5, 4, 3)))
    )
