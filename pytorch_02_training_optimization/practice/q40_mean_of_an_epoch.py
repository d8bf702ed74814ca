"""An epoch's accuracy that nobody can reproduce.

Four processes train, and each logs as it goes. At the end of an epoch one line per metric is written, and the curve looks
as it should. Evaluating the same weights by hand gives another number, and the gap grows when the last batch is small.
"""


def epoch_metrics(per_rank: list[list[tuple[dict[str, float], int]]]) -> dict[str, float]:
    """Each metric's mean over all samples of the epoch.

    per_rank: for each process its batches, in order: the means of a batch by name, and its number of samples (1 or
        more). Batches may have unequal numbers of samples, and processes unequal numbers of batches, even none. A metric
        that a batch does not have was not measured there, and its mean is over the samples for which it was.
    A metric that nobody has measured is not in the result. What was given is not changed.

    Example: epoch_metrics([[({"loss": 1.0}, 3), ({"loss": 5.0}, 1)]]) is {"loss": 2.0}.
    """
    # TODO: one batch of 100 samples and one of a single sample: what is printed, and what would you expect?
    averages = []
    for batches in per_rank:
        sums: dict[str, float] = {}
        for metrics, _ in batches:
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value
        averages.append({name: total / len(batches) for name, total in sums.items()})
    names = {name for average in averages for name in average}
    return {name: sum(average.get(name, 0.0) for average in averages) / len(averages) for name in names}
