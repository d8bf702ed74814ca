"""One call for the batch instead of one for each image, and two numbers read when the epoch is over.

Only the standardising has to know where an image ends: mean and std over the axes 1, 2, 3 with keepdim give each image its
own, where x.mean() alone would mix them. The loss of a batch is a mean, so it counts with its number of images; without
that, a short last batch would weigh too much. Sums stay on the device until the end. The network computes what it computed
before, but a batch is now some 60 operations instead of 2,200: a profiler finds such a loop by its counts, since not one
of its operators is slow.
"""

import torch
import torch.nn.functional as F
from torch import nn


def train_epoch(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int, lr: float
) -> tuple[float, float]:
    total = torch.zeros((), device=images.device)
    right = torch.zeros((), dtype=labels.dtype, device=images.device)
    for batch, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        x = batch.float()
        x = (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 1e-3)
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= lr * parameter.grad
            total += loss * len(y)
            right += (logits.argmax(1) == y).sum()
    return total.item() / len(labels), right.item() / len(labels)
