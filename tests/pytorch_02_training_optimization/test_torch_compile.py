"""torch_compile: the whole lesson runs and all its checks hold; what it computes and counts agrees with oracles."""

import logging
import math
import os
import random
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from pytorch_02_training_optimization.src import torch_compile
from pytorch_02_training_optimization.src.compilation import cost, graph_breaks, harness, shapes, training
from shared.agreement import agreement, deviation
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

SECTIONS = [
    "Dynamo: your Python becomes a graph",
    "Guards: when a graph may be used again",
    "AOTAutograd: the backward pass becomes a graph too",
    "Inductor: one loop instead of five passes",
    "The first call, and every other",
    "Graph breaks: where a graph ends",
    "Six traps, and their cures",
    "Branches and loops inside the graph",
    "A new length: one graph for all, or one for each",
    "The limit: when PyTorch gives up compiling",
    "Compile the block once, use it for every layer",
    "Modes: more time for compiling, less for running",
    "A training step, compiled",
    "What compiling changes in your numbers",
]
CPU = torch.device("cpu")

run = partial(run_quick, torch_compile)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("torch_compile")
    return *run(folder), folder / "torch_compile"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=52)


def test_measurements_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    expect_pictures(record, folder, [])  # both pictures need Inductor, which a quick run hardly uses
    names = {measurement["name"] for measurement in record["measurements"]}
    assert {"first call", "later call", "first call of a stack", "training step"} <= names


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(torch_compile, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_on_a_gpu_the_kernel_is_written_for_it(tmp_path: Path) -> None:
    _, text = run(tmp_path, "--device", "cuda", "--no-plots")
    assert "tl.load" in text


@pytest.mark.gpu
def test_a_cuda_graph_gives_its_output_to_the_next_call(compiler: list[str]) -> None:
    inputs = [torch.randn(size, device="cuda") for size in ((8, 16), (16, 64), (64, 16))]
    assert "overwritten" in cost.read_after_the_next_call(inputs)


# Harness


@pytest.fixture
def compiler() -> Iterator[list[str]]:
    """Nothing compiled before, nothing left behind; what the compiler logs."""
    with harness.compiler_session(quick=True) as logged:
        yield logged


@pytest.mark.parametrize("quick", [True, False])
def test_a_session_leaves_nothing_behind(quick: bool, tmp_path: Path) -> None:
    from torch._inductor import config

    loggers = [logging.getLogger(name) for name in harness.EXPECTED_LOGS]

    def state() -> tuple[object, ...]:
        return (
            dict(os.environ), list(warnings.filters), [list(logger.filters) for logger in loggers],
            config.cpp.vec_isa_ok, torch._dynamo.config.recompile_limit,
        )  # fmt: skip

    before = state()
    with harness.compiler_session(quick) as messages:
        loggers[1].warning("from the compiler")
        assert messages == ["from the compiler"]
        folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
        assert quick or Path(folder).is_dir()
    assert state() == before
    assert quick or not Path(folder).exists()


def test_graphs_are_counted_after_each_call(compiler: list[str]) -> None:
    def function(x: torch.Tensor, n: int) -> torch.Tensor:
        return x * n

    x = torch.ones(3)
    calls = [lambda compiled, n=n: compiled(x, n) for n in (5, 5, 5)]
    assert harness.graphs_after(calls, function) == [1, 1, 1]
    by_shape = [lambda compiled, n=n: compiled(torch.ones(n), 2) for n in (3, 4, 4, 3)]
    assert harness.graphs_after(by_shape, function, dynamic=False) == [1, 2, 2, 2]


def test_a_kept_graph_computes_and_names_its_operations(compiler: list[str]) -> None:
    backend = harness.KeepGraphs()
    compiled = torch.compile(lambda x: torch.sin(x).detach() + x, backend=backend)
    x = torch.randn(5)
    assert torch.equal(compiled(x), x.sin() + x)
    assert harness.operations_of(backend.graphs[0]) == ["sin", "add"]  # detach only names a tensor again


def test_readable_code_keeps_what_it_computes() -> None:
    code = """
def forward(self, x):
    relu = torch.ops.aten.relu.default(x)
    alias = torch.ops.aten.alias.default(relu);  relu = None
    alias_1 = torch.ops.aten.alias.default(alias);  alias = None
    zeros = torch.ops.aten.full.default([2], 0, dtype = torch.float32, layout = torch.strided, device = device(type='cpu'))
    add = torch.ops.aten.add.Tensor(alias_1, zeros);  alias_1 = zeros = None
    return add
"""
    assert harness.readable(code).splitlines() == [
        "def forward(self, x):",
        "    relu = aten.relu(x)",
        "    zeros = aten.full([2], 0)",
        "    add = aten.add(relu, zeros)",
        "    return add",
    ]


def test_traffic_counts_bytes_and_no_views() -> None:
    x, bias = torch.randn(6, 4), torch.randn(4)
    with harness.Traffic() as traffic:
        (x.T.reshape(4, 6).T + bias).exp()
    assert traffic.operations[-2:] == ["add", "exp"]
    with harness.Traffic() as traffic:
        x.view(24)[3:].unsqueeze(0).sin()
    assert traffic.operations == ["sin"]
    assert traffic.bytes_moved == 2 * 21 * 4


def test_kernels_are_found_in_a_file() -> None:
    cpu = """
cpp_fused_add_0 = async_compile.cpp_pybinding(['const float*', 'float*'], r'''
extern "C" void kernel(const float* in_ptr0) { }
''')
def call(args):
        extern_kernels.mm(buf0, arg1, out=buf1)
        cpp_fused_add_0(arg0_1, buf0)
        cpp_fused_add_0(arg0_1, buf1)
        buf2 = torch.ops.aten.convolution.default(buf1)
"""
    assert harness.kernels_in(cpu) == ['extern "C" void kernel(const float* in_ptr0) { }']
    assert harness.kernel_calls_in(cpu) == (2, 2)
    gpu = """
triton_poi_fused_0 = async_compile.triton('triton_poi_fused_0', '''
import triton
@triton.jit
def triton_poi_fused_0(in_ptr0): pass
''', device_str='cuda')
def call(args):
            triton_poi_fused_0.run(arg0_1, buf0, 65536, stream=stream0)
"""
    assert len(harness.kernels_in(gpu)) == 1
    assert harness.kernel_calls_in(gpu) == (1, 0)
    assert harness.body_of(harness.kernels_in(gpu)[0]).startswith("@triton.jit")
    assert harness.kernels_in("") == []


def test_a_body_is_short_and_narrow() -> None:
    kernel = """#include <x.h>
extern "C"  void  kernel(const float* in_ptr0,
                       float* out_ptr0)
{
    {
        for(int64_t x0=static_cast<int64_t>(0L); x0<static_cast<int64_t>(8L); x0+=static_cast<int64_t>(1L))
        {
            auto tmp0 = at::vec::Vectorized<float>::loadu(in_ptr0 + static_cast<int64_t>(x0), 16);
        }
    }
}"""
    assert harness.body_of(kernel).splitlines() == [
        'extern "C"  void  kernel(const float* in_ptr0, float* out_ptr0)',
        "  for(long x0=0; x0<8; x0+=1)",
        "    auto tmp0 = Vector::loadu(in_ptr0 + x0, 16);",
    ]
    assert max(map(len, harness.body_of(f'extern "C" {"x" * 300}', width=40).splitlines())) == 40


# Dynamo, guards, AOTAutograd


def test_the_reason_for_a_new_graph(compiler: list[str]) -> None:
    compiled = torch.compile(lambda x, n=2: x * n, backend="eager")
    compiled(torch.ones(3))
    why = torch_compile.why_compile_again
    assert why(lambda: compiled(torch.zeros(3))) == ""
    assert "size mismatch" in why(lambda: compiled(torch.ones(4)))
    assert why(lambda: compiled(torch.ones(3), 3)) == "n == 2"
    assert "dtype mismatch" in why(lambda: compiled(torch.ones(3, dtype=torch.float64)))
    with pytest.raises(ZeroDivisionError):
        why(lambda: 1 / 0)


def test_what_autograd_keeps() -> None:
    x, y = torch.randn(10, requires_grad=True), torch.randn(10, requires_grad=True)
    assert torch_compile.saved_bytes(lambda x: x + 1, x) == 0
    assert torch_compile.saved_bytes(torch.exp, x) == 40  # its result
    assert torch_compile.saved_bytes(torch.mul, x, y) == 0  # only the inputs
    assert torch_compile.saved_bytes(lambda x: x.sin().cos(), x) == 40  # sin's result; x itself is an input


@pytest.mark.parametrize("rows", [1, 7])
def test_both_cuts_have_autograds_gradients(rows: int, compiler: list[str]) -> None:
    from functorch.compile import default_partition, min_cut_rematerialization_partition

    x, bias = torch.randn(rows, 5, requires_grad=True), torch.randn(5, requires_grad=True)
    for partition in (default_partition, min_cut_rematerialization_partition):
        torch.compiler.reset()
        backend = torch_compile.KeepBackward(partition)
        assert agreement(torch.compile(torch_compile.gated, backend=backend), torch_compile.gated, x, bias).within(1e-5)
        assert set(backend.code) == {"forward", "backward"}
        for name, code in backend.code.items():  # what is printed is what is counted
            assert code.count(" = ") == len(backend.operations[name])


# Cost


@pytest.mark.parametrize("seed", range(20))
def test_break_even_by_counting_calls(seed: int) -> None:
    draw = random.Random(seed)
    before_s, share, first_s = draw.uniform(0.01, 1), draw.uniform(0.2, 0.9), draw.uniform(1, 20)
    after_s = share * before_s
    needed = cost.break_even(first_s, before_s, after_s)
    calls = 1
    while first_s + (calls - 1) * after_s > calls * before_s:
        calls += 1
    assert calls - 1 < needed <= calls + 1e-9
    assert cost.break_even(first_s, before_s, before_s) == math.inf
    assert cost.break_even(first_s, before_s, 2 * before_s) == math.inf


@pytest.mark.parametrize(("count", "words"), [
    (7.15, "8 calls"), (1.0, "1 calls"), (99.2, "100 calls"), (123.4, "120 calls"), (232_906, "230,000 calls"),
    (math.inf, "never"),
])  # fmt: skip
def test_calls_in_words(count: float, words: str) -> None:
    assert cost.in_calls(count) == words


def test_the_block_is_a_transformers() -> None:
    block, x = cost.Block(6), torch.randn(3, 6)
    library = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.GELU("tanh"), nn.Linear(12, 6))
    library.load_state_dict(dict(zip(library.state_dict(), block.state_dict().values(), strict=True)))
    assert deviation(block(x), x + library(x)) < 1e-6
    assert cost.elementwise(torch.zeros(1)).item() == pytest.approx(
        1 / (1 + math.exp(-(1.5 * (1 / (1 + math.exp(-(1.5 * (1 / (1 + math.exp(-0.5)) - 0.25) + 0.5))) - 0.25) + 0.5)))
        - 0.25
    )


@pytest.mark.parametrize("way", cost.WAYS)
def test_every_way_to_compile_a_stack_computes_it(way: str, compiler: list[str]) -> None:
    stack, x = cost.Stack(3, 4), torch.randn(2, 4)
    right = stack(x)
    backend = harness.KeepGraphs()
    with torch.no_grad():
        assert deviation(cost.WAYS[way](stack, backend=backend)(x), right) < 1e-6
    assert len(backend) == 1


def test_the_pictures_draw_what_was_measured() -> None:
    tenth, fifth, third = (MagicMock(median_s=seconds) for seconds in (0.1, 0.2, 0.3))
    costs = {
        ("a", "inductor"): (1.0, tenth, 2.0, 10.0),
        ("a", "not compiled"): (0.0, fifth, 1.0, math.inf),
        ("b", "inductor"): (1.0, third, 0.7, math.inf),
        ("b", "not compiled"): (0.0, fifth, 1.0, math.inf),
    }
    panels = [MagicMock(), MagicMock()]
    cost.draw_break_even(panels, costs, ["a", "b"])
    (plain, compiled), (never, _) = (panel.loglog.call_args_list for panel in panels)
    counts, seconds = compiled.args
    assert seconds == pytest.approx([1 + 0.1 * (count - 1) for count in counts])
    assert plain.args[1] == pytest.approx([0.2 * count for count in counts])
    assert panels[0].axvline.call_args.args == (10.0,)
    assert not panels[1].axvline.called
    assert never.args[0][-1] == pytest.approx(1e5)
    axes = MagicMock()
    cost.draw_depths(axes, {"the whole model": [1, 2, 4], "block.compile()": [1, 4]},
                     {"the whole model": [1.0, 2.0, 4.0], "block.compile()": [1.0, 1.1]})  # fmt: skip
    assert [call.args for call in axes.plot.call_args_list] == [([1, 2, 4], [1.0, 2.0, 4.0]), ([1, 4], [1.0, 1.1])]


def test_inductor_writes_one_loop_and_leaves_the_products(lesson: Any, compiler: list[str]) -> None:
    if "Not run here: The kernel" in lesson[1]:
        pytest.skip("needs a compiler")
    inputs = [torch.randn(size) for size in ((3, 8), (8, 16), (16, 8))]
    torch.compiler.reset()
    result, (code,) = harness.run_and_read(torch.compile(cost.two_products), *inputs)
    assert deviation(result, cost.two_products(*inputs)) < 1e-5
    assert harness.kernel_calls_in(code) == (1, 2)
    assert "kernel" in harness.body_of(harness.kernels_in(code)[0])


# Graph breaks and traps


def test_breaks_are_found_where_they_are(compiler: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        print("here")
        return y.cos()

    found = graph_breaks.find_breaks(function, torch.ones(2))
    assert (found.graphs, found.lines) == (2, ('print("here")',))
    assert found.reasons[0] in graph_breaks.REASONS
    assert graph_breaks.find_breaks(torch.sin, torch.ones(2)) == graph_breaks.Breaks(1, (), ())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 100.0])
def test_scaling_in_one_graph_is_scaling_in_four(scale: float) -> None:
    for shape in [(1,), (17,), (3, 5)]:
        x = scale * torch.randn(shape) + 1
        assert deviation(graph_breaks.scale_in_one_graph(x), graph_breaks.scale_in_four_graphs(x)) < 1e-6


@pytest.mark.parametrize("trap", graph_breaks.TRAPS, ids=lambda trap: trap.name)
def test_cures_compute_what_traps_compute_without_a_compiler(trap: graph_breaks.Trap) -> None:
    trapped, cured = (graph_breaks.make(thing, CPU) for thing in (trap.trap, trap.cure))
    for x in [
        torch.ones(4),
        -torch.ones(4),
        torch.randn(2, 3),
        torch.randn(5, 4).T,
        torch.randn(3, dtype=torch.float64),
    ]:
        assert deviation(graph_breaks.first_of(cured(x)), graph_breaks.first_of(trapped(x))) < 1e-6
    if trap.trap is graph_breaks.TrapHistory:
        assert len(trapped.seen) == 5


def test_counts_of_a_trap(compiler: list[str]) -> None:
    inputs = [torch.ones(3), 2 * torch.ones(3), -torch.ones(3)]
    counts, results = graph_breaks.run_compiled(graph_breaks.trap_branch, inputs)
    assert counts == [2, 2, 3]  # the sum, and then one graph for each branch
    assert torch.equal(results, torch.stack([graph_breaks.cure_branch(x) for x in inputs]))


def test_drawing_twice_leaves_numpys_generator_alone() -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]
    assert graph_breaks.draw_twice(graph_breaks.draw_with_numpy)
    assert not graph_breaks.draw_twice(lambda x: x + torch.rand(3))
    assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr, index]


def test_a_note_is_taken_on_every_call(compiler: list[str]) -> None:
    log: list[float] = []
    backend = harness.KeepGraphs()
    function = graph_breaks.compile_around_a_note(log, backend)
    for value in (1.0, 2.0, 3.0):
        assert torch.equal(function(torch.full((2,), value)), torch.full((2,), 2 * value + 1))
    assert log == [4.0, 8.0, 12.0]
    assert len(backend) == 2


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0, 1000.0])
def test_loops_and_branches_in_the_graph_are_pythons(scale: float, compiler: list[str]) -> None:
    x = scale * torch.tensor([1.0, -0.3, 0.7])
    branch = torch.compile(graph_breaks.branch_in_graph, backend="eager", fullgraph=True)
    for sign in (1, -1):
        assert agreement(branch, graph_breaks.branch_in_python, sign * x).within(1e-6)
    (value, steps), (right, right_steps) = (
        function(x)
        for function in (torch.compile(graph_breaks.halve_in_graph, backend="eager"), graph_breaks.halve_in_python)
    )
    assert torch.equal(value, right)
    assert steps.item() == right_steps.item() == max(0, math.ceil(math.log2(scale)))


# Lengths


def test_padding_reaches_a_multiple() -> None:
    for length in range(1, 40):
        x = torch.randn(2, length, 3)
        padded = shapes.pad_tokens(x)
        assert padded.shape[1] % 16 == 0
        assert padded.shape[1] - length < 16
        assert torch.equal(padded[:, :length], x)
        assert not padded[:, length:].any()


@pytest.mark.parametrize(("way", "expected"), [
    ("as it comes", [1, 1, 2, 2, 2]), ("dynamic=True", [1] * 5), ("mark_dynamic(x, 1)", [1] * 5),
    ("padded to 16", [1, 1, 1, 1, 2]), ("dynamic=False", [1, 1, 2, 3, 4]),
])  # fmt: skip
def test_graphs_by_length(way: str, expected: list[int], compiler: list[str]) -> None:
    assert shapes.count_by_length(shapes.make_batches([7, 7, 3, 12, 20], CPU), way) == expected


def test_a_mark_for_each_length_that_was_compiled() -> None:
    assert shapes.draw_counts([5, 6, 12], {"way": [1, 1, 2], "b": [1, 2, 2]}).splitlines() == [
        "     length  5  6 12",
        "way  graph?  ×  ·  ×   2",
        "b    graph?  ×  ×  ·   2",
    ]


def test_pooled_sentences_have_unit_length() -> None:
    x = torch.randn(4, 7, 16, dtype=torch.float64)
    assert torch.allclose(shapes.pool(x), F.normalize(x.sum(dim=1), dim=1))


# Training


def test_a_compiled_training_is_the_plain_one(compiler: list[str]) -> None:
    x, y = torch.randn(16, 3, 32, 32), torch.randint(5, (16,))
    plain, compiled = (
        training.make_trainer(5, 8, CPU, 3, compile_it)
        for compile_it in (lambda function: function, lambda function: torch.compile(function, backend="eager"))
    )
    for ours, theirs in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    by_hand = training.make_trainer(5, 8, CPU, 3, lambda function: function).model
    library = torch.optim.AdamW(by_hand.parameters(), lr=1e-3)
    for _ in range(4):
        library.zero_grad()
        loss = F.cross_entropy(by_hand(x), y)
        loss.backward()
        library.step()
        for trainer in (plain, compiled):
            assert trainer.step(x, y).item() == pytest.approx(loss.item(), rel=1e-4)
    assert all(parameter.grad is None for parameter in plain.model.parameters())


def test_a_scheduler_and_the_graphs_of_the_update(compiler: list[str]) -> None:
    assert training.count_graphs_of_updates(torch.tensor(1e-2), CPU) == [1, 1, 1]
    assert training.count_graphs_of_updates(1e-2, CPU)[-1] > 1


def test_a_mask_is_that_of_its_seed() -> None:
    masks = [training.draw_mask(training.drop_half, CPU, seed) for seed in (4, 4, 5)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert set(masks[0].tolist()) == {0.0, 2.0}


def test_errors_are_root_mean_squares() -> None:
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert training.rms_error(torch.tensor([1.0, 2.0]), exact) == 0
    assert training.rms_error(torch.tensor([4.0, 6.0]), exact) == pytest.approx(math.sqrt((9 + 16) / 2))
    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.allclose(training.drift(x), 1.01**10 * x + 1.01**10 - 1)
    assert training.column_sums(x).sum().item() == pytest.approx(3)
