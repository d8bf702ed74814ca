"""Mistakes that everybody makes: PyTorch's words, the calculator's words, and a line that works."""

import contextlib
import warnings
from collections.abc import Mapping

from pytorch_00_tensor_gpu_basics.src.calculator.evaluate import functions
from pytorch_00_tensor_gpu_basics.src.calculator.explain import explain_mistake
from pytorch_00_tensor_gpu_basics.src.calculator.session import Session
from pytorch_00_tensor_gpu_basics.src.calculator.tour_reading import refuses
from pytorch_00_tensor_gpu_basics.src.calculator.values import Node
from shared.lesson import Lesson
from shared.snippets import evaluate
from shared.units import percent

import torch

SETUP = ("x = randn(4, 3)", "w = randn(2, 3)", "b = randn(4)", "n = arange(6).reshape(2, 3)", "mask = x > 0")
MISTAKES = (
    "x @ w", "x - x.mean(dim=1)", "n.mean()", "x.reshape(5, -1)", "torch.cat([x, b])", "x.T.view(12)", "x + b",
    "x @ n.T", "x.reshape(2, 5)", "x.sum(dim=2)", "x[4]", "x[0, 0, 0]", "torch.stack([x, w])", "mask - mask",
    "x.expand(4, 6)", "x.permute(1)", "n ** -1", "torch.softmax(n, dim=1)", 'torch.einsum("ij,jk->ik", x, w)',
    "torch.tensor([[1, 2], [3]])", "x.item()", "torch.zeros(2, -3)", "torch.exp(2.0)", "x.sume()", "2x",
    "(x > 0 & x < 1).sum()", "3 × 4", "x.T()", "x.sum[0]", "torch.zeros(2, 3", "n // 0", "[1, 2] - x",
)  # fmt: skip
IN_FULL = 6  # of them, with PyTorch's own words


def python_says(line: str, names: Mapping[str, object]) -> str:
    """The error that Python or PyTorch has for a line of ours; "" where it runs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluate(line, **names)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}".partition(". ")[0]
    return ""


def torch_names(session: Session) -> dict[str, object]:
    """The variables, and PyTorch's functions by the names that they have here: what a suggested line needs to run there."""
    known = {name: getattr(torch, name) for name in functions() if hasattr(torch, name)}
    return known | {name: x.tensor if isinstance(x, Node) else x for name, x in session.variables.items()}


def runs_in_torch(line: str, session: Session) -> bool:
    """Whether PyTorch evaluates `line` to what the calculator makes of it; random ones only to the same shape."""
    value = session.run(line).value
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = evaluate(line, **torch_names(session))
        return same(value.tensor, expected) if isinstance(value, Node) else bool(value == expected)
    return False


def same(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal in shape, type and numbers, with rounding and nan allowed for."""
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return False
    return torch.allclose(mine.double(), theirs.double(), rtol=1e-5, atol=1e-6, equal_nan=True)


def show_mistakes(lesson: Lesson) -> None:
    lesson.section(
        "What a beginner gets wrong",
        "An error message is good when it names the place, says what did not fit to what, and leads to a line that "
        "works. PyTorch's messages come from inside the kernel that failed, and often speak of something that you "
        f"never wrote. Here are {len(MISTAKES)} mistakes that everybody makes. Each line that is offered has been "
        "calculated before you see it.",
    )
    session = Session(lesson.options.seed)
    for line in SETUP:
        session.run(line)
    names = torch_names(session)
    theirs = {line: python_says(line, names) for line in MISTAKES}
    mine = {line: mistake for line in MISTAKES if (mistake := refuses(session, line))}
    for line in MISTAKES[:IN_FULL]:
        lesson.drawing("\n".join([*explain_mistake(line, mine[line], lesson.terminal.width - 4)]))
        lesson.items({"PyTorch": theirs[line]})
    lesson.table(
        [
            {"line": line, "a line that works": "   ".join(mine[line].tries) or "–"}
            for line in MISTAKES[IN_FULL:]
            if line in mine
        ]
    )
    refused = [line for line in MISTAKES if line in mine and theirs[line]]
    lesson.check(
        "all are refused, by Python or PyTorch too", len(refused) == len(MISTAKES), f"{len(refused)} of {len(MISTAKES)}"
    )
    places = [mistake.span for mistake in mine.values() if mistake.span]
    inside = sum(
        0 <= start < end <= len(line) or start == len(line) for (start, end), line in zip(places, mine, strict=True)
    )
    lesson.check("each has its place in the line", inside == len(MISTAKES), f"{inside} carets")
    foreseen = sum(not mistake.refused_by_torch for mistake in mine.values())
    lesson.check("each is found before PyTorch sees it", foreseen == len(mine), f"{foreseen} of {len(mine)}")
    mended = [line for line, mistake in mine.items() if mistake.tries]
    offered = [text for mistake in mine.values() for text in mistake.tries]
    works = [text for text in offered if runs_in_torch(text, session)]
    lesson.check(
        "what is offered runs in PyTorch, with the same result",
        works == offered,
        f"{len(works)} of {len(offered)} lines",
    )
    lesson.check("nearly all mistakes get such a line", len(mended) > 0.8 * len(mine), f"{len(mended)} of {len(mine)}")
    left = [line for line in mine if line not in mended]
    readings = max(len(mistake.tries) for mistake in mine.values())
    lesson.shows(
        f"{percent(len(mended) / len(mine))} of these mistakes can be mended by a program that knows nothing but "
        f"shapes and types. It does not know what you meant: some lines have {readings} readings, and both run. "
        f"Without an offer are {', '.join(left)}: there only you can say what was meant."
    )
