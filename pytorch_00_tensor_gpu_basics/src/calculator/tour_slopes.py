"""The tour, third part: the way back for a gradient, and results that are no numbers."""

import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytorch_00_tensor_gpu_basics.src.calculator.arithmetic import STRETCHED
from pytorch_00_tensor_gpu_basics.src.calculator.gradients import Visit
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake
from pytorch_00_tensor_gpu_basics.src.calculator.random_lines import Sensible, make_variables
from pytorch_00_tensor_gpu_basics.src.calculator.session import Answer, Session
from pytorch_00_tensor_gpu_basics.src.calculator.tour_reading import refuses, show_line, tensor_of
from pytorch_00_tensor_gpu_basics.src.calculator.values import Node
from shared.lesson import Lesson
from shared.snippets import evaluate

import torch


def session_with(variables: Mapping[str, torch.Tensor], seed: int = 0) -> Session:
    session = Session(seed)
    session.variables = {name: Node(tensor, name, name=name) for name, tensor in variables.items()}
    return session


# Gradients


@dataclass
class Comparison:
    """How the gradients of random losses compare with autograd's, and with what a nudge of x shows."""

    losses: int = 0
    as_autograd: int = 0
    worst: float = 0.0
    nudged: int = 0
    as_nudged: int = 0


def autograd(line: str, name: str, variables: Mapping[str, torch.Tensor], device: torch.device) -> torch.Tensor:
    """What PyTorch's own backward pass gives for the same text, on `device`."""
    leaves = {
        key: x.detach().to(device).requires_grad_(x.dtype == torch.float32)
        for key, x in variables.items()
        if key[0] == "f"
    }
    (slope,) = torch.autograd.grad(evaluate(line, **leaves), leaves[name])
    return slope.cpu()


def compare_gradients(seed: int, numbers: Iterable[int], device: torch.device) -> Comparison:
    """For each of `numbers` a random smooth loss and a variable in it; lines whose shapes do not fit are passed over."""
    variables = make_variables(seed)
    random_lines, found = Sensible(seed, variables), Comparison()
    session = session_with(variables, seed)
    for _ in numbers:
        line, name, answer = random_loss(session, random_lines)
        assert isinstance(answer.value, Node)
        assert answer.gradient is not None
        expected = autograd(line, name, variables, device)
        apart = (answer.value.tensor - expected).abs().max().item() / max(1.0, expected.abs().max().item())
        found.losses += 1
        found.as_autograd += apart < 1e-4
        found.worst = max(found.worst, apart)
        if answer.gradient.checked:
            _, slope, measured = answer.gradient.checked
            found.nudged += 1
            found.as_nudged += abs(slope - measured) < 1e-3 * max(1.0, abs(slope))
    return found


def random_loss(session: Session, random_lines: Sensible) -> tuple[str, str, Answer]:
    """A loss whose shapes fit, one of its variables, and the gradient."""
    while True:
        line = f"({random_lines.smooth()}).sum()"
        name = re.findall(r"f\d+", line)[0]
        with contextlib.suppress(Mistake):
            session.run(f"loss = {line}")
            answer = session.run(f"grad(loss, {name})")
            if isinstance(answer.value, Node) and answer.gradient and answer.gradient.checked:  # finite, not empty
                return line, name, answer


FORMULAS = (
    "(exp(x) * x).sum()", "(log(x) / x).mean()", "(sqrt(x) - sin(x) * cos(x)).sum()", "(tanh(x) + sigmoid(-x)).sum()",
    "(x ** 3 % 5).sum()", "(relu(x - 2) + abs(x)).sum()", "((m @ x) ** 2).sum()", "(x @ m.T @ v)",
    "((m @ m.T) * m.sum()).sum()", "(x / (x + 1) ** 2).sum()", "(2 ** x).sum() + (x ** x).sum()",
)  # fmt: skip


def true_formulas(losses: tuple[str, ...]) -> tuple[int, int]:
    """How many of the printed local derivatives give, when the calculator evaluates them, what PyTorch hands on."""
    right = tested = 0
    for loss in losses:
        session = Session()
        for line in (
            "x = tensor([1.5, 2.5, 0.5])",
            "m = tensor([[1., 2., 3.], [-1., 0.5, 2.]])",
            "v = tensor([2., -1.])",
            f"loss = {loss}",
        ):
            session.run(line)
        for name in ("x", "m"):
            try:
                gradient = session.run(f"grad(loss, {name})").gradient
            except Mistake:
                continue  # not every loss depends on both
            for visit in gradient.visits if gradient else ():
                for source, formula in zip(visit.node.inputs, visit.node.local, strict=False):
                    if not source.is_float:
                        continue
                    verdict = formula_gives_slope(session, visit, source, formula)
                    right, tested = right + (verdict is True), tested + (verdict is not None)
    return right, tested


def formula_gives_slope(session: Session, visit: Visit, source: Node, text: str) -> bool | None:
    """Whether the formula in `text`, with g for the slope that arrived, is the slope by `source`; None for a sentence."""
    formula, _, addition = text.partition(", ")
    inputs, compute = visit.node.inputs, visit.node.compute
    if compute is None or addition not in ("", STRETCHED) or sum(x is source for x in inputs) > 1:
        return None
    session.variables["g"] = Node(visit.arriving, "g")
    try:
        value = tensor_of(session, formula)
    except Mistake:
        return None
    leaves = [x.tensor.detach().requires_grad_(x is source) for x in inputs]
    (expected,) = torch.autograd.grad(compute(*leaves), [x for x in leaves if x.requires_grad], visit.arriving)
    summed = value.sum_to_size(expected.shape) if addition else value
    return summed.shape == expected.shape and torch.allclose(summed, expected, rtol=1e-4, atol=1e-5)


def show_gradients(lesson: Lesson) -> None:
    lesson.section(
        "The way back",
        "A gradient says how much the loss changes when an element of x does. It is found backwards: each "
        "operation knows its own slope, multiplies it to the slope that arrives from the loss, and hands the "
        "product on. That is all that loss.backward() does. Training is this walk, and then a small step of each "
        "weight against its slope.",
    )
    session = Session(lesson.options.seed)
    for line in ("x = tensor([1., 2., 3.])", "w = tensor(2.0)"):
        session.run(line)
    for line in ("loss = ((x * w - 1) ** 2).mean()", "grad(loss, w)"):
        show_line(lesson, session, line)
    by_hand = sum(2 * (x * 2 - 1) * x for x in (1, 2, 3)) / 3
    slope = tensor_of(session, "grad(loss, w)").item()
    lesson.check(
        "the chain rule on paper gives the same", abs(slope - by_hand) < 1e-4, f"{by_hand:.4f} and {slope:.4f}"
    )
    found = compare_gradients(
        lesson.options.seed, lesson.progress(range(lesson.pick(full=500, quick=60)), "gradients"), lesson.device
    )
    lesson.check(
        f"gradients of random losses are autograd's, on {lesson.device.type}",
        found.as_autograd == found.losses,
        f"{found.as_autograd} of {found.losses}, "
        + (f"worst {found.worst:.1e} apart" if found.worst else "to the last bit"),
    )
    lesson.check(
        "they are what a nudge of x shows", found.as_nudged == found.nudged, f"{found.as_nudged} of {found.nudged}"
    )
    right, tested = true_formulas(FORMULAS)
    lesson.check("the formulas after 'hands on' are right, typed back in", right == tested > 40, f"{right} of {tested}")
    session.run("y = x * x + x")
    twice = tensor_of(session, "grad(y.sum(), x)")
    lesson.check(
        "a tensor that is used twice adds up what arrives", twice.tolist() == [3, 5, 7], f"2x + 1 is {twice.tolist()}"
    )
    session.run("x = x - 0.1")
    mistake = refuses(session, "grad(y.sum(), x)")
    lesson.check(
        "an x assigned anew is not the x of the loss",
        mistake is not None and "anew" in str(mistake),
        "refused, and said why",
    )
    before, rate = slope, 0.05
    for _ in range(30):
        for line in (
            "loss = ((tensor([1., 2., 3.]) * w - 1) ** 2).mean()",
            f"w = (w - {rate} * grad(loss, w)).detach()",
        ):
            session.run(line)
    weight, best = tensor_of(session, "w").item(), 6 / 14
    lesson.check(
        "thirty steps against the slope find the best w",
        abs(weight - best) < 1e-3,
        f"{weight:.4f}, on paper 6/14 = {best:.4f}",
    )
    lesson.shows(
        f"the slope at w = 2 was {before:.2f}: upwards, so w had to fall, and after 30 steps it stood at "
        f"{weight:.3f}. In a program you write loss.backward(), and read x.grad. Remember that each assignment "
        "makes a new tensor: the old one keeps its place on the tape, and the new one is not on it."
    )


# No numbers

NO_NUMBERS = {
    "tensor([1., 0., -1.]) / 0": "0 / 0",
    "log(tensor([1., 0., -1.]))": "no logarithm",
    "sqrt(tensor(-4.))": "no square root",
    "tensor(-8.) ** (1 / 3)": "broken power",
    "exp(tensor([80., 89.]))": "3.4e+38",
    "tensor(1e30) * 1e30": "3.4e+38",
    "tensor(inf) - tensor(inf)": "inf - inf",
    "zeros(0).mean()": "0/0",
    "tensor([5.]).std()": "divides by 0",
    "tensor(2) ** 63": "wrapped around",
    "arange(1, 22).prod()": "wrapped around",
}


def log_of_softmax(x: torch.Tensor) -> torch.Tensor:
    """The mistake: a share that is too small for float32 becomes 0, and its logarithm -inf."""
    return torch.log(torch.softmax(x, dim=0))


def show_no_numbers(lesson: Lesson) -> None:
    lesson.section(
        "inf, nan, and numbers that run over",
        "A division by 0 is no error in a tensor: it is inf, and one inf or nan reaches the loss within a few "
        "operations. PyTorch does not say where it came from. Here each step is looked at, and the first one that "
        "makes it is named. Whole numbers have no inf: they run over silently.",
    )
    session = Session(lesson.options.seed)
    notes = {line: "; ".join(note for step in session.run(line).steps for note in step.notes) for line in NO_NUMBERS}
    lesson.items(notes)
    named = [line for line, cause in NO_NUMBERS.items() if cause in notes[line]]
    lesson.check(
        "each of them is told, with its cause", len(named) == len(NO_NUMBERS), f"{len(named)} of {len(NO_NUMBERS)}"
    )
    answer = session.run("(log(tensor([2., 0.])) * 0).sum()")
    steps = [i + 1 for i, step in enumerate(answer.steps) if step.notes]
    lesson.check(
        "the first step that makes it is named, later ones are not",
        steps == [2, 3],
        f"steps {steps} of {len(answer.steps)}",
    )
    quiet = session.run("tensor([1e30, -2.]) * 1e-30 + 1")
    lesson.check(
        "where all is finite nothing is said", not any(step.notes for step in quiet.steps), f"{len(quiet.steps)} steps"
    )
    factorial, true = tensor_of(session, "arange(1, 22).prod()").item(), math.factorial(21)
    lesson.check(
        "a product that ran over is off by a multiple of 2^64", (true - factorial) % 2**64 == 0, f"21! as {factorial:,}"
    )
    scores = torch.tensor([0.0, 200.0])
    naive, fused = log_of_softmax(scores), torch.log_softmax(scores, dim=0)
    lesson.check("log(softmax(x)) loses what log_softmax keeps", bool(naive[0].isinf()) and bool(fused.isfinite().all()),
                 f"{naive[0].item()} and {fused[0].item():g}")  # fmt: skip
    lesson.shows(
        f"in {len(named)} of {len(notes)} lines the cause can be named, because somebody looks after every step. In "
        "your program that is you: when a loss is nan, look for the first tensor that is not finite, with "
        "torch.isfinite(x).all(), and not for the last. It is mostly a log of 0, a division by a standard "
        "deviation of 0 or an exp of a large score; log_softmax avoids two of them."
    )
