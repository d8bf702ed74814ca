"""What it takes to hold a recurrent network of our own against the library's."""

from collections.abc import Callable
from typing import Any

from pytorch_01_neural_networks.src.recurrent import cells

import torch
from torch import nn

KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, str]]] = {
    "RNN, tanh": (cells.RNN, nn.RNN, {"nonlinearity": "tanh"}),
    "RNN, relu": (cells.RNN, nn.RNN, {"nonlinearity": "relu"}),
    "LSTM": (cells.LSTM, nn.LSTM, {}),
    "GRU": (cells.GRU, nn.GRU, {}),
}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


def own_and_library(kind: str, *sizes: int, device: torch.device, dtype: torch.dtype = torch.float32,
                    **options: Any) -> tuple[nn.Module, nn.Module]:  # fmt: skip
    """A network of ours and one of PyTorch's, with the same weights: load_state_dict is strict about names and shapes."""
    own, library, more = KINDS[kind]
    theirs = library(*sizes, **options, **more).to(device, dtype)
    ours = own(*sizes, **options, **more).to(device, dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


class StatesApart(nn.Module):
    """`model` with the parts of its initial state as arguments of their own, so that each one gets its gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any, *state: torch.Tensor) -> Any:
        return self.model(x, state if len(state) == 2 else state[0])
