"""Recompilation: what a new length costs, four ways to compile for all lengths, and the limit."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from pytorch_02_training_optimization.src.compilation.graph_breaks import CureCounter, TrapCounter
from pytorch_02_training_optimization.src.compilation.harness import KeepGraphs
from shared.agreement import deviation
from shared.lesson import Lesson

import torch

WIDTH = 16


def pool(x: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens of each sentence, of unit length: (B, T, C) -> (B, C)."""
    mean = x.mean(dim=1)
    return mean / mean.norm(dim=1, keepdim=True)


def make_batches(lengths: Sequence[int], device: torch.device) -> list[torch.Tensor]:
    return [torch.randn(4, length, WIDTH, device=device) for length in lengths]


def mark_tokens(x: torch.Tensor) -> torch.Tensor:
    torch._dynamo.mark_dynamic(x, 1)
    return x


def pad_tokens(x: torch.Tensor, multiple: int = 16) -> torch.Tensor:
    """The batch with zeros behind it, up to a length that is seldom new. A real model masks them."""
    return torch.nn.functional.pad(x, (0, 0, 0, -x.shape[1] % multiple))


WAYS: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    "as it comes": ({}, lambda x: x),
    "dynamic=True": ({"dynamic": True}, lambda x: x),
    "mark_dynamic(x, 1)": ({}, mark_tokens),
    "padded to 16": ({"dynamic": False}, pad_tokens),
    "dynamic=False": ({"dynamic": False}, lambda x: x),
}


def count_by_length(batches: Sequence[torch.Tensor], way: str) -> list[int]:
    """Graphs in all after each batch. The counts are of one function, compiled in this way alone."""
    options, prepare = WAYS[way]
    torch.compiler.reset()
    backend = KeepGraphs()
    compiled = torch.compile(pool, backend=backend, **options)
    counts = []
    for x in batches:
        compiled(prepare(x.clone()))
        counts.append(len(backend))
    return counts


def draw_counts(lengths: Sequence[int], counts: dict[str, list[int]]) -> str:
    """A line for each way: a mark under every length that was compiled for."""
    width = max(map(len, counts))
    head = " " * width + "  length " + " ".join(f"{length:>2}" for length in lengths)
    lines = []
    for way, after in counts.items():
        marks = [" ×" if now > before else " ·" for before, now in zip([0, *after], after, strict=False)]
        lines.append(f"{way.ljust(width)}  graph? {' '.join(marks)}   {after[-1]}")
    return "\n".join([head, *lines])


def show_lengths(lesson: Lesson) -> None:
    lengths = lesson.pick(full=list(range(5, 15)), quick=list(range(5, 10)))
    lesson.section(
        "A new length: one graph for all, or one for each",
        "Sentences have lengths, the last batch of an epoch is short. The first graph is made for exactly the shape it saw. When "
        "a length changes, Dynamo makes a second one in which that length is a symbol, and then has one for all: dynamic by "
        f"experience. You can tell it before. {len(lengths)} batches of (4, T, {WIDTH}), a cross for each that was compiled for:",
    )
    batches = make_batches(lengths, lesson.device)
    limit = lesson.pick(full=torch._dynamo.config.recompile_limit, quick=3)
    with torch._dynamo.config.patch(recompile_limit=limit):
        counts = {way: count_by_length(batches, way) for way in WAYS}
    lesson.drawing(draw_counts(lengths, counts))
    lesson.check("by default the second length brings the last graph", counts["as it comes"][:3] == [1, 2, 2]
                 and counts["as it comes"][-1] == 2, f"{counts['as it comes'][-1]} graphs")  # fmt: skip
    lesson.check("dynamic=True and mark_dynamic need one from the start",
                 counts["dynamic=True"][-1] == counts["mark_dynamic(x, 1)"][-1] == 1, "1 graph each")  # fmt: skip
    lesson.check("padding to a multiple leaves one length", counts["padded to 16"][-1] == 1,
                 f"of {len(lengths)}: all are 16")  # fmt: skip
    lesson.check("dynamic=False compiles each, up to the limit", counts["dynamic=False"][-1] == min(limit, len(lengths)),
                 f"{counts['dynamic=False'][-1]} graphs, recompile_limit is {limit}")  # fmt: skip
    single = count_by_length([batches[0], *make_batches([1], lesson.device)], "dynamic=True")
    lesson.check("a length of 1 is always a case of its own", single[-1] == single[-2] + 1,
                 "1 broadcasts, so code for T cannot serve it")  # fmt: skip
    torch.compiler.reset()
    anyway = torch.compile(pool, backend="eager", dynamic=True)
    apart = max(deviation(anyway(x), pool(x)) for x in batches)
    lesson.check("the graph for all lengths is right for each", apart < 1e-6, f"{apart:.0e} apart at most")
    lesson.shows(
        f"left alone, {len(lengths)} lengths cost {counts['as it comes'][-1]} compilations, and forbidding symbols "
        f"{counts['dynamic=False'][-1]}. Mark what you know to change, such as batch or tokens: a symbol everywhere, as "
        "dynamic=True has it, takes from Inductor the sizes by which it chooses its loops."
    )


def show_limit(lesson: Lesson, logged: list[str]) -> None:
    limit = lesson.pick(full=torch._dynamo.config.recompile_limit, quick=3)
    with torch._dynamo.config.patch(recompile_limit=limit):
        reach_limit(lesson, limit, logged)


def reach_limit(lesson: Lesson, limit: int, logged: list[str]) -> None:
    lesson.section(
        "The limit: when PyTorch gives up compiling",
        "Some functions would be compiled again by every call. After recompile_limit graphs for one function PyTorch stops: a "
        "call that none of them fits runs as plain Python from then on, and a line in the log is all you get. Here the limit is "
        f"{limit}. The module of the traps that counts its calls in self.step reaches it:",
    )
    calls = limit + 4
    x = torch.randn(8, device=lesson.device)
    counts = {}
    logged.clear()
    for kind in (TrapCounter, CureCounter):
        torch.compiler.reset()
        backend, module = KeepGraphs(), kind().to(lesson.device)
        compiled = torch.compile(module, backend=backend)
        after, results = [], []
        for _ in range(calls):
            results.append(compiled(x))
            after.append(len(backend))
        counts[kind] = after
        wrong = [call for call, result in enumerate(results, 1) if not torch.equal(result, x * call)]
        lesson.check(f"{'an int' if kind is TrapCounter else 'a buffer'} counts: {calls} calls, {after[-1]} graph"
                     f"{'s' if after[-1] > 1 else ''}, all results right", not wrong, " ".join(map(str, after)))  # fmt: skip
    said = [message for message in logged if "recompile_limit" in message]
    reason = re.search(r"last reason: (.*?)\s{2,}#", said[0]) if said else None
    lesson.check("at the limit it stops, and says so once", counts[TrapCounter][-2:] == [limit, limit] and len(said) == 1,
                 f"the guard that failed: {reason[1] if reason else 'not named'}")  # fmt: skip
    torch.compiler.reset()
    module, changed = TrapCounter().to(lesson.device), []
    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True):
        backend = KeepGraphs()
        compiled = torch.compile(module, backend=backend)
        for _ in range(calls):
            compiled(x)
            changed.append(len(backend))
    lesson.check("allow_unspec_int_on_nn_module makes it a symbol", changed[-1] <= 2, f"{changed[-1]} graphs")
    torch.compiler.reset()
    strict = torch.compile(TrapCounter().to(lesson.device), backend="eager", fullgraph=True)
    stopped = 0
    for call in range(1, calls + 1):
        try:
            strict(x)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            stopped = call
            break
    lesson.check("with fullgraph=True the limit is an error", stopped == limit + 1, f"call {stopped} of {calls} raises")
    lesson.shows(
        f"{limit} compilations were paid for, and every later call runs uncompiled: the worst of both. The line in the log names "
        'the guard, TORCH_LOGS="recompiles" names all of them. Raising the limit only raises the bill; the cure is to make of '
        "the number a tensor."
    )
