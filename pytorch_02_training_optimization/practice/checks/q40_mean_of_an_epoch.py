"""Small epochs in order of what may be unequal in them; then random ones against a sum over single samples."""

import copy
import math
import random
from typing import Any

from shared.practice import expect
from shared.traps import expect_number, shown

Batches = list[tuple[dict[str, float], int]]
Epoch = list[Batches]


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    value = draw.choice([0.5, 0.25, 2.0])
    equal: Epoch = [[({"loss": value}, 8), ({"loss": 3 * value}, 8)]]
    expect_means(answer, equal, {"loss": 2 * value}, "two equal batches")
    short: Epoch = [[({"loss": 1.0}, 99 + seed), ({"loss": 12.0}, 1)]]
    expect_means(answer, short, {"loss": (99 + seed + 12) / (100 + seed)},
                 "a batch of 1 sample counts as much as one of about 100; how many samples stand behind each mean?")  # fmt: skip
    ranks: Epoch = [[({"loss": 1.0}, 4)] * 3, [({"loss": 9.0}, 4)]]
    expect_means(answer, ranks, {"loss": 3.0}, "the two processes had 12 and 4 samples, so they do not count alike")
    some: Epoch = [[({"loss": 2.0, "gradient_norm": 6.0}, 4), ({"loss": 4.0}, 4)], [({"loss": 3.0}, 4)]]
    expect_means(answer, some, {"loss": 3.0, "gradient_norm": 6.0},
                 "gradient_norm was measured for 4 of 12 samples only, and was 6 for all of these")  # fmt: skip
    expect_means(answer, [[], [({"loss": 5.0}, 2)], []], {"loss": 5.0}, "two of three processes had no batch")
    for nothing in ([], [[]], [[({}, 3)]]):
        expect_means(answer, nothing, {}, "nothing was measured")
    for _ in range(10):
        epoch = draw_epoch(draw)
        expect_means(answer, epoch, by_single_samples(epoch), f"{len(epoch)} processes with random batches")


def draw_epoch(draw: random.Random) -> Epoch:
    names = ["loss", "accuracy", "gradient_norm"]
    return [
        [({name: draw.uniform(-3, 3) for name in names if draw.random() < 0.7}, draw.randint(1, 9))
         for _ in range(draw.randint(0, 5))]
        for _ in range(draw.randint(1, 4))
    ]  # fmt: skip


def by_single_samples(epoch: Epoch) -> dict[str, float]:
    """Every sample of a batch has the mean of its batch; all samples in one list, and its mean."""
    values: dict[str, list[float]] = {}
    for batches in epoch:
        for metrics, count in batches:
            for name, value in metrics.items():
                values.setdefault(name, []).extend([value] * count)
    return {name: math.fsum(samples) / len(samples) for name, samples in values.items()}


def expect_means(answer: Any, epoch: Epoch, wanted: dict[str, float], why: str) -> None:
    call = "epoch_metrics([...])" if len(repr(epoch)) > 150 else f"epoch_metrics({epoch})"
    given = copy.deepcopy(epoch)
    found = answer.epoch_metrics(given)
    expect(isinstance(found, dict), f"{call} returned {shown(found)}; return a dict with a mean for each metric")
    expect(given == epoch, f"{call} changed what it was given")
    names = sorted(wanted)
    expect(
        found.keys() == wanted.keys(),
        f"{call} has the metrics {sorted(map(str, found))}; measured were {names} ({why})",
    )
    for name, value in wanted.items():
        expect_number(found[name], f"{call}[{name!r}]", "a float")
        is_equal = math.isclose(found[name], value, rel_tol=1e-9, abs_tol=1e-9)
        expect(is_equal, f"{call}[{name!r}] is {found[name]:.6g} and should be {value:.6g}: {why}")


def mean_of_batches(per_rank: Epoch) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for batches in per_rank:
        for metrics, _ in batches:
            for name, value in metrics.items():
                values.setdefault(name, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def mean_of_processes(per_rank: Epoch) -> dict[str, float]:
    means = [by_single_samples([batches]) for batches in per_rank if batches]
    names = {name for mean in means for name in mean}
    return {name: sum(mean.get(name, 0.0) for mean in means) / len(means) for name in names}


def divided_by_all_samples(per_rank: Epoch) -> dict[str, float]:
    sums: dict[str, float] = {}
    for batches in per_rank:
        for metrics, count in batches:
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value * count
    total = sum(count for batches in per_rank for _, count in batches)
    return {name: value / total for name, value in sums.items()}


def first_process_only(per_rank: Epoch) -> dict[str, float]:
    return by_single_samples(per_rank[:1])


WRONG = {
    "mean of batch means": ({"epoch_metrics": mean_of_batches}, "a batch of 1 sample counts as much"),
    "mean of processes": ({"epoch_metrics": mean_of_processes}, "12 and 4 samples"),
    "missing counts as zero": ({"epoch_metrics": divided_by_all_samples}, "for 4 of 12 samples only"),
    "what rank 0 has seen": ({"epoch_metrics": first_process_only}, "12 and 4 samples"),
}
