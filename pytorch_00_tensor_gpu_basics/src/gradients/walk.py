"""Reads the graph behind a tensor, and draws it as a tree in characters or as a picture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.graph import Node


@dataclass
class Operation:
    """One node of a graph: an operation, or the place where the gradient of a leaf is gathered."""

    name: str
    is_leaf: bool
    saved: dict[str, tuple[int, ...]]  # what it keeps for its backward, by name and shape
    arrives: tuple[int, ...]  # shape of the gradient that reaches it
    sources: list[int] = field(default_factory=list)  # numbers of the nodes that its gradients go to


def operation_name(node: Node) -> str:
    """MulBackward0 as Mul."""
    return node.name().removesuffix("0").removesuffix("Backward")


def nodes_behind(tensor: torch.Tensor) -> list[Node]:
    """All nodes of the graph behind `tensor`, its own first, each once."""
    assert tensor.grad_fn is not None
    found = [tensor.grad_fn]
    for node in found:  # grows while it is read
        for source, _ in node.next_functions:
            if source is not None and source not in found:
                found.append(source)
    return found


def saved_tensors(node: Node) -> dict[str, torch.Tensor]:
    """What `node` keeps for its backward, by the name that PyTorch's own table of derivatives gives it."""
    kept = {name.removeprefix("_saved_"): getattr(node, name) for name in dir(node) if name.startswith("_saved_")}
    return {name: value for name, value in kept.items() if isinstance(value, torch.Tensor)}


def read_graph(loss: torch.Tensor, leaves: Mapping[str, torch.Tensor]) -> list[Operation]:
    """The graph behind `loss`, which it walks once with backward(); leaves are called as in `leaves`.

    The shape of a gradient is seen on its way, by a hook; an operation with several results shows that of the first.
    """
    nodes = nodes_behind(loss)
    names = {id(leaf): name for name, leaf in leaves.items()}
    operations = []
    for node in nodes:
        leaf = getattr(node, "variable", None)
        name = operation_name(node) if leaf is None else names.get(id(leaf), "leaf")
        saved = {} if leaf is not None else {key: tuple(value.shape) for key, value in saved_tensors(node).items()}
        sources = [nodes.index(source) for source, _ in node.next_functions if source is not None]
        operations.append(Operation(name, leaf is not None, saved, (), sources))
    hooks = []
    for node, operation in zip(nodes, operations, strict=True):

        def look(gradients: tuple[torch.Tensor | None, ...], operation: Operation = operation) -> None:
            operation.arrives = next((tuple(gradient.shape) for gradient in gradients if gradient is not None), ())

        hooks.append(node.register_prehook(look))
    loss.backward()
    for hook in hooks:
        hook.remove()
    return operations


def shape_text(shape: tuple[int, ...]) -> str:
    """(8, 3) as "8 x 3"; a single number has no axes."""
    return " x ".join(map(str, shape)) or "1 number"


def tree(graph: list[Operation]) -> list[tuple[str, Operation, bool]]:
    """Lines of a tree, each with its operation, and whether that was met further up; sources below, indented."""
    lines, met = [], set()
    waiting = [(0, 0)]
    while waiting:
        number, depth = waiting.pop()
        lines.append(("  " * depth + graph[number].name, graph[number], number in met))
        if number not in met:
            waiting += [(source, depth + 1) for source in reversed(graph[number].sources)]
        met.add(number)
    return lines


# The picture

BOX_WIDTH, BOX_HEIGHT = 0.84, 0.54  # of the distance between two columns, and between two rows


def layers(graph: list[Operation]) -> list[int]:
    """The row of each node: one below the lowest of those that send it a gradient."""
    rows = [0] * len(graph)
    changed = True
    while changed:
        changed = False
        for number, operation in enumerate(graph):
            for source in operation.sources:
                if rows[source] <= rows[number]:
                    rows[source], changed = rows[number] + 1, True
    return rows


def columns(graph: list[Operation]) -> list[float]:
    """The column of each node: an end of the tree takes the next free one, a node stands in the middle of its sources."""
    places: dict[int, float] = {}
    rows, free = layers(graph), 0.0

    def place(number: int) -> float:
        nonlocal free
        # A node that is met by several paths hangs below the lowest of them.
        own = [source for source in dict.fromkeys(graph[number].sources)
               if rows[source] == rows[number] + 1 and source not in places]  # fmt: skip
        below = [place(source) for source in own]
        if not below:
            free += 1
        places[number] = sum(below) / len(below) if below else free - 1
        return places[number]

    for number in range(len(graph)):
        if number not in places:
            place(number)
    return [places[number] for number in range(len(graph))]


def caption(operation: Operation) -> str:
    """The second line in a node's box."""
    if operation.is_leaf:
        return f"leaf, {shape_text(operation.arrives)}"
    return f"keeps {' and '.join(map(shape_text, operation.saved.values()))}" if operation.saved else ""


def draw_graph(axis: Any, graph: list[Operation], title: str) -> None:
    """The loss at the top; arrows follow the gradients, whose shapes stand beside them, down to the leaves."""
    from matplotlib.patches import FancyBboxPatch

    rows, places = layers(graph), columns(graph)
    for number, operation in enumerate(graph):
        for source in dict.fromkeys(operation.sources):
            draw_arrow(axis, (places[number], -rows[number]), (places[source], -rows[source]), graph[source].arrives)
        x, y = places[number], -rows[number]
        axis.add_patch(
            FancyBboxPatch(
                (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2), BOX_WIDTH, BOX_HEIGHT, linewidth=1.3, edgecolor="#1f2937",
                boxstyle="round,pad=0,rounding_size=0.25" if operation.is_leaf else "square,pad=0",
                facecolor="#fde68a" if operation.is_leaf else "#dbeafe", zorder=2,
            )
        )  # fmt: skip
        below = caption(operation)
        text = {"ha": "center", "va": "center", "zorder": 3}
        axis.annotate(operation.name, (x, y + (0.1 if below else 0)), fontsize=10, weight="bold", **text)
        axis.annotate(below, (x, y - 0.14), fontsize=8, **text)
    axis.set(xlim=(min(places) - 0.6, max(places) + 0.6), ylim=(-max(rows) - 0.5, 0.5), title=title)
    axis.axis("off")


def draw_arrow(axis: Any, start: tuple[float, float], end: tuple[float, float], shape: tuple[int, ...]) -> None:
    """One row down: straight. Further: down in its own column, then sideways into the box, so as to cross no other."""
    arrow = {"arrowstyle": "-|>", "color": "#525252", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    (x, y), (to_x, to_y) = (start[0], start[1] - BOX_HEIGHT / 2), (end[0], end[1] + BOX_HEIGHT / 2)
    label = (x + to_x) / 2, (y + to_y) / 2
    if start[1] - end[1] > 1 and start[0] != end[0]:
        to_x, to_y = end[0] + BOX_WIDTH / 2 * (1 if start[0] > end[0] else -1), end[1]
        arrow |= {"connectionstyle": "angle,angleA=-90,angleB=180,rad=8"}
        label = x, (y + to_y) / 2
    axis.annotate("", (to_x, to_y), (x, y), arrowprops=arrow, zorder=1)
    axis.annotate(shape_text(shape), label, fontsize=8, ha="center", va="center", color="#262626",
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
