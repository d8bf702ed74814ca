"""The guards and counters of practice checks: each says yes and no where it should, and says it in words."""

import sys

from shared.practice import Wrong
from shared.traps import (
    SavedTensors,
    expect_bool,
    expect_close,
    expect_integer,
    expect_number,
    expect_predictions,
    expect_tensor,
    largest_made,
    operations,
    python_steps,
    shown,
)

import numpy as np
import pytest
import torch


def test_shown_is_short() -> None:
    assert shown(None) == "None"
    assert shown(torch.zeros(2, 3, dtype=torch.int8)) == "a tensor of shape (2, 3) and dtype int8"
    assert len(shown("x" * 1000)) == 60


@pytest.mark.parametrize(
    ("guard", "good", "bad"),
    [
        (lambda value: expect_bool(value, "f()"), [True, False], [None, 0, 1, torch.tensor(True)]),
        (lambda value: expect_integer(value, "f()", "n"), [0, -3, np.int64(4)], [None, True, 2.0, torch.tensor(3)]),
        (lambda value: expect_number(value, "f()", "n"), [0, 1.5, np.float32(2)], [None, True, "2", torch.tensor(2.0)]),
        (lambda value: expect_number(value, "f()", "n"), [1e300], [float("nan"), float("inf")]),
        (
            lambda value: expect_tensor(value, "f()", (2,), torch.float32),
            [torch.zeros(2)],
            [None, [0.0, 0.0], torch.zeros(3), torch.zeros(2, 1), torch.zeros(2, dtype=torch.float64)],
        ),
        (
            lambda value: expect_predictions(value, "P", ("a", "b"), "n"),
            [{"a": 1, "b": 0}],
            [None, 0, {}, {"a": 1}, {"a": 1, "b": None}, {"a": 1, "b": 2, "c": 3}],
        ),
    ],
    ids=["bool", "integer", "number", "finite", "tensor", "predictions"],
)
def test_guards(guard, good, bad) -> None:
    for value in good:
        guard(value)
    for value in bad:
        with pytest.raises(Wrong, match=r"f\(\) returned|^P"):
            guard(value)


def test_expect_close_names_the_first_entry_that_is_off() -> None:
    oracle = torch.tensor([[1.0, 2.0], [float("nan"), 4.0]])
    expect_close(oracle.clone().requires_grad_(), oracle, "f()")
    expect_close(oracle * 1.001, oracle, "f()", tolerance=2e-3)
    wrong = oracle.clone()
    wrong[1, 1], wrong[1, 0] = 5.0, 0.0
    with pytest.raises(Wrong, match=r"^f\(\)\[1, 0\] is 0 and should be nan$"):
        expect_close(wrong, oracle, "f()")
    with pytest.raises(Wrong, match=r"^f\(\) is 2 and should be 3$"):
        expect_close(torch.tensor(2), torch.tensor(3), "f()")


def test_operations_counts_what_reaches_the_device() -> None:
    x = torch.ones(4, 3)
    assert operations(lambda: None) == []
    assert operations(torch.Tensor.item, x[0, 0]) == ["_local_scalar_dense.default"]
    assert operations(lambda n: [x + 1 for _ in range(n)], 5) == ["add.Tensor"] * 5
    assert operations(torch._foreach_add_, [x.clone() for _ in range(9)], 1.0) == ["_foreach_add_.Scalar"]


def test_largest_made_counts_what_operations_return() -> None:
    x = torch.ones(4, 3)
    assert largest_made(lambda: None) == 0
    assert largest_made(lambda: x[0] + 1) == 12  # x[0] is a view of the whole
    assert largest_made(lambda: (torch.ones(5), torch.ones(5, 6, dtype=torch.int8), torch.ones(7))) == 30
    assert largest_made(lambda: torch.ones(1).expand(1000, 1000)) == 1
    assert largest_made(lambda n: torch.eye(n).to_sparse().values(), 9) == 81
    assert largest_made(lambda: torch.ones(8).split(2)) == 8


def test_saved_tensors_are_followed_until_their_graph_goes() -> None:
    w, saved = torch.ones(3, requires_grad=True), SavedTensors()
    with saved:
        kept, dropped = w.exp(), w.tanh()
        with torch.no_grad():
            w.exp()
        (w + 1).sum()  # saves nothing
    (w * w).sum()  # nobody looks on any more
    assert len(saved) == saved.alive() == 2
    del dropped
    assert saved.alive() == 1
    kept.sum().backward()
    assert (len(saved), saved.alive()) == (2, 0)
    assert torch.equal(w.grad, torch.ones(3).exp())


def loop(n: int) -> int:
    total = 0
    for i in range(n):
        total += i
    return total


def comprehension(n: int) -> int:
    return len([i for i in range(n) if i >= 0])


@pytest.mark.parametrize("function", [loop, comprehension, torch.no_grad()(loop)], ids=["loop", "list", "decorated"])
def test_python_steps_grow_with_loops(function) -> None:
    tracer = sys.gettrace()
    few, many = python_steps(function, 10), python_steps(function, 110)
    assert many - few >= 100
    assert sys.gettrace() is tracer


def test_python_steps_leave_the_library_out() -> None:
    assert python_steps(lambda n: sum(range(n)), 10) == python_steps(lambda n: sum(range(n)), 1000)
    assert python_steps(sum, [1, 2]) == 0
