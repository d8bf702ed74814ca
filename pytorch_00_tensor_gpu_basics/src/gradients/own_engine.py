"""The engine of engine.py put to the test: a thousand random expressions, a deep one, and a network that it trains."""

import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_00_tensor_gpu_basics.src.gradients import engine
from pytorch_00_tensor_gpu_basics.src.gradients.engine import Tracked, unbroadcast
from pytorch_00_tensor_gpu_basics.src.gradients.expressions import OF_ONE, OF_TWO, Expression, random_expression
from shared.drawing import beside, grid
from shared.lesson import Lesson
from shared.snippets import complaint, lines_of_code
from shared.timing import compare, ratio
from shared.units import significant

import torch

CPU = torch.device("cpu")

# What flows back, where g is the gradient that arrives at the result. The thousand expressions below check it.
RULES = (
    ("a + b", "g", "g"),
    ("a - b", "g", "-g"),
    ("a * b", "g * b", "g * a"),
    ("a / b", "g / b", "-g * a / b²"),
    ("a @ b", "g @ b.mT", "a.mT @ g"),
    ("exp(a)", "g * result", ""),
    ("log(a)", "g / a", ""),
    ("tanh(a)", "g * (1 - result²)", ""),
    ("relu(a)", "g where a > 0, else 0", ""),
    ("a.sum()", "g, repeated", ""),
    ("a.reshape()", "g, reshaped back", ""),
)


def show_own_engine(lesson: Lesson) -> None:
    show_engine(lesson)
    show_training(lesson)


# The engine against autograd


@dataclass(frozen=True)
class Agreement:
    """How far two engines are apart over many expressions, relative to the largest number in each."""

    value: float
    gradient: float
    gradients: int  # numbers compared
    operations: Counter[str]


def largest(tensors: Sequence[torch.Tensor]) -> float:
    return max(tensor.abs().max().item() for tensor in tensors)


def compare_engines(expressions: Iterable[Expression]) -> Agreement:
    """Runs each expression forwards and backwards on our engine and on autograd."""
    value_off, gradient_off, numbers = 0.0, 0.0, 0
    operations: Counter[str] = Counter()
    for expression in expressions:
        ours = [Tracked(leaf) for leaf in expression.leaves]
        theirs = [leaf.clone().requires_grad_() for leaf in expression.leaves]
        our_loss, their_loss = expression.run(ours), expression.run(theirs)
        our_loss.backward()
        their_loss.backward()
        own = [leaf.grad for leaf in ours if leaf.grad is not None]
        gradients = [leaf.grad for leaf in theirs if leaf.grad is not None]
        assert len(own) == len(gradients) == len(theirs)  # run() makes every leaf count
        apart = [a - b for a, b in zip(own, gradients, strict=True)]
        scale = largest([their_loss, *gradients]) or 1.0  # all are 0 where relu has switched everything off
        value_off = max(value_off, largest([our_loss.data - their_loss]) / scale)
        gradient_off = max(gradient_off, largest(apart) / scale)
        numbers += sum(gradient.numel() for gradient in gradients)
        operations.update(step.name for step in expression.steps)
    return Agreement(value_off, gradient_off, numbers, operations)


def order_by_recursion(node: Tracked, seen: set[Tracked]) -> list[Tracked]:
    """The mistake: a function that calls itself for each input; Python allows about a thousand calls within calls."""
    if node in seen:
        return []
    seen.add(node)
    return [before for source, _ in node.edges for before in order_by_recursion(source, seen)] + [node]


def chain(x: Any, length: int) -> Any:
    """`length` operations, each on the result of the one before, as in an unrolled recurrent network."""
    for step in range(length):
        x = x + 0.1 * x.sin() if step % 2 else x * 0.999
    return x


def show_engine(lesson: Lesson) -> None:
    code = lines_of_code(engine)
    lesson.section(
        "A reverse-mode engine of our own",
        f"What you did by hand, a program can do. The file src/gradients/engine.py has {code} lines of code: every "
        "operation computes its result and remembers its inputs, each with a function that turns the gradient g "
        "arriving at the result into the gradient for that input. backward() starts at the loss with 1 and visits each "
        "operation after all that used its result. That is all that autograd does, too.",
    )
    lesson.table([dict(zip(("operation", "back to a", "back to b"), rule, strict=True)) for rule in RULES])
    lesson.text(
        "One rule more: broadcasting. A bias of shape (3,) that is added to 2 rows is read twice, so two gradients "
        "come back to each of its numbers, and they add:"
    )
    arrived = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    summed = unbroadcast(arrived, torch.Size([3]))
    lesson.drawing(beside(grid(arrived, "arrives"), "→", grid(summed, "bias gets")))
    bias = torch.zeros(3, requires_grad=True)
    (torch.zeros(2, 3) + bias).backward(arrived)
    lesson.check("a broadcast input gets the sum over its copies", bias.grad is not None and summed.equal(bias.grad),
                 f"{summed.tolist()}, as autograd has it")  # fmt: skip
    generator = random.Random(lesson.options.seed)
    count = lesson.pick(full=1000, quick=100)
    agreement = compare_engines(random_expression(generator) for _ in lesson.progress(range(count), "expressions"))
    lesson.record("largest deviation of a gradient", agreement.gradient, "relative", expressions=count)
    lesson.check(f"{count:,} random expressions: the same values", agreement.value < 1e-10,
                 f"{agreement.operations.total():,} operations, at most {significant(agreement.value, 2)} off")  # fmt: skip
    lesson.check(f"{count:,} random expressions: the same gradients", agreement.gradient < 1e-10,
                 f"{agreement.gradients:,} numbers, at most {significant(agreement.gradient, 2)} off")  # fmt: skip
    lesson.check("all operations of the table took part", agreement.operations.keys() == {*OF_ONE, *OF_TWO},
                 f"{agreement.operations['@']:,} of them were products of matrices")  # fmt: skip
    length = lesson.pick(full=10_000, quick=2000)
    ours, theirs = Tracked(torch.tensor(1.0)), torch.tensor(1.0, requires_grad=True)
    end = chain(ours, length)
    message = complaint(lambda: order_by_recursion(end, set()))
    lesson.check("recursion cannot order a deep graph", "RecursionError" in message,
                 f"RecursionError: Python stops at {sys.getrecursionlimit():,} calls")  # fmt: skip
    end.backward()
    chain(theirs, length).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    off = largest([ours.grad - theirs.grad]) / largest([theirs.grad])
    lesson.check("a loop can, by counting how often each value was used", off < 1e-4,
                 f"a chain of {length:,} steps: {significant(off, 2)} off")  # fmt: skip
    lesson.shows(
        f"{code} lines give the gradients of PyTorch to {significant(agreement.gradient, 2)}. backward() is no approximation and "
        "no symbolic algebra: it multiplies the numbers that the forward pass left behind, in the opposite order."
    )


# A network that it trains

STEPS_SHOWN = 5


def predict(x: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:
    """Two layers: (n, 1) → (n, width) → (n, 1)."""
    return (x @ w1 + b1).tanh() @ w2 + b2


def initial_weights(width: int) -> list[torch.Tensor]:
    shapes = ((1, width), (width,), (width, 1), (1,))
    return [torch.randn(shape, dtype=torch.float64) / shape[0] ** 0.5 for shape in shapes]


def train_with_engine(x: torch.Tensor, y: torch.Tensor, weights: Sequence[torch.Tensor], steps: int) -> list[float]:
    """Gradient descent; returns the loss before each step."""
    parameters, losses = [Tracked(weight) for weight in weights], []
    for _ in range(steps):
        loss = ((predict(Tracked(x), *parameters) - y) ** 2).mean()
        loss.backward()
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.data = parameter.data - 0.1 * parameter.grad
            parameter.grad = None
        losses.append(loss.data.item())
    return losses


def train_with_autograd(x: torch.Tensor, y: torch.Tensor, weights: Sequence[torch.Tensor], steps: int) -> list[float]:
    """The same, line by line; no_grad keeps the update out of the graph."""
    parameters, losses = [weight.clone().requires_grad_() for weight in weights], []
    for _ in range(steps):
        loss = ((predict(x, *parameters) - y) ** 2).mean()
        loss.backward()
        with torch.no_grad():
            for parameter in parameters:
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
        losses.append(loss.item())
    return losses


def show_training(lesson: Lesson) -> None:
    lesson.section(
        "The engine trains a network",
        "Gradients are there to be used. A network with one hidden layer of tanh learns sin(x) from 64 points, once "
        "with our engine and once with autograd, from the same weights, in float64. The code of the network is the "
        "same function for both.",
    )
    steps = lesson.pick(full=500, quick=200)
    x = torch.linspace(-3, 3, 64, dtype=torch.float64).reshape(-1, 1)
    y, weights = x.sin(), initial_weights(16)
    ours, theirs = (train(x, y, weights, steps) for train in (train_with_engine, train_with_autograd))
    shown = [round(i * (steps - 1) / (STEPS_SHOWN - 1)) for i in range(STEPS_SHOWN)]
    lesson.table(
        [{"step": step, "loss, our engine": f"{ours[step]:.12f}", "loss, autograd": f"{theirs[step]:.12f}"}
         for step in shown]
    )  # fmt: skip
    off = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    lesson.check(
        "both engines train to the same losses", off < 1e-8, f"at most {significant(off, 2)} apart in {steps} steps"
    )
    spread = y.var(correction=0).item()
    lesson.check("the network has learned most of the curve", ours[-1] < spread / 4,
                 f"loss {ours[-1]:.4f}; always saying 0 has {spread:.3f}")  # fmt: skip
    ways = {
        "ours": lambda: train_with_engine(x, y, weights, 5),
        "autograd": lambda: train_with_autograd(x, y, weights, 5),
    }
    timings = compare(ways, CPU, rounds=7, budget_s=lesson.pick(full=0.5, quick=0.15))
    for way, timing in timings.items():
        lesson.record("training step", timing.median_s / 5 * 1e6, "µs", timing, way=way)
    slower = ratio(timings["ours"], timings["autograd"]).median
    lesson.shows(
        f"a step takes {timings['ours'].median_s / 5 * 1e6:,.0f} µs with our engine and "
        f"{timings['autograd'].median_s / 5 * 1e6:,.0f} µs with autograd, {slower:.1f} times as long. Both call the same "
        "operations on the same tensors. Autograd keeps its graph and walks it in C++, and it asks each input whether it "
        "requires a gradient: ours computes one for the data as well, which nobody reads."
    )
