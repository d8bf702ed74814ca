"""Pictures: their size and origin, lines that differ without colour, and no trace left in matplotlib."""

from io import BytesIO

from shared.figures import draw_png

import matplotlib as mpl
import numpy as np
import pytest


def pixels(png: bytes) -> np.ndarray:
    return mpl.image.imread(BytesIO(png))[..., :3]


def draw_lines(*axes) -> None:
    for ax in axes:
        ax.plot([1, 2, 4], [1e9, 3e9, 4e9], label="measured, µs → GB/s × 2³")
        ax.axhline(4e9, label="limit")
        ax.set(xscale="log", xlabel="size (MiB)", ylabel="rate (B/s)", title="One idea")
        ax.legend()


def test_one_panel_is_880_pixels_wide_and_names_its_origin_in_the_lower_right() -> None:
    origin = "NVIDIA H200 · torch 2.11.0 · 2026-01-01"
    with_origin, without = pixels(draw_png(draw_lines, origin)), pixels(draw_png(draw_lines, " "))
    assert with_origin.shape == (528, 880, 3)
    printed = with_origin[-20:] < 0.6
    rows_above = with_origin[:-20]
    assert printed[:, 440:].any()
    assert not printed[:, :440].any()
    assert not (without[-6:] < 0.6).any()
    assert (rows_above < 0.6).any()


@pytest.mark.parametrize(
    ("rows", "columns", "width", "height"), [(1, 3, 1650, 528), (2, 1, 880, 1056), (2, 2, 1100, 1056)]
)
def test_one_axes_for_each_panel(rows: int, columns: int, width: int, height: int) -> None:
    given = []

    def draw(*axes) -> None:
        given.extend(axes)
        draw_lines(*axes)

    assert pixels(draw_png(draw, "here", rows, columns)).shape == (height, width, 3)
    assert len({id(ax) for ax in given}) == rows * columns


def test_six_lines_differ_without_colour() -> None:
    looks = []

    def draw(ax) -> None:
        looks.extend((line.get_linestyle(), line.get_marker()) for _ in range(6) for line in ax.plot([1, 2]))

    draw_png(draw, "here")
    assert len(set(looks)) == 6


def test_no_setting_of_matplotlib_and_no_window_remains() -> None:
    def fail(ax) -> None:
        raise ZeroDivisionError

    with mpl.rc_context({"font.size": 7.5, "axes.grid": False, "axes.titlesize": 7}):
        before = dict(mpl.rcParams)
        draw_png(draw_lines, "here")
        with pytest.raises(ZeroDivisionError):
            draw_png(fail, "here")
        assert dict(mpl.rcParams) == before
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []
