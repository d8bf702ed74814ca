"""tensor_math: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import itertools
import math
import random
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytorch_00_tensor_gpu_basics.src import tensor_math
from pytorch_00_tensor_gpu_basics.src.mathematics import (
    broadcasting,
    contractions,
    einsum,
    orders,
    products,
    reductions,
)
from pytorch_00_tensor_gpu_basics.src.mathematics.observed import flops_seen, moved_bytes, new_bytes, observe
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import numpy as np
import pytest
import torch
import torch.nn.functional as F

SECTIONS = [
    "A function for each number",
    "In place, and into memory that exists",
    "The axis that you name is the one that disappears",
    "keepdim: so that the result fits back",
    "The largest, and where it is",
    "What a reduction assumes",
    "A long sum: the order decides the digits",
    "Softmax: take the largest away first",
    "Broadcasting: how two shapes meet",
    "The message when they do not fit",
    "Stretching copies nothing",
    "A broadcast that explodes: all distances",
    "The silent bug: (N, 1) minus (N,)",
    "Matrix products: one rule, six names",
    "matmul, from vectors to batches of batches",
    "What a product says when it does not fit",
    "Many small products: one call for all",
    "einsum: name the axes",
    "einsum: short forms, and what it refuses",
    "Three matrices, two orders",
    "The best of all orders",
    "Three tensors at once: the bilinear form",
    "Attention in two lines",
]
FIGURES = ["long_sums.png", "silent_broadcast.png", "contraction_orders.png"]
CPU = torch.device("cpu")


run = partial(run_quick, tensor_math)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("tensor_math")
    return *run(folder), folder / "tensor_math"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=100)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    names = {measurement["name"] for measurement in record["measurements"]}
    assert names == {"2x + 1", "stretching", "distances", "small products", "contraction", "bilinear", "attention"}
    assert all(measurement["value"] > 0 for measurement in record["measurements"])
    limited = [measurement for measurement in record["measurements"] if measurement["unit"].endswith("FLOP/s")]
    assert all(0 < measurement["limit"]["share"] <= 1.0001 for measurement in limited)
    expect_pictures(record, folder, FIGURES)


def test_the_text_fits_and_hides_nothing(lesson: tuple[dict[str, Any], str, Path]) -> None:
    _, text, _ = lesson
    for said in ("can't be cast", "non-singleton dimension", "This will likely lead to incorrect results",
                 "mat1 and mat2 shapes cannot be multiplied", "einsum", "floating point"):  # fmt: skip
        assert said in " ".join(text.split())


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(tensor_math, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_the_lesson_runs_on_a_gpu(tmp_path: Path) -> None:
    record, _ = run(tmp_path, "--device", "cuda", "--no-plots")
    assert list(dict.fromkeys(check["section"] for check in record["checks"])) == SECTIONS


# What is observed


def test_bytes_of_a_plain_an_inplace_and_an_out_form() -> None:
    x, out = torch.ones(100), torch.empty(100)
    plain, inside, into = (
        observe(function)
        for function in (lambda: x * 2 + 1, lambda: x.mul_(2).add_(1), lambda: torch.mul(x, 2, out=out))
    )
    assert [operation.name for operation in plain] == ["mul.Tensor", "add.Tensor"]
    assert (new_bytes(plain), moved_bytes(plain)) == (800, 1600)
    assert (new_bytes(inside), moved_bytes(inside)) == (0, 1600)
    assert (new_bytes(into), moved_bytes(into)) == (0, 800)


def test_a_view_moves_nothing_and_a_stretched_input_counts_once() -> None:
    x = torch.ones(8, 4)
    for view in (lambda: x.T, lambda: x[1:], lambda: x.view(-1), lambda: x[:1].expand(8, 4)):
        assert [(op.read_bytes, op.written_bytes, op.new_bytes) for op in observe(view)] in (
            [(0, 0, 0)],
            [(0, 0, 0)] * 2,
        )
    column = torch.ones(8, 1).expand(8, 1000)
    (copy,) = observe(column.clone)
    assert (copy.read_bytes, copy.written_bytes, copy.new_bytes) == (32, 32_000, 32_000)


@pytest.mark.parametrize("seed", range(3))
def test_flops_by_the_shapes_of_each_product(seed: int) -> None:
    generator = random.Random(seed)
    b, m, k, n = (generator.randint(1, 9) for _ in range(4))
    r = torch.randn
    products_and_flops = [
        (lambda: r(k) @ r(k), 2 * k),
        (lambda: r(m, k) @ r(k), 2 * m * k),
        (lambda: r(m, k) @ r(k, n), 2 * m * k * n),
        (lambda: torch.bmm(r(b, m, k), r(b, k, n)), 2 * b * m * k * n),
        (lambda: torch.addmm(r(m, n), r(m, k), r(k, n)), 2 * m * k * n),
        (lambda: torch.addmv(r(m), r(m, k), r(k)), 2 * m * k),
        (lambda: torch.baddbmm(r(b, m, n), r(b, m, k), r(b, k, n)), 2 * b * m * k * n),
        (lambda: F.linear(r(m, k), r(n, k), r(n)), 2 * m * k * n),
        (lambda: r(m, k) * r(m, k), 0),
    ]
    for function, flops in products_and_flops:
        assert flops_seen(observe(function)) == flops


# Functions of each number


def test_the_worst_error_sees_a_wrong_function() -> None:
    x = torch.linspace(0.5, 4, 50)
    assert tensor_math.worst_error("x + x", lambda value: 2 * value, x) == 0
    assert tensor_math.worst_error("x + x", lambda value: 2 * value + 1e-3, x) > 1000
    assert tensor_math.worst_error("x.log()", math.log, x) < 4


def test_pythons_answers() -> None:
    answers = {name: tensor_math.pythons_answer(function) for name, function in tensor_math.OUTSIDE.items()}
    assert list(answers.values()) == ["ValueError", "ValueError", "OverflowError", "ZeroDivisionError"]
    assert tensor_math.pythons_answer(lambda: math.sqrt(4)) == "2.0"


def test_centring_leaves_the_batch_alone_or_destroys_it() -> None:
    batch = torch.randn(5, 3)
    kept = batch.clone()
    right = tensor_math.center(batch)
    assert torch.equal(batch, kept)
    assert tensor_math.center_and_destroy(batch) is batch
    assert torch.equal(batch, right)
    torch.testing.assert_close(right.mean(0), torch.zeros(3), atol=1e-6, rtol=0)


# Reductions


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 4, 3), (2, 3, 1, 4)])
def test_a_sum_adds_slices(shape: tuple[int, ...]) -> None:
    x = torch.randint(-9, 10, shape)
    for dim in range(-len(shape), len(shape)):
        assert torch.equal(reductions.sum_of_slices(x, dim), x.sum(dim))


def test_shares_of_rows_with_and_without_keepdim() -> None:
    square = torch.rand(4, 4, dtype=torch.float64) + 0.1
    right = reductions.rows_to_shares(square)
    torch.testing.assert_close(right, torch.stack([row / row.sum() for row in square]))
    wrong = reductions.rows_to_shares_without_keepdim(square)
    assert wrong.shape == right.shape
    torch.testing.assert_close(wrong, square / square.sum(1)[None, :])
    with pytest.raises(RuntimeError, match="must match"):
        reductions.rows_to_shares_without_keepdim(square[:, :3])


def test_gradients_of_reductions() -> None:
    assert reductions.gradient_of("x.sum()", [1.0, 2.0]) == [1, 1]
    assert reductions.gradient_of("x.mean()", [1.0, 2.0]) == [0.5, 0.5]
    assert reductions.gradient_of("x.amax()", [1.0, 2.0]) == [0, 1]


def test_what_it_gives_is_a_value_or_a_refusal() -> None:
    assert reductions.what_it_gives("e.sum()", e=torch.ones(3)) == "3.0"
    assert reductions.what_it_gives("e.max()", e=torch.empty(0)).startswith("RuntimeError: max()")


@pytest.mark.parametrize("count", [1, 2, 3, 17, 1000, 4097])
def test_sums_one_after_another_and_in_pairs(count: int) -> None:
    values = torch.rand(count, generator=torch.Generator().manual_seed(count))
    total = np.float32(0)
    for value in values.numpy():
        total += value
    assert reductions.add_one_after_another(values) == float(total)
    exact = math.fsum(values.tolist())
    assert abs(reductions.add_in_pairs(values) - exact) <= exact * 2**-24 * max(1, math.ceil(math.log2(count)))


def test_errors_of_sums_are_those_of_the_ways() -> None:
    errors = reductions.typical_errors(50_000, 3, CPU)
    assert list(errors) == ["one after another", "in pairs", "x.sum()"]
    assert errors["one after another"] > 3 * errors["in pairs"]


@pytest.mark.parametrize("scale", [1, 100, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_and_logsumexp_equal_pytorchs(scale: float, dtype: torch.dtype) -> None:
    x = scale * torch.randn(5, 3, 7, dtype=dtype, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(reductions.softmax(x), x.softmax(-1))
    torch.testing.assert_close(reductions.logsumexp(x), x.logsumexp(-1))


def test_the_formulas_of_books_are_right_until_they_overflow() -> None:
    x = torch.randn(4, 6)
    torch.testing.assert_close(reductions.softmax_that_overflows(x), x.softmax(-1))
    torch.testing.assert_close(reductions.logsumexp_that_overflows(x), x.logsumexp(-1))
    assert reductions.softmax_that_overflows(x + 100).isnan().any()
    assert reductions.logsumexp_that_overflows(x + 100).isinf().all()


# Broadcasting


def test_broadcast_shape_on_special_cases() -> None:
    assert broadcasting.broadcast_shape() == ()
    assert broadcasting.broadcast_shape((), ()) == ()
    assert broadcasting.broadcast_shape((0,), (1,)) == (0,)
    assert broadcasting.broadcast_shape((3, 1), (4,), (2, 1, 1)) == (2, 3, 4)
    with pytest.raises(ValueError, match="axis -1 disagrees: 0 and 2"):
        broadcasting.broadcast_shape((0,), (2,))


@pytest.mark.parametrize("seed", range(5))
def test_broadcast_shape_agrees_with_torch_and_numpy(seed: int) -> None:
    generator = random.Random(seed)
    refused = 0
    for _ in range(500):
        shapes = broadcasting.random_shapes(generator)
        same, is_refused = broadcasting.agree_about(shapes)
        assert same, shapes
        refused += is_refused
        if not is_refused:
            assert broadcasting.broadcast_shape(*shapes) == np.broadcast_shapes(*shapes)
    assert 50 < refused < 450


def test_a_wrong_answer_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcasting, "broadcast_shape", lambda *shapes: max(shapes, key=len))
    assert not broadcasting.agree_about([(2, 1), (3,)])[0]
    assert broadcasting.agree_about([(2, 3), (3,)])[0]


def test_the_three_steps_drawn() -> None:
    lines = broadcasting.draw_steps((2, 1, 3), (4, 1)).splitlines()
    cells = [line[38:].split() for line in lines]
    assert cells == [
        ["-3", "-2", "-1"],
        ["2", "1", "3"],
        ["4", "1"],
        ["2", "1", "3"],
        ["1", "4", "1"],
        ["2", "(4)", "3"],
        ["(2)", "4", "(3)"],
        ["2", "4", "3"],
    ]
    ends = {line.rstrip().rstrip(")").rindex("3") for line in (lines[1], lines[3], lines[5], lines[6], lines[7])}
    assert len(ends) == 1, "the last axis stands in one column"


def test_what_is_stretched_is_marked() -> None:
    column, copies = broadcasting.stretched(torch.tensor([[1], [2]]), (2, 3))
    assert column.tolist() == [[1, 1, 1], [2, 2, 2]]
    assert copies.tolist() == [[False, True, True]] * 2
    row, copies = broadcasting.stretched(torch.tensor([1, 2]), (3, 2))
    assert row.tolist() == [[1, 2]] * 3
    assert copies.tolist() == [[False, False], [True, True], [True, True]]
    assert not broadcasting.stretched(torch.ones(2, 3), (2, 3))[1].any()


def test_explanations() -> None:
    assert broadcasting.explain((4, 3), (4,)) == "axis -1 disagrees: 3 and 4"
    assert broadcasting.explain((2, 5, 1), (3, 5, 7)) == "axis -3 disagrees: 2 and 3"
    assert broadcasting.explain((2, 1), (5,)) == ""


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (40, 7)])
def test_distances(shape: tuple[int, int]) -> None:
    a, b = torch.randn(*shape, dtype=torch.float64), torch.randn(2 * shape[0], shape[1], dtype=torch.float64)
    wanted = torch.tensor([[math.dist(p, q) for q in b.tolist()] for p in a.tolist()], dtype=torch.float64)
    for distances in (
        broadcasting.distances_by_broadcasting,
        broadcasting.distances_by_product,
        broadcasting.exact_cdist,
    ):
        torch.testing.assert_close(distances(a, b), wanted)


def test_the_silent_bug_in_closed_form() -> None:
    for count in (1, 2, 50):
        predictions, targets = torch.randn(count, 1, dtype=torch.float64), torch.randn(count, dtype=torch.float64)
        pairs = [(p - t) ** 2 for p in predictions[:, 0].tolist() for t in targets.tolist()]
        wanted = pytest.approx(sum(pairs) / len(pairs))
        assert broadcasting.loss_without_a_look_at_the_shapes(predictions, targets).item() == wanted
        assert broadcasting.what_the_bug_computes(predictions, targets).item() == wanted


def test_the_guard_refuses_and_lets_pass() -> None:
    p = torch.randn(6, 1)
    assert broadcasting.loss_with_a_guard(p, p + 2).item() == pytest.approx(4)
    for targets in (p[:, 0], p[:3], p.T):
        with pytest.raises(ValueError, match="must be equal"):
            broadcasting.loss_with_a_guard(p, targets)


def test_fits_are_those_of_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(100, 1, generator=generator) - 1
    y = -x[:, 0] + 0.5 + 0.1 * torch.randn(100, generator=generator)
    slope, intercept, loss = broadcasting.fit_line(x, y[:, None], 300)
    wanted = np.polyfit(x[:, 0].double().numpy(), y.double().numpy(), 1)
    assert [slope, intercept] == pytest.approx(wanted.tolist(), abs=1e-3)
    assert loss == pytest.approx(float(np.mean((np.polyval(wanted, x[:, 0].numpy()) - y.numpy()) ** 2)), rel=1e-2)
    slope, intercept, loss = broadcasting.fit_line(x, y, 300)
    assert [slope, intercept, loss] == pytest.approx([0, y.mean().item(), y.var(correction=0).item()], abs=1e-4)


# Matrix products


@pytest.mark.parametrize("seed", range(4))
def test_loops_equal_matmul_refusals_included(seed: int) -> None:
    torch.manual_seed(seed)
    generator = random.Random(seed)
    answers = [products.agree_about_product(*products.random_factors(generator)) for _ in range(60)]
    assert all(same for same, _ in answers)
    assert 0 < sum(refused for _, refused in answers) < 60


@pytest.mark.parametrize(("a", "b"), [((0,), (0,)), ((2, 0), (0, 3)), ((0, 2, 3), (3, 4)), ((3,), (2, 3, 4))])
def test_loops_on_empty_and_odd_shapes(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    x, y = products.small_integers(*a), products.small_integers(*b)
    result, operations = products.matmul_by_loops(x, y)
    assert torch.equal(result, x @ y)
    assert operations == 2 * result.numel() * a[-1]


def test_loops_refuse_with_the_lengths() -> None:
    with pytest.raises(ValueError, match="have 3 numbers, the columns of b 2"):
        products.matmul_by_loops(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="axis -1 disagrees: 2 and 5"):
        products.matmul_by_loops(torch.ones(2, 3, 4), torch.ones(5, 4, 3))


def test_one_by_one_is_bmm() -> None:
    a, b = products.small_integers(7, 3, 4), products.small_integers(7, 4, 2)
    assert torch.equal(products.multiply_one_by_one(a, b), torch.bmm(a, b))


# einsum


def random_equation(generator: random.Random) -> tuple[str, list[torch.Tensor]]:
    """Up to three tensors of up to three axes, letters repeated within and between them, and a random result."""
    lengths = {letter: generator.randint(1, 3) for letter in "abcd"}
    inputs = ["".join(generator.choices("abcd", k=generator.randint(0, 3))) for _ in range(generator.randint(1, 3))]
    used = sorted(set("".join(inputs)))
    output = "".join(generator.sample(used, generator.randint(0, len(used))))
    tensors = [products.small_integers(*(lengths[letter] for letter in letters)) for letters in inputs]
    return f"{','.join(inputs)}->{output}", tensors


@pytest.mark.parametrize("seed", range(40))
def test_loops_equal_einsum_of_torch_and_numpy(seed: int) -> None:
    equation, tensors = random_equation(random.Random(seed))
    ours = einsum.einsum_by_loops(equation, *tensors)
    assert torch.equal(ours, torch.einsum(equation, *tensors)), equation
    assert np.array_equal(ours.numpy(), np.einsum(equation, *(x.numpy() for x in tensors))), equation


def test_loops_take_spaces_and_refuse_two_lengths() -> None:
    a = torch.ones(2, 3)
    assert torch.equal(einsum.einsum_by_loops("i j -> j i", a), a.T)
    with pytest.raises(ValueError, match="j is 3 and 2"):
        einsum.einsum_by_loops("ij,jk->ik", a, a)
    with pytest.raises(ValueError, match="zip"):
        einsum.einsum_by_loops("ijk->i", a)


# Orders


def random_network(generator: random.Random, count: int) -> orders.Network:
    """Tensors of one to three letters, each in one tensor or in many; at least one is summed (else NumPy seeks no order)."""
    letters = "abcdef"
    inputs = tuple("".join(generator.sample(letters, generator.randint(1, 3))) for _ in range(count))
    used = sorted(set("".join(inputs)))
    output = "".join(generator.sample(used, generator.randint(0, min(3, len(used) - 1))))
    return orders.Network(inputs, output, {letter: generator.randint(2, 6) for letter in used})


def test_how_many_orders_there_are() -> None:
    for count, every, chained in ((1, 1, 1), (2, 1, 1), (3, 3, 2), (4, 15, 5), (5, 105, 14), (6, 945, 42)):
        found = list(orders.all_orders(range(count)))
        chain = list(orders.chain_orders(0, count - 1))
        assert (len(set(found)), len(found)) == (every, every)
        assert (len(set(chain)), len(chain)) == (chained, chained)
        assert set(chain) <= set(found)
        assert all(orders.members(order) == frozenset(range(count)) for order in found)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_order_is_the_best_of_all_and_numpys(seed: int) -> None:
    generator = random.Random(seed)
    network = random_network(generator, generator.randint(2, 5))
    best = orders.count_flops(network, orders.best_order(network))
    everything = range(len(network.inputs))
    assert best == min(orders.count_flops(network, order) for order in orders.all_orders(everything))
    assert best == orders.count_flops(network, orders.numpys_order(network))


def test_the_count_agrees_with_numpys_own() -> None:
    network = orders.Network.of("ab,bc,cd,de->ae", a=7, b=30, c=5, d=40, e=3)
    arrays = [np.empty([network.lengths[letter] for letter in letters]) for letters in network.inputs]
    report = np.einsum_path(network.equation, *arrays, optimize="optimal")[1]
    theirs = float(re.search(r"Optimized FLOP count:\s*(\S+)", report)[1])  # type: ignore[index]
    ours = orders.count_flops(network, orders.best_order(network))
    assert ours == pytest.approx(theirs, rel=2e-3)


@pytest.mark.parametrize("seed", range(10))
def test_every_order_gives_what_einsum_gives(seed: int) -> None:
    generator = random.Random(seed)
    network = random_network(generator, generator.randint(1, 4))
    tensors = [x.double() for x in network.tensors(CPU)]
    wanted = torch.einsum(network.equation, *tensors)
    for order in orders.all_orders(range(len(tensors))):
        if isinstance(order, int):
            continue
        torch.testing.assert_close(orders.contract(network, order, tensors), wanted)


@pytest.mark.parametrize("order", list(orders.chain_orders(0, 3)))
def test_counted_operations_are_those_that_run(order: orders.Order) -> None:
    network = orders.Network.of("ab,bc,cd,de->ae", a=3, b=7, c=2, d=11, e=5)
    tensors = network.tensors(CPU)
    assert flops_seen(observe(lambda: orders.contract(network, order, tensors))) == orders.count_flops(network, order)


def test_the_cost_of_a_step_by_hand() -> None:
    network = orders.Network.of("ij,jk,k->i", i=2, j=3, k=5)
    first, second, third = (frozenset([i]) for i in range(3))
    assert network.pair_flops(first, second) == 2 * 2 * 3 * 5
    assert network.pair_flops(second, third) == 2 * 3 * 5
    assert network.pair_flops(first, third) == 2 * 3 * 5, "nothing is summed, so a multiplication each"
    assert network.letters(frozenset([0, 1])) == "ik"
    assert orders.largest_intermediate(network, ((0, 1), 2)) == 2 * 5
    assert orders.largest_intermediate(network, (0, (1, 2))) == 3
    assert orders.largest_intermediate(network, ((0, 2), 1)) == 2 * 3 * 5
    assert orders.largest_intermediate(orders.Network.of("i,i->", i=4), (0, 1)) == 0


def test_writing_orders() -> None:
    assert orders.left_to_right(4) == (((0, 1), 2), 3)
    assert orders.written(orders.left_to_right(3), "ABC") == "((A B) C)"
    assert orders.order_of_path([(1, 2), (0, 1)], 3) == (0, (1, 2))
    assert orders.order_of_path([(0, 1), (0, 1)], 3) == (2, (0, 1))


@pytest.fixture
def searching_einsum(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch as it is where opt_einsum is installed; NumPy stands in for that package, which need not be here."""
    module = torch.backends.opt_einsum.m

    def contract_path(equation: str, *tensors: torch.Tensor, optimize: object) -> list[Any]:
        path = np.einsum_path(equation, *(x.numpy() for x in tensors), optimize="optimal")
        return [path[0][1:]]

    monkeypatch.setattr(module, "_opt_einsum", SimpleNamespace(contract_path=contract_path))
    monkeypatch.setattr(module, "enabled", True)
    module.is_available.cache_clear()
    yield
    monkeypatch.undo()
    module.is_available.cache_clear()


def test_with_opt_einsum_the_lesson_says_what_it_does(searching_einsum: None, tmp_path: Path) -> None:
    record, text = run(tmp_path, "--no-plots", "--device", "cpu")
    claims = [check["claim"] for check in record["checks"]]
    assert "opt_einsum makes torch.einsum take a cheapest order" in claims
    assert "without it torch.einsum goes from left to right" in claims
    assert "Not run here" not in text


# Three tensors, and attention


def test_bilinear_at_once() -> None:
    x, weight, y = torch.randn(3, 4), torch.randn(5, 4, 2), torch.randn(3, 2)
    torch.testing.assert_close(contractions.bilinear_all_at_once(x, weight, y), F.bilinear(x, y, weight))


@pytest.mark.parametrize(
    ("batch", "tokens", "keys", "heads", "features"), [(1, 1, 1, 1, 1), (2, 5, 5, 3, 4), (3, 2, 7, 1, 8)]
)
def test_attention_equals_pytorchs_gradients_too(batch: int, tokens: int, keys: int, heads: int, features: int) -> None:
    q = torch.randn(batch, tokens, heads, features, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(batch, keys, heads, features, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.rand(batch, heads, tokens, keys) > 0.4
    mask[..., 0] = True
    ours = contractions.attention_in_two_lines(q, k, v, mask)
    swapped = [x.transpose(1, 2) for x in (q, k, v)]
    theirs = F.scaled_dot_product_attention(swapped[0], swapped[1], swapped[2], attn_mask=mask).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(ours)
    pairs = zip(*(torch.autograd.grad((x * direction).sum(), (q, k, v)) for x in (ours, theirs)), strict=True)
    for mine, library in pairs:
        torch.testing.assert_close(mine, library)


def test_random_equations_cover_what_they_should() -> None:
    equations = [random_equation(random.Random(seed))[0] for seed in range(40)]
    assert any(re.search(r"(\w)\w*\1[^>]*->", equation.split(",")[0] + "->") for equation in equations), "a diagonal"
    assert any(equation.endswith("->") for equation in equations)
    assert len(set(itertools.chain.from_iterable(equations))) >= 6
