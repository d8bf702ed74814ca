"""Where a graph ends: breaks and how to find them, the traps of daily code with their cures, control flow in a graph."""

import io
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.compilation.harness import KeepGraphs, graphs_after
from shared.agreement import agreement, deviation
from shared.lesson import Lesson
from shared.snippets import complaint

import numpy as np
import torch
from torch import nn

# Graph breaks


def scale_in_four_graphs(x: torch.Tensor) -> torch.Tensor:
    """The mistake, three times: Python wants to see something that only exists when the graph runs."""
    x = x - x.mean()
    print(x.shape)
    largest = x.abs().max().item()
    x = x / max(largest, 1.0)
    if x.abs().mean() > 0.1:
        return torch.tanh(x)
    return x * 2


def scale_in_one_graph(x: torch.Tensor) -> torch.Tensor:
    """The same for the compiler: what depends on numbers stays a tensor, and both branches are computed."""
    x = x - x.mean()
    x = x / x.abs().max().clamp(min=1)
    return torch.where(x.abs().mean() > 0.1, torch.tanh(x), x * 2)


@dataclass(frozen=True)
class Breaks:
    """What torch._dynamo.explain found: the number of graphs, and the line and reason of each break."""

    graphs: int
    lines: tuple[str, ...]
    reasons: tuple[str, ...]


def find_breaks(function: Callable[..., Any], *inputs: torch.Tensor) -> Breaks:
    torch.compiler.reset()
    with redirect_stdout(io.StringIO()):  # explain() runs the function, print() and all
        found = torch._dynamo.explain(function)(*inputs)
    lines = tuple(str(reason.user_stack[-1].line) for reason in found.break_reasons)
    reasons = tuple(reason.reason.partition("\n")[0] for reason in found.break_reasons)
    return Breaks(found.graph_count, lines, reasons)


def show_breaks(lesson: Lesson) -> None:
    lesson.section(
        "Graph breaks: where a graph ends",
        "Some Python cannot be written into a graph: it prints, it needs a number that the graph has yet to compute, it calls "
        "a library that Dynamo cannot read. Dynamo then ends the graph, lets Python run that line, and begins another. "
        "Nothing fails. You lose fusion across the break, and with a GPU the head start that Python has over it. Ask "
        "torch._dynamo.explain() where:",
    )
    x = torch.randn(64, device=lesson.device)
    broken, whole = find_breaks(scale_in_four_graphs, x), find_breaks(scale_in_one_graph, x)
    lesson.table([{"the graph ends at": line, "Dynamo's reason": REASONS.get(reason, reason)}
                  for line, reason in zip(broken.lines, broken.reasons, strict=True)])  # fmt: skip
    lesson.check("three breaks make four graphs", (broken.graphs, len(broken.lines)) == (4, 3),
                 f"{broken.graphs} graphs, {len(broken.lines)} breaks")  # fmt: skip
    lesson.check("with tensors in their place it is one graph", (whole.graphs, whole.lines) == (1, ()),
                 "clamp for max(), torch.where for if")  # fmt: skip
    inputs = [scale * torch.randn(64, device=lesson.device) + shift for scale in (0.01, 1, 9) for shift in (-1, 0, 1)]
    with redirect_stdout(io.StringIO()):
        apart = max(deviation(scale_in_one_graph(x), scale_in_four_graphs(x)) for x in inputs)
    lesson.check("and computes the same", apart < 1e-6, f"{apart:.0e} apart, {len(inputs)} inputs")
    torch.compiler.reset()
    strict = torch.compile(scale_in_four_graphs, backend="eager", fullgraph=True)
    said = complaint(lambda: strict(x))
    lesson.check("fullgraph=True makes the first break an error", said.startswith("Unsupported"), said.split(" Exp")[0])
    lesson.shows(
        f"{broken.graphs} graphs for {len(broken.lines)} lines of Python. explain() finds breaks while you look; fullgraph=True "
        'keeps them from coming back, so put it where the model is compiled. TORCH_LOGS="graph_breaks" does it for a program '
        "that you cannot edit."
    )


REASONS = {  # what PyTorch 2.11 to 2.15 say, in a learner's words
    "Failed to trace builtin operator": "print() has no place in a graph",
    "Unsupported Tensor.item() call with capture_scalar_outputs=False": ".item() wants a number that is not computed yet",
    "generic_jump TensorVariable()": "an if over a tensor: which way, only the numbers tell",
}

# Traps


def trap_item(x: torch.Tensor) -> torch.Tensor:
    return x / x.abs().sum().item()


def cure_item(x: torch.Tensor) -> torch.Tensor:
    return x / x.abs().sum()


def trap_print(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    print(y.shape)
    return y + 1


def cure_print(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


def trap_branch(x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        return x * 2
    return x - 1


def cure_branch(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.sum() > 0, x * 2, x - 1)


def trap_mask(x: torch.Tensor) -> torch.Tensor:
    return x[x > 0].sum()


def cure_mask(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, 0).sum()


class TrapCounter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.step += 1
        return x * self.step


class CureCounter(nn.Module):
    step: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.step += 1
        return x * self.step


class TrapHistory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.mean())
        return x * 2


class CureHistory(nn.Module):
    """The caller keeps the list; forward returns what goes into it."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 2, x.mean()


@dataclass(frozen=True)
class Trap:
    """A function, or the class of a module, and the same thing for the compiler."""

    name: str
    trap: Callable[..., Any]
    cure: Callable[..., Any]
    says: str


TRAPS = (
    Trap(".item()", trap_item, cure_item, "keep it a tensor"),
    Trap("print()", trap_print, cure_print, "print outside, or look at what is returned"),
    Trap("if over a tensor", trap_branch, cure_branch, "torch.where, or torch.cond"),
    Trap("x[x > 0]", trap_mask, cure_mask, "torch.where: a shape that is known"),
    Trap("self.step += 1", TrapCounter, CureCounter, "a buffer: a tensor that counts"),
    Trap("self.seen.append()", TrapHistory, CureHistory, "return it, append outside"),
)


def make(thing: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """A fresh module of a class; a function as it is."""
    return thing().to(device) if isinstance(thing, type) else thing  # type: ignore[no-any-return]


def first_of(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result


def run_compiled(thing: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> tuple[list[int], torch.Tensor]:
    """Graphs in all after each call, each with one of the inputs, and the results, one under the other."""
    results = []
    calls = [lambda compiled, x=x: results.append(first_of(compiled(x))) for x in inputs]
    with redirect_stdout(io.StringIO()):
        counts = graphs_after(calls, make(thing, inputs[0].device))
    return counts, torch.stack(results)


def draw_with_numpy(x: torch.Tensor) -> torch.Tensor:
    """A silent trap: Dynamo turns NumPy's calls into PyTorch's, whose generator np.random.seed does not know."""
    return x + torch.from_numpy(np.random.rand(3))


def compile_around_a_note(log: list[float], backend: KeepGraphs) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that notes something on its way; the note stays Python, what is around it is compiled.

    Only the note knows the list: handed over by the compiled function, its length would be guarded.
    """

    @torch.compiler.disable
    def note(y: torch.Tensor) -> None:
        log.append(y.sum().item())

    def function(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        note(y)
        return y + 1

    return torch.compile(function, backend=backend)


def show_traps(lesson: Lesson) -> None:
    calls = lesson.pick(full=12, quick=4)
    lesson.section(
        "Six traps, and their cures",
        "What breaks a graph or compiles it again on every call is rarely the mathematics. It is a line that was written to "
        f"look at something or to count. Each of these was called {calls} times. The graphs that this took:",
    )
    inputs = [torch.randn(8, device=lesson.device) for _ in range(calls)]
    inputs = [x.abs() if call % 2 else -x.abs() for call, x in enumerate(inputs)]
    counts, worst, table = {}, 0.0, []
    for trap in TRAPS:
        trapped, trapped_results = run_compiled(trap.trap, inputs)
        cured, results = run_compiled(trap.cure, inputs)
        counts[trap.name] = trapped, cured
        worst = max(worst, deviation(results, trapped_results))
        table.append({"the line": trap.name, "1 call": trapped[0], f"{calls} calls": trapped[-1], "cured": cured[-1],
                      "the cure": trap.says})  # fmt: skip
    lesson.table(table)
    lesson.text("A break makes two graphs of one. A third comes when the number, the branch or the length behind the break "
                f"changes for the first time. And {torch._dynamo.config.recompile_limit} is where PyTorch gives up; a section "
                "below is about that.")  # fmt: skip
    cures = [cured[-1] for _, cured in counts.values()]
    lesson.check(
        "every cure is one graph, for all calls", set(cures) == {1}, f"{len(cures)} of them, {calls} calls each"
    )
    lesson.check("and gives what the trap gives", worst < 1e-6, f"{worst:.0e} apart at most")
    breaking = [trap.name for trap in TRAPS if counts[trap.name][0][0] > 1]
    lesson.check(
        "the first four end a graph in the middle", breaking == [trap.name for trap in TRAPS[:4]], ", ".join(breaking)
    )
    growing = [counts[trap.name][0][:4] for trap in TRAPS[4:]]
    lesson.check("the last two are compiled again by every call", all(count == [1, 2, 3, 4] for count in growing),
                 "Python's int and the list's length are guarded")  # fmt: skip
    torch.compiler.reset()
    draws = {way: draw_twice(function) for way, function in
             (("plain", draw_with_numpy), ("compiled", torch.compile(draw_with_numpy, backend="eager")))}  # fmt: skip
    lesson.check("np.random.seed rules plain calls, and no compiled one", draws["plain"] and not draws["compiled"],
                 "compiled, it draws from PyTorch's generator")  # fmt: skip
    log: list[float] = []
    backend = KeepGraphs()
    torch.compiler.reset()
    noting = compile_around_a_note(log, backend)
    right = all(torch.equal(noting(x), x * 2 + 1) for x in inputs)
    lesson.check("torch.compiler.disable: a break on purpose", right and (len(backend), len(log)) == (2, len(inputs)),
                 f"{len(backend)} graphs for all calls, {len(log)} notes")  # fmt: skip
    worst_name = max(counts, key=lambda name: counts[name][0][-1])
    lesson.shows(
        f"the dearest line is {worst_name}: {counts[worst_name][0][-1]} graphs in {calls} calls, each with seconds of compiling "
        "in a real model. A number that changes belongs in a tensor; what you want to see belongs in the return value. "
        "Draw random numbers with torch, and put what must stay Python behind torch.compiler.disable."
    )


def draw_twice(function: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether two calls after the same np.random.seed give the same; NumPy's generator is as before afterwards."""
    state = np.random.get_state()
    try:
        results = []
        for _ in range(2):
            np.random.seed(0)
            results.append(function(torch.zeros(3, dtype=torch.float64)))
        return torch.equal(*results)
    finally:
        np.random.set_state(state)


# Control flow that stays in the graph


def branch_in_python(x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        return x.sin() * 2
    return x.cos() - 1


def branch_in_graph(x: torch.Tensor) -> torch.Tensor:
    """torch.cond computes one of the branches; they take the same inputs and return the same shapes."""
    return torch.cond(x.sum() > 0, lambda x: x.sin() * 2, lambda x: x.cos() - 1, (x,))  # type: ignore[no-any-return]


def branch_in_place(x: torch.Tensor) -> torch.Tensor:
    """The mistake: a branch is a function of its inputs, and may change none of them."""
    return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.mul_(2), (x,))  # type: ignore[no-any-return]


def halve_in_python(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    steps = torch.zeros((), dtype=torch.int64, device=x.device)
    while x.abs().max() > 1:
        x, steps = x / 2, steps + 1
    return x, steps


def halve_in_graph(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """torch.while_loop: a condition and a body, both of everything that changes in the loop."""
    steps = torch.zeros((), dtype=torch.int64, device=x.device)
    return torch.while_loop(  # type: ignore[no-any-return]
        lambda x, steps: x.abs().max() > 1, lambda x, steps: (x / 2, steps + 1), (x, steps)
    )


def show_control_flow(lesson: Lesson) -> None:
    lesson.section(
        "Branches and loops inside the graph",
        "torch.where computes both branches. Where one of them is dear, or a loop runs until the numbers say stop, the decision "
        "can go into the graph itself: torch.cond takes two functions, torch.while_loop a condition and a body. Both are "
        "traced into graphs of their own, and called when the numbers are there. A graph with a branch:",
    )
    x = torch.rand(16, device=lesson.device) + 0.1
    torch.compiler.reset()
    backend = KeepGraphs()
    compiled = torch.compile(branch_in_graph, backend=backend, fullgraph=True)
    found = [agreement(compiled, branch_in_python, y) for y in (x, -x)]
    lesson.drawing(draw_cond(backend))
    lesson.check("torch.cond goes either way, with its gradient", all(each.within(1e-6) for each in found),
                 f"gradients to {max(each.gradient for each in found):.0e}")  # fmt: skip
    inputs = [x, -x, 3 * x, -3 * x]
    graphs = {name: graphs_after([lambda compiled, y=y: compiled(y) for y in inputs], function)[-1]
              for name, function in (("cond", branch_in_graph), ("if", branch_in_python),
                                     ("while_loop", halve_in_graph), ("while", halve_in_python))}  # fmt: skip
    lesson.check("cond is one graph, where if makes a graph of each part", graphs["cond"] == 1 < graphs["if"],
                 f"{graphs['cond']} and {graphs['if']}, four calls")  # fmt: skip
    torch.compiler.reset()
    loop = torch.compile(halve_in_graph, backend="eager", fullgraph=True)
    numbers, turns = 100 * torch.randn(16, device=lesson.device), []
    for scale in (1e-3, 1.0, 1e3):
        (value, steps), (right, right_steps) = loop(scale * numbers), halve_in_python(scale * numbers)
        turns.append((steps.item(), right_steps.item(), deviation(value, right)))
    lesson.check("while_loop turns as often as Python's while", all(a == b and apart == 0 for a, b, apart in turns),
                 f"{', '.join(str(a) for a, _, _ in turns)} turns, equal results")  # fmt: skip
    lesson.check(
        "and is one graph, however often it turns", graphs["while_loop"] == 1, f"Python's while: {graphs['while']}"
    )
    torch.compiler.reset()
    in_place = torch.compile(branch_in_place, backend="eager", fullgraph=True)
    kind, _, said = complaint(lambda: in_place(x)).partition(":")
    lesson.check(
        "a branch that changes its input in place is refused", kind.endswith("Error") and "mutation" in said, kind
    )
    lesson.shows(
        f"a loop of {turns[-1][0]} turns and one of {turns[0][0]} are the same graph. The price is a stricter form: both "
        "branches return as many tensors of the same types, nothing is changed in place, and what a body needs is handed to "
        "it. On a GPU each decision also waits for a number to come back, so a cheap branch is better computed on both sides, "
        "by torch.where."
    )


def draw_cond(backend: KeepGraphs) -> str:
    """The graph with its two branches, without types and file names."""
    text = backend.graphs[0].print_readable(print_output=False)
    text = re.sub(r'(: "[^"]*")|(;  .*)|(^ *# File.*$)', "", text, flags=re.MULTILINE)
    text = re.sub(r"class (\w*)(\(torch\.nn\.Module\))?:", r"\1:", text).replace("torch.ops.higher_order.", "")
    return "\n".join(line for line in text.splitlines() if line.strip())
