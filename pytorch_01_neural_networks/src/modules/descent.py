"""One step of gradient descent, for models of torch.nn and of our own."""

from typing import Any

import torch


def descend(model: Any, loss: torch.Tensor, lr: float = 0.1) -> None:
    """Moves what model.parameters() yields, and nothing else, against its gradient; None means that it has none."""
    for parameter in model.parameters():
        parameter.grad = None
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(lr * parameter.grad)
