"""The trials: random lines beside PyTorch's own answers, and ten thousand hostile ones."""

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from pytorch_00_tensor_gpu_basics.src.calculator.beginners import runs_in_torch, same
from pytorch_00_tensor_gpu_basics.src.calculator.explain import MOST_LINES, explain, explain_mistake
from pytorch_00_tensor_gpu_basics.src.calculator.limits import (
    BYTES_PER_ELEMENT,
    MAX_BYTES,
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_WORK,
)  # fmt: skip
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake
from pytorch_00_tensor_gpu_basics.src.calculator.random_lines import Hostile, Sensible, make_variables
from pytorch_00_tensor_gpu_basics.src.calculator.session import Session
from pytorch_00_tensor_gpu_basics.src.calculator.tour_reading import refuses
from pytorch_00_tensor_gpu_basics.src.calculator.tour_slopes import session_with
from pytorch_00_tensor_gpu_basics.src.calculator.values import Node
from pytorch_00_tensor_gpu_basics.src.calculator.watch import Allocations, watch_python
from shared.lesson import Lesson
from shared.snippets import evaluate
from shared.timing import measure
from shared.units import bytes_text, percent, seconds_text

import torch

# The same answers as PyTorch


@dataclass
class Agreement:
    """Random lines, calculated by both, refused by both, or neither."""

    outcomes: Counter[str] = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)
    wrong_offers: list[str] = field(default_factory=list)
    offers: int = 0
    steps: int = 0


def compare_with_torch(seed: int, numbers: Iterable[int]) -> Agreement:
    """The same random text for the calculator and for PyTorch, once for each of `numbers`."""
    variables, found = make_variables(seed), Agreement()
    session, lines = session_with(variables, seed), Sensible(seed, variables)
    for _ in numbers:
        line = lines.line()
        expected = None
        with contextlib.suppress(RuntimeError, TypeError, ValueError, IndexError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = evaluate(line, **variables)
        try:
            answer = session.run(line)
            found.steps += len(answer.steps)
            agree = expected is not None and isinstance(answer.value, Node) and same(answer.value.tensor, expected)
            outcome = "calculated by both" if expected is not None else "calculated only here"
        except Mistake as mistake:
            agree = expected is None
            outcome = "refused by both" if agree else "refused only here"
            found.offers += len(mistake.tries)
            found.wrong_offers += [text for text in mistake.tries if not runs_in_torch(text, session)]
            found.outcomes["refused, found by PyTorch and not by a rule"] += mistake.refused_by_torch
        found.outcomes[outcome] += 1
        if not agree:
            found.different.append(line)
    return found


def show_agreement(lesson: Lesson) -> None:
    lesson.section(
        "The same answers as PyTorch",
        "The notation is a part of PyTorch's own, so the same text can be given to both. Random lines over tensors "
        "of eleven shapes and four types: the calculator reads them with its own parser and its own shape rules, "
        "PyTorch runs them as a program. They must give the same numbers, and refuse the same lines.",
    )
    times = lesson.pick(full=5_000, quick=500)
    found = compare_with_torch(lesson.options.seed, lesson.progress(range(times), "random lines"))
    outcomes = found.outcomes
    lesson.table([{"outcome": name, "lines": count} for name, count in outcomes.most_common()])
    both = outcomes["calculated by both"]
    lesson.check(
        "same shape, same type, same numbers",
        both > times / 5 and not found.different,
        f"{both:,} lines, {found.steps:,} steps",
    )
    lesson.check("what one refuses, the other refuses", not outcomes["calculated only here"] + outcomes["refused only here"],
                 f"{outcomes['refused by both']:,} refused by both")  # fmt: skip
    lesson.check(
        "no refusal had to wait for PyTorch", not outcomes["refused, found by PyTorch and not by a rule"], "0 surprises"
    )
    lesson.check(
        "what is offered instead runs in PyTorch too",
        not found.wrong_offers,
        f"{found.offers - len(found.wrong_offers):,} of {found.offers:,} lines",
    )
    lesson.shows(
        f"{times:,} lines, {len(found.different)} differences. So what the calculator says of a shape is what your "
        "program will do. What you learn here carries over, line by line: put torch. before a function, and it is "
        "a program."
    )


# Limits and hostile lines

COSTLY = (
    "randn(1000, 1000)", "exp(randn(1000, 1000))",
    "arange(40000).reshape(200, 200) @ arange(40000).reshape(200, 200)", "softmax(randn(999, 999), dim=0)",
    "randn(999, 999)[randn(999, 999) > 0]", "randn(999, 999).T.reshape(999 * 999).cumsum(0)",
    "grad((tanh(t) ** 2).sum(), t)", "(" * 38 + "1" + ")" * 38, "1" + " + 1" * 38,
)  # fmt: skip
REFUSED_SIZES = {
    "zeros(10**9, 10**9)": "elements", "zeros(100000, 1) * zeros(100000)": "elements",
    "ones(1000, 1000) @ ones(1000, 1000)": "steps", 'einsum("ab,cd->abcd", zeros(99, 99), zeros(99, 99))': "elements",
    "arange(10).repeat(10**6)": "elements", "10 ** 10 ** 10": "digits", "zeros(1).expand(10**7)": "elements",
    "tensor(" + "[" * 60 + "]" * 60 + ")": "operations", "x" * 3000: "characters",
}  # fmt: skip


@dataclass
class Siege:
    """What ten thousand hostile lines did: per kind how many were calculated and refused, and whatever went wrong."""

    calculated: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    unclear: list[str] = field(
        default_factory=list
    )  # messages that are empty, longer than a line, or hold control characters
    refused_by_torch: list[str] = field(default_factory=list)
    largest_bytes: int = 0  # of one allocation
    most_bytes: int = 0  # of one line
    most_work: int = 0
    undercounted: list[str] = field(default_factory=list)  # lines that allocated more than was booked for them
    events: list[str] = field(default_factory=list)


SMALL_CHANGE = 2**20  # bytes that remarks and drawings may take beside what was booked


def besiege(seed: int, numbers: Iterable[int]) -> Siege:
    """A hostile line for each of `numbers`, while PyTorch's allocations and Python's audit events are watched."""
    variables, found = make_variables(seed), Siege()
    variables |= {"a": variables["f3"], "x": variables["f1"]}
    hostile, session = Hostile(seed, variables), session_with(variables, seed)
    for line in ("a @ a", "einsum('ij->', a)", "grad((a * a).sum(), a)", "relux(a)"):  # loads what PyTorch loads late
        refuses(session, line)
    with Allocations() as allocations:
        for i in numbers:
            kind = hostile.kinds[i % len(hostile.kinds)]
            line = hostile.line(kind)
            allocations.restart()
            try:
                with watch_python() as events:
                    answer_hostile(session, line, kind, found, allocations)
            except Exception as error:
                found.crashes.append(f"{type(error).__name__} on {line!r}")
            found.events += events
            found.largest_bytes = max(found.largest_bytes, allocations.largest_bytes)
            found.most_bytes = max(found.most_bytes, allocations.total_bytes)
            if i % 500 == 499:
                session = session_with(variables, seed)
    return found


def answer_hostile(session: Session, line: str, kind: str, found: Siege, allocations: Allocations) -> None:
    """One line, answered as at the prompt, and the answer looked at."""
    held = session.held_bytes
    try:
        answer = session.run(line)
        text = explain(answer)
        found.calculated[kind] += 1
        found.most_work = max(found.most_work, answer.budget.work)
        if (
            allocations.total_bytes > answer.budget.new_bytes + SMALL_CHANGE
            or held + answer.budget.new_bytes > MAX_BYTES
        ):
            found.undercounted.append(line)
    except Mistake as mistake:
        text = explain_mistake(line, mistake)
        found.refused[kind] += 1
        sentence = mistake.one_line()
        if not 10 < len(sentence) < 800 or not sentence.isprintable():
            found.unclear.append(line)
        if mistake.refused_by_torch:
            found.refused_by_torch.append(line)
    if len(text) > MOST_LINES or not all(row.isprintable() for row in text):
        found.unclear.append(line)


def show_siege(lesson: Lesson) -> None:
    lesson.section(
        "Hostile lines, by the thousand",
        "Whoever offers a calculator to strangers gets lines that nobody should evaluate: sizes that fill the "
        "memory, brackets without end, signs that only look like letters, and attempts to reach Python itself. "
        "Each is answered by a rule before anything is allocated. While the lines run, PyTorch's allocations and "
        "Python's audit events are watched from outside.",
    )
    limits = {
        "characters in a line": MAX_CHARACTERS,
        "operations inside one another": MAX_DEPTH,
        "elements of a tensor": MAX_ELEMENTS,
        "elementary steps of a line": MAX_WORK,
    }
    lesson.table([{"limit": name, "at most": value} for name, value in limits.items()]
                 + [{"limit": "MiB of all variables and one line", "at most": MAX_BYTES // 2**20}])  # fmt: skip
    session = Session(lesson.options.seed)
    with Allocations() as allocations:
        said = {line: str(refuses(session, line)) for line in REFUSED_SIZES}
    told = [
        line
        for line, word in REFUSED_SIZES.items()
        if word in said[line] and any(sign.isdigit() for sign in said[line])
    ]
    lesson.items({line if len(line) < 40 else f"{line[:39]}…": text for line, text in list(said.items())[:4]})
    lesson.check(
        "what is too large is told, with the number asked for",
        len(told) == len(REFUSED_SIZES),
        f"{len(told)} of {len(REFUSED_SIZES)}",
    )
    lesson.check("no large result was allocated to find that out", allocations.largest_bytes <= BYTES_PER_ELEMENT * MAX_ELEMENTS,
                 f"largest allocation {bytes_text(allocations.largest_bytes)}")  # fmt: skip
    times = lesson.pick(full=10_000, quick=1_000)
    found = besiege(lesson.options.seed, lesson.progress(range(times), "hostile lines"))
    lesson.text(f"{times:,} random lines of six kinds:")
    lesson.table(
        [
            {
                "kind": kind,
                "calculated": found.calculated[kind],
                "refused": found.refused[kind],
                "for example": sample(kind, lesson),
            }
            for kind in Hostile.kinds
        ]
    )
    answered = found.calculated.total() + found.refused.total()
    lesson.check(
        "none crashes", not found.crashes and answered == times, f"{answered:,} answers" + "".join(found.crashes[:1])
    )
    lesson.check(
        "each answer is printable and fits a screen",
        not found.unclear,
        f"{answered - len(found.unclear):,} of {answered:,}",
    )
    lesson.check(
        "nothing was opened, imported, compiled or run",
        not found.events,
        f"{len(found.events)} audit events" + "".join(found.events[:1]),
    )
    lesson.check("no tensor beyond the limit was ever allocated", found.largest_bytes <= BYTES_PER_ELEMENT * MAX_ELEMENTS,
                 f"largest {bytes_text(found.largest_bytes)}, limit {bytes_text(BYTES_PER_ELEMENT * MAX_ELEMENTS)}")  # fmt: skip
    lesson.check("no line allocated more than it had booked", not found.undercounted and found.most_bytes <= MAX_BYTES,
                 f"most {bytes_text(found.most_bytes)} of {bytes_text(MAX_BYTES)}")  # fmt: skip
    lesson.check(
        "no line took more steps than are allowed",
        found.most_work <= MAX_WORK,
        f"most {found.most_work:,} of {MAX_WORK:,}",
    )
    lesson.check(
        "no line was left for PyTorch to refuse",
        not found.refused_by_torch,
        f"{len(found.refused_by_torch)} of {answered:,}",
    )
    slowest_s = time_costly_lines(lesson)
    lesson.shows(
        f"{percent(found.refused.total() / answered)} of the lines were refused and the others calculated; the "
        f"largest tensor took {bytes_text(found.largest_bytes)}, and the slowest of the dear lines "
        f"{seconds_text(slowest_s)}. None of this is clever: a table of names, shapes before numbers, and a bound "
        "on everything that is multiplied. A server that takes input needs the same three."
    )


def sample(kind: str, lesson: Lesson) -> str:
    """A short line of that kind, in ASCII."""
    hostile = Hostile(lesson.options.seed + 1, make_variables(0))
    lines = (ascii(hostile.line(kind))[1:-1] for _ in range(200))
    return next((line for line in lines if 8 < len(line) < 44), "…")


def time_costly_lines(lesson: Lesson, lines: Sequence[str] = COSTLY) -> float:
    """A table of the dearest lines that are allowed; the slowest one's seconds. The CPU computes them on every device."""
    cpu, session = torch.device("cpu"), Session(lesson.options.seed)
    session.run("t = randn(400, 400)")
    seconds = {}
    table = []
    for line in lesson.pick(full=lines, quick=lines[:2]):
        timing = measure(partial(refuses, session, line), cpu, budget_s=0.1)
        seconds[line] = lesson.record("line", timing.median_s * 1e3, "ms", timing, line=line[:60]) / 1e3
        work = session.run(line).budget.work if not refuses(session, line) else 0
        table.append({"line": line if len(line) < 48 else f"{line[:47]}…", "steps": work, "ms": seconds[line] * 1e3})
    lesson.table(table)
    return max(seconds.values())
