"""Whatever is chosen by a number has a number that is too good; whatever is averaged loses its luck.

The best of 20 equal models was lucky, by about two standard errors, which shrink with the root of the samples. Dropout
keeps the mean by scaling up what is left, and pays with variance. A temperature changes no order, so no answer, and makes
an overconfident network's loss smaller. The smoothed target gives 0.91 to the right class, so certainty beyond that costs:
the loss has its minimum at the target. A measured calibration error is never 0, since few samples stray. In front of a norm
the size of weights does not count; a norm divides it away. And pairing takes out what both runs have in common, which is
nearly everything that differs from seed to seed.
"""

SIGN = {
    "best validation accuracy of 20 equal models on 100 samples, against its accuracy on fresh ones": ">",
    "the same excess with 10,000 validation samples, against the excess with 100": "<",
    "mean of a hidden unit with dropout 0.5 in training, against its mean in eval": "=",
    "variance of a hidden unit with dropout 0.5 in training, against its variance in eval": ">",
    "accuracy after all logits are divided by 3, against before": "=",
    "loss of a network that is far too sure, after its logits are divided by 3, against before": "<",
    "smoothed loss (0.1) of a right answer at a probability of 0.9999, against at 0.91, of 10 classes": ">",
    "calibration error of a perfectly calibrated model, measured on 100 samples, against on 10,000": ">",
    "output of a LayerNorm after the Linear in front of it was halved, against before": "=",
    "standard error of a difference over 8 seeds, paired by seed, where seeds matter more than the cure, "
    "against unpaired": "<",
}
