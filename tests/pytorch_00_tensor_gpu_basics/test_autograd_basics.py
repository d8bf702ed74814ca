"""autograd_basics: the whole lesson runs and all its checks hold; engine, graphs and counts agree with oracles."""

import itertools
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_00_tensor_gpu_basics.src import autograd_basics
from pytorch_00_tensor_gpu_basics.src.gradients import (
    accumulation,
    cost,
    engine,
    expressions,
    graphs,
    higher_order,
    in_place,
    own_engine,
    own_functions,
    recording,
    walk,
)
from pytorch_00_tensor_gpu_basics.src.gradients.engine import Tracked, unbroadcast
from pytorch_00_tensor_gpu_basics.src.gradients.kept import KeptBytes
from shared.snippets import complaint
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch

CPU = torch.device("cpu")
SECTIONS = [
    "A gradient is a slope",
    "Backpropagation by hand",
    "A reverse-mode engine of our own",
    "The engine trains a network",
    "What a gradient costs",
    "Leaves: who gets a .grad",
    "The graph that backward() walks",
    "A new graph for every input",
    "no_grad, inference_mode, detach",
    "What a kept loss keeps alive",
    "In-place operations: the law",
    "In-place operations: the errors",
    "A gradient that is nan, and the line it came from",
    "Gradients add up, and zero_grad",
    "An operation with a backward of your own",
    "Gradients of gradients",
    "torch.func: a gradient is a function of a function",
]
FIGURES = ["slope_error.png", "graph.png", "two_graphs.png", "forgotten_zero_grad.png", "derivatives.png"]


run = partial(run_quick, autograd_basics)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("autograd_basics")
    return *run(folder), folder / "autograd_basics"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=90)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    names = {measurement["name"] for measurement in record["measurements"]}
    assert names == {"largest deviation of a gradient", "training step", "forward", "backward", "gradient", "kept",
                     "gradients of each sample"}  # fmt: skip
    expect_pictures(record, folder, FIGURES)


def test_the_text_fits_and_has_the_messages_of_pytorch(lesson: tuple[dict[str, Any], str, Path]) -> None:
    _, text, _ = lesson
    for said in ("not a leaf Tensor is being accessed", "can't optimize a non-leaf", "only for scalar outputs",
                 "does not have a grad_fn", "a second time", "modified by an inplace operation",
                 "a view of a leaf Variable", "returns multiple views", "Inference tensors cannot be saved",
                 "returned nan values", "Jacobian mismatch", "control flow"):  # fmt: skip
        assert said in " ".join(text.split())


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(autograd_basics, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_it_runs_on_a_gpu(tmp_path: Path) -> None:
    record, _ = run(tmp_path, "--device", "cuda")
    assert record["device"]["kind"] == "cuda"
    assert record["figures"] == FIGURES


# A slope


@pytest.mark.parametrize("degree", [1, 2])
def test_differences_are_exact_for_the_polynomials_that_they_are_made_for(degree: int) -> None:
    x, h = torch.linspace(-2, 2, 9, dtype=torch.float64), 0.25  # powers of two: no rounding
    slope = torch.full_like(x, 3.0) if degree == 1 else 2 * x
    function: Callable[[torch.Tensor], torch.Tensor] = (lambda x: 3 * x) if degree == 1 else (lambda x: x * x)
    assert autograd_basics.central_difference(function, x, h).equal(slope)
    assert autograd_basics.forward_difference(function, x, h).equal(slope + (h if degree == 2 else 0))


def test_the_error_of_a_slope_is_relative() -> None:
    x = torch.tensor([0.5, 1.0], dtype=torch.float64)
    exact = torch.cos(x) * torch.exp(torch.sin(x))
    assert autograd_basics.mean_error(exact, x) == 0
    assert autograd_basics.mean_error(1.01 * exact, x) == pytest.approx(0.01)
    assert autograd_basics.mean_error(autograd_basics.slope_by_backward(x), x) < 1e-15


def test_the_chain_is_drawn_in_columns() -> None:
    drawn = autograd_basics.draw_chain(["w", "m", "L"], ["x 3", "²"], [1.5, 4.5, 20.25], [3, 9], [27, 9, 1])
    assert drawn.splitlines() == [
        "               x 3        ²",
        "           w   ──→   m   ──→   L",
        "forward   1.5       4.5      20.25",
        "",
        "               x 3       x 9",
        "backward   27  ◀──   9   ◀──   1",
    ]


def test_gradients_are_received_by_leaves_alone() -> None:
    w = torch.ones(2, requires_grad=True)
    assert autograd_basics.receives_gradient(w) == "yes"
    assert autograd_basics.receives_gradient(w * 2) == "no"
    assert autograd_basics.receives_gradient(torch.ones(2)) == "no"
    assert not autograd_basics.initialise_as_a_product().is_leaf
    assert autograd_basics.initialise_then_require().is_leaf


# The engine


@pytest.mark.parametrize("seed", [11, 2**31])
def test_a_thousand_random_expressions_have_the_gradients_of_autograd(seed: int) -> None:
    generator = random.Random(seed)
    agreement = own_engine.compare_engines(expressions.random_expression(generator) for _ in range(1000))
    assert agreement.value < 1e-10
    assert agreement.gradient < 1e-10
    assert agreement.gradients > 5000
    assert agreement.operations.keys() == {*expressions.OF_ONE, *expressions.OF_TWO}


WRONG = {
    "tanh": lambda self: Tracked(self.data.tanh(), (self, lambda g: g * (1 - self.data.tanh()))),
    "sin": lambda self: Tracked(self.data.sin(), (self, lambda g: -g * self.data.cos())),
    "relu": lambda self: Tracked(self.data.relu(), (self, lambda g: g)),
    "__sub__": lambda self, other: Tracked(self.data - other.data, (self, lambda g: g), (other, lambda g: g)),
    "__neg__": lambda self: Tracked(-self.data, (self, lambda g: g)),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_comparison_notices_a_wrong_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tracked, name, WRONG[name])
    generator = random.Random(3)
    agreement = own_engine.compare_engines(expressions.random_expression(generator) for _ in range(50))
    assert agreement.gradient > 1e-3


def test_the_comparison_notices_a_wrong_sum_over_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_copy_only(gradient: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        for _ in range(gradient.ndim - len(shape)):
            gradient = gradient[0]
        return gradient[tuple(slice(0, size) for size in shape)]

    monkeypatch.setattr(engine, "unbroadcast", first_copy_only)
    generator = random.Random(3)
    agreement = own_engine.compare_engines(expressions.random_expression(generator) for _ in range(50))
    assert agreement.gradient > 1e-3


def test_expressions_are_varied_and_the_same_for_the_same_seed() -> None:
    made = [[expressions.random_expression(random.Random(seed)) for seed in range(100)] for _ in range(2)]
    assert [one.steps for one in made[0]] == [one.steps for one in made[1]]
    assert all(a.equal(b) for x, y in zip(*made, strict=True) for a, b in zip(x.leaves, y.leaves, strict=True))
    reads = [number for one in made[0] for step in one.steps for number in step.inputs]
    assert any(step.inputs[0] == step.inputs[-1] and len(step.inputs) == 2 for one in made[0] for step in one.steps)
    assert len(reads) > 1000
    for one in made[0]:
        values = list(one.leaves)
        for step in one.steps:
            values.append(step.run(values))
        assert max(value.numel() for value in values) <= expressions.LARGEST
        assert all(value.isfinite().all() for value in values)


def test_fit_agrees_with_torch() -> None:
    shapes = [(), (1,), (3,), (2, 3), (3, 2), (1, 3), (4, 2, 3), (1, 3, 2), (4, 3, 2)]
    for left, right, name in itertools.product(shapes, shapes, expressions.OF_TWO):
        a, b = torch.ones(left), torch.ones(right)
        try:
            expressions.OF_TWO[name](a, b)
        except RuntimeError:
            assert not expressions.fit(name, a, b)
        else:
            assert expressions.fit(name, a, b) == (name != "@" or min(a.ndim, b.ndim) >= 2)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 3), (2, 1), (2, 3), (1, 1), (4, 2, 3), (4, 1, 1)])
def test_unbroadcast_is_the_gradient_of_expand(shape: tuple[int, ...]) -> None:
    for larger in [shape, (4, 2, 3), (5, 4, 2, 3)]:
        if torch.broadcast_shapes(shape, larger) != larger:
            continue
        x = torch.zeros(shape, requires_grad=True)
        gradient = torch.randn(larger)
        x.expand(larger).backward(gradient)
        assert x.grad is not None
        torch.testing.assert_close(unbroadcast(gradient, x.shape), x.grad)


OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "numbers on the left": lambda a, b: 2.0 - a + 3.0 * b + 1.0 / (a * a + 1.0),
    "a tensor on the left": lambda a, b: torch.ones(3) * a + torch.full((3,), 2.0) - b,
    "a tensor @ on the left": lambda a, b: torch.eye(2) @ a @ torch.ones(3, 1),
    "batches of matrices": lambda a, b: (a.reshape(1, 2, 3) @ b.reshape(3, 1)) * 1.0,
    "itself": lambda a, b: a * a + a / (a * a + 1.0) - b * b,
    "a matrix times its transpose": lambda a, b: a @ a.transpose(0, 1),
    "row read twice": lambda a, b: a[torch.tensor([0, 1, 0, 0])] * b,
    "slices": lambda a, b: a[:, 1:] * b[:2] + a[..., -1:],
    "mask": lambda a, b: a[torch.tensor([True, False])] * b,
    "means": lambda a, b: a.mean(dim=0) * b.mean() + a.mean(dim=1, keepdim=True),
    "sums": lambda a, b: a.sum(dim=-2) + a.sum(dim=1, keepdim=True) * b.sum(0, keepdim=True),
    "power": lambda a, b: (a * a + 1.0) ** -1.5 + b**2,
    "relu at 0": lambda a, b: (a * 0.0).relu() + b.relu(),
    "logarithm": lambda a, b: (a * a + 0.5).log() * b.exp(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_by_hand(name: str) -> None:
    leaves = torch.randn(2, 3), torch.randn(3)
    ours, theirs = [Tracked(leaf) for leaf in leaves], [leaf.clone().requires_grad_() for leaf in leaves]
    results = OPERATIONS[name](*ours), OPERATIONS[name](*theirs)
    weights = torch.randn(results[1].shape)
    results[0].backward(weights)
    results[1].backward(weights)
    torch.testing.assert_close(results[0].data, results[1].detach())
    for own, leaf in zip(ours, theirs, strict=True):
        if leaf.grad is None:
            assert own.grad is None
        else:
            torch.testing.assert_close(own.grad, leaf.grad)


def test_leaves_gather_and_results_do_not() -> None:
    x = Tracked(torch.tensor(3.0))
    result = x * x
    result.backward()
    result.backward()
    assert x.grad == 12
    assert result.grad is None
    x.backward()
    assert x.grad == 13


def test_the_engine_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match=r"not at shape \(2,\)"):
        Tracked(torch.ones(2)).backward()
    with pytest.raises(ValueError, match="matrices"):
        Tracked(torch.ones(2)) @ torch.ones(2, 2)
    learns = torch.ones(2, requires_grad=True)
    assert not Tracked(learns).data.requires_grad


def test_a_chain_deeper_than_the_stack() -> None:
    x = Tracked(torch.ones((), dtype=torch.float64))
    end = own_engine.chain(x, 20_000)
    end.backward()
    y = torch.ones((), dtype=torch.float64, requires_grad=True)
    own_engine.chain(y, 20_000).backward()
    assert x.grad is not None
    assert y.grad is not None
    assert x.grad.item() == pytest.approx(y.grad.item(), rel=1e-9)
    assert "RecursionError" in complaint(lambda: own_engine.order_by_recursion(end, set()))


def test_recursion_orders_what_is_shallow() -> None:
    a, b = Tracked(torch.ones(())), Tracked(torch.ones(()))
    middle = a * b
    end = middle + a * middle
    order = own_engine.order_by_recursion(end, set())
    assert len(order) == len(set(order)) == 5
    assert all(order.index(source) < order.index(node) for node in order for source, _ in node.edges)


# Cost


def test_flops_of_products_are_counted() -> None:
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert cost.count_flops(lambda: a @ b) == 2 * 3 * 5 * 7
    assert cost.count_flops(lambda: a.sin()) == 0


@pytest.mark.parametrize("n", [1, 7])
def test_finite_differences_need_one_call_more_than_entries(n: int) -> None:
    x = torch.randn(n, dtype=torch.float64)
    function = cost.Counted(lambda x: (x.sin() * x.flip(0)).sum())
    slopes = cost.finite_difference_gradient(function, x)
    assert function.calls == n + 1
    torch.testing.assert_close(slopes, cost.gradient_by_backward(function, x), rtol=1e-5, atol=1e-5)
    assert function.calls == n + 2


# Graphs


def random_graph(seed: int) -> list[walk.Operation]:
    expression = expressions.random_expression(random.Random(seed))
    leaves = {f"x{i}": leaf.clone().requires_grad_() for i, leaf in enumerate(expression.leaves)}
    return walk.read_graph(expression.run(list(leaves.values())), leaves)


def nodes_by_recursion(node: Any) -> set[Any]:
    return {node}.union(*(nodes_by_recursion(source) for source, _ in node.next_functions if source is not None))


def test_every_node_is_found_once() -> None:
    loss, leaves = graphs.example_loss(CPU)
    nodes = walk.nodes_behind(loss)
    assert len(nodes) == len(set(nodes))
    assert set(nodes) == nodes_by_recursion(loss.grad_fn)
    x = torch.ones(2, requires_grad=True)
    square = (x * x).sum()
    assert [walk.operation_name(node) for node in walk.nodes_behind(square)] == [
        "Sum",
        "Mul",
        "torch::autograd::AccumulateGrad",
    ]
    assert walk.read_graph(square, {"x": x})[1].sources == [2, 2]
    assert len(leaves) == 3


def test_a_graph_is_read_with_shapes_and_names() -> None:
    w, x = torch.randn(3, 2, requires_grad=True), torch.randn(5, 3)
    graph = walk.read_graph((x @ w).tanh().sum(), {"w": w})
    assert [(operation.name, operation.is_leaf, operation.arrives) for operation in graph] == [
        ("Sum", False, ()), ("Tanh", False, (5, 2)), ("Mm", False, (5, 2)), ("w", True, (3, 2)),
    ]  # fmt: skip
    assert [operation.saved for operation in graph] == [{}, {"result": (5, 2)}, {"self": (5, 3)}, {}]
    assert [walk.caption(operation) for operation in graph] == ["", "keeps 5 x 2", "keeps 5 x 3", "leaf, 3 x 2"]
    assert [line for line, _, _ in walk.tree(graph)] == ["Sum", "  Tanh", "    Mm", "      w"]
    assert w.grad is not None  # the graph was walked


def test_a_shared_node_is_expanded_once_in_the_tree() -> None:
    w = torch.ones(2, requires_grad=True)
    h = w.exp()
    lines = walk.tree(walk.read_graph((h * h.sin()).sum(), {"w": w}))
    again = [line.strip() for line, _, seen in lines if seen]
    assert again == ["Exp"]
    assert sum(line.strip() == "w" for line, _, _ in lines) == 1


@pytest.mark.parametrize("seed", range(20))
def test_boxes_do_not_overlap_and_arrows_point_down(seed: int) -> None:
    graph = random_graph(seed)
    rows, places = walk.layers(graph), walk.columns(graph)
    for number, operation in enumerate(graph):
        assert all(rows[source] > rows[number] for source in operation.sources)
    for (row, place), (other_row, other) in itertools.combinations(zip(rows, places, strict=True), 2):
        assert row != other_row or abs(place - other) > walk.BOX_WIDTH


def test_shrinking_is_what_it_says() -> None:
    for length in (0.0, 0.9, 1.0, 1.1, 17.0, 1e6):
        x = torch.tensor([length, 0.0], requires_grad=True)
        graphs.shrink(x).backward()
        turns = max(0, math.ceil(math.log2(length))) if length else 0
        assert x.grad is not None
        assert x.grad.tolist() == [0.5**turns] * 2


# Recording


def test_kept_bytes_are_those_that_operations_keep() -> None:
    x = torch.ones(10, requires_grad=True)
    with KeptBytes([x]) as kept:
        y = x.exp()
        assert (kept.now, kept.ever) == (40, 40)
        z = y.sin()  # keeps y again: the same storage
        assert kept.now == 40
        total = (z * z).sum()  # keeps z
        assert (kept.now, kept.ever) == (80, 80)
        total.backward()
    assert (kept.now, kept.ever) == (0, 80)
    with KeptBytes() as kept:
        result = x.sin()
    assert kept.now == 40
    del result
    assert kept.now == 0


@pytest.mark.parametrize("steps", [1, 4])
def test_updates_shrink_the_weight_and_one_of_them_grows_a_graph(steps: int) -> None:
    start = torch.ones(2)
    right = recording.update_in_no_grad(start.clone().requires_grad_(), steps)
    recorded = recording.update_while_recording(start.clone().requires_grad_(), steps)
    assert right.tolist() == pytest.approx([0.8**steps] * 2)
    assert recorded.tolist() == pytest.approx([0.8**steps] * 2)
    assert right.is_leaf
    assert len(walk.nodes_behind(recorded)) == steps + 1


# In place


@pytest.mark.parametrize(
    "operation", [*in_place.OPERATIONS, "x.cos()", "x.sqrt()", "x.softmax(0)", "x / x", "c / x", "x.abs()", "x - c"]
)
def test_writes_break_exactly_what_is_kept(operation: str) -> None:
    kept = in_place.keeps(operation, CPU)
    assert {name for name in "xcy" if in_place.breaks(operation, name, CPU)} == kept


@pytest.mark.parametrize("case", in_place.CASES, ids=lambda case: case.mistake.__name__)
def test_mistakes_are_refused_and_cures_are_right(case: in_place.Case) -> None:
    for _ in range(3):
        point = torch.randn(3, dtype=torch.float64)
        w = point.clone().requires_grad_()
        assert complaint(lambda: case.mistake(w).backward()).startswith("RuntimeError")
        assert torch.autograd.gradcheck(case.cure, point.clone().requires_grad_())


def test_anomaly_mode_finds_nothing_in_what_is_right() -> None:
    x = torch.tensor([4.0, 0.0])
    assert in_place.line_found_by_anomaly_mode(in_place.guard_the_input, x.clone().requires_grad_()) == ("", "", "")
    error, place, line = in_place.line_found_by_anomaly_mode(in_place.guard_the_result, x.clone().requires_grad_())
    assert "nan" in error
    assert place == "guard_the_result"
    assert "x.sqrt()" in line
    assert not torch.is_anomaly_enabled()


# Accumulation


def test_a_forgotten_zero_grad_is_momentum_without_friction() -> None:
    x, y = accumulation.line_data(50, CPU)
    forgotten = accumulation.train_and_forget_zero_grad(x, y, 30)
    assert forgotten == pytest.approx(accumulation.train(x, y, 30, momentum=1.0), rel=1e-4)
    right = accumulation.train(x, y, 30)
    assert right == sorted(right, reverse=True)
    assert right[0] == forgotten[0]


@pytest.mark.parametrize("sizes", [[1], [5, 5], [3, 1, 7], [1] * 11])
def test_micro_batches_add_up(sizes: list[int]) -> None:
    x, y = (part.double() for part in accumulation.line_data(sum(sizes), CPU))
    w = torch.randn(2, dtype=torch.float64)
    whole = accumulation.gradient_in_parts(x, y, w, [sum(sizes)])
    error = w[0] * x + w[1] - y
    torch.testing.assert_close(whole, torch.stack([(2 * error * x).mean(), (2 * error).mean()]))
    torch.testing.assert_close(accumulation.gradient_in_parts(x, y, w, sizes), whole)
    unweighted = accumulation.gradient_in_parts_unweighted(x, y, w, sizes)
    assert torch.allclose(unweighted, whole) == (len(set(sizes)) == 1)


# Own functions


def test_softplus_and_its_slope() -> None:
    x = torch.cat([torch.randn(100) * 10, torch.tensor([-1e4, -100, -0.0, 0, 100, 1e4, math.inf, -math.inf])])
    torch.testing.assert_close(own_functions.Softplus.apply(x), torch.nn.functional.softplus(x))
    torch.testing.assert_close(own_functions.slope_of(own_functions.Softplus.apply, x), torch.sigmoid(x))
    double = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(own_functions.Softplus.apply, double)
    assert torch.autograd.gradgradcheck(own_functions.Softplus.apply, double)
    assert torch.autograd.gradcheck(own_functions.LeavesPyTorch.apply, double)
    assert torch.autograd.gradcheck(own_functions.LeavesPyTorchAndSaysSo.apply, double)


@pytest.mark.parametrize("function", [own_functions.ForgetsTheChainRule, own_functions.WrongSign])
def test_broken_backwards_are_caught(function: Any) -> None:
    double = torch.randn(3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="mismatch"):
        torch.autograd.gradcheck(function.apply, double)


def test_the_second_derivative_is_right_where_the_first_stays_in_pytorch() -> None:
    x = torch.randn(5, dtype=torch.float64)
    slope = torch.sigmoid(x)
    exact = 2 * slope**2 + 2 * torch.nn.functional.softplus(x) * slope * (1 - slope)
    torch.testing.assert_close(own_functions.differentiate_twice(own_functions.Softplus.apply, x.clone()), exact)
    wrong = own_functions.differentiate_twice(own_functions.LeavesPyTorch.apply, x.clone())
    assert (wrong - exact).abs().min() > 1e-6


def test_a_rounded_weight_learns_when_the_gradient_passes() -> None:
    assert own_functions.learn_a_rounded_weight(torch.round, 50, CPU) == 0
    assert own_functions.learn_a_rounded_weight(own_functions.RoundStraightThrough.apply, 50, CPU) == 3


# Higher order


def test_derivatives_of_a_polynomial() -> None:
    x = torch.randn(7, dtype=torch.float64)
    found = higher_order.derivatives(lambda x: x**5, x, 4)
    for order, (values, factor) in enumerate(zip(found, (1, 5, 20, 60, 120), strict=True)):
        torch.testing.assert_close(values, factor * x ** (5 - order))


@pytest.mark.parametrize("n", [2, 5])
def test_hessian_vector_products(n: int) -> None:
    matrix, x, v = (torch.randn(*shape, dtype=torch.float64) for shape in ((n, n), (n,), (n,)))
    product = higher_order.hessian_vector_product(lambda x: x @ matrix @ x, x, v)
    torch.testing.assert_close(product, (matrix + matrix.mT) @ v)
    full = torch.autograd.functional.hessian(higher_order.curved, x)
    torch.testing.assert_close(higher_order.hessian_vector_product(higher_order.curved, x, v), full @ v)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (4, 3), (2, 9)])
def test_jacobians_row_by_row_and_column_by_column(inputs: int, outputs: int) -> None:
    function, x = higher_order.two_layers(inputs, outputs), torch.randn(inputs, dtype=torch.float64)
    exact = torch.autograd.functional.jacobian(function, x)
    rows, backwards = higher_order.jacobian_by_rows(function, x)
    columns, forwards = higher_order.jacobian_by_columns(function, x)
    torch.testing.assert_close(rows, exact)
    torch.testing.assert_close(columns, exact)
    torch.testing.assert_close(higher_order.central_jacobian(function, x), exact, rtol=1e-6, atol=1e-7)
    assert (backwards, forwards) == (outputs, inputs)


def test_gradients_of_each_sample() -> None:
    w, x, y = torch.randn(4), torch.randn(6, 4), torch.randn(6)
    each = higher_order.per_sample_gradients(w, x, y)
    predicted = torch.tanh(x @ w)
    torch.testing.assert_close(each, (2 * (predicted - y) * (1 - predicted**2))[:, None] * x)
    torch.testing.assert_close(higher_order.gradients_by_loop(w, x, y), each)
