"""One sample at a time.

A classifier that learns from a handful of examples keeps the mean feature vector of each class and asks which mean
is nearest. The loop below is right. With a million samples it runs a million turns, and on a GPU every turn starts
several kernels that add 128 numbers.
"""

import torch


def class_means(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """The mean of the features of each class.

    features: (N, D) float32 or float64; labels: (N,) int64 from 0 to classes - 1, in any order, on the same device
    Returns (classes, D), dtype and device of the features; a row of zeros for a class without samples. Gradients
    flow to the features, as they do below.

    Wanted: the same means from a number of operations that depends neither on N nor on `classes`, and without a
    tensor in between that is larger than both the features and the result: a table of N x classes is too large.

    Example: features [[1, 2], [3, 4], [5, 6]] with labels [0, 2, 0] and 3 classes give [[3, 4], [0, 0], [3, 4]].
    """
    # TODO: no loop over samples or classes.
    sums = torch.zeros(classes, features.shape[1], dtype=features.dtype, device=features.device)
    counts = [0] * classes
    for feature, label in zip(features, labels.tolist(), strict=True):
        sums[label] += feature
        counts[label] += 1
    return sums / torch.tensor(counts, device=features.device).clamp(min=1)[:, None]
