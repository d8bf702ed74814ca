"""One style for every picture: readable at 800 pixels and in black and white, with its origin in a corner."""

from collections.abc import Callable
from io import BytesIO
from typing import Any


def draw_png(draw: Callable[..., None], origin: str, rows: int = 1, columns: int = 1) -> bytes:
    """Calls `draw` with one matplotlib Axes for each of `rows` x `columns` panels; returns the picture as PNG.

    `origin` (device, torch version, date) is printed small in the lower right corner. No window system is needed.
    """
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Told apart without colour too, by line and marker.
    colors = cycler(color=["#0b5fa5", "#c2410c", "#15803d", "#7e22ce", "#525252", "#be123c"])
    lines = cycler(linestyle=["-", "--", "-.", ":", "-", "--"]) + cycler(marker=["o", "s", "^", "D", "v", "x"])
    style: dict[Any, Any] = {
        "font.size": 11,
        "axes.prop_cycle": colors + lines,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "lines.markersize": 5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titleweight": "bold",
        "axes.titlesize": 12,
    }
    with rc_context(style):
        figure = Figure(figsize=(8.0 if columns == 1 else 5.0 * columns, 4.8 * rows), dpi=110, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        draw(*axes.flat)
        figure.supxlabel(origin, fontsize=8, color="#525252", x=0.99, ha="right")
        buffer = BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
