"""state_dict() is a dictionary of the tensors themselves, not of copies; an optimizer writes into these very tensors.

So the "best" state walks along with the training, and loading it copies every tensor onto itself. The same happens with
`best = model`, and half of it with `dict(model.state_dict())` or .copy(), which copy the dictionary and not what is in it.
A deep copy, or .clone() of every entry, keeps the numbers. The dictionary has the buffers too: best weights beside the last
running statistics of a batch norm are a network that never was. load_state_dict() copies back into the parameters that
the optimizer holds; new Parameter objects would leave it training the old ones. torch.save() would have kept a copy as
well, and it survives a crash.
"""

import copy
import math

from torch import nn


class Stopper:
    def __init__(self, model: nn.Module, patience: int) -> None:
        self.model, self.patience = model, patience
        self.lowest, self.best, self.bad = math.inf, None, 0

    def update(self, loss: float) -> bool:
        if loss < self.lowest:
            self.lowest, self.bad = loss, 0
            self.best = copy.deepcopy(self.model.state_dict())
        else:
            self.bad += 1
        return self.bad > self.patience

    def restore(self) -> None:
        if self.best is not None:
            self.model.load_state_dict(self.best)
