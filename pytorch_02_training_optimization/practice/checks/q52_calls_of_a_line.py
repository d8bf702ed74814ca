"""Every line runs once under a profiler, with a label of its own; what lies directly in the label is counted."""

import os
from functools import cache
from typing import Any

from shared.practice import expect
from shared.traps import expect_integer, expect_predictions

import torch
import torch.nn.functional as F
from torch.autograd.profiler import profile, record_function

LINES = (
    "x * 2 + 1",
    "F.cross_entropy(logits, y)",
    "x.float()",
    "len(x) * x.shape[1] * x.numel()",
    "x[0, 1, 2]",
    "torch.stack([image * 2 for image in x])",
    "sum(t)",
    "max(t)",
    "5.0 in t",
    "if (x > 0).any(): pass",
    "(logits.argmax(1) == y).float().mean().item()",
    "for p, g in zip(params, grads): p -= 0.1 * g",
    "torch._foreach_add_(params, grads, alpha=-0.1)",
)


@cache
def calls_by_line() -> dict[str, list[str]]:
    """The operators that each line calls, in order."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library reports a missing GPU as an error
    names = {
        "F": F,
        "torch": torch,
        "x": torch.randn(8, 3, 4, 4),
        "t": torch.arange(8.0),
        "logits": torch.randn(8, 3),
        "y": torch.arange(8) % 3,
        "params": [torch.randn(3) for _ in range(5)],
        "grads": [torch.randn(3) for _ in range(5)],
    }
    programs = {line: compile(line, "line", "exec") for line in LINES}
    with profile(acc_events=True) as profiler:  # what torch.profiler runs on; that one imports the compiler, 4 s
        for line, program in programs.items():
            with record_function(line):
                exec(program, dict(names))
    labels = {event.name: event for event in profiler.function_events if event.name in programs}
    return {line: [child.name for child in labels[line].cpu_children if "::" in child.name] for line in LINES}


def check(answer: Any, seed: int) -> None:
    predictions = answer.CALLS
    expect_predictions(predictions, "CALLS", LINES, "a number of operators")
    for line, prediction in predictions.items():
        expect_integer(prediction, f"CALLS[{line!r}]", "a whole number")
    calls = calls_by_line()
    missed = [line for line in LINES if predictions[line] != len(calls[line])]
    if missed:
        first = calls[missed[0]]
        count = f"{len(missed)} of {len(LINES)} predictions"
        names = ", ".join(name.removeprefix("aten::") for name in first[:4]) + (", …" if len(first) > 4 else "")
        expect(False, f"{count} did not come true; the first: `{missed[0]}` calls {len(first)}" + (f" ({names})" if names else "")
               + ". Why?")  # fmt: skip


def predict(**changed: int) -> dict[str, object]:
    """The right answer, but for the lines whose number is named, such as _4=1."""
    right = {line: len(calls) for line, calls in calls_by_line().items()}
    return {"CALLS": right | {LINES[int(number[1:])]: count for number, count in changed.items()}}


WRONG = {
    "a line is a call": ({"CALLS": dict.fromkeys(LINES, 1)}, "the first: `x * 2 + 1` calls 2 (mul, add)"),
    "counts what operators call": (predict(_1=3), "`F.cross_entropy(logits, y)` calls 1"),
    "the same type is no call": (predict(_2=0), "`x.float()` calls 1 (to)"),
    "asking for the shape is a call": (predict(_3=3), "`len(x) * x.shape[1] * x.numel()` calls 0. Why"),
    "indices are taken together": (predict(_4=1), "`x[0, 1, 2]` calls 3"),
    "walking is free": (predict(_5=9, _6=8, _7=14), "calls 10 (unbind, mul, mul, mul, …)"),
    "Python's sum is torch's": (predict(_6=1, _7=1), "`sum(t)` calls 9"),
    "Python knows the answers": (predict(_7=8, _9=2), "`max(t)` calls 15"),
    "all in one": (predict(_12=5), "calls 1 (_foreach_add_)"),
}
