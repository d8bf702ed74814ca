"""The graph that autograd records: walked, drawn, different for each input, and what becomes of it when it is frozen."""

import math
from typing import Any

from pytorch_00_tensor_gpu_basics.src.gradients.walk import Operation, draw_graph, read_graph, shape_text, tree
from shared.lesson import Lesson
from shared.snippets import complaint

import torch
from torch.fx import symbolic_trace


def show_graphs(lesson: Lesson) -> None:
    show_graph(lesson)
    show_dynamic_and_static(lesson)


# The graph


def example_loss(device: torch.device) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A network of two layers on 8 samples, its loss with a penalty on the first weights, and its leaves by name."""
    x, y = torch.randn(8, 4, device=device), torch.randn(8, 2, device=device)
    shapes = {"w1": (4, 3), "b1": (3,), "w2": (3, 2)}
    leaves = {name: torch.randn(shape, device=device, requires_grad=True) for name, shape in shapes.items()}
    error = (x @ leaves["w1"] + leaves["b1"]).tanh() @ leaves["w2"] - y
    return (error**2).mean() + 0.1 * (leaves["w1"] ** 2).sum(), leaves


def show_graph(lesson: Lesson) -> None:
    lesson.section(
        "The graph that backward() walks",
        "Each operation on tensors that learn leaves a node: it knows the derivative, keeps what that needs, and points "
        "to the nodes of its inputs (grad_fn.next_functions). Here is the graph of ((tanh(x @ w1 + b1) @ w2 - y)²).mean() "
        "+ 0.1 (w1²).sum() for 8 samples, from the loss down. At the ends are the leaves, where gradients are gathered.",
    )
    loss, leaves = example_loss(lesson.device)
    graph = read_graph(loss, leaves)
    lesson.table(
        [
            {
                "node": line,
                "gradient that arrives": shape_text(operation.arrives),
                "keeps for its backward": "seen above" if again
                else "a leaf: adds to its .grad" if operation.is_leaf
                else ", ".join(f"{name} {shape_text(shape)}" for name, shape in operation.saved.items()) or "nothing",
            }
            for line, operation, again in tree(graph)
        ]
    )  # fmt: skip
    ends = {operation.name for operation in graph if operation.is_leaf}
    lesson.check("the graph ends in the leaves that require a gradient", ends == set(leaves), ", ".join(sorted(ends)))
    matching = [operation for operation in graph if operation.is_leaf
                and operation.arrives == tuple(leaves[operation.name].shape)]  # fmt: skip
    lesson.check("a gradient has the shape of what it belongs to", len(matching) == len(leaves),
                 f"w1: {shape_text(tuple(leaves['w1'].shape))}")  # fmt: skip
    product = next(
        operation for operation in graph if operation.name == "Mm" and operation.sources == [leaf_number(graph, "w1")]
    )
    lesson.check("x and y need no gradient and have no node", len(product.sources) == 1,
                 "the product x @ w1 points to w1 alone")  # fmt: skip
    users = sum(leaf_number(graph, "w1") in operation.sources for operation in graph)
    lesson.check("w1 is used twice and has one node, which adds", users == 2, f"{users} arrows lead to it")
    keeps = {operation.name: set(operation.saved) for operation in graph}
    lesson.check("tanh keeps its result, a power keeps its input", keeps["Tanh"] == {"result"} and keeps["Pow"] == {"self"},
                 "the derivative of tanh is 1 - result²")  # fmt: skip
    lesson.check("an addition keeps nothing", keeps["Add"] == set(), "its derivative is 1, whatever the numbers")
    lesson.figure("graph", lambda axis: draw_example(axis, graph))
    operations = sum(not operation.is_leaf for operation in graph)
    lesson.shows(
        f"a loss in one line of Python is {operations} operations and {len(ends)} leaves. What the nodes keep is why "
        "training needs so much more memory than inference: it stays until backward() has passed. The picture graph.png "
        "has the same graph."
    )


def leaf_number(graph: list[Operation], name: str) -> int:
    return next(number for number, operation in enumerate(graph) if operation.is_leaf and operation.name == name)


def draw_example(axis: Any, graph: list[Operation]) -> None:
    axis.figure.set_size_inches(8, 8.6)
    draw_graph(axis, graph, "What backward() walks for two layers and a penalty")
    legend = ("arrow: a gradient on its way, with its shape", "keeps: what stays in memory until then",
              "rounded: a leaf, adds up in .grad")  # fmt: skip
    axis.annotate("\n".join(legend), (0.49, 0.17), xycoords="axes fraction", fontsize=9, va="center")


# Dynamic and static


def shrink(x: torch.Tensor) -> torch.Tensor:
    """Halves `x` until its length is at most 1, and adds up what is left."""
    while x.norm() > 1:
        x = x * 0.5
    return x.sum()


class Doubled(torch.nn.Module):
    """Doubles its input while training, as dropout scales it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            x = x * 2
        return x + 1


def clip_by_branch(x: torch.Tensor) -> torch.Tensor:
    """Which of the two results is returned depends on the numbers in `x`."""
    return x / x.norm() if x.norm() > 1 else x


def clip_by_where(x: torch.Tensor) -> torch.Tensor:
    """The same with both computed and one chosen by an operation, so that any recording holds for all inputs."""
    return torch.where(x.norm() > 1, x / x.norm(), x)


def show_dynamic_and_static(lesson: Lesson) -> None:
    lesson.section(
        "A new graph for every input",
        "PyTorch records while your Python runs, so loops and branches need nothing special: each input leaves the graph "
        "of the path that it took. Here `while x.norm() > 1: x = x * 0.5`, then x.sum(), for inputs of growing length. "
        "The slope of the result in each number of x must be 0.5 for every turn.",
    )
    start = torch.tensor([0.6, 0.0, 0.8], device=lesson.device)  # of length 1
    graphs, table, right = {}, [], []
    for length in (0.5, 3.0, 10.0, 1000.0):
        x = (start * length).requires_grad_()
        graph = graphs[length] = read_graph(shrink(x), {"x": x})
        assert x.grad is not None
        turns = max(0, math.ceil(math.log2(length)))
        right.append(bool((x.grad == 0.5**turns).all()))
        table.append({"length of x": length, "turns": turns, "nodes": len(graph),
                      "graph": " → ".join(operation.name for operation in graph) if len(graph) < 5 else
                      f"Sum → {len(graph) - 2} x Mul → x", "slope": x.grad[0].item()})  # fmt: skip
    lesson.table(table)
    sizes = [len(graph) for graph in graphs.values()]
    lesson.check("another input, another graph", len(set(sizes)) == len(sizes), f"{', '.join(map(str, sizes))} nodes")
    lesson.check("and each has the right gradient", all(right), "0.5 to the power of the turns")
    lesson.figure("two_graphs", lambda *axes: draw_two(axes, graphs), columns=2)
    lesson.text(
        "A static graph is recorded once, optimised and used for every input, as exporters, torch.compile and CUDA "
        "graphs do. torch.fx is a recorder to try this with. It sends symbols through your function instead of numbers:"
    )
    refusal = complaint(lambda: symbolic_trace(shrink))
    lesson.items({"symbolic_trace(shrink)": refusal})
    lesson.check(
        "a loop on the data cannot be recorded by symbols", "control flow" in refusal, refusal.partition(":")[0]
    )
    model = Doubled().to(lesson.device)
    x = torch.ones(1, device=lesson.device)
    frozen = symbolic_trace(model)
    same = frozen(x).item(), model(x).item()
    frozen.eval()
    model.eval()
    differ = frozen(x).item(), model(x).item()
    lesson.text("A branch on something that Python knows already, such as self.training, is decided while recording:")
    lesson.drawing("\n".join(line for line in frozen.code.strip().replace("\n\n", "\n").splitlines()))
    lesson.check("recorded in training, the copy is right in training", same[0] == same[1], f"both give {same[0]:g}")
    lesson.check("after eval() it still does what training did", differ == (3, 2),
                 f"frozen {differ[0]:g}, model {differ[1]:g}, no error")  # fmt: skip
    recorded = symbolic_trace(clip_by_where)
    inputs = [torch.randn(4, device=lesson.device) * scale for scale in (0.1, 0.3, 1.0, 3.0) for _ in range(25)]
    long = sum(bool(x.norm() > 1) for x in inputs)
    agree = sum(torch.equal(recorded(x), clip_by_branch(x)) for x in inputs)
    lesson.check("torch.where puts both sides into the graph", agree == len(inputs) and 0 < long < len(inputs),
                 f"right for {len(inputs)} inputs, {long} of them longer than 1")  # fmt: skip
    lesson.shows(
        f"{len(sizes)} inputs left {len(set(sizes))} graphs and nobody had to say so; that is why PyTorch code can be "
        "debugged with print. What you record or export holds for the path that was recorded: switch to eval() first, "
        "keep choices on data inside operations, and compare with the original on inputs from every branch."
    )


def draw_two(axes: tuple[Any, ...], graphs: dict[float, list[Operation]]) -> None:
    for axis, length in zip(axes, (3.0, 10.0), strict=True):
        draw_graph(axis, graphs[length], f"x of length {length:g}: {len(graphs[length])} nodes")
        axis.set(xlim=(-1.4, 1.4), ylim=(0.5 - len(graphs[10.0]), 0.5))  # one scale for both
