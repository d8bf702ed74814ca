"""Each line is run with a backend that counts the graphs it is given."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

from shared.practice import expect
from shared.traps import expect_integer, expect_predictions

import torch

LINES = (
    "f(a); f(a + 1); f(-a)",
    "f(a); f(a.double()); f(a)",
    "f(a); f(a.clone().requires_grad_()); f(a.detach())",
    "f(a, 2); f(a, 3); f(a, 4); f(a, 5)",
    "f(a, True); f(a, False); f(a, True)",
    "f(a[:5]); f(a[:4]); f(a[:3]); f(a[:2])",
    "f(a[:4]); f(a[:3]); f(a[:1]); f(a[:2])",
    "f(a); f(a.T); f(a)",
    "g(a); g(a + 1)",
    "g(a); g(-a); g(a)",
    "h(a); h(a[:5]); h(a[:4])",
)


def f(x: torch.Tensor, n: int = 2) -> torch.Tensor:
    return torch.sin(x) * n


def g(x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        return x * 2
    return x - 1


def h(x: torch.Tensor) -> torch.Tensor:
    return x + x.shape[0]


@cache
def graphs_of(line: str) -> int:
    count = 0

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        nonlocal count
        count += 1
        return graph.forward  # type: ignore[no-any-return]

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    torch.compiler.reset()
    try:
        names = {function.__name__: torch.compile(function, backend=backend) for function in (f, g, h)}
        exec(line, {"a": torch.rand(6, 3) + 0.1, **names})
    finally:
        torch.compiler.reset()
        logging.disable(before)
    return count


def check(answer: Any, seed: int) -> None:
    predictions = answer.GRAPHS
    expect_predictions(predictions, "GRAPHS", LINES, "a number of graphs")
    for line, prediction in predictions.items():
        expect_integer(prediction, f"GRAPHS[{line!r}]", "a whole number")
    missed = [line for line in LINES if predictions[line] != graphs_of(line)]
    if missed:
        count = f"{len(missed)} of {len(LINES)} predictions"
        made = f"{graphs_of(missed[0])} graph{'s' if graphs_of(missed[0]) > 1 else ''}"
        expect(False, f"{count} did not come true; the first: `{missed[0]}` makes {made}. Why?")


RIGHT = {line: graphs_of(line) for line in LINES}


def predict(**changed: int) -> dict[str, object]:
    """The right answer, but for the lines whose number is named, such as _4=3."""
    return {"GRAPHS": RIGHT | {LINES[int(number[1:])]: count for number, count in changed.items()}}


WRONG = {
    "one graph is enough": (
        {"GRAPHS": dict.fromkeys(LINES, 1)},
        "the first: `f(a); f(a.double()); f(a)` makes 2 graphs",
    ),
    "values are guarded": (predict(_0=3), "`f(a); f(a + 1); f(-a)` makes 1 graph. Why"),
    "a number is a graph each": (predict(_3=4), "`f(a, 2); f(a, 3); f(a, 4); f(a, 5)` makes 2 graphs"),
    "a length is a graph each": (predict(_5=4, _10=3), "2 of 11 predictions"),
    "1 is a length like others": (predict(_6=2), "`f(a[:4]); f(a[:3]); f(a[:1]); f(a[:2])` makes 3 graphs"),
    "both branches are compiled at once": (predict(_9=2), "`g(a); g(-a); g(a)` makes 3 graphs"),
    "an if is in the graph": (predict(_8=1), "`g(a); g(a + 1)` makes 2 graphs"),
}
