"""normalization_layers: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import copy
import itertools
import math
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytorch_01_neural_networks.src import normalization_layers
from pytorch_01_neural_networks.src.norms import (
    bugs,
    cost,
    cubes,
    folding,
    letters,
    modes,
    residual,
    scale,
    small_batches,
)
from pytorch_01_neural_networks.src.norms.formula import EPS, LAYERS, normalise, normalise_groups, sets_by_moving
from shared.agreement import agreement, deviation
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SECTIONS = [
    "One formula, six choices of axes",
    "GroupNorm between LayerNorm and InstanceNorm",
    "Before and after",
    "Ten times the weights, the same output",
    "A batch of one, a batch of two",
    "Train mode and eval mode",
    "Running averages that are still cold",
    "Forgetting eval()",
    "Frozen weights, moving averages",
    "A batch in pieces is another batch",
    "When the data move",
    "The noise of a small batch",
    "Small batches: BatchNorm against GroupNorm",
    "What RMSNorm saves",
    "BatchNorm folded into the convolution",
    "Before the block or after it",
    "When to use which",
]
CPU = torch.device("cpu")


run = partial(run_quick, normalization_layers)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("normalization_layers")
    return *run(folder), folder / "normalization_layers"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=75)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    names = [measurement["name"] for measurement in record["measurements"]]
    assert set(names) == {"right", "normalisation", "network"}
    assert all(measurement["value"] >= 0 for measurement in record["measurements"])
    pairs = [(m["params"]["norm"], m["params"]["batch_size"]) for m in record["measurements"] if m["name"] == "right"]
    assert pairs == list(itertools.product(letters.NORMS, small_batches.BATCH_SIZES))
    expect_pictures(record, folder, ["norm_axes.png", "warm_up.png", "moved_data.png", "small_batches.png"])


def test_what_pytorch_says_is_shown(lesson: tuple[dict[str, Any], str, Path]) -> None:
    _, text, _ = lesson
    for said in ("Expected more than 1 value per channel when training", "normalized_shape=[3]", "train mode"):
        assert said in " ".join(text.split())


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(normalization_layers, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    record, _ = run(tmp_path, "--device", "cuda", "--no-plots")
    assert record["device"]["kind"] == "cuda"


# The formula


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LAYERS)
def test_formula_and_library_agree(name: str, seed: int) -> None:
    generator = random.Random(seed)
    n, half, p = generator.randint(2, 6), generator.randint(1, 5), generator.randint(2, 9)
    x = torch.randn(n, 2 * half, p, dtype=torch.float64) * 5 - 3
    x = x if seed % 2 else x.transpose(0, 2).contiguous().transpose(0, 2)  # strides are no matter
    layer = LAYERS[name]
    assert agreement(layer.own, layer.library, x, *layer.parameters(x)).within(1e-10)
    assert agreement(layer.formula, layer.library, x).within(1e-10)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 2, 3), (1, 2, 3), (2, 3)])
def test_normalise_leaves_mean_0_and_the_std_that_eps_allows(axes: tuple[int, ...]) -> None:
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64) * 2 + 7
    y = normalise(x, axes)
    var = x.var(axes, correction=0)
    torch.testing.assert_close(y.mean(axes), torch.zeros_like(var), atol=1e-12, rtol=0)
    torch.testing.assert_close(y.var(axes, correction=0), var / (var + EPS))


def test_normalise_of_equal_numbers() -> None:
    assert (normalise(torch.full((3, 4), 7.0), (0,)) == 0).all()
    assert normalise(torch.full((3, 4), 7.0), (0,), eps=0.0).isnan().all()
    torch.testing.assert_close(normalise(torch.full((3, 4), 7.0), (1,), subtract_mean=False), torch.ones(3, 4))


@pytest.mark.parametrize(("channels", "groups"), [(6, 1), (6, 2), (6, 3), (6, 6), (1, 1)])
def test_groups_of_images(channels: int, groups: int) -> None:
    x = torch.randn(2, channels, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(normalise_groups(x, groups), F.group_norm(x, groups))


def test_groups_that_are_not_equal_are_refused() -> None:
    with pytest.raises(RuntimeError):
        normalise_groups(torch.randn(2, 5, 3), 2)


def test_sets_are_found() -> None:
    assert sets_by_moving(lambda x: x - x.mean(0, keepdim=True), (3, 2)).tolist() == [[0, 1], [0, 1], [0, 1]]
    assert sets_by_moving(lambda x: x * 2, (2, 2)).tolist() == [[0, 1], [2, 3]]
    assert sets_by_moving(LAYERS["GroupNorm(2)"].library, (1, 4, 2)).tolist() == [[[0, 0], [0, 0], [1, 1], [1, 1]]]


@pytest.mark.parametrize("name", LAYERS)
def test_the_dark_cubes_are_the_set_in_the_corner(name: str) -> None:
    samples, channels, positions = cubes.SHAPE
    sizes = {"BatchNorm": samples * positions, "InstanceNorm": positions, "GroupNorm(2)": channels // 2 * positions,
             "LayerNorm": channels * positions}  # fmt: skip
    sets = sets_by_moving(LAYERS[name].library, cubes.SHAPE)
    assert (sets == sets[-1, 0, -1]).sum() == sizes.get(name, channels)


def test_each_cube_shows_three_faces_that_touch() -> None:
    faces = dict(cubes.faces(1, 2, 3))
    assert list(faces) == ["front", "top", "side"]
    assert len(set(faces["front"]) & set(faces["top"])) == len(set(faces["front"]) & set(faces["side"])) == 2


def test_layer_norm_takes_the_last_axis() -> None:
    x = torch.randn(2, 5, 3, 5)
    torch.testing.assert_close(normalization_layers.layer_norm_over_whatever_is_last(x), normalise(x, (3,)))
    torch.testing.assert_close(normalization_layers.layer_norm_over_channels(x), normalise(x, (1,)))


def test_the_worst_mean_and_std_over_sets() -> None:
    x = torch.tensor([[1.0, 3.0], [-5.0, -5.0]])
    assert normalization_layers.worst_mean_and_std(x, (1,)) == (5.0, 0.0, 1.0)
    assert normalization_layers.is_standard((0.0, 1.0, 1.0))
    assert not normalization_layers.is_standard((0.0, 0.5, 1.0))
    assert not normalization_layers.is_standard((0.1, 1.0, 1.0))


# Scale


def test_the_gradient_behind_batch_norm_is_a_finite_difference() -> None:
    x, target, weight = (torch.randn(shape, dtype=torch.float64) for shape in ((20, 6), (20, 3), (3, 6)))
    _, gradient = scale.output_and_gradient(weight, x, target)
    h = 1e-6
    for i, j in itertools.product(range(3), range(6)):
        step = torch.zeros_like(weight)
        step[i, j] = h
        losses = [F.mse_loss(scale.output_and_gradient(weight + sign * step, x, target)[0], target) for sign in (1, -1)]
        assert gradient[i, j].item() == pytest.approx((losses[0] - losses[1]).item() / (2 * h), abs=1e-7)


def test_only_norms_of_one_channel_silence_the_bias() -> None:
    x, weight = torch.randn(4, 2, 5, 5, dtype=torch.float64), torch.randn(4, 2, 3, 3, dtype=torch.float64)
    sizes = {norm: scale.bias_gradient(norm, x, weight) for norm in scale.NORMS}
    assert (
        max(sizes["BatchNorm"], sizes["InstanceNorm"]) < 1e-10 < 1e-3 < min(sizes["GroupNorm(2)"], sizes["LayerNorm"])
    )


# Modes


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 2)])
@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0])
def test_own_batch_norm_is_the_librarys_in_both_modes(shape: tuple[int, ...], momentum: float) -> None:
    library_class = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    own, library = modes.OwnBatchNorm(3, momentum).double(), library_class(3, momentum=momentum).double()
    for _ in range(3):
        assert agreement(own, library, torch.randn(shape, dtype=torch.float64) * 4 + 2).within(1e-10)
    for name in ("running_mean", "running_var"):
        assert deviation(getattr(own, name), getattr(library, name)) < 1e-10
    assert agreement(own.eval(), library.eval(), torch.randn(shape, dtype=torch.float64)).within(1e-10)
    assert set(own.state_dict()) == set(library.state_dict()) - {"num_batches_tracked"}


def test_two_samples_in_closed_form() -> None:
    x = torch.randn(2, 200, dtype=torch.float64) * torch.logspace(-4, 2, 200, dtype=torch.float64)
    library = F.batch_norm(x, None, None, training=True, eps=modes.EPS)
    assert deviation(modes.two_samples_normalised(x), library) < 1e-10


@pytest.mark.parametrize(("count", "batch_size"), [(65, 32), (64, 32), (1, 4), (7, 3)])
def test_batches(count: int, batch_size: int) -> None:
    with_rest, equal = modes.batches_with_a_last_one(count, batch_size), modes.batches_of_one_size(count, batch_size)
    assert sum(with_rest) == count
    assert equal == [batch_size] * (count // batch_size)


@pytest.mark.parametrize("momentum", [0.01, 0.1, 0.5])
def test_the_share_of_the_start(momentum: float) -> None:
    layer = nn.BatchNorm1d(1, momentum=momentum).double()
    for step in range(1, 30):
        layer(torch.tensor([[4.0], [6.0]], dtype=torch.float64))
        assert layer.running_mean.item() == pytest.approx(5 * (1 - modes.share_of_start(step, momentum)))
        assert layer.running_var.item() == pytest.approx(2 - modes.share_of_start(step, momentum))
    steps = modes.steps_until(0.01, momentum)
    assert modes.share_of_start(steps, momentum) <= 0.01 < modes.share_of_start(steps - 1, momentum)


def test_momentum_as_in_keras_forgets() -> None:
    layer = modes.momentum_as_in_keras(1)
    for value in (1000.0, 0.0):
        layer(torch.full((2, 1), value))
    assert layer.running_mean.item() == pytest.approx(9.9, rel=1e-4)  # and not 900 or so


# Bugs


@pytest.fixture(scope="module")
def few() -> letters.Letters:
    stand_in = SimpleNamespace(pick=lambda *, full, quick: quick, device=CPU)
    return letters.load_letters(stand_in)  # type: ignore[arg-type]


def network(norm: str) -> nn.Sequential:
    torch.manual_seed(0)
    return letters.make_network(norm, CPU)


def test_letters_come_in_whole_batches_of_three_classes(few: letters.Letters) -> None:
    for x, y in ((few.x, few.y), (few.x_test, few.y_test)):
        assert x.shape[1:] == (3, 32, 32)
        assert len(x) == len(y) > 0
        assert len(x) % 32 == 0
        assert set(y.tolist()) == set(range(letters.CLASSES))
        assert -2.001 < x.min() < -1 < 1 < x.max() < 2.001


@pytest.mark.parametrize("norm", letters.NORMS)
def test_the_maps_shrink_as_announced(norm: str, few: letters.Letters) -> None:
    x, sides = few.x[:2], []
    for layer in network(norm):
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            assert (layer.bias is None) == (norm == "BatchNorm")
            sides.append(x.shape[-1])
    assert tuple(sides) == letters.MAP_SIZES
    assert x.shape == (2, letters.CLASSES)


def test_training_is_sgd(few: letters.Letters) -> None:
    ours, theirs = network("GroupNorm"), network("GroupNorm")
    torch.manual_seed(5)
    letters.train(ours, few.x, few.y, batch_size=16, epochs=2)
    torch.manual_seed(5)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=16 * letters.LR_PER_SAMPLE)
    for _ in range(2):
        for rows in torch.randperm(len(few.x)).split(16):
            optimizer.zero_grad()
            F.cross_entropy(theirs(few.x[rows]), few.y[rows]).backward()
            optimizer.step()
    for own, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, right)


def test_predictions_are_made_in_eval_mode_or_by_mistake_not(few: letters.Letters) -> None:
    model = network("BatchNorm").train()
    before = copy.deepcopy(model.state_dict())
    logits = letters.predict(model, few.x_test)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert letters.accuracy(logits, logits.argmax(1)) == 1
    bugs.predict_in_train_mode(model, few.x_test, 8)
    assert model.training
    assert not torch.equal(bugs.running_means(model), torch.zeros(sum(letters.WIDTHS)))
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_answers_in_company_belong_to_their_samples(few: letters.Letters) -> None:
    model = network("BatchNorm")
    expected = letters.predict(model, few.x_test).argmax(1)
    answers = bugs.answers_in_company(model, few.x_test, 8, 3, training=False)
    assert all(torch.equal(row, expected) for row in answers)
    assert bugs.answers_in_company(model, few.x_test, 8, 2, training=True).shape == (2, len(few.x_test))
    assert (bugs.running_means(model) == 0).all()  # a copy was asked


def test_only_batch_norm_in_training_leaks(few: letters.Letters) -> None:
    leaks = {(norm, training): bugs.influence(network(norm), few.x[:4], training=training)
             for norm in letters.NORMS for training in (True, False)}  # fmt: skip
    assert [pair for pair, slope in leaks.items() if slope] == [("BatchNorm", True)]


def test_frozen_stays_frozen_whatever_is_called() -> None:
    frozen = bugs.Frozen(network("BatchNorm"))
    outer = nn.Sequential(frozen, nn.Linear(3, 2)).train()
    assert outer.training
    assert outer[1].training
    assert not any(layer.training for layer in frozen.model.modules())
    assert [parameter.requires_grad for parameter in outer.parameters()].count(True) == 2
    outer(torch.randn(4, 3, 32, 32))
    assert (bugs.running_means(outer) == 0).all()


def test_weights_that_are_frozen_alone_let_averages_move() -> None:
    model = bugs.freeze_weights_only(network("BatchNorm")).train()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model(torch.randn(4, 3, 32, 32))
    assert (bugs.running_means(model) != 0).any()


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_gradients_in_pieces(pieces: int, few: letters.Letters) -> None:
    model = network("GroupNorm").double()
    x, y = few.x[:8].double(), few.y[:8]
    whole = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    found = bugs.gradients(model, x, y, pieces)
    torch.testing.assert_close(found, torch.cat([gradient.flatten() for gradient in whole]))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_reestimated_statistics_are_plain_averages(few: letters.Letters) -> None:
    model = network("BatchNorm")
    fresh = bugs.reestimate_statistics(model, few.x, batch_size=len(few.x))
    features = model[0](few.x)
    torch.testing.assert_close(fresh[1].running_mean, features.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fresh[1].running_var, features.var((0, 2, 3)), atol=1e-5, rtol=1e-4)
    assert not fresh.training
    assert (bugs.running_means(model) == 0).all()


# Small batches


def test_noise_of_a_mean() -> None:
    torch.manual_seed(0)
    assert small_batches.noise_of_mean(1, 20_000, CPU) == pytest.approx(1, rel=0.03)
    assert small_batches.noise_of_mean(25, 20_000, CPU) == pytest.approx(0.2, rel=0.03)


@pytest.mark.parametrize("copies", [1, 4, 16])
def test_independent_positions_count_what_is_repeated(copies: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 3, 16 // copies, 1).repeat_interleave(copies, 2).view(4000, 3, 4, 4)
    assert small_batches.independent_positions(x).tolist() == pytest.approx([16 / copies] * 3, rel=0.15)


def test_the_last_norm_of_two_samples_gives_signs(few: letters.Letters) -> None:
    torch.manual_seed(0)
    two, many = (small_batches.look_at_last_norm("BatchNorm", few.x[:n], few.y[:n]) for n in (2, 64))
    assert two.median_size > 0.97
    assert many.median_size < 0.9
    assert 6 / 64 <= many.share_of_six < two.share_of_six <= 1


# Cost


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 16), (1, 1, 1, 4)])
def test_written_out_norms_are_the_librarys(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64) * 3 + 1
    weight, bias = (torch.randn(shape[-1], dtype=torch.float64) for _ in range(2))
    for name, oracle in (("LayerNorm written out", "F.layer_norm"), ("RMSNorm written out", "F.rms_norm")):
        assert agreement(cost.WAYS[name], cost.WAYS[oracle], x, weight, bias).within(1e-10)


def test_work_is_counted() -> None:
    x = torch.randn(10, 4)
    assert vars(cost.count_work(lambda: x + 1, 40))["moved_bytes"] == 320
    assert cost.count_work(lambda: x * x, 40).moved_bytes == 320  # read once, written once
    assert cost.count_work(lambda: x.sum(0), 40).moved_bytes == 160 + 16
    views = cost.count_work(lambda: x.T[1:], 40)
    assert (views.passes, views.moved_bytes) == (0, 0)
    assert cost.count_work(lambda: x.clone().mul_(2).sum() + 1, 40).passes == 3


def test_saved_bytes() -> None:
    x = torch.randn(10, requires_grad=True)
    assert cost.saved_bytes(lambda: x + 1, [x]) == 0
    assert cost.saved_bytes(lambda: x.exp(), [x]) == 40
    assert cost.saved_bytes(lambda: x * x, [x]) == 0
    assert cost.saved_bytes(lambda: x * x, []) == 40  # one storage, saved twice


# Folding


@pytest.mark.parametrize("seed", range(6))
def test_folding_is_exact_and_the_librarys(seed: int) -> None:
    generator = random.Random(seed)
    groups, affine = generator.choice([1, 2, 4]), generator.choice([True, False])
    conv = nn.Conv2d(4, 8, generator.choice([1, 3, (3, 2)]), generator.choice([1, 2]), generator.choice([0, 1, 2]),
                     generator.choice([1, 2]), groups, bias=affine).double().eval()  # fmt: skip
    norm = folding.worn_in(nn.BatchNorm2d(8, eps=generator.choice([1e-5, 1e-2]))).double()
    x = torch.randn(3, 4, 9, 8, dtype=torch.float64)
    folded, theirs = folding.fold(conv, norm), fuse_conv_bn_eval(conv, norm)
    assert deviation(folded(x), norm(conv(x))) < 1e-10
    assert deviation(folded.weight, theirs.weight) < 1e-10
    assert deviation(folded.bias, theirs.bias) < 1e-10
    assert (conv.bias is not None) == affine  # the original is as it was


def test_what_still_trains_is_not_folded() -> None:
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        folding.fold(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def test_a_network_is_folded_and_left_as_it_was() -> None:
    model = network("BatchNorm")
    for layer in bugs.batch_norms(model):
        folding.worn_in(layer)
    model.double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = model(x)
    folded = folding.fold_network(model)
    assert [type(layer) for layer in folded] == [
        type(layer) for layer in model if not isinstance(layer, nn.BatchNorm2d)
    ]
    assert deviation(folded(x), expected) < 1e-10
    assert torch.equal(model(x), expected)
    group_model = network("GroupNorm").eval()
    assert len(folding.fold_network(group_model)) == len(group_model)


def test_the_other_order_folds_only_without_padding() -> None:
    norm, x = folding.worn_in(nn.BatchNorm2d(3)), torch.randn(2, 3, 6, 6)
    bare = nn.Conv2d(3, 4, 3)
    torch.testing.assert_close(folding.fold_forwards_over_padding(norm, bare)(x), bare(norm(x)), atol=1e-4, rtol=1e-4)
    padded = nn.Conv2d(3, 4, 3, padding=1)
    off = (folding.fold_forwards_over_padding(norm, padded)(x) - padded(norm(x))).abs()
    assert off[..., 1:-1, 1:-1].max() < 1e-4 < off.max()


# Residual blocks and the choice


def test_blocks_are_what_their_formulas_say() -> None:
    x = torch.randn(5, residual.WIDTH)
    for place in ("pre-norm", "post-norm", "none"):
        block = residual.Block(place)
        norm = (lambda h: h) if place == "none" else (lambda h: F.layer_norm(h, h.shape[-1:]))
        expected = norm(x + block.f(x)) if place == "post-norm" else x + block.f(norm(x))
        torch.testing.assert_close(block(x), expected)


def test_the_signal_grows_as_a_sum() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(64, residual.WIDTH), torch.randint(0, 10, (64,))
    stds = {place: residual.signal_and_gradient(place, 12, x, y)[0] for place in ("pre-norm", "post-norm", "none")}
    assert stds["post-norm"] == pytest.approx(1, abs=0.01)
    assert 1.2 < stds["pre-norm"] < stds["none"]
    assert all(math.isfinite(std) for std in stds.values())


@pytest.mark.parametrize("name", normalization_layers.CANDIDATES)
def test_facts_are_those_of_the_axes(name: str) -> None:
    torch.manual_seed(0)
    found = normalization_layers.find_facts(normalization_layers.CANDIDATES[name][0]())
    assert found.uses_the_batch == (name == "BatchNorm")
    assert found.same_in_eval == (name != "BatchNorm")
    assert found.sees_later == (not name.startswith("token"))
    assert found.any_length == (name != "LayerNorm")
    assert found.parameters == {"LayerNorm": 2048, "token RMSNorm": 64}.get(name, 128)
    assert found.buffers == (129 if name == "BatchNorm" else 0)
