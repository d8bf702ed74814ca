"""layer_playground: the lesson holds; shapes, parameters and FLOPs agree with PyTorch's layers; no typed line breaks it."""

import io
import math
import random
import re
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_01_neural_networks.src import layer_playground
from pytorch_01_neural_networks.src.layers import (
    costs,
    output_sizes,
    planning,
    prices,
    projections,
    reading,
    typed,
    vectors,
    windows,
)
from pytorch_01_neural_networks.src.layers.catalogue import LAYERS
from pytorch_01_neural_networks.src.layers.planning import DoesNotFit, Step, plan
from pytorch_01_neural_networks.src.layers.reading import (
    LARGEST_NUMBER,
    Call,
    parameters_of,
    read_layers,
    read_shape,
    required_of,
)
from shared.agreement import agreement
from shared.errors import CannotRun
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

SECTIONS = [
    "Linear, for input of any rank",
    "How many windows fit",
    "What a layer costs",
    "Linear and Bilinear",
    "Convolutions",
    "Pooling",
    "Normalisation",
    "Activations and Dropout",
    "Embedding",
    "Recurrent layers",
    "Attention",
    "Layers that only rearrange",
    "All layers under one roof",
    "Query, key and value are three Linears",
    "Layers of your own",
]
CPU = torch.device("cpu")
UNHURRIED = settings(deadline=None, max_examples=150)

run = partial(run_quick, layer_playground)


def use(*arguments: str, encoding: str = "utf-8") -> tuple[int, str, str]:
    """Exit code, output and complaint of the script with these arguments."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = layer_playground.main(["--device", "cpu", *arguments])
    texts = []
    for stream in (out, err):
        stream.seek(0)
        texts.append(stream.read())
    return code, *texts


def planned(layers: str, shape: str) -> list[Step]:
    return plan(read_layers(layers, LAYERS), read_shape(shape), CPU)


def attempted(calls: list[Call], shape: tuple[int, ...]) -> list[Step] | CannotRun:
    """The plan, or why there is none; any other exception is a bug."""
    try:
        return plan(calls, shape, CPU)
    except CannotRun as error:
        return error


def refused(layers: str, shape: str = "8,3,32,32") -> str:
    with pytest.raises(CannotRun) as caught:
        planned(layers, shape)
    return str(caught.value)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("layer_playground")
    return *run(folder), folder / "layer_playground"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=70)


def test_every_layer_is_recorded_and_pictured(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    expect_pictures(record, folder, ["layers_on_the_roofline.png"])
    layers = {entry["params"]["label"]: entry for entry in record["measurements"] if entry["name"] == "layer"}
    assert len(layers) == sum(entry["name"] == "layer" for entry in record["measurements"]) >= 45
    assert set(prices.PICTURED) <= set(layers)
    kinds = {entry["params"]["layer"].partition("(")[0] for entry in layers.values()}
    assert kinds >= {
        "Linear",
        "Conv2d",
        "MaxPool2d",
        "BatchNorm2d",
        "Dropout",
        "Embedding",
        "LSTM",
        "MultiheadAttention",
    }
    assert all(entry["value"] > 0 and entry["limit"] for entry in layers.values() if entry["params"]["flops"])


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(layer_playground, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_the_lesson_and_the_tool_on_the_gpu(tmp_path: Path) -> None:
    record, _ = run(tmp_path, "--device", "cuda", "--no-plots")
    assert record["device"]["kind"] == "cuda"
    assert use("--device", "cuda", "--layer", typed.NETWORK, "--input", "8,3,32,32")[0] == 0


# Linear, and the three that attention needs


@pytest.mark.parametrize(
    "way", [layer_playground.by_product, layer_playground.by_convolution, layer_playground.one_by_one]
)
def test_linear_in_three_ways(way: Callable[..., torch.Tensor]) -> None:
    for b, t, c_in, c_out in ((1, 1, 1, 1), (2, 6, 5, 3), (3, 1, 7, 11)):
        inputs = torch.randn(b, t, c_in), torch.randn(c_out, c_in), torch.randn(c_out)
        assert agreement(way, F.linear, *inputs).within(1e-5)


def test_the_swapped_axis_is_wrong_where_it_is_not_refused() -> None:
    x, layer = torch.randn(2, 6, 6), nn.Linear(6, 6)
    right = torch.einsum("oi,bit->bot", layer.weight, x) + layer.bias[:, None]
    assert torch.allclose(layer_playground.project_features(layer, x), right, atol=1e-5)
    assert not torch.allclose(layer_playground.project_channels_first(layer, x), right, atol=1e-2)


def test_fused_projections_and_heads_are_those_of_multihead_attention() -> None:
    module, x = nn.MultiheadAttention(12, 3, batch_first=True), torch.randn(2, 5, 12)
    layers = [nn.Linear(12, 12) for _ in range(3)]
    with torch.no_grad():
        for layer, weight, bias in zip(
            layers, module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), strict=True
        ):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    fused = projections.fuse(layers)
    assert torch.equal(fused.weight, module.in_proj_weight)
    q, k, v = (projections.split_heads(part, 3) for part in fused(x).chunk(3, dim=-1))
    joined = projections.attend(q, k, v).transpose(1, 2).flatten(2)
    assert torch.allclose(module.out_proj(joined), module(x, x, x)[0], atol=1e-5)
    assert projections.split_heads_by_reshape(x, 3).shape == q.shape
    assert not torch.equal(projections.split_heads_by_reshape(x, 3), projections.split_heads(x, 3))


def test_the_lstm_in_a_loop() -> None:
    for n, t, c, h in ((1, 1, 1, 1), (3, 7, 2, 5)):
        lstm, x = nn.LSTM(c, h, batch_first=True), torch.randn(n, t, c)
        assert torch.allclose(vectors.step_by_step(lstm, x), lstm(x)[0], atol=1e-5)


# Output sizes


@UNHURRIED
@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 5), st.integers(0, 3), st.integers(1, 4))
def test_windows_are_counted(length: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
    count = windows.windows_that_fit(length, kernel, stride, padding, dilation)
    assert max(0, count) == output_sizes.count_windows(length, kernel, stride, padding, dilation)
    drawing = output_sizes.draw_windows(length, kernel, stride, padding, dilation).splitlines()
    assert len(drawing) == 2 + max(0, count)
    assert all(line.count("x") == kernel for line in drawing[2:])
    if count > 0:
        extra = length - windows.spread_length(count, kernel, stride, padding, 0, dilation)
        assert 0 <= extra < stride
        assert windows.spread_length(count, kernel, stride, padding, extra, dilation) == length


@UNHURRIED
@given(st.integers(1, 200), st.integers(1, 200))
def test_taps_of_an_adaptive_pooling(length: int, outputs: int) -> None:
    taps = sum(math.ceil((i + 1) * length / outputs) - i * length // outputs for i in range(outputs))
    assert windows.adaptive_taps(length, outputs) == taps


def test_dividing_by_the_stride_alone() -> None:
    assert output_sizes.length_by_stride_alone(8, 2) == nn.Conv1d(1, 1, 3, 2, 1)(torch.zeros(1, 8)).shape[-1]
    assert output_sizes.length_by_stride_alone(8, 2) != nn.Conv1d(1, 1, 3, 2)(torch.zeros(1, 8)).shape[-1]


# Formulas against PyTorch's layers

CHOICES: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("bias", "batch_first", "inplace", "ceil_mode", "affine", "elementwise_affine", "bidirectional",
                     "norm_first", "track_running_stats", "count_include_pad"), (True, False)),
    **dict.fromkeys(("kernel_size", "stride", "dilation"), (1, 2, 3, (1, 2), (3, 2), (2, 1, 3))),
    "padding": (0, 1, 2, (1, 0), (0, 1, 1)), "output_padding": (0, 1, (1, 0)), "groups": (1, 1, 2),
    "padding_mode": ("zeros", "reflect", "replicate", "circular"),
    "mode": ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "bicubic", "mean", "sum", "max"),
    "nonlinearity": ("tanh", "relu"), "approximate": ("none", "tanh"), "activation": ("relu", "gelu"), "p": (0.0, 0.3),
    "dropout": (0.0,), "num_layers": (1, 2), "proj_size": (0,), "num_heads": (1, 2), "nhead": (1, 2), "num_groups": (1, 2),
    **dict.fromkeys(("dim", "start_dim", "end_dim"), (-2, -1, 0, 1, 2)),
    "unflattened_size": ((2, -1), (1, 3), (2, 2), (-1, 1, 2)), "output_size": (1, 3, (2, None), (3, 1, 2)),
    "size": (None, 3, (4, 5)), "scale_factor": (None, 2, 1.5, (2, 1.5)), "align_corners": (None, None, True),
    "normalized_shape": (3, (2, 3)), "embed_dim": (2, 4), "d_model": (2, 4), "in1_features": (2,), "in2_features": (2, 3),
}  # fmt: skip
OMITTED = {"device", "dtype", "eps", "momentum", "return_indices", "layer_norm_eps", "recompute_scale_factor",
           "divisor_override", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse", "include_last_offset",
           "kdim", "vdim", "add_bias_kv", "add_zero_attn"}  # fmt: skip
# PyTorch runs these and ignores something, or broadcasts; the playground says so and refuses.
STRICTER = ("Dropout2d", "InstanceNorm", "GroupNorm", "Adaptive", "ConvTranspose", "BatchNorm")


def random_call(generator: random.Random, name: str) -> Call:
    """A layer with its required arguments and some of the others; half of the widths are left open."""
    width, required, arguments = LAYERS[name].width, required_of(name), {}
    for argument in parameters_of(name):
        if argument not in OMITTED and (argument in required or generator.random() < 0.25):
            value = generator.choice(CHOICES.get(argument, (1, 2, 3, 4)))
            arguments[argument] = ... if argument == width and generator.random() < 0.6 else value
    return Call(name, (), arguments)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LAYERS)
def test_a_plan_is_what_pytorch_does(name: str) -> None:
    """Where a plan is made, the layer runs and is as planned; where it does not fit, PyTorch refuses it as well."""
    generator, family = random.Random(name), LAYERS[name]
    fitted = 0
    for _ in range(80):
        shape = tuple(generator.randint(1, 6) for _ in range(generator.randint(1, 5)))
        call = random_call(generator, name)
        found = attempted([call], shape)
        if isinstance(found, CannotRun) and not isinstance(found, DoesNotFit):
            assert "\n" not in str(found)
            continue
        layer = planning.build(planning.filled_in(call, family, shape), family, CPU)
        x = costs.make_input(family, layer, shape, CPU)
        if isinstance(found, DoesNotFit):
            if not name.startswith(STRICTER):
                with pytest.raises(
                    (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError)
                ):
                    family.run(layer, x)
            continue
        assert isinstance(found, list)
        (step,), fitted = found, fitted + 1
        with torch.no_grad():
            assert tuple(family.run(layer, x.clone()).shape) == step.output, (call, shape)
            assert sum(parameter.numel() for parameter in layer.parameters()) == step.parameters, (call, shape)
            counted = costs.count_flops(family, layer, x)
        assert counted in ({step.flops} if family.is_counted else {0, step.flops}), (call, shape)
    assert fitted > 0


def test_every_kind_of_window_is_tried_at_random() -> None:
    generator = random.Random(0)
    names = {output_sizes.random_layer(generator)[0].name for _ in range(300)}
    assert len(names) == 18


def test_a_depthwise_and_a_transposed_layer_by_hand() -> None:
    (depthwise,) = planned("Conv2d(8, 8, 3, groups=8, bias=False)", "2,8,10,10")
    assert (depthwise.parameters, depthwise.flops) == (8 * 9, 2 * 2 * 8 * 64 * 9)
    (transposed,) = planned("ConvTranspose2d(4, 6, 2, stride=2)", "3,4,5,5")
    assert (transposed.output, transposed.flops) == ((3, 6, 10, 10), 2 * 3 * 25 * 4 * 6 * 4)


def test_recurrent_parameters_by_hand() -> None:
    (lstm,) = planned("LSTM(5, 7, 2, bidirectional=True)", "9,2,5")
    assert lstm.parameters == 2 * (4 * 7 * (5 + 7 + 2)) + 2 * (4 * 7 * (14 + 7 + 2))
    assert lstm.flops == 2 * 18 * (lstm.parameters - 2 * 2 * 2 * 4 * 7)
    assert lstm.output == (9, 2, 14)


# What it costs


def cost_of(layers: str, shape: str) -> costs.Cost:
    (step,) = planned(layers, shape)
    x = costs.make_input(step.family, planning.build(step.call, step.family, CPU), step.given, CPU)
    return costs.weigh(step, x, CPU, 0.001)[0]


def test_bytes_are_input_output_and_parameters() -> None:
    assert cost_of("Linear(8, 16)", "4,8").bytes_moved == 4 * (4 * 8 + 4 * 16 + 8 * 16 + 16)
    assert cost_of("Flatten()", "4,8,2").bytes_moved == 0
    assert cost_of("ReLU(inplace=True)", "4,8").bytes_moved == 2 * 4 * 32
    rows = cost_of("Embedding(1, 6)", "5,3")  # one row is read, whatever is asked for
    assert rows.bytes_moved == 15 * 8 + 15 * 6 * 4 + 6 * 4


def test_the_roof_is_the_lower_of_two_limits() -> None:
    roof = costs.Roof(flops=100.0, bandwidth=10.0)
    assert roof.ridge == 10
    assert roof.at_least_s(1000, 10) == 10
    assert roof.at_least_s(1, 50) == 5
    cost = cost_of("ReLU()", "64,64")
    assert roof.side(cost) == "memory"
    assert roof.share(cost) == pytest.approx(cost.bytes_moved / 10 / cost.timing.median_s)
    unknown = costs.Roof(None, 10.0)
    assert (unknown.ridge, unknown.share(cost), unknown.side(cost)) == (None, None, "unknown")
    assert costs.limit_text(cost, unknown) == "unknown"
    assert costs.limit_text(cost, costs.Roof(1e15, 1.0)).endswith("x, from a cache")
    assert costs.limit_text(cost, costs.Roof(1e15, 1e15)).endswith("% of memory")


def test_the_counter_does_not_see_attention_in_evaluation() -> None:
    family, layer, x = LAYERS["MultiheadAttention"], nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 3, 8)
    assert prices.count_in_evaluation(family, layer, x) == 0
    (step,) = planned("MultiheadAttention(8, 2, batch_first=True)", "2,3,8")
    assert costs.count_flops(family, layer.train(), x) == step.flops


@pytest.mark.parametrize(
    ("count", "is_counted", "text"),
    [(0, True, "0"), (7, True, "7"), (7, False, "7*"), (1500, True, "1.50 k"), (4 * 10**9, False, "4.00 G*")],
)
def test_operations_in_few_signs(count: int, is_counted: bool, text: str) -> None:
    assert costs.operations_text(count, is_counted=is_counted) == text


def test_formulas_are_shown_with_their_numbers() -> None:
    assert prices.with_numbers("2 * N * C_in // groups", {"N": 3, "C_in": 8, "groups": 1}) == "2 * 3 * 8 // 1"


def test_labels_of_the_picture_overlap_nothing() -> None:
    generator = random.Random(0)
    taken: list[tuple[float, float, float, float]] = []
    for _ in range(25):
        x, y = generator.uniform(100, 500), generator.uniform(100, 300)
        box = next(box for box in prices.boxes_around(x, y, (80.0, 14.0)) if prices.is_free(box, taken, 790, 415))
        assert all(box[0] >= b[2] or b[0] >= box[2] or box[1] >= b[3] or b[1] >= box[3] for b in taken)
        taken.append(box)


# Reading


@pytest.mark.parametrize(
    "text",
    [
        "Conv2d(3, 8, 3); ReLU()",
        "Conv2d(3, 8, 3)\nReLU()",
        "nn.Conv2d(3, 8, 3), torch.nn.ReLU()",
        "nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(),)",
        "[Conv2d(3, 2 ** 3, 9 // 3); ReLU()]".replace(";", ","),
    ],
)
def test_layers_are_read_in_the_ways_that_people_write_them(text: str) -> None:
    assert list(map(str, read_layers(text, LAYERS))) == ["Conv2d(3, 8, 3)", "ReLU()"]


@pytest.mark.parametrize("text", ["8,3,32,32", "(8, 3, 32, 32)", "[8,3,32,32]", " 8, 3,32,32, "])
def test_shapes_are_read_in_the_ways_that_people_write_them(text: str) -> None:
    assert read_shape(text) == (8, 3, 32, 32)


@pytest.mark.parametrize(
    "text", ["", "8,,3", "8;3", "-1,3", "0,3", "1.5", "8x3", "٣", "1_0", "9" * 40, ",".join("1" * 20), "a\nb"]
)
def test_other_shapes_are_refused(text: str) -> None:
    with pytest.raises(CannotRun) as caught:
        read_shape(text)
    assert "\n" not in str(caught.value)


def test_a_call_is_written_as_it_was_typed_and_changed_in_its_place() -> None:
    (call,) = read_layers("Conv2d(3, 16, (3, 5), padding='same')", LAYERS)
    assert str(call) == "Conv2d(3, 16, (3, 5), padding='same')"
    assert str(call.replaced(in_channels=8, padding=1)) == "Conv2d(8, 16, (3, 5), padding=1)"
    assert str(Call("Linear", (..., 10), {})) == "Linear(..., 10)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Linaer(3, 4)", "did you mean Linear"),
        ("conv2D(3, 4, 3)", "did you mean Conv2d?"),
        ("CrossEntropyLoss()", "does not make one tensor from one tensor"),
        ("LazyLinear(10)", "Linear(..., 10)"),
        ("Blah(3)", "it knows Linear"),
        ("Linear", 'try "Linear(in_features, out_features)"'),
        ("Linear(3)", "lacks out_features"),
        ("Linear(3, 4, biass=False)", "did you mean bias?"),
        ("Linear(3, 4, in_features=3)", "given in_features twice"),
        ("Linear(3, 4, True, 'cpu')", "given 4 arguments"),
        ("ReLU(device=0)", "--device"),
        ("LSTM(3, 4, 1, True)", "given 4 arguments"),
        ("LSTM(3, 4, device='cuda')", "--device"),
        ("Linear(3, 4, _weight=1)", "no argument"),
        ("Linear(x, 4)", "'x' is not read"),
        ("Linear(1e999, 4)", "finite"),
        ("Linear(10**13, 4)", "10^12"),
        ("Linear(2**99999, 4)", "10^12"),
        ("Linear(4 // 0, 4)", "no result"),
        ("Linear(1.5 * 2, 4)", "whole numbers only"),
        ("Linear(*[3, 4])", "is not read"),
        ("Linear(**{})", "one by one"),
        ("Linear(3j, 4)", "is not read"),
        ("Linear(3, 4", "cannot be read"),
        ("Linear(3, 4)\0", "cannot be read"),
        ("", "is empty"),
        ("nn.Sequential()", "is empty"),
        ("ReLU();" * 51, "51 layers"),
        ("ReLU();" * 999, "6,993 characters"),
        ("(" * 999, "cannot be read"),
        ("[" * 90 + "]" * 90, "is empty"),
        ("import os", "is not a layer"),
        ("\x1b[31mReLU()", "\\x1b"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_remedy(text: str, said: str) -> None:
    message = refused(text)
    assert said in message
    assert message.isprintable()
    assert len(message) < 300


WORDS = st.sampled_from([*LAYERS, *"()[]{},;.*=+-/", "**", "//", "...", "…", "'", '"', "\\", "\n", "\0", "lambda:", "nn.", "if",
                         "__import__('os')", "open", "x", "kernel_size=", "bias=True", "None", "1", "3", "10**12", "9**9",
                         "-1", "0.5", "1e400", "9" * 5000, "é", "\udcff", "\x1b[2J", "f'{x}'"])  # fmt: skip


@UNHURRIED
@given(st.lists(WORDS, max_size=25).map("".join), st.sampled_from(["8,3,32,32", "4", "2,3", "5,8,3"]))
@example("Linear(" * 200, "4")
@example("-" * 1900 + "1", "4")
@example("ReLU()" + ".a" * 900, "4")
@example("Linear(" + "1+" * 900 + "1, 2)", "4")
def test_no_text_breaks_the_reader(text: str, shape: str) -> None:
    try:
        found = attempted(read_layers(text, LAYERS), read_shape(shape))
    except CannotRun as error:
        found = error
    if isinstance(found, CannotRun):
        assert str(found).isprintable()
    else:
        assert all(math.prod(step.output) < 2**31 for step in found)


HOSTILE_VALUES = (-1, 0, 1.5, "abc", None, True, (), (1,), (0, 0), LARGEST_NUMBER, 10**6, "same", (1, 2, 3, 4), -3, 1e300, ("a",),
                  ((1,),), ...)  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_no_argument_breaks_the_plan(name: str) -> None:
    """Whatever the arguments, there is a plan within the limits or one line; nothing large is ever allocated."""
    generator = random.Random(name)
    for _ in range(60):
        call = random_call(generator, name)
        hostile = {argument: generator.choice(HOSTILE_VALUES) if generator.random() < 0.4 else value
                   for argument, value in call.arguments.items()}  # fmt: skip
        shape = tuple(generator.choice([1, 2, 3, 1000]) for _ in range(generator.randint(1, 5)))
        found = attempted([Call(name, (), hostile)], shape)
        if isinstance(found, CannotRun):
            assert str(found).isprintable()
        else:
            assert found[0].bytes_needed <= planning.MOST_BYTES["cpu"]


def test_typed_text_is_never_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.eval", lambda *_: pytest.fail("evaluated"))
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("opened"))
    for text in typed.HOSTILE:
        with pytest.raises(CannotRun):
            reading.read_layers(text, LAYERS)


# What does not fit


@pytest.mark.parametrize(
    ("layers", "shape", "said"),
    [
        ("Linear(128, 10)", "32,3,224,224",
         r"a last axis of 128; the input \(32, 3, 224, 224\) has 224; try: Linear\(224, 10\)  or: Flatten\(\); Linear\(150528"),
        ("Linear(150528, 10)", "32,3,224,224", r"try: Flatten\(\); Linear\(150528, 10\)"),
        ("Linear(512, 64)", "8,512,100", r"axis 1 has 512.*movedim\(1, -1\)"),
        ("Conv2d(3, 16, 3)", "8,32,32,3", r"permute\(0, 3, 1, 2\).*--input 8,3,32,32"),
        ("Conv2d(1, 8, 3)", "64,784", r"Unflatten\(1, \(1, 28, 28\)\); Conv2d\(1, 8, 3\)"),
        ("Conv2d(4, 8, 3, groups=2)", "2,3,9,9", r"wants 4 channels in axis 1.*has 3; try: --input 2,4,9,9"),
        ("Conv2d(3, 8, 7)", "2,3,5,9", r"at least 7 places along axis 2.*has 5; try: --input 2,3,7,9"),
        ("MaxPool2d(2); MaxPool2d(9)", "2,3,8,8", r"layer 2 of 2: MaxPool2d\(9\).*MaxPool2d\(2\) gives, \(2, 3, 4, 4\), has 4"),
        ("BatchNorm2d(64)", "8,32,7,7", r"wants 64 channels in axis 1.*has 32; try: BatchNorm2d\(32\)"),
        ("BatchNorm1d(4)", "1,4", r"two numbers or more for each channel"),
        ("LayerNorm((4, 5))", "2,4,6", r"last axes of \(4, 5\).*has \(4, 6\)"),
        ("GroupNorm(4, 8)", "2,6,3", r"try: --input 2,8,3"),
        ("LSTM(8, 4); Linear(8, 2)", "5,3,8", r"Linear\(8, 2\) wants a last axis of 8.*has 4; try: Linear\(4, 2\)"),
        ("MultiheadAttention(8, 2)", "2,3,6", r"last axis of 8.*has 6; try: MultiheadAttention\(6, 2\)"),
        ("ReLU(); Embedding(9, 2)", "2,3", r"layer 2 of 2: Embedding\(9, 2\) wants whole numbers"),
        ("EmbeddingBag(9, 2)", "2,3,4", r"wants \(N, L\).*--input 8,16"),
        ("Unflatten(1, (3, 5))", "2,16", r"wants 15 numbers along axis 1.*has 16"),
        ("PixelShuffle(2)", "1,6,4,4", r"multiple of 4 channels.*has 6"),
        ("Upsample(scale_factor=2, mode='bilinear')", "1,6,4", r"mode='linear'"),
        ("Softmax(dim=3)", "2,3", r"an axis 3.*Softmax\(dim=-1\)"),
        ("Conv2d(3, ..., 3)", "2,3,8,8", r"\.\.\. stands for in_channels only"),
        ("ReLU(...)", "2,3", r"\.\.\. has nothing to stand for"),
        ("MaxPool2d(2, return_indices=True)", "2,3,8,8", r"leave return_indices out"),
        ("MultiheadAttention(8, 3)", "2,3,8", r"refused by PyTorch: AssertionError"),
        ("Linear(0, 3)", "2,3", r"in_features is 0; write a whole number"),
        ("Linear(3, 0)", "2,3", r"holds no numbers"),
    ],
)  # fmt: skip
def test_a_misfit_names_the_axis_and_what_would_fit(layers: str, shape: str, said: str) -> None:
    assert re.search(said, refused(layers, shape)), refused(layers, shape)


@pytest.mark.parametrize(("layers", "shape"), typed.MISTAKES)
def test_every_proposal_fits(layers: str, shape: str) -> None:
    fit, proposed = typed.cures_that_fit(layers, shape, CPU)
    assert fit == proposed


@pytest.mark.parametrize("name", LAYERS)
def test_every_proposal_for_a_random_misfit_fits(name: str) -> None:
    generator = random.Random(name)
    for _ in range(60):
        call = random_call(generator, name)
        if ... in call.arguments.values():
            continue
        shape = tuple(generator.randint(1, 9) for _ in range(generator.randint(1, 5)))
        fit, proposed = typed.cures_that_fit(str(call), ",".join(map(str, shape)), CPU)
        assert fit == proposed, typed.refusal(str(call), ",".join(map(str, shape)), CPU)


ABSURD = [
    *typed.ABSURD,
    ("ReLU()", "1000000000000"),
    ("Embedding(10**9, 1000)", "2,3"),
    ("AdaptiveAvgPool2d(10**9)", "1,3,8,8"),
    ("LSTM(4, 4)", "1000000,2,4"),
    ("Linear(2048, 2048)", "100000,2048"),
    ("MultiheadAttention(8, 2)", "99999,1,8"),
]


@pytest.mark.parametrize(("layers", "shape"), ABSURD)
def test_absurd_sizes_are_refused_before_they_are_allocated(layers: str, shape: str) -> None:
    assert typed.refusal(layers, shape, CPU) is not None


def test_memory_that_is_not_free_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Now:
        free_bytes = 1000

    monkeypatch.setattr(planning, "memory", lambda _: Now)
    assert "needs" in refused("ReLU()", "64,64")


def test_an_open_number_is_what_lazy_layers_find() -> None:
    assert planned(typed.NETWORK, "2,3,32,32")[-1].call.arguments["in_features"] == typed.number_found_by_pytorch(
        (1, 3, 32, 32)
    )
    calls = [
        str(step.call)
        for step in planned("Conv1d(..., 8, 3); BatchNorm1d(...); PReLU(...); Flatten(); Linear(…, 2)", "4,6,9")
    ]
    assert calls == ["Conv1d(6, 8, 3)", "BatchNorm1d(8)", "PReLU(8)", "Flatten()", "Linear(56, 2)"]


# The tool


def test_a_layer_is_explained_and_leaves_no_record(tmp_path: Path) -> None:
    code, out, err = use(
        "--quick", "--out", str(tmp_path), "--layer", "Conv2d(3, 16, 3, padding=1)", "--input", "8,3,32,32"
    )
    assert (code, err) == (0, "")
    assert re.search(r"1 +\(8, 16, 32, 32\) +448 +Conv2d\(3, 16, 3, padding=1\)", out)
    assert "7.08 M" in out
    assert list(tmp_path.iterdir()) == []
    assert max(map(len, out.splitlines())) <= 100


def test_a_network_has_its_sums_and_tells_of_warnings() -> None:
    layers = "Embedding(50, 8); LSTM(8, 16, 1, dropout=0.5, batch_first=True); Linear(..., 2)"
    code, out, err = use("--quick", "--layer", layers, "--input", "4,10", encoding="ascii")
    assert (code, err) == (0, "")
    assert re.search(r"sum +2,098 +3 layers", out)
    assert "Linear(16, 2)" in out
    code, out, _ = use("--quick", "--layer", "Conv1d(2, 2, 2, padding='same')", "--input", "1,2,5")
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layer", "Linear(3, 4)"], "--layer needs the shape"),
        (["--input", "3"], "add --layer"),
        (["--layer", "Linear(3, 4)", "--input", "3", "--json"], "--json"),
        (["--layer", "Linear(3, 4)", "--input", "5"], "try: Linear(5, 4)"),
        (["--layer", "", "--input", "5"], "is empty"),
        (["--layer", "GELU('abc')", "--input", "5"], "refused by PyTorch"),
    ],
)
def test_a_learners_mistake_is_one_line_and_exit_code_2(arguments: list[str], said: str) -> None:
    code, _, err = use(*arguments)
    assert code == 2
    assert said in " ".join(err.split())
    assert err.startswith("layer_playground: ")
    assert len(" ".join(err.split())) < 300


def test_no_memory_while_it_runs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory: asked for 3 GiB")

    monkeypatch.setattr(costs, "measure", fail)
    code, _, err = use("--layer", "ReLU()", "--input", "5")
    assert code == 2
    assert "try a smaller input" in err


def test_the_help_explains_layers_and_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        layer_playground.main(["--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--layer LAYERS" in said
    assert "Linear(..., 10)" in said
    assert "8,3,32,32" in said
