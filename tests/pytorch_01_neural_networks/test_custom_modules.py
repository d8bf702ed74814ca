"""custom_modules: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import math
import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_01_neural_networks.src import custom_modules
from pytorch_01_neural_networks.src.modules import (
    files,
    layer_slips,
    layer_trials,
    loading,
    own_layers,
    own_module,
    registration,
    tf32,
    wiring,
)
from pytorch_01_neural_networks.src.modules.descent import descend
from pytorch_01_neural_networks.src.modules.registration import Counts
from shared.snippets import lines_of_code
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

SECTIONS = [
    "What a module sees, and what it silently misses",
    "What a forgotten layer costs",
    f"A Module of our own in {lines_of_code(own_module.Module)} lines",
    "A call is more than forward()",
    "Sequential, ModuleList, ModuleDict",
    "Skip connections",
    "Two inputs, two outputs, two losses",
    "A convolution is a matrix product",
    "Seven layers of our own against torch.nn",
    "Ten bits for twenty-three: TF32",
    "What each comparison catches",
    "What BatchNorm remembers",
    "Dropout: the same mask, the same numbers",
    "state_dict: save and load",
    "Three ways in which it does not fit",
    "strict=False that loads nothing",
    "Old weights, new head",
    "Copying or assigning",
    "A file that runs code",
    "safetensors: a header and bytes",
]
CPU = torch.device("cpu")

run = partial(run_quick, custom_modules)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("custom_modules")
    return *run(folder), folder / "custom_modules"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=85)


def test_measurements_and_picture_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    layers = [m["params"]["layer"] for m in record["measurements"] if m["name"] == "largest deviation of a gradient"]
    assert layers == [name for name in layer_trials.DRAWS for _ in layer_trials.TOLERANCE]
    expect_pictures(record, folder, ["gradient_by_depth.png"])


def test_the_learner_reads_what_pytorch_says(lesson: tuple[dict[str, Any], str, Path]) -> None:
    said = " ".join(lesson[1].split())
    for words in ("before Module.__init__() call", "Missing key(s)", "Unexpected key(s)", "size mismatch", "no-op",
                  "share memory", "non contiguous", "GLOBAL"):  # fmt: skip
        assert words in said


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(custom_modules, seed, tmp_path, monkeypatch)


def test_without_safetensors_the_rest_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = files.importlib.util.find_spec
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None if name == "safetensors" else found(name))
    record, text = run(tmp_path, "--no-plots")
    assert list(dict.fromkeys(check["section"] for check in record["checks"])) == SECTIONS[:-1]
    assert "pip install -r requirements.txt" in " ".join(text.split())


@pytest.mark.gpu
def test_a_quick_run_on_a_gpu(tmp_path: Path) -> None:
    before = torch.backends.cudnn.conv.fp32_precision
    record, _ = run(tmp_path, "--device", "cuda", "--no-plots")
    assert record["device"]["kind"] == "cuda"
    assert torch.backends.cudnn.conv.fp32_precision == before


# What is registered

EXPECTED = {
    "self.layer = nn.Linear(4, 4)": Counts(20, 20, 20, 20, 20),
    "self.layers = [nn.Linear(4, 4)]": Counts(20, 0, 0, 0, 0),
    "self.layers = (nn.Linear(4, 4), [nn.Linear(2, 1)])": Counts(23, 0, 0, 0, 0),
    "self.w = nn.Parameter(torch.ones(3)); self.w = nn.Parameter(torch.ones(2))": Counts(2, 2, 2, 2, 2),
    "self.w = nn.Parameter(torch.ones(3)); self.v = self.w": Counts(3, 3, 3, 3, 3),
    "self.w = nn.Parameter(torch.ones(3)); self.v = [self.w]": Counts(3, 3, 3, 3, 3),
    "self.w = nn.Parameter(torch.ones(3), requires_grad=False)": Counts(3, 3, 3, 3, 0),
    'self.register_buffer("m", torch.ones(3)); self.m = torch.zeros(5)': Counts(5, 0, 5, 5, 0),
    'self.register_buffer("m", torch.ones(3), persistent=False)': Counts(3, 0, 3, 0, 0),
    "self.size = 3": Counts(0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("library", [nn, own_module.OWN], ids=["torch.nn", "ours"])
@pytest.mark.parametrize("line", EXPECTED)
def test_counts_of_a_line(line: str, library: Any) -> None:
    assert registration.count(line, library) == EXPECTED[line]


@pytest.mark.parametrize("line", registration.LINES)
def test_our_module_counts_as_the_library_does(line: str) -> None:
    assert registration.count(line, own_module.OWN) == registration.count(line)


def test_tensors_in_lists_dicts_and_modules_are_found_once() -> None:
    model = nn.Module()
    model.inside = nn.ModuleList([nn.Linear(2, 3)])
    model.hidden = {"a": [nn.Linear(3, 1), torch.ones(2)], "b": (model.inside[0].weight, "no tensor", None)}
    assert sum(x.numel() for x in registration.tensors_held(model)) == 9 + 4 + 2


def test_a_step_moves_what_is_reported_and_has_a_gradient() -> None:
    model = nn.Module()
    model.used, model.unused = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.ones(1))
    for expected in ([0.8, -1.6], [0.64, -1.28]):  # gradients are not added up
        descend(model, (model.used**2).sum())
        assert model.used.tolist() == pytest.approx(expected)
    assert model.unused.tolist() == [1]


# The Module of our own


def random_tree(library: Any, draw: random.Random, depth: int) -> Any:
    """Parameters, buffers, plain attributes, lists and children, from the same draws the same for both libraries."""
    model = library.Module()
    for name in draw.sample("abcdefgh", draw.randint(1, 6)):
        kind = draw.choice(["parameter", "buffer", "unsaved", "plain", "child", "list"])
        value = torch.full((draw.randint(1, 3),), draw.random())
        if kind == "parameter":
            setattr(model, name, nn.Parameter(value))
        elif kind in ("buffer", "unsaved"):
            model.register_buffer(name, value, persistent=kind == "buffer")
        elif kind == "plain":
            setattr(model, name, value)
        elif depth:
            children = [random_tree(library, draw, depth - 1) for _ in range(draw.randint(1, 2))]
            setattr(model, name, children[0] if kind == "child" else library.ModuleList(children))
    return model


@pytest.mark.parametrize("seed", range(20))
def test_a_random_tree_has_the_same_names_in_both(seed: int) -> None:
    ours, theirs = (random_tree(library, random.Random(seed), 3) for library in (own_module.OWN, nn))
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    mine, right = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(right)
    assert all(torch.equal(mine[name], right[name]) for name in mine)
    for mode in (False, True):
        assert {module.training for _, module in ours.train(mode).walk()} == {mode}
    assert [x.dtype for x in ours.to(torch.float64).state_dict().values()] == [torch.float64] * len(mine)


def test_our_module_refuses_as_the_library_does() -> None:
    for library in (nn, own_module.OWN):
        model = registration.make("self.w = nn.Parameter(torch.ones(2))", library)
        with pytest.raises(TypeError, match="w"):
            model.w = torch.ones(2)
        with pytest.raises(AttributeError, match="missing"):
            model.missing  # noqa: B018
    for forgets in (own_module.ForgetsSuper, own_module.OwnForgetsSuper):
        assert own_module.attribute_error(forgets)
    assert own_module.attribute_error(nn.Module) == ""


# Calls and containers


def test_hooks_are_seen_and_removed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    assert custom_modules.names_called(model, lambda: model(torch.ones(1, 2))) == ["0", "1.0", "1", ""]
    assert custom_modules.names_called(model, lambda: custom_modules.skip_the_hooks(model, torch.ones(1, 2)))[-1] == "1"
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("widths", [[3, 5, 2], [1, 1, 1, 1], [7, 4, 4, 4, 9]])
def test_three_containers_and_one_model(widths: list[int]) -> None:
    chain, listed = custom_modules.as_sequential(widths), custom_modules.AsModuleList(widths)
    named = custom_modules.AsModuleDict(widths, ["first", "second"])
    custom_modules.give_weights(chain, listed)
    named.body.load_state_dict(dict(list(chain.state_dict().items())[:-2]))
    custom_modules.give_weights(chain[-1], named.heads["second"])
    x = torch.randn(3, widths[0])
    steps = listed(x)
    assert [step.shape for step in steps] == [(3, width) for width in widths[1:]]
    assert torch.equal(steps[-1], chain(x))
    assert torch.equal(named(x, "second"), chain(x))
    with pytest.raises(KeyError):
        named(x, "third")
    with pytest.raises(ValueError, match="zip"):
        custom_modules.give_weights(chain, chain[-1])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_repeated_layers(count: int) -> None:
    def sizes(repeat: Callable[[int], nn.Sequential]) -> tuple[int, int]:
        model = repeat(count)
        return sum(p.numel() for p in model.parameters()), len({layer.weight[0, 0].item() for layer in model})

    assert sizes(custom_modules.repeat_by_multiplying) == (72, 1)
    assert sizes(custom_modules.repeat_by_copying) == (72 * count, 1)
    assert sizes(custom_modules.repeat_by_making) == (72 * count, count)


def test_the_mistake_trains_its_head_alone() -> None:
    widths = [3, 5, 4]
    found = custom_modules.consequences(custom_modules.HidesLayersInAList, widths, 2)
    assert (found["held"], found["seen"], found["trained"]) == (20 + 24 + 5, 5, 5)
    found = custom_modules.consequences(custom_modules.ShowsLayersInAModuleList, widths, 2)
    assert (found["held"], found["seen"], found["trained"], found["restored"]) == (49, 49, 49, 0)


# Wiring


@pytest.mark.parametrize("factor", [0.5, -2.0])
def test_gradients_by_depth_of_known_slopes(factor: float) -> None:
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(factor * torch.eye(4))
    x, backward = torch.randn(5, 4), torch.randn(5, 4)
    plain = wiring.gradients_by_depth([layer] * 3, x, backward)
    assert plain == pytest.approx([abs(factor) ** 3, factor**2, abs(factor)], rel=1e-5)
    around = wiring.gradients_by_depth([wiring.Residual(layer)] * 3, x, backward)
    assert around == pytest.approx([abs(1 + factor) ** power for power in (3, 2, 1)], rel=1e-5)


@pytest.mark.parametrize(
    ("inputs", "outputs", "stride", "size"), [(4, 4, 1, 7), (4, 6, 1, 7), (4, 4, 2, 7), (3, 8, 3, 10)]
)
def test_shapes_of_residual_blocks(inputs: int, outputs: int, stride: int, size: int) -> None:
    block = wiring.residual_block(inputs, outputs, stride)
    y = block(torch.randn(2, inputs, size, size + 1))
    assert y.shape == (2, outputs, math.ceil(size / stride), math.ceil((size + 1) / stride))
    assert isinstance(block.shortcut, nn.Identity) == (inputs == outputs and stride == 1)


def test_a_block_whose_last_scale_is_zero_is_its_shortcut() -> None:
    block = wiring.residual_block(4, 4)
    nn.init.zeros_(block.inner[-1].weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)
    scaled = wiring.Residual(nn.Sequential(nn.Linear(5, 5), wiring.Scaled()))
    assert torch.equal(scaled(x), x)
    scaled(x).sum().backward()
    assert scaled.inner[1].scale.grad != 0  # so that it can leave 0


def test_adding_in_place_changes_the_input() -> None:
    x = torch.ones(2, 3)
    assert wiring.AddsInPlace(nn.Identity())(x) is x
    assert x.tolist() == [[2, 2, 2]] * 2


def test_gradients_of_both_losses_by_finite_differences() -> None:
    model, houses = wiring.HouseModel().double(), wiring.make_houses(5)
    offer = model(houses.picture, houses.facts)
    assert (offer.district.shape, offer.price.shape) == ((5, 4), (5,))
    bias, h = model.trunk[1].bias, 1e-6
    for name, loss in wiring.losses_of(model, houses, unit=3).items():
        gradient = wiring.gradients_of(model, loss)["trunk.1.bias"]
        assert gradient is not None
        place = int(gradient.abs().argmax())
        ends = []
        for shift in (h, -2 * h):
            with torch.no_grad():
                bias[place] += shift
            ends.append(wiring.losses_of(model, houses, unit=3)[name].item())
        with torch.no_grad():
            bias[place] += h
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(gradient[place].item(), rel=1e-5)


def test_a_part_without_gradient_has_no_norm() -> None:
    gradients = {"a.w": torch.tensor([3.0]), "a.v": torch.tensor([[4.0]]), "b.w": None, "ab.w": torch.ones(9)}
    assert wiring.norm_of(gradients, "a") == pytest.approx(5)
    assert wiring.norm_of(gradients, "b") is None


# Layers


@pytest.mark.parametrize("name", layer_trials.DRAWS)
@pytest.mark.parametrize("seed", range(4))
def test_random_trials_agree(name: str, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(5):
        for dtype, trials in layer_trials.try_layer(name, draw, CPU).items():
            assert len(trials) == 2
            assert all(max(trial.value, trial.gradient) <= layer_trials.TOLERANCE[dtype] for trial in trials)


@pytest.mark.parametrize("seed", range(5))
def test_windows_are_those_of_unfold(seed: int) -> None:
    draw = random.Random(seed)
    kernel, stride, dilation = ((draw.randint(1, 3), draw.randint(1, 3)) for _ in range(3))
    x = torch.randn(2, 3, draw.randint(7, 12), draw.randint(7, 12))
    seen = own_layers.windows(x, kernel, stride, dilation)  # (B, C, H', W', rows, columns)
    right = F.unfold(x, kernel, dilation=dilation, stride=stride)  # (B, C·rows·columns, H'·W')
    assert torch.equal(seen.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3), right)
    padded = own_layers.surround_with_zeros(x, *kernel)
    assert torch.equal(padded, F.pad(x, (kernel[1], kernel[1], kernel[0], kernel[0])))


def test_a_kernel_larger_than_the_image_is_refused_by_both() -> None:
    for library in (own_layers, nn):
        with pytest.raises(RuntimeError):
            library.Conv2d(1, 1, 5)(torch.ones(1, 1, 4, 9))


def test_integer_options_are_pairs() -> None:
    ours, theirs = (library.Conv2d(2, 4, 3, 2, 1, 2, 2) for library in (own_layers, nn))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 2, 9, 8)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


def test_batch_norm_refuses_one_number_in_training_alone() -> None:
    x = torch.ones(1, 3, 1, 1)
    for library in (own_layers, nn):
        with pytest.raises(ValueError, match="more than"):
            library.BatchNorm2d(3)(x)
        assert library.BatchNorm2d(3).eval()(x).shape == x.shape


@pytest.mark.parametrize("options", [{}, {"momentum": 0.5}, {"momentum": None}, {"track_running_stats": False}])
def test_batch_norm_through_training_and_back(options: dict[str, Any]) -> None:
    ours, theirs = (library.BatchNorm2d(2, **options) for library in (own_layers, nn))
    for step in range(6):
        x = 3 * torch.randn(2, 2, 3, 5) + 1
        for layer in (ours, theirs):
            layer.train(step != 3)
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
        for name, right in theirs.state_dict().items():
            assert torch.allclose(ours.state_dict()[name], right, atol=1e-5)
            assert ours.state_dict()[name].dtype == right.dtype


def test_dropout_at_its_ends() -> None:
    x = torch.randn(50, requires_grad=True)
    nothing = own_layers.Dropout(1.0)(x)
    nothing.sum().backward()
    assert x.grad is not None
    assert not nothing.any()
    assert not x.grad.any()
    assert own_layers.Dropout(0.0)(x) is x
    assert own_layers.drop(torch.ones(4), torch.tensor([1.0, 0, 1, 0]), 0.75).tolist() == [4, 0, 4, 0]


@pytest.mark.parametrize("padding", [0, 2, -1])
def test_the_padding_row_starts_at_zero_and_gets_no_gradient(padding: int) -> None:
    layer = own_layers.Embedding(4, 3, padding)
    assert not layer.weight[padding].any()
    assert layer.weight.any(dim=1).sum() == 3
    layer(torch.tensor([[0, 1, 2, 3, 3]])).sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad[padding].any()
    assert layer.weight.grad.sum() == 3 * 5 - 3 * (2 if padding == -1 else 1)


def test_both_begin_alike() -> None:
    assert all(layer_trials.worst_start(seed) == 0 for seed in range(3))
    assert all(layer_trials.loads_both_ways(name) for name in layer_trials.DRAWS)


@pytest.mark.parametrize("way", ["in order", "transposed", "gaps"])
@pytest.mark.parametrize("shape", [(3,), (3, 5), (2, 3, 5, 7)])
def test_layouts_keep_the_numbers(way: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    laid_out = layer_trials.lay_out(x, way)
    assert torch.equal(laid_out, x)
    assert laid_out.is_contiguous() == (way == "in order" or (way == "transposed" and len(shape) == 1))


def test_formats_that_a_device_lacks_are_compared_on_the_cpu() -> None:
    mps, cuda = torch.device("mps"), torch.device("cuda")
    assert layer_trials.device_for("Linear", torch.float64, mps) == CPU
    assert layer_trials.device_for("Linear", torch.float32, mps) == mps
    assert layer_trials.device_for("Linear", torch.float64, cuda) == cuda
    assert layer_trials.device_for("Dropout", torch.float32, cuda) == CPU


@pytest.mark.parametrize("seed", range(3))
def test_each_slip_is_seen_where_it_is_said_to_be(seed: int) -> None:
    torch.manual_seed(seed)
    seen = {}
    for name, (slip, options, x) in layer_slips.slip_inputs().items():
        off = layer_slips.find_slip(name, slip, options, x, torch.float64)
        seen[name] = {part for part, value in off.items() if value > 1e-10}
    assert seen == {
        "LayerNorm": {"training", "gradient", "evaluation"},
        "BatchNorm2d": {"buffers", "evaluation"},
        "Embedding": {"gradient"},
        "Dropout": {"training", "gradient"},
    }


# Loading


@pytest.fixture
def trained() -> nn.Module:
    return loading.pretend_training(loading.Classifier())


def test_wrappers_write_the_prefixes_that_are_taken_off(trained: nn.Module) -> None:
    """The names that PyTorch itself gives; DataParallel names as DistributedDataParallel does, without a process group."""
    wrapped = {"module.": nn.DataParallel(trained), "_orig_mod.": torch.compile(trained)}
    assert loading.WRAPPERS.keys() == wrapped.keys()
    for prefix, model in wrapped.items():
        assert all(name.startswith(prefix) for name in model.state_dict())
        assert list(loading.without_wrappers(model.state_dict())) == list(trained.state_dict())
    both = torch.compile(nn.DataParallel(trained))
    assert next(iter(both.state_dict())).startswith("_orig_mod.module.")
    assert list(loading.without_wrappers(both.state_dict())) == list(trained.state_dict())


def test_only_a_prefix_of_all_names_is_taken_off() -> None:
    x = torch.ones(1)
    assert list(loading.without_wrappers({"module.a": x, "b": x})) == ["module.a", "b"]
    assert list(loading.without_wrappers({"a.module.b": x})) == ["a.module.b"]
    assert list(loading.without_wrappers({})) == []


def test_a_pretended_training_changes_every_tensor(trained: nn.Module) -> None:
    assert loading.count_loaded(loading.Classifier(), trained.state_dict()) == 0


def test_hope_loads_nothing_and_checking_loads_all(trained: nn.Module) -> None:
    state = {f"module.{name}": x for name, x in trained.state_dict().items()}
    hoping, checking = loading.Classifier(), loading.Classifier()
    loading.load_and_hope(hoping, state)
    loading.load_checked(checking, state)
    assert loading.count_loaded(hoping, state) == 0
    assert loading.count_loaded(checking, state) == len(state) == 8


@pytest.mark.parametrize("change", ["missing", "left over", "misspelt"])
def test_a_checked_load_refuses_before_it_loads(trained: nn.Module, change: str) -> None:
    state = dict(trained.state_dict())
    if change != "left over":
        x = state.pop("trunk.1.bias")
    if change != "missing":
        state["trunk.1.bais"] = torch.ones(16) if change == "left over" else x
    model = loading.Classifier()
    with pytest.raises(ValueError, match=r"trunk\.1\.b"):
        loading.load_checked(model, state)
    assert loading.count_loaded(model, state) == 0


def test_a_new_head_is_left_alone(trained: nn.Module) -> None:
    model = loading.Classifier(classes=3)
    head = {name: x.clone() for name, x in model.state_dict().items() if name.startswith("head.")}
    with pytest.raises(ValueError, match="names that do not fit: other, trunk"):
        loading.load_checked(model, {"other": torch.ones(1)}, new=("head.",))
    loading.load_checked(model, trained.state_dict(), new=("head.",))
    assert loading.count_loaded(model, trained.state_dict()) == 6
    assert loading.count_loaded(model, head) == 2


def test_what_is_remembered(trained: nn.Module) -> None:
    live, kept = loading.remember_best_by_reference(trained), loading.remember_best(trained)
    before = trained.state_dict()["head.bias"].clone()
    loading.pretend_training(trained)
    assert torch.equal(kept["head.bias"], before)
    assert not torch.equal(live["head.bias"], before)


# Files


class CallsAFunction:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [Path.touch, eval, __import__, pickle.loads])
def test_what_could_run_is_refused(function: Callable[..., object], tmp_path: Path) -> None:
    path = tmp_path / "hostile.pt"
    argument = {Path.touch: tmp_path / "touched", pickle.loads: b"."}.get(function, "1")
    torch.save({"weight": torch.ones(2), "note": CallsAFunction(function, argument)}, path)
    assert files.refusal(path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_plain_checkpoints_are_not_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.pt"
    torch.save({"a": torch.ones(2, dtype=torch.bfloat16), "b": [1, 2.5, "text", None, (True,)]}, path)
    assert files.refusal(path) == ""


@pytest.mark.parametrize("dtype", files.DTYPES.values(), ids=str)
def test_our_reader_reads_what_safetensors_writes(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    state = {
        "matrix": (100 * torch.randn(3, 5)).to(dtype),
        "number": torch.tensor(7).to(dtype),
        "é.long": torch.ones(9).to(dtype),
    }
    save_file(state, path, metadata={"format": "pt"})
    for name, x in state.items():
        found = files.read_tensor(path, name)
        assert found.dtype == dtype
        assert torch.equal(found, x)
    header, start = files.read_header(path)
    assert header["__metadata__"] == {"format": "pt"}
    assert path.stat().st_size == start + sum(x.nbytes for x in state.values())
    with pytest.raises(KeyError):
        files.read_tensor(path, "unknown")


# TF32


def test_rounding_to_tf32_takes_the_nearest_of_ten_bits() -> None:
    x = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, 1.0, -3.0, 65504.0])])
    rounded = tf32.round_to_tf32(x)
    step = 2.0 ** (torch.frexp(x.double()).exponent - 11)  # between neighbours with 10 bits behind the point
    assert torch.equal(rounded.double(), torch.where(x == 0, 0.0, torch.round(x.double() / step) * step))
    assert torch.equal(tf32.round_to_tf32(rounded), rounded)
    assert tf32.round_to_tf32(torch.randn(3, 4).t()).shape == (4, 3)


def test_the_default_of_cudnn_is_left_as_it_was() -> None:
    before = torch.backends.cudnn.conv.fp32_precision
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    assert torch.equal(tf32.as_cudnn_by_default(x, weight), torch.nn.functional.conv2d(x, weight))
    assert torch.backends.cudnn.conv.fp32_precision == before
