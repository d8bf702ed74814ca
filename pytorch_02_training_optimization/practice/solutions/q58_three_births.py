"""0 / 0, the root of a rounding error, and 0 times an infinite slope.

A picture without a measurement has a count of 0, and one such picture in a batch makes the loss NaN: that is the birth that
comes early on some data and never on other. The mean of squares less the square of the mean is a small difference of large
numbers: with a prediction that is off by e^15, 225.00001 - 225, and rounding makes it negative now and then; subtract the mean
first, and nothing is left to cancel. The third is born backwards: where() hands 0 to the branch it did not take, and the slope of
log at 0 is infinite, so the sky gets 0 times infinity. The cure for where() is in front of the dangerous function: give it an
input that it can bear, here 1, and choose afterwards if need be. nan_to_num on the loss would hide the first two and keep the
third, which then writes NaN into every weight.
"""

import torch

FLOOR = 1e-6


def nearness_loss(predicted: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    is_seen = measured > 0
    d = torch.where(is_seen, predicted, 1).log() - torch.where(is_seen, measured, 1).log()
    count = is_seen.sum((1, 2), True)
    n = count.clamp(1)
    mean = d.sum((1, 2), True) / n
    variance = torch.where(is_seen, d - mean, 0).square().sum((1, 2), True) / n
    each = torch.where(count > 0, (variance + FLOOR).sqrt(), 0)
    return each.sum() / (count > 0).sum().clamp(1)
