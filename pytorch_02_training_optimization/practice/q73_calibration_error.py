"""How far is a network's confidence from the truth?

A doctor, a trader and a lawyer ask the same of a classifier: when you say 90 %, are you right nine times in ten? The
expected calibration error answers with one number. Write it.
"""

import torch


def calibration_error(logits: torch.Tensor, labels: torch.Tensor, bins: int) -> float:
    """The expected calibration error (Guo et al. 2017, equation 3), from 0 to 1.

    logits: (N, C), one sample or more, of any floating-point type; before softmax
    labels: (N,), int64
    bins: 1 or more, all of one width

    The answer to a sample is its most probable class, and the confidence is the probability of that class. Bin m of 1 to
    `bins` holds the samples whose confidence is above (m - 1) / bins and at most m / bins. In each bin, the distance
    between the mean confidence and the share of right answers counts as much as the bin has samples:

        sum over bins of  (samples in the bin / N) x |mean confidence - share right|

    Compute in float64.

    Example: two samples with equal logits for both of two classes, labels 0 and 1: confidence 0.5 each, one answer right,
    so the error is 0. Were both labels 1, the answer 0 would be wrong twice and the error 0.5.
    """
    # TODO
    raise NotImplementedError
