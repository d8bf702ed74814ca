"""A model that its own tools do not know.

It computes, and on a laptop it even trains a little. Then the answers in eval() change from call to call, the checkpoint
turns out to hold next to nothing, a reloaded model answers differently, and on a GPU it stops at the first line of
forward(). Nothing of this raised an error where it was written.
"""

import torch
from torch import nn
from torch.nn import functional as F


class SensorModel(nn.Module):
    """Recordings of several sensors → scores of classes: a few linear branches, and how far each of them is trusted.

    forward: (B, sensors, length) → (B, classes). The recordings are standardised by `mean` and `spread`, faded out at both
    ends by `window`, and flattened; in training, dropout; each branch gives scores, and their average, weighted by
    softmax(trust), is the result.

    What is what, under these names:

        branches, trust    learn, and are saved; trust, (branches,), starts at 0, and each branch with weights of its own
        mean, spread       (sensors, 1), are measured by measure() and saved, and never learn
        window             (length,), follows from `length`: it goes where the model goes and is not saved

    So state_dict() has trust, mean, spread, branches.0.weight, branches.0.bias, branches.1.weight and so on.

    Example: SensorModel(sensors=2, length=8, classes=3, branches=2, dropout=0.1) has 2 * (16 * 3 + 3) + 2 = 104 parameters.
    """

    def __init__(self, sensors: int, length: int, classes: int, branches: int, dropout: float) -> None:
        super().__init__()
        # TODO: for each attribute, who has to know of it: the optimizer, .to(), state_dict(), eval()?
        self.dropout = dropout
        self.mean = torch.zeros(sensors, 1)
        self.spread = torch.ones(sensors, 1)
        self.window = torch.hann_window(length)
        self.branches = [nn.Linear(sensors * length, classes) for _ in range(branches)]
        self.trust = torch.zeros(branches, requires_grad=True)

    def measure(self, recordings: torch.Tensor) -> None:
        """Takes mean and standard deviation of each sensor from recordings (N, sensors, length)."""
        self.mean = recordings.mean(dim=(0, 2))[:, None]
        self.spread = recordings.std(dim=(0, 2))[:, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.mean) / self.spread * self.window
        x = F.dropout(x.flatten(1), self.dropout)
        scores = torch.stack([branch(x) for branch in self.branches], dim=-1)  # (B, classes, branches)
        return scores @ self.trust.softmax(dim=0)
