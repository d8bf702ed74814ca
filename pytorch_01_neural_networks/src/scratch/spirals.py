"""The two-layer network on two spirals: what a straight line cannot do, and how many bends it takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_01_neural_networks.src.scratch.data import make_spirals
from pytorch_01_neural_networks.src.scratch.network import (
    RELU,
    Batch,
    Parameters,
    accuracy,
    forward,
    initial_layers,
    initial_parameters,
    train_by_hand,
    train_layers_by_hand,
)
from pytorch_01_neural_networks.src.scratch.wording import share_text
from shared.drawing import beside
from shared.lesson import Lesson
from shared.units import percent

import torch

LR = 1.0
EDGE = 1.2  # the maps and pictures show -EDGE to EDGE


@dataclass(frozen=True)
class Snapshot:
    step: int
    accuracy: float  # on the test points
    parameters: Parameters


def train_with_snapshots(
    start: Parameters, data: Batch, test: Batch, steps: int, every: int
) -> tuple[list[float], list[Snapshot]]:
    """The loss of each step, and a snapshot before the training and then of every `every` steps."""
    losses, snapshots = [], [Snapshot(0, accuracy(forward(start, test[0], RELU), test[1]), start)]
    for step, (loss, net) in enumerate(train_by_hand(start, [data] * steps, LR, RELU), start=1):
        losses.append(loss)
        if step % every == 0:
            snapshots.append(Snapshot(step, accuracy(forward(net, test[0], RELU), test[1]), net))
    return torch.stack(losses).tolist(), snapshots


def halfway(snapshots: Sequence[Snapshot]) -> Snapshot:
    """The first snapshot whose accuracy is halfway between the first and the last."""
    middle = (snapshots[0].accuracy + snapshots[-1].accuracy) / 2
    return next(snapshot for snapshot in snapshots if snapshot.accuracy >= middle)


def plane(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """The points of a grid over the picture, (rows * columns, 2), from the upper left, row by row."""
    y, x = torch.meshgrid(
        torch.linspace(EDGE, -EDGE, rows, device=device),
        torch.linspace(-EDGE, EDGE, columns, device=device),
        indexing="ij",
    )
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def draw_map(title: str, net: Parameters, rows: int = 14, columns: int = 28) -> str:
    """Which of the two arms the network answers in each part of the plane, in characters."""
    answers = forward(net, plane(rows, columns, net.w1.device), RELU).argmax(1).view(rows, columns).tolist()
    return "\n".join([title, *("".join("█" if answer else "·" for answer in row) for row in answers)])


def show_spirals(lesson: Lesson) -> None:
    lesson.section(
        "Two spirals and a straight line",
        "Points on two interleaved arms, one class each. A linear classifier can only cut the plane along a straight "
        "line, and each arm comes back to the side that it left. The hidden layer adds 64 lines along which the plane "
        "may bend. Both are trained by hand, with the functions from above, on all points at once.",
    )
    generator = torch.Generator().manual_seed(lesson.options.seed)
    data, test = (
        (x.to(lesson.device), y.to(lesson.device))
        for x, y in (make_spirals(400, generator), make_spirals(2000, generator))
    )
    steps = lesson.pick(full=2000, quick=400)
    start = initial_parameters(2, 64, 2, generator).to(lesson.device)
    losses, snapshots = train_with_snapshots(start, data, test, steps, every=10)
    line = [(w.to(lesson.device), b.to(lesson.device)) for w, b in initial_layers((2, 2), generator)]
    line_losses, line_accuracies = [], []
    for loss, line in train_layers_by_hand(line, [data] * steps, LR, RELU):  # noqa: B020 - the line that it has become
        line_losses.append(loss)
        line_accuracies.append(accuracy(test[0] @ line[0][0].T + line[0][1], test[1]))
    marks = [step for step in (10, 100, 200, 400, 1000, 2000) if step <= steps]
    lesson.table(
        [
            {"step": step, "line, loss": line_losses[step - 1].item(),
             "line, test accuracy": share_text(line_accuracies[step - 1]),
             "two layers, loss": losses[step - 1],
             "two layers, test accuracy": share_text(snapshots[step // 10].accuracy)}
            for step in marks
        ]
    )  # fmt: skip
    shown = snapshots[0], halfway(snapshots), snapshots[-1]
    lesson.text(
        "What the two-layer network answers in each part of the plane, at three moments (█ one arm, · the other):"
    )
    titles = [f"step {moment.step}: {share_text(moment.accuracy)}" for moment in shown]
    maps = [draw_map(title, moment.parameters) for title, moment in zip(titles, shown, strict=True)]
    lesson.drawing(beside(*maps, gap="    "))
    last, line_last = snapshots[-1].accuracy, line_accuracies[-1]
    for name, value in (("two layers", last), ("line", line_last)):
        lesson.record("test accuracy", value, "", data="spirals", model=name)
    lesson.check(
        "a line stays near chance",
        abs(line_last - 0.5) < 0.1,
        f"{share_text(line_last)} of {len(test[1]):,} new points",
    )
    outer = test[0].norm(dim=1) > 0.55  # half of the way along the arm
    answers = test[0] @ line[0][0].T + line[0][1]
    ends, middle = (accuracy(answers[part], test[1][part]) for part in (outer, ~outer))
    lesson.check("its loss is below a guess's: it is right at the outer ends",
                 line_losses[-1].item() < math.log(2) - 0.01 and ends > middle + 0.1,
                 f"{line_losses[-1].item():.3f}; {percent(ends)} right outside, {percent(middle)} inside")  # fmt: skip
    lesson.check("two layers follow the arms: over 95 %", last > 0.95, f"{share_text(last)} of the same points")
    lesson.figure("spiral_boundaries", lambda *axes: draw_boundaries(axes, shown, data), columns=3)
    lesson.figure("spiral_losses", lambda axis: draw_losses(axis, losses, [loss.item() for loss in line_losses]))
    lesson.shows(
        f"{sum(tensor.numel() for tensor in start)} numbers, {steps:,} steps and one bend turned {percent(line_last)} into "
        f"{percent(last)}, half of it by step {shown[1].step} (picture spiral_boundaries.png). The line's loss came down "
        "as well, since it is surer where it is right; only the accuracy tells that it found nothing. Watch both, and know "
        "what the simplest model reaches before you praise yours."
    )


def draw_boundaries(axes: Sequence[Any], shown: Sequence[Snapshot], data: Batch) -> None:
    x, y = (tensor.cpu().numpy() for tensor in data)
    ticks = torch.linspace(-EDGE, EDGE, 200).numpy()
    for axis, moment in zip(axes, shown, strict=True):
        net = moment.parameters.to(torch.device("cpu"))
        logits = forward(net, plane(200, 200, net.w1.device), RELU)
        share = logits.softmax(1)[:, 1].view(200, 200).flip(0).numpy()
        axis.contourf(ticks, ticks, share, levels=[0, 0.5, 1], colors=["white", "#d4d4d4"])
        if share.min() < 0.5 < share.max():  # an untrained network may give one answer everywhere
            axis.contour(ticks, ticks, share, levels=[0.5], colors="black", linewidths=1)
        axis.plot(*x[y == 0].T, linestyle="", marker="o", markersize=4, color="#0b5fa5", markerfacecolor="none")
        axis.plot(*x[y == 1].T, linestyle="", marker="x", markersize=4, color="#c2410c")
        axis.set(title=f"step {moment.step}: {share_text(moment.accuracy)} of new points", xlabel="x[0]", ylabel="x[1]",
                 aspect="equal")  # fmt: skip
        axis.grid(False)


def draw_losses(axis: Any, losses: Sequence[float], line_losses: Sequence[float]) -> None:
    steps = range(1, len(losses) + 1)
    axis.plot(steps, line_losses, label="linear classifier", marker="", linestyle="--")
    axis.plot(steps, losses, label="two layers, 64 hidden units", marker="", linestyle="-")
    axis.axhline(math.log(2), color="black", linewidth=1, linestyle=":", marker="", label="a guess: log(2)")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="step",
        ylabel="training loss, cross-entropy",
        title="Two spirals: a line is soon as good as it gets",
    )
    axis.legend()


# Width


def most_pieces(lines: int) -> int:
    """Into how many pieces this number of straight lines can cut a plane."""
    return 1 + lines + lines * (lines - 1) // 2


def pieces_seen(net: Parameters, device: torch.device) -> int:
    """In how many ways the hidden units are on and off together, over a fine grid of the picture.

    Where none of them switches, the network is a plane: so many flat pieces, at least, is its surface made of.
    """
    on = plane(300, 300, device) @ net.w1.T + net.b1 > 0
    return len(on.unique(dim=0))


def show_width(lesson: Lesson) -> None:
    lesson.section(
        "How many hidden units",
        "A ReLU unit switches on along one straight line of the plane. Between such lines the network is flat, so what it "
        "can draw is made of straight pieces, and h lines cut a plane into at most 1 + h + h (h - 1) / 2 of them. The "
        "same spirals and steps, with more and more units:",
    )
    generator = torch.Generator().manual_seed(lesson.options.seed)
    data, test = (
        (x.to(lesson.device), y.to(lesson.device))
        for x, y in (make_spirals(400, generator), make_spirals(2000, generator))
    )
    steps = lesson.pick(full=2000, quick=400)
    widths = lesson.pick(full=(1, 2, 4, 8, 16, 32, 64, 128), quick=(1, 2, 64))
    reached, needed, pieces, table = {}, {}, {}, []
    for width in lesson.progress(widths, "widths"):
        start = initial_parameters(2, width, 2, generator).to(lesson.device)
        losses, snapshots = train_with_snapshots(start, data, test, steps, every=10)
        net = snapshots[-1].parameters
        reached[width], pieces[width] = snapshots[-1].accuracy, pieces_seen(net, lesson.device)
        needed[width] = next((moment.step for moment in snapshots if moment.accuracy > 0.95), None)
        table.append(
            {"hidden units": width, "parameters": sum(tensor.numel() for tensor in net), "loss": losses[-1],
             "test accuracy": share_text(reached[width]), "steps to 95 %": needed[width] or "never",
             "pieces": pieces[width],
             "at most": most_pieces(width)}
        )  # fmt: skip
    lesson.table(table)
    few = max(reached[1], reached[2])
    lesson.check("one or two lines are not enough", few < 0.9, f"at most {share_text(few)}")
    widest = max(w for w in widths if w <= 64)
    lesson.check(f"{widest} are plenty", reached[widest] > 0.95, share_text(reached[widest]))
    lesson.check("no network has more pieces than its lines can cut", all(pieces[w] <= most_pieces(w) for w in widths),
                 f"{pieces[widest]:,} of {most_pieces(widest):,} with {widest} units")  # fmt: skip
    first = next(width for width in widths if needed[width] is not None)
    sooner = min((width for width in widths if needed[width] is not None), key=lambda width: needed[width] or 0)
    faster = f", and {sooner} units were there after {needed[sooner]}" if sooner > first else ""
    lesson.shows(
        f"{first} units were the first of these to pass 95 %, after {needed[first]} steps{faster}. How many are needed on "
        "paper is one question and how many learn it well from a random start another. When a network does not learn, try "
        "it wider before you try it longer."
    )
