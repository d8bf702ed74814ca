"""A training that ends with other weights when somebody looks at it more often.

Validated every 100 steps it reaches 91 %, every 50 steps 90.2 %, with the same seed; and the frozen layers of a pretrained
model have moved in both. An evaluation should be a look, and leave no trace.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def evaluate(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch_size: int) -> tuple[float, float]:
    """Mean loss and share of right answers of `model`, as it is used after training, over all samples, each counted once.

    model: x (B, F) to (B, C) scores; parts of it may be kept in eval mode by the training that owns it
    x: (N, F); y: (N,) classes. The model sees batches of batch_size, in order, the last one perhaps smaller.

    Afterwards all is as it was, also where the model raises an error and its caller goes on: weights, buffers, gradients,
    the mode of each module, and the global random generator, from which the training's dropout draws.
    """
    # TODO: compare before and after: torch.get_rng_state(), and module.training of each of model.modules().
    model.eval()
    loss_sum, right = 0.0, 0
    for inputs, labels in DataLoader(TensorDataset(x, y), batch_size=batch_size):
        scores = model(inputs)
        loss_sum += F.cross_entropy(scores, labels, reduction="sum")
        right += (scores.argmax(dim=1) == labels).sum()
    model.train()
    return loss_sum.item() / len(y), right.item() / len(y)
