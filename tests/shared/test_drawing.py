"""Tensors in characters: every number in its place, whatever the shape."""

import random
import re

from shared.drawing import MAX_COLUMNS, MAX_ROWS, MAX_WIDTH, beside, grid, number

import pytest
import torch


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│ …").split("│")]


@pytest.mark.parametrize("seed", range(5))
def test_a_small_matrix_is_drawn_number_by_number(seed: int) -> None:
    generator = random.Random(seed)
    rows, columns = generator.randint(1, MAX_ROWS), generator.randint(1, MAX_COLUMNS)
    x = torch.randint(-99, 99, (columns, rows), generator=torch.Generator().manual_seed(seed)).T  # not contiguous
    title, *lines = grid(x, "x").split("\n")
    assert title == f"x ({rows}, {columns})"
    assert [[int(cell) for cell in cells(line)] for line in lines] == x.tolist()
    assert len({len(line) for line in lines}) == 1


def test_marked_numbers_stand_in_brackets() -> None:
    x = torch.arange(6).view(2, 3)
    _, *lines = grid(x, marked=x > 3).split("\n")
    assert [cells(line) for line in lines] == [["0", "1", "2"], ["3", "(4)", "(5)"]]
    _, line = grid(x[0], marked=torch.tensor([True])).split("\n")  # broadcast, as masks are
    assert cells(line) == ["(0)", "(1)", "(2)"]


def test_blocks_of_a_third_axis() -> None:
    assert grid(torch.arange(8).view(2, 2, 2), "x").split("\n") == [
        "x (2, 2, 2)",
        "[0]        [1]",
        "│ 0 │ 1 │  │ 4 │ 5 │",
        "│ 2 │ 3 │  │ 6 │ 7 │",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1000.0, "1000"), (-123456.0, "-123456"), (1e6, "1e+06"), (999.6, "1000"), (0.5, "0.5"), (1e-05, "1e-05"),
     (3.14159, "3.14"), (float("nan"), "nan"), (float("-inf"), "-inf"), (12345678, "12345678"), (1 + 2j, "1+2j")],
)  # fmt: skip
def test_numbers_stay_short(value: complex, text: str) -> None:
    assert number(value) == text


def test_scalars_bools_and_nothing() -> None:
    assert grid(torch.tensor(2.5), "s").split("\n") == ["s ()", "│ 2.5 │"]
    assert grid(torch.tensor([True, False])).split("\n") == ["(2,)", "│ T │ · │"]
    for shape in [(0,), (2, 0), (0, 3), (0, 2, 2), (2, 0, 2), (2, 2, 0)]:
        assert "nothing" in grid(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1000,), (1000, 1000), (50, 3, 4), (7, 7, 7, 7), (1, 1, 1, 1, 1), (3, 40, 2)])
def test_large_tensors_stay_small_on_the_page(shape: tuple[int, ...]) -> None:
    for x in (-1.2345e-30 * torch.rand(shape), torch.full(shape, -(2**62))):
        lines = grid(x, "x", marked=x < 0).split("\n")
        assert len(lines) <= MAX_ROWS + 3
        assert max(map(len, lines)) <= MAX_WIDTH
        assert ("…" in grid(x)) == (x.numel() > 1)


def test_a_sign_stands_in_the_middle_of_the_boxes() -> None:
    drawn = beside("a (3,)\n1\n2\n3", "+", "b\n4").split("\n")
    assert [re.split(r"\s{2,}", line) for line in drawn] == [["a (3,)", "b"], ["1", "4"], ["2", "+"], ["3"]]
    assert all(line == line.rstrip() for line in drawn)
