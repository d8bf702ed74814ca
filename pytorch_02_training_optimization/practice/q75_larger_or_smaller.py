"""Larger, smaller or the same? Say it before you measure.

Ten pairs of numbers that people compare when they regularise. Each line names the first number and, after "against", the
second one. Where one of them is drawn by lot, think of its mean over many draws.
"""

# TODO: ">", "<" or "=" for each: how is the first number to the second?
SIGN = {
    "best validation accuracy of 20 equal models on 100 samples, against its accuracy on fresh ones": None,
    "the same excess with 10,000 validation samples, against the excess with 100": None,
    "mean of a hidden unit with dropout 0.5 in training, against its mean in eval": None,
    "variance of a hidden unit with dropout 0.5 in training, against its variance in eval": None,
    "accuracy after all logits are divided by 3, against before": None,
    "loss of a network that is far too sure, after its logits are divided by 3, against before": None,
    "smoothed loss (0.1) of a right answer at a probability of 0.9999, against at 0.91, of 10 classes": None,
    "calibration error of a perfectly calibrated model, measured on 100 samples, against on 10,000": None,
    "output of a LayerNorm after the Linear in front of it was halved, against before": None,
    "standard error of a difference over 8 seeds, paired by seed, where seeds matter more than the cure, "
    "against unpaired": None,
}
