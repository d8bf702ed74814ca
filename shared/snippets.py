"""Code that a lesson prints and runs, and what PyTorch answers to a mistake."""

import ast
import inspect
import textwrap
import warnings
from collections.abc import Callable
from typing import Any

import torch


def evaluate(expression: str, **names: object) -> Any:
    """The value of a Python expression over `torch`, `np` and `names`: what a table prints is what was run.

    For expressions written in the script itself, never for input.
    """
    import numpy as np

    return eval(expression, {"torch": torch, "np": np, **names})


def lines_of_code(thing: Any) -> int:
    """Of a module, class or function, without blank lines, comments and docstrings; a statement counts once."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return sum(bool(line.strip()) for line in ast.unparse(tree).splitlines())


def complaint(function: Callable[[], object]) -> str:
    """What PyTorch says to `function`: its error or first warning, in two sentences; "" where it says nothing.

    An error that is none of RuntimeError, TypeError, ValueError and IndexError passes through.
    """
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # otherwise each warning comes once per process, so not in a second run
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        return _two_sentences(type(error), error)
    finally:
        torch.set_warn_always(always)
    return _two_sentences(caught[0].category, caught[0].message) if caught else ""


def _two_sentences(kind: type, message: object) -> str:
    """Without the stack of C++ calls and the advice for maintainers that follow in some messages."""
    sentences = " ".join(str(message).split()).split(". ")
    end = "." if len(sentences) > 2 else ""
    return f"{kind.__name__}: {'. '.join(sentences[:2])}{end}"
