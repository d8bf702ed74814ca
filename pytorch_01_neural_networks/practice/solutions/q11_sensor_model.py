"""Four lists, and each attribute belongs on some of them.

What learns is a Parameter, or a module with parameters, kept in a ModuleList and not in a Python list: then the optimizer is
given it, .to() moves it and state_dict() saves it. A plain tensor with requires_grad=True gets gradients that nobody uses.
What was measured is a buffer: moved and saved, never trained. Once it is one, assigning a tensor to its name replaces it and
leaves it a buffer, so measure() may stay as it is. What can be computed again is a buffer with persistent=False. And eval()
reaches modules: nn.Dropout is one, while F.dropout has training=True as its default and knows no mode unless it is told
self.training. A Parameter with requires_grad=False in place of a buffer nearly works, but shows up in parameters(), where
whoever unfreezes the model, counts it or averages its weights will find it.
"""

import torch
from torch import nn


class SensorModel(nn.Module):
    def __init__(self, sensors: int, length: int, classes: int, branches: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mean", torch.zeros(sensors, 1))
        self.register_buffer("spread", torch.ones(sensors, 1))
        self.register_buffer("window", torch.hann_window(length), persistent=False)
        self.branches = nn.ModuleList(nn.Linear(sensors * length, classes) for _ in range(branches))
        self.trust = nn.Parameter(torch.zeros(branches))

    def measure(self, recordings: torch.Tensor) -> None:
        self.mean = recordings.mean(dim=(0, 2))[:, None]
        self.spread = recordings.std(dim=(0, 2))[:, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.mean) / self.spread * self.window
        x = self.dropout(x.flatten(1))
        scores = torch.stack([branch(x) for branch in self.branches], dim=-1)  # (B, classes, branches)
        return scores @ self.trust.softmax(dim=0)
