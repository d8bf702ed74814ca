"""A mean of means is the mean only where all groups are of one size.

Three means were taken here, one inside the other: over batches, over processes, and over batches that did not measure
the metric at all (as if it had been 0 there). Each is wrong as soon as its groups are unequal, and the last batch of an
epoch almost always is. The cure is the same for all three: carry the sum and the number of samples that it is a sum of,
add both, from every batch and every process, and divide once, at the very end. In a real training that is one
all_reduce of two numbers per metric. The same holds for accumulated gradients and for the loss of padded text, where
the number is that of the tokens.
"""


def epoch_metrics(per_rank: list[list[tuple[dict[str, float], int]]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    samples: dict[str, int] = {}
    for batches in per_rank:
        for metrics, count in batches:
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value * count
                samples[name] = samples.get(name, 0) + count
    return {name: total / samples[name] for name, total in sums.items()}
