"""The picture of the axes: a block of numbers for each layer, with one set that shares its mean shaded."""

from collections.abc import Iterator
from typing import Any

from pytorch_01_neural_networks.src.norms.formula import LAYERS, sets_by_moving

SHAPE = (3, 4, 5)  # samples to the right, channels to the back, positions upwards
DEPTH = (0.45, 0.3)  # how far right and up a step to the back is drawn
Corner = tuple[float, float]


def faces(n: int, c: int, p: int) -> Iterator[tuple[str, list[Corner]]]:
    """The three visible faces of the unit cube at sample n, channel c, position p, as corners on paper."""

    def on_paper(right: int, back: int, up: int) -> Corner:
        return right + DEPTH[0] * back, up + DEPTH[1] * back

    around = ((0, 0), (1, 0), (1, 1), (0, 1))
    yield "front", [on_paper(n + i, c, p + j) for i, j in around]
    yield "top", [on_paper(n + i, c + j, p + 1) for i, j in around]
    yield "side", [on_paper(n + 1, c + i, p + j) for i, j in around]


def draw_cubes(axis: Any) -> None:
    """Two rows of three blocks; in each, the set of the number in front at the upper right is dark."""
    from matplotlib.patches import Polygon

    light, dark = (
        {"front": "#f4f4f4", "top": "white", "side": "#dddddd"},
        {"front": "#2f6fa7", "top": "#5b93c4", "side": "#1f4d78"},
    )
    samples, channels, positions = SHAPE
    width, height = samples + DEPTH[0] * channels + 4.2, positions + DEPTH[1] * channels + 2.6
    for place, (name, layer) in enumerate(LAYERS.items()):
        left, bottom = (place % 3) * width, -(place // 3) * height
        sets = sets_by_moving(layer.library, SHAPE)
        chosen = sets == sets[samples - 1, 0, positions - 1]
        for c in reversed(range(channels)):  # from the back, so that what is in front covers it
            for n in range(samples):
                for p in range(positions):
                    colours = dark if chosen[n, c, p] else light
                    for side, corners in faces(n, c, p):
                        moved = [(left + right, bottom + up) for right, up in corners]
                        axis.add_patch(Polygon(moved, facecolor=colours[side], edgecolor="#555555", linewidth=0.7))
        axis.text(left, bottom + height - 1.75, f"{name}: over {layer.averages}", fontsize=10, weight="bold")
        arrow = {"arrowstyle": "->", "color": "black", "linewidth": 1}
        for label, start, end, shift in (
            ("N", (0, -0.35), (samples, -0.35), (0, -0.55)),
            ("P", (-0.35, 0), (-0.35, positions), (-0.5, -0.15)),
            (
                "C",
                (samples + 0.35, -0.2),
                (samples + 0.35 + DEPTH[0] * channels, -0.2 + DEPTH[1] * channels),
                (0.3, -0.45),
            ),
        ):
            (x0, y0), (x1, y1) = ((left + x, bottom + y) for x, y in (start, end))
            axis.annotate("", (x1, y1), (x0, y0), arrowprops=arrow)
            axis.text((x0 + x1) / 2 + shift[0], (y0 + y1) / 2 + shift[1], label, fontsize=10, ha="center")
    axis.set(xlim=(-0.9, 3 * width - 2), ylim=(-height - 1.2, height - 0.9), aspect="equal",
             title="Dark: one set of numbers that are normalised together")  # fmt: skip
    axis.axis("off")
