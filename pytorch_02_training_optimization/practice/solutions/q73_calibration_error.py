"""Weighted by its samples, a bin's part is |sum of confidences - number of right answers| / N: no mean is needed.

So a bin without samples adds 0 and divides nothing by 0, which is where many versions return NaN. Only the difference
within each bin is added up, so overconfidence at the top and shyness at the bottom do not cancel; over all samples at once
they would. index_add sums all bins in one operation. The number depends on the bins: more of them show more, until each
holds so few samples that chance alone makes a distance. Quote it with bins and samples, and beside what a perfectly
calibrated network would show.
"""

import torch


def calibration_error(logits: torch.Tensor, labels: torch.Tensor, bins: int) -> float:
    confidence, answers = logits.double().softmax(dim=1).max(dim=1)
    distance = confidence - (answers == labels).double()
    place = (confidence * bins).ceil().long() - 1
    sums = torch.zeros(bins, dtype=torch.float64, device=logits.device).index_add(0, place, distance)
    return sums.abs().sum().item() / len(labels)
