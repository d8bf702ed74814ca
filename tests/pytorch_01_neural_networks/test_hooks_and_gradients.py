"""hooks_and_gradients: the whole lesson runs and all its checks hold; the watcher and the computations meet oracles."""

import copy
import gc
import math
import random
import weakref
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_01_neural_networks.src import hooks_and_gradients
from pytorch_01_neural_networks.src.hooks import clipping, flow, leaks, not_a_number, using, watching
from pytorch_01_neural_networks.src.hooks.flow import Recipe
from pytorch_01_neural_networks.src.hooks.watcher import EDGE, ROOT, Layer, Watcher
from shared.traps import operations
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

SECTIONS = [
    "The order in which hooks fire",
    "What a full backward hook is given",
    "Looking: features and gradient norms",
    "Changing what flows",
    "Ablation: what a network uses",
    "Hooks that stay silent, and one that says too much",
    "Hooks that nobody removes",
    "An output that keeps its graph",
    "What one layer does to a gradient",
    "The report, layer by layer",
    "The cures, measured",
    "Clipping: the length or the direction",
    "Its place in the loop",
    "One bad batch",
    "Where NaN is born",
    "Finding the first NaN in a network",
    "A watcher that you can leave on",
    "What watching costs",
]
CPU = torch.device("cpu")

run = partial(run_quick, hooks_and_gradients)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("hooks_and_gradients")
    return *run(folder), folder / "hooks_and_gradients"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=90)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    expect_pictures(record, folder, ["gradient_flow.png", "cures.png", "bad_batch.png", "watching_cost.png"])
    assert {measurement["name"] for measurement in record["measurements"]} == {
        "kept", "factor", "step", "cost of one watcher"
    }  # fmt: skip


def test_pytorch_speaks_for_itself(lesson: tuple[dict[str, Any], str, Path]) -> None:
    text = " ".join(lesson[1].split())
    for said in ("being modified inplace", "PowBackward0", "x.square().sum(-1).sqrt()", "'projection'", "Legacy"):
        assert said in text


def test_no_global_hook_is_left(lesson: tuple[dict[str, Any], str, Path]) -> None:
    assert not torch_module._global_forward_hooks


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(hooks_and_gradients, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_the_lesson_on_a_gpu(tmp_path: Path) -> None:
    record, _ = run(tmp_path, "--device", "cuda", "--no-plots")
    assert record["device"]["kind"] == "cuda"


# The watcher


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))


def by_name(watcher: Watcher) -> dict[str, Layer]:
    return {layer.name: layer for layer in watcher.layers()}


@pytest.mark.parametrize("seed", range(3))
def test_the_watchers_numbers_are_right(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = small_network(), 3 * torch.randn(random.Random(seed).randint(1, 9), 5)
    with Watcher(model) as watcher:
        model(x).square().sum().backward()
    rows = by_name(watcher)
    linears = [model.get_submodule(name) for name in ("0", "2", "4")]
    first = linears[0](x)
    hidden = torch.tanh(first)
    second = linears[1](hidden)
    last = linears[2](torch.relu(second))
    outputs = {"0": first, "1": hidden, "2": second, "4": last}
    gradients = torch.autograd.grad(last.square().sum(), list(outputs.values()))
    for (name, output), gradient in zip(outputs.items(), gradients, strict=True):
        row = rows[name]
        assert row.mean == pytest.approx(output.mean().item(), abs=1e-5)
        assert row.std == pytest.approx(output.std(correction=0).item(), rel=1e-4)
        assert row.gradient == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert rows["1"].flat == pytest.approx((hidden.abs() >= EDGE).float().mean().item())
    assert rows["3"].flat == pytest.approx((second <= 0).float().mean().item())
    assert math.isnan(rows["0"].flat)
    for name, linear in zip(("0", "2", "4"), linears, strict=True):
        weights = torch.cat([weight.detach().flatten() for weight in linear.parameters()])
        slopes = torch.cat([weight.grad.flatten() for weight in linear.parameters() if weight.grad is not None])
        assert rows[name].weight == pytest.approx(weights.norm().item(), rel=1e-5)
        assert rows[name].step_ratio == pytest.approx((slopes.norm() / weights.norm()).item(), rel=1e-5)


def test_a_sigmoid_is_flat_at_both_ends() -> None:
    model, x = nn.Sequential(nn.Sigmoid()), torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])
    with Watcher(model) as watcher:
        model(x)
    assert by_name(watcher)["0"].flat == pytest.approx(0.4)


def test_moments_over_several_steps_are_those_of_all_numbers() -> None:
    model, batches = nn.Sequential(nn.Identity()), [torch.randn(n, 3) + n for n in (1, 4, 2)]
    with Watcher(model) as watcher:
        for x in batches:
            model(x)
    (row,) = watcher.layers()
    numbers = torch.cat([x.flatten() for x in batches])
    assert (row.outputs, row.mean) == (3, pytest.approx(numbers.mean().item(), rel=1e-5))
    assert row.std == pytest.approx(numbers.std(correction=0).item(), rel=1e-4)


def test_every_kth_call_and_the_last_ones_only() -> None:
    model, x = small_network(), torch.randn(2, 5)
    with Watcher(model, every=3) as watcher:
        for _ in range(8):
            model(x).sum().backward()
    assert (watcher.calls, by_name(watcher)["0"].outputs) == (8, 3)
    with Watcher(model, keep=2) as watcher:
        for _ in range(8):
            model(x)
    assert by_name(watcher)["0"].outputs == 2


def test_layers_by_name_and_layers_never_called() -> None:
    model, x = small_network(), torch.randn(2, 5)
    model.register_module("unused", nn.Linear(2, 2))
    with Watcher(nn.Sequential(small_network(), nn.Tanh()), lambda name, module: name.startswith("0.")) as watcher:
        watcher.model(x)
    assert list(by_name(watcher)) == ["0.0", "0.1", "0.2", "0.3", "0.4"]
    with Watcher(model, lambda name, module: isinstance(module, nn.Linear)) as watcher:
        model.get_submodule("0")(x)
    rows = watcher.layers()
    assert [row.outputs for row in rows] == [1, 0, 0, 0]
    assert math.isnan(rows[-1].mean)


def test_the_whole_model_is_watched_under_its_own_name() -> None:
    model = nn.Linear(3, 2)
    with Watcher(model) as watcher:
        model(torch.randn(4, 3)).sum().backward()
    (row,) = watcher.layers()
    assert row.name == ROOT
    assert row.weight_gradient > 0


@pytest.mark.parametrize("raises", [False, True])
def test_all_hooks_are_removed(raises: bool) -> None:
    model = small_network()
    try:
        with Watcher(model):
            assert watching.hooks_on(model) > 10
            output = model(torch.randn(2, 5))
            if raises:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert raises
    assert watching.hooks_on(model) == 0
    output.sum().backward()  # its graph still has hooks, and they are silent
    assert watching.hooks_on(model) == 0


def test_gradients_after_the_end_are_not_counted() -> None:
    model = small_network()
    with Watcher(model) as watcher:
        output = model(torch.randn(2, 5))
    before = watcher.layers()
    output.sum().backward()
    assert str(watcher.layers()) == str(before)  # nan is not equal to itself


def test_no_hook_is_left_where_one_is_refused() -> None:
    model = small_network()
    model.get_submodule("4").weight = nn.Parameter(torch.zeros(2, 6))
    model.get_submodule("4").register_parameter("broken", None)
    refuses = model.get_submodule("4").weight
    refuses.register_post_accumulate_grad_hook = None
    with pytest.raises(TypeError):
        Watcher(model).__enter__()
    assert watching.hooks_on(model) == 0


def test_no_grad_inference_mode_and_frozen_weights() -> None:
    model, x = small_network(), torch.randn(2, 5)
    for mode in (torch.no_grad, torch.inference_mode):
        with Watcher(model) as watcher, mode():
            model(x)
        assert all(math.isnan(row.gradient) and math.isfinite(row.mean) for row in watcher.layers())
    model.requires_grad_(False)
    with Watcher(model) as watcher:
        model(x.requires_grad_()).sum().backward()
    assert all(row.gradient > 0 and math.isnan(row.weight) for row in watcher.layers())


class Strange(nn.Module):
    """Outputs of many kinds: nested, whole numbers, empty, shared, in 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.shared, self.identity = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 4), nn.Identity()
        self.argmax, self.tied = nn.AdaptiveMaxPool1d(1, return_indices=True), nn.Linear(4, 4)
        self.tied.weight = self.shared.weight

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        x, (h, _) = self.lstm(self.identity(x))
        for _ in range(3):
            x = self.shared(x)
        return {"pooled": self.argmax(x), "tied": self.tied(h), "empty": self.identity(x[:0]), "none": None}


def test_strange_models_can_be_watched() -> None:
    model, x = Strange(), torch.randn(2, 5, 3, requires_grad=True)
    with Watcher(model) as watcher:
        result = model(x)
        (result["pooled"][0].sum() + result["tied"].sum()).backward()
    rows = by_name(watcher)
    assert {name: row.outputs for name, row in rows.items()} == {
        "identity": 2, "lstm": 3, "shared": 3, "argmax": 1, "tied": 1
    }  # fmt: skip
    assert watcher.first_not_finite() is None
    assert x._backward_hooks is None  # Identity returned the leaf itself
    assert rows["shared"].weight == pytest.approx(
        math.hypot(model.shared.weight.norm().item(), model.shared.bias.norm().item()), rel=1e-5
    )
    assert rows["tied"].weight == pytest.approx(model.tied.bias.norm().item(), rel=1e-5)  # its matrix counted above


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_summed_wide(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Identity())
    x = torch.full((300, 300), 100.0, dtype=dtype)  # the sum of its squares is beyond float16
    with Watcher(model) as watcher:
        model(x)
    (row,) = watcher.layers()
    assert (row.mean, row.std) == (pytest.approx(100), pytest.approx(0, abs=0.1))


def test_a_copy_made_inside_is_silent_and_trains() -> None:
    model = small_network()
    with Watcher(model) as watcher:
        model(torch.randn(2, 5)).sum().backward()
        twin = copy.deepcopy(model)
        twin(torch.randn(2, 5)).sum().backward()
    assert by_name(watcher)["0"].outputs == 1
    assert watcher.calls == 1


def test_no_activation_is_kept_alive() -> None:
    model, alive = small_network(), list[weakref.ref[torch.Tensor]]()
    handle = model.get_submodule("0").register_forward_hook(lambda *args: alive.append(weakref.ref(args[2])))
    with Watcher(model):
        model(torch.randn(2, 5)).sum().backward()
        gc.collect()
        assert alive[0]() is None
    handle.remove()


def test_no_graph_is_kept_of_a_gradient_with_a_graph() -> None:
    model, x = small_network(), torch.randn(2, 5)
    with Watcher(model) as watcher:
        slopes = torch.autograd.grad(model(x).square().sum(), list(model.parameters()), create_graph=True)
        sum(slope.square().sum() for slope in slopes).backward()  # type: ignore[union-attr]
    assert all(not values.requires_grad for _, values in watcher._past)
    assert by_name(watcher)["0"].gradient > 0


def test_training_is_bit_equal_and_never_waits() -> None:
    model = small_network()
    twin, x, y = copy.deepcopy(model), torch.randn(8, 5), torch.randint(0, 2, (8,))
    with Watcher(model):
        names = operations(lambda: [watching.training_step(model, x, y)() for _ in range(3)])
    for _ in range(3):
        watching.training_step(twin, x, y)()
    assert "_local_scalar_dense.default" not in names
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.gpu
def test_the_watcher_never_synchronises_a_gpu() -> None:
    model, x = small_network().cuda(), torch.randn(8, 5, device="cuda")
    with Watcher(model) as watcher:
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                model(x).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert by_name(watcher)["0"].outputs == 3


@pytest.mark.parametrize(("place", "value"), [("0", math.nan), ("2", math.inf), ("4", math.nan)])
def test_the_first_layer_that_is_not_finite(place: str, value: float) -> None:
    model = small_network()
    with Watcher(model) as watcher:
        for step in range(4):
            if step == 2:
                nn.init.constant_(model.get_parameter(f"{place}.bias"), value)
            model(torch.randn(2, 5)).sum().backward()
    assert watcher.first_not_finite() == (3, place, "output")


# Hooks


def test_seven_kinds_fire_once_each_and_go() -> None:
    model = hooks_and_gradients.Scaled()
    x = torch.randn(2, 3, requires_grad=True)
    with hooks_and_gradients.every_kind(model) as events:
        model(x).sum().backward()
    assert len(set(events)) == len(events) == 29
    model(x).sum().backward()
    assert len(events) == 29


def test_the_drawing_of_events() -> None:
    events = [("a", "model"), ("b", "model"), ("c", "first"), ("d", "model")]
    assert hooks_and_gradients.draw_events(events).split() == ["model", "a", "→", "b", "first", "c", "model", "d"]


def test_features_are_those_of_the_layer_in_its_place() -> None:
    model, x = using.encoder_and_head(CPU), torch.randn(3, 32)
    for name, module in model.named_modules():
        if name == "0.3":
            expected = model[0][:4](x)  # type: ignore[index]
            assert torch.equal(using.features_of(model, name, x), expected)
        assert not module._forward_hooks
    with pytest.raises(AttributeError):
        using.features_of(model, "0.9", x)


def test_ablation_leaves_the_data_alone() -> None:
    torch.manual_seed(0)
    x, y = using.make_readings(50, CPU)
    model = nn.Linear(5, 1)
    before = x.clone()
    replaced = x.clone()
    replaced[:, 2] = 7
    found = using.accuracy_without(model, 2, torch.tensor(7.0), x, y)
    assert torch.equal(x, before)
    assert found == using.accuracy(model, replaced, y)


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_reversal_by_hook_is_reversal_by_function(strength: float) -> None:
    model, x = using.TwoHeads(), torch.randn(9, 6)
    features = model.encoder(x).tanh()
    oracle = torch.autograd.grad(
        model.content(features).sum() + model.camera(using.Reverse.apply(features, strength)).sum(),
        model.encoder.weight,
    )[0]
    with using.reverse_behind_the_fork(model, strength):
        content, camera = model(x)
        (found,) = torch.autograd.grad(content.sum() + camera.sum(), model.encoder.weight)
    torch.testing.assert_close(found, oracle)


def test_bytes_held_by_graphs() -> None:
    x, w = torch.randn(10, 10), torch.randn(10, 10, requires_grad=True)
    with leaks.GraphBytes([x, w]) as graphs:
        y = (x @ w).tanh()
        assert graphs.alive() == 400  # tanh's result; x and w are there anyway
        z = y.exp().tanh()
        assert graphs.alive() == 1200
        z.sum().backward()
        assert graphs.alive() == 0


# Gradient flow


@pytest.mark.parametrize("gain", [0.5, 1.0, math.sqrt(2), 3.0])
def test_the_predicted_factor_of_a_relu(gain: float) -> None:
    assert flow.predicted_factor(Recipe(nn.ReLU, gain), 5) == pytest.approx(gain / math.sqrt(2), rel=1e-3)


def test_the_predicted_factor_of_the_identity() -> None:
    assert flow.predicted_factor(Recipe(nn.Identity, 1.7), 9) == pytest.approx(1.7, rel=1e-6)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.GELU])
def test_a_wide_layer_behaves_as_predicted(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    depth, width, recipe = 4, 1500, Recipe(activation, 1.3)
    x = torch.randn(4, width)
    outputs = []
    for block in flow.build(recipe, depth, CPU, width)[:-1]:
        assert isinstance(block, flow.Block)
        outputs.append(block.linear(x))
        x = block.act(outputs[-1])
    first, last = torch.autograd.grad((x * torch.randn_like(x)).sum(), [outputs[0], outputs[-1]])
    measured = (first.norm() / last.norm()).item() ** (1 / (depth - 1))
    assert measured == pytest.approx(flow.predicted_factor(recipe, depth), rel=0.04)


def layer(**changes: float) -> Layer:
    values = {
        "outputs": 1,
        "mean": 0.0,
        "std": 1.0,
        "flat": 0.5,
        "gradient": 1.0,
        "weight_gradient": 1.0,
        "weight": 1.0,
    }
    return Layer("x", **(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "healthy"),
        ({"flat": math.nan}, "healthy"),
        ({"gradient": 2e-3}, "healthy"),
        ({"gradient": 1e-4}, "vanishing"),
        ({"gradient": 2e3}, "exploding"),
        ({"gradient": 0.0}, "cut off"),
        ({"flat": 1.0, "gradient": 0.0}, "dead"),
        ({"flat": 0.9}, "mostly flat"),
        ({"gradient": math.inf}, "not finite"),
        ({"mean": math.nan, "flat": 1.0}, "not finite"),
    ],
)
def test_verdicts(changes: dict[str, float], expected: str) -> None:
    assert flow.verdict(layer(**changes), last_gradient=1.0) == expected


def test_the_worst_verdict_wins() -> None:
    assert flow.diagnose([layer(gradient=0.0), layer(flat=1.0), layer()]) == "dead"
    assert flow.diagnose([layer(gradient=1e-9), layer()]) == "vanishing"
    assert flow.diagnose([layer(), layer()]) == "healthy"


@pytest.mark.parametrize("name", flow.NETWORKS)
def test_each_planted_illness_is_found(name: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        assert name.startswith(flow.diagnose(flow.watch(flow.NETWORKS[name], flow.DEPTH, CPU)))


# Clipping


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, math.inf])
def test_clipping_by_norm_is_the_librarys(seed: int, order: float) -> None:
    generator = random.Random(seed)
    torch.manual_seed(seed)
    shapes = [[generator.randint(1, 5) for _ in range(generator.randint(0, 3))] for _ in range(4)]
    gradients = [torch.randn(shape) * 10 ** generator.uniform(-3, 3) for shape in shapes]
    max_norm = 10 ** generator.uniform(-4, 4)
    norm, expected = clipping.clipped_by_library(gradients, max_norm, order)
    torch.testing.assert_close(clipping.clip_by_norm(gradients, max_norm, order), norm)
    torch.testing.assert_close(gradients, expected)


def test_clipping_a_gradient_of_zeros() -> None:
    gradients = [torch.zeros(3)]
    assert clipping.clip_by_norm(gradients, 1.0) == 0
    assert gradients[0].tolist() == [0, 0, 0]


def test_clipping_in_the_loop() -> None:
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 1)), torch.randn(16, 8)
    before = [weight.detach().clone() for weight in model.parameters()]
    lengths = [clipping.joined(clipping.step_of(update, model, x)).norm().item() for update in clipping.PLACES.values()]
    assert lengths[0] == pytest.approx(lengths[1])
    assert lengths[0] > 1.001 > lengths[2]
    assert lengths[3] == pytest.approx(1, abs=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# NaN


@pytest.mark.parametrize("name", not_a_number.BIRTHS)
def test_cures_agree_away_from_the_trouble(name: str) -> None:
    bad, cured = not_a_number.BIRTHS[name]
    x = torch.rand(20, 4) + 0.1
    for found, expected in zip(
        not_a_number.value_and_gradient(cured, x), not_a_number.value_and_gradient(bad, x), strict=True
    ):
        torch.testing.assert_close(found, expected)
    trouble = torch.zeros(1, 4)
    assert not_a_number.value_and_gradient(bad, trouble)[1].isnan().any()
    assert not_a_number.value_and_gradient(cured, trouble)[1].isfinite().all()


def test_anomaly_mode_is_silent_on_a_healthy_run_and_off_afterwards() -> None:
    assert not_a_number.anomaly_of(lambda: torch.ones(2, requires_grad=True).sum().backward()) == ("", "")
    assert not torch.is_anomaly_enabled()


def test_training_stops_at_the_first_loss_that_is_not_finite() -> None:
    torch.manual_seed(0)
    model = not_a_number.metric_network(8, CPU)
    assert not_a_number.train_until_not_finite(model, lambda step: torch.randn(4, 8), 3) is None
    assert not_a_number.train_until_not_finite(model, lambda step: torch.zeros(4, 8), 3) == 2
