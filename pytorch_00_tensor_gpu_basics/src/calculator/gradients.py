"""grad(loss, x): back over the operations between x and loss, one local derivative after another."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pytorch_00_tensor_gpu_basics.src.calculator.limits import MAX_TAPE
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake
from pytorch_00_tensor_gpu_basics.src.calculator.shapes import shown
from pytorch_00_tensor_gpu_basics.src.calculator.table import described
from pytorch_00_tensor_gpu_basics.src.calculator.values import Node, Plan

import torch

BYTES_PER_NODE = 1024  # what Python needs for one, at least; a long past of small tensors is counted by it
NUDGE = 1e-3  # in float64, so that the rounding of the loss stays far below what the nudge changes
COPIES = 10  # of each tensor on the way: slopes, and two runs in float64, which has twice the bytes
PASSES = 5  # each operation runs again once to be differentiated, which costs about two more, and twice for the nudge


@dataclass
class Visit:
    """One stop on the way back: the operation, and the slope of the loss by its result, which arrives there."""

    node: Node
    arriving: torch.Tensor


@dataclass
class Gradient:
    """The walk from `loss` back to `x`; `checked` is an index of x with its slope and the slope measured by a nudge."""

    loss: Node
    x: Node
    visits: list[Visit] = field(default_factory=list)
    checked: tuple[tuple[int, ...], float, float] | None = None


def past(last: Node) -> list[Node]:
    """`last` and all that it was computed from, each after its inputs."""
    order: list[Node] = []
    seen: set[int] = set()
    waiting = [(last, iter(last.inputs))]
    while waiting:
        node, inputs = waiting[-1]
        following = next((x for x in inputs if id(x) not in seen), None)
        if following is None:
            waiting.pop()
            if id(node) not in seen:
                seen.add(id(node))
                order.append(node)
        else:
            waiting.append((following, iter(following.inputs)))
    return order


def path_between(x: Node, loss: Node) -> list[Node]:
    """The nodes through which `x` reaches `loss`, both among them, each after its inputs; [] where it does not."""
    reached = {id(x)}
    path = []
    for node in past(loss):
        if node is x or any(id(source) in reached for source in node.inputs):
            reached.add(id(node))
            path.append(node)
    return path if id(loss) in reached else []


def backward(path: list[Node], x: Node, loss: Node) -> Iterator[Visit]:
    """The chain rule: from the loss, whose slope by itself is 1, each operation hands its inputs what it received
    times its own local derivative; what comes to a node from several sides is added."""
    arriving = {id(loss): torch.ones_like(loss.tensor)}
    on_path = {id(node) for node in path}
    for node in reversed(path):
        slope = arriving.get(id(node), torch.zeros_like(node.tensor))
        yield Visit(node, slope)
        if node is x or node.compute is None:
            continue
        leaves = [source.tensor.detach().requires_grad_(id(source) in on_path) for source in node.inputs]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        with torch.enable_grad():
            result = node.compute(*leaves)
        slopes = iter(
            torch.autograd.grad(result, wanted, slope, allow_unused=True)
            if result.requires_grad
            else [None] * len(wanted)
        )
        for source, leaf in zip(node.inputs, leaves, strict=True):
            if leaf.requires_grad and (added := next(slopes)) is not None:
                arriving[id(source)] = arriving[id(source)] + added if id(source) in arriving else added


def loss_at(path: list[Node], x: Node, value: torch.Tensor) -> float:
    """The loss with `value`, in float64, in the place of `x`: the operations in between run again."""
    again = {id(x): value}
    for node in path:
        if node is not x and node.compute is not None:
            inputs = (
                again.get(id(source), source.tensor.double() if source.is_float else source.tensor)
                for source in node.inputs
            )
            again[id(node)] = node.compute(*inputs)
    return again[id(path[-1])].double().sum().item()


def nudge(path: list[Node], x: Node, slope: torch.Tensor) -> tuple[tuple[int, ...], float, float] | None:
    """Where the slope is steepest, what it is, and by how much the loss really changes there; None where it is not finite."""
    if not slope.numel() or not bool(torch.isfinite(slope).all()):
        return None
    place = int(slope.abs().argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), slope.shape)) if slope.ndim else ()
    moved = [x.tensor.double().clone() for _ in range(2)]
    moved[0][index] += NUDGE
    moved[1][index] -= NUDGE
    up, down = (loss_at(path, x, value) for value in moved)
    measured = (up - down) / (2 * NUDGE)
    return (index, slope[index].item(), measured) if math.isfinite(measured) else None


def plan_gradient(loss: object, x: object) -> tuple[Gradient, Plan]:
    """Checks that there is a way from `loss` back to `x`, and plans the walk; raises Mistake."""
    for place, (value, what) in enumerate(((loss, "loss"), (x, "x"))):
        if not isinstance(value, Node):
            number = isinstance(value, int | float)
            raise Mistake(
                f"the {what} of grad must be a tensor, and this is {described(value)}"
                + ("; a number does not remember how it was computed" if number else ""),
                argument=f"argument {place}",
            )
        if not value.is_float:
            raise Mistake(
                f"only floating-point numbers have a slope, and this is {value.dtype_name}; begin with .float() or with "
                "numbers with a point",
                argument=f"argument {place}",
            )
    assert isinstance(loss, Node)
    assert isinstance(x, Node)
    if loss.tensor.numel() != 1 and x.tensor.numel() == 1:
        raise Mistake("the loss, one number, comes first: grad(loss, x)", repairs=["grad({1}, {0})"])
    if loss.tensor.numel() != 1:
        raise Mistake(
            f"a gradient is the slope of one number, and the loss has shape {shown(loss.shape)}; add up or average it first",
            argument="argument 0",
            repairs=["{0}.sum()", "{0}.mean()"],
        )
    path = path_between(x, loss)
    if not path:
        raise Mistake(
            "the loss was not computed from this x: either x was assigned anew afterwards, or a step between them has no "
            "slope (whole numbers, comparisons, //, detach, item)",
            argument="argument 1",
        )
    gradient = Gradient(loss, x)

    def compute() -> torch.Tensor:
        gradient.visits = list(backward(path, x, loss))
        slope = gradient.visits[-1].arriving
        gradient.checked = nudge(path, x, slope)
        return slope

    sizes = [node.tensor.numel() for node in path for _ in range(COPIES)]
    return gradient, Plan(
        x.shape,
        compute,
        f"the slope of {loss.name or loss.source} by each element of {x.name or x.source}",
        scratch=sizes,
        work=PASSES * sum(node.work for node in path),
    )


# What the past costs


def check_past(inputs: Iterable[Node]) -> None:
    """Raises Mistake where the chain of operations has become too long to be kept."""
    if max((node.generation for node in inputs), default=0) >= MAX_TAPE:
        raise Mistake(f"more than {MAX_TAPE:,} operations are kept for grad behind this tensor; x.detach() forgets them",
                      repairs=["{0}.detach()"])  # fmt: skip


def held_bytes(values: Iterable[object]) -> int:
    """What the variables keep in memory, with what grad needs of their past; shared memory counts once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [value for value in values if isinstance(value, Node)]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        storage = node.tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        waiting += node.inputs
    return sum(storages.values()) + BYTES_PER_NODE * len(seen)
