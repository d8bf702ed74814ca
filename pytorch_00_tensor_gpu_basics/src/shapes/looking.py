"""What the chapters look at their results with: the drawing of a call, and the question whether memory was shared."""

from shared.drawing import grid
from shared.snippets import evaluate

import torch


def shares_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether both are headers of one storage, so that a write to one can appear in the other."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def new_bytes(result: torch.Tensor, source: torch.Tensor) -> int:
    """The memory that had to be found for `result`: none for a view of `source`, its whole storage for a copy."""
    return 0 if shares_memory(result, source) else result.untyped_storage().nbytes()


def draw_result(expression: str, **names: object) -> str:
    """The value of `expression` in boxes, under the expression and the shape that it has."""
    return grid(evaluate(expression, **names), expression)


def draw_picked(expression: str, x: torch.Tensor) -> str:
    """`x` with the numbers that `expression` takes out of it in brackets, under the shape of what comes out."""
    places = torch.arange(x.numel()).view(x.shape)
    picked = evaluate(expression, x=places)
    _, boxes = grid(x, marked=torch.isin(places, picked.flatten())).split("\n", 1)
    return f"{expression} gives {tuple(picked.shape)}\n{boxes}"
