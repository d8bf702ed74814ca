"""The comparison itself must notice every kind of difference, and none where there is none."""

import math

from shared.agreement import Agreement, agreement, deviation

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def test_deviation_is_relative_to_the_largest_number_or_one():
    assert deviation(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])) == pytest.approx(0.25)
    assert deviation(torch.tensor([0.01]), torch.tensor([0.0])) == pytest.approx(0.01)
    assert deviation(torch.tensor([-300.0]), torch.tensor([-200.0])) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("found", "oracle"),
    [
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.tensor([math.nan]), torch.tensor([1.0])),
        (torch.tensor([1.0]), torch.tensor([math.nan])),
        (torch.tensor([math.inf]), torch.tensor([-math.inf])),
        (torch.tensor([math.inf]), torch.tensor([3.0])),
    ],
)
def test_what_cannot_be_compared_is_infinitely_far(found, oracle):
    assert deviation(found, oracle) == math.inf


def test_equal_tensors_do_not_deviate():
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    assert deviation(x, x.clone()) == 0
    assert deviation(torch.full((2,), math.nan), torch.full((2,), math.nan)) == 0
    assert deviation(torch.empty(0, 3), torch.empty(0, 3)) == 0
    assert deviation(torch.tensor([1, 2]), torch.tensor([1, 2])) == 0
    assert deviation(torch.eye(3).to_sparse(), torch.eye(3)) == 0


def test_inputs_keep_their_strides_and_stay_as_they_are():
    seen = []

    def own(x):
        seen.append(x.stride())
        return x.exp()

    x = torch.randn(5, 3).t()
    kept = x.clone()
    assert agreement(own, torch.exp, x) == Agreement(0, 0)
    assert seen == [(1, 3)]
    assert torch.equal(x, kept)
    assert not x.requires_grad


def test_the_right_value_with_a_wrong_gradient_is_noticed():
    found = agreement(lambda x: x.detach() ** 2 + 0 * x, lambda x: x**2, torch.randn(4))
    assert found.value == 0
    assert found.gradient > 0.01


def test_a_gradient_that_is_missing_on_one_side_is_infinitely_far():
    x, y = torch.randn(3), torch.randn(3)
    assert agreement(lambda x, y: x * y.detach(), torch.mul, x, y).gradient == math.inf
    assert agreement(lambda x, y: (x * y).detach(), torch.mul, x, y).gradient == math.inf


def test_modules_are_compared_with_their_parameters():
    class Own(nn.Module):
        def __init__(self, linear, factor=1.0):
            super().__init__()
            self.weight, self.bias = (nn.Parameter(p.detach().clone()) for p in (linear.weight, linear.bias))
            self.factor = factor

        def forward(self, x):
            scaled = self.weight.detach() * (1 - self.factor) + self.weight * self.factor  # equal in value alone
            return x @ scaled.T + self.bias

    linear = nn.Linear(7, 5)
    x = torch.randn(2, 3, 7)
    assert agreement(Own(linear), linear, x).within(1e-6)
    assert all(p.grad is None for p in linear.parameters())
    found = agreement(Own(linear, 0.5), linear, x)
    assert found.value < 1e-6
    assert found.gradient > 0.01
    assert agreement(nn.Linear(7, 5, bias=False), linear, x).gradient == math.inf


def test_random_functions_start_from_the_same_numbers():
    x = torch.randn(1000)
    assert agreement(lambda x: F.dropout(x, 0.3), lambda x: F.dropout(x, 0.3), x) == Agreement(0, 0)


def test_whole_numbers_go_in_and_nested_tensors_come_out():
    index, weight = torch.tensor([[1, 2], [0, 1]]), torch.randn(3, 4)

    def own(index, weight):
        one_hot = F.one_hot(index, 3).float() @ weight
        return one_hot, {"sum": one_hot.sum()}

    def oracle(index, weight):
        rows = F.embedding(index, weight)
        return rows, {"sum": rows.sum()}

    assert agreement(own, oracle, index, weight).within(1e-6)
    assert agreement(lambda i, w: own(i, w)[0], oracle, index, weight).value == math.inf
    assert agreement(torch.add, torch.add, index, index) == Agreement(0, 0)


def test_it_reads_in_one_line():
    assert str(Agreement(3e-8, 0.00012)) == "values to 3e-08, gradients to 1e-04"


@pytest.mark.gpu
def test_on_cuda():
    x = torch.randn(1000, device="cuda")
    assert agreement(lambda x: F.dropout(x, 0.3), lambda x: F.dropout(x, 0.3), x) == Agreement(0, 0)
