"""Three traces: the modes, the generator, and the graphs of all batches, which a sum of losses keeps alive.

train() is no inverse of eval(): it also wakes the BatchNorm that the training had put to sleep, and whose statistics then
move. So remember what was, for each module, and put it back in a finally, since out of memory in a validation is no reason
to train on without dropout. And a DataLoader draws one number from the global generator each time it is iterated, for the
seeds of its workers, even where it has none and does not shuffle: every later mask of dropout is another one. A loader with
a generator of its own leaves the global one alone. Without no_grad() the loss_sum holds every activation of the whole part.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def evaluate(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch_size: int) -> tuple[float, float]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    loss_sum, right = 0.0, 0
    try:
        with torch.no_grad():
            for inputs, labels in DataLoader(TensorDataset(x, y), batch_size, generator=torch.Generator()):
                scores = model(inputs)
                loss_sum += F.cross_entropy(scores, labels, reduction="sum")
                right += (scores.argmax(dim=1) == labels).sum()
    finally:
        for module, was_training in modes:
            module.training = was_training
    return loss_sum.item() / len(y), right.item() / len(y)
