"""One number from many ranks: metrics and losses over parts of unequal size."""

from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.distributed.replicas import gradients_of, joined, relative_distance
from pytorch_02_training_optimization.src.distributed.workers import Workers, device_of
from shared.lesson import Lesson
from shared.units import percent

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# Samples of rank 0 and rank 1: of those, how many each gets right.
RIGHT, SAMPLES = (45, 2), (50, 8)
TOKENS = (30, 6)  # real tokens in the sequences of each rank; the rest is padding


def mean_over_ranks(value: float) -> float:
    total = torch.tensor(value, device=device_of(dist.get_rank()))
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def mean_of_accuracies(right: int, count: int) -> float:
    """The mistake: every rank's accuracy weighs the same, whatever it is an accuracy of."""
    return mean_over_ranks(right / count)


def accuracy_over_ranks(right: int, count: int) -> float:
    """Right: add up the numerators and the denominators, in one all_reduce, and divide at the end."""
    sums = torch.tensor([right, count], device=device_of(dist.get_rank()))
    dist.all_reduce(sums)
    return (sums[0] / sums[1]).item()


def accuracies() -> tuple[float, float]:
    """In a rank: the accuracy of all samples, by the mistake and right."""
    rank = dist.get_rank()
    return mean_of_accuracies(RIGHT[rank], SAMPLES[rank]), accuracy_over_ranks(RIGHT[rank], SAMPLES[rank])


# Gradients over tokens


def mean_of_own_tokens(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mistake: the mean over this rank's tokens, which DDP then averages as if all ranks had as many."""
    return F.cross_entropy(model(x), y)


def sum_over_all_tokens(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Right: the sum over this rank's tokens, over the tokens of all ranks; times n, by which DDP will divide."""
    count = torch.tensor(float(len(y)), device=y.device)
    dist.all_reduce(count)
    return F.cross_entropy(model(x), y, reduction="sum") * dist.get_world_size() / count


@dataclass(frozen=True)
class TokenLosses:
    """Distance of the gradient from that over all tokens in one process, for each way to take the mean."""

    own: float
    all: float


def compare_token_losses(seed: int) -> TokenLosses:
    """In a rank: DDP over TOKENS[rank] of the same tokens, against one process that has all."""
    rank = dist.get_rank()
    device = device_of(rank)
    torch.manual_seed(seed)
    x, y = torch.randn(sum(TOKENS), 16, device=device), torch.randint(5, (sum(TOKENS),), device=device)
    mine = slice(sum(TOKENS[:rank]), sum(TOKENS[: rank + 1]))

    def make() -> nn.Linear:
        torch.manual_seed(seed)
        return nn.Linear(16, 5).to(device)

    whole = make()
    F.cross_entropy(whole(x), y).backward()
    oracle, found = joined(gradients_of(whole)), []
    for loss_of in (mean_of_own_tokens, sum_over_all_tokens):
        model: Any = DistributedDataParallel(make())
        loss_of(model, x[mine], y[mine]).backward()
        found.append(relative_distance(joined(gradients_of(model)), oracle))
    return TokenLosses(*found)


def show_metrics(lesson: Lesson, pair: Workers) -> None:
    lesson.section(
        "One number from many ranks",
        "A mean of means is the mean only when all parts have the same size. Test sets rarely divide evenly, and "
        "sentences never have the same number of tokens. For a metric the mistake gives a wrong figure; for a loss, a "
        "wrong gradient, since DDP takes the plain mean over ranks:",
    )
    (wrong, right), _ = pair.run(accuracies)
    lesson.table(
        [{"rank": rank, "right": RIGHT[rank], "of": SAMPLES[rank], "accuracy": percent(RIGHT[rank] / SAMPLES[rank]),
          "tokens": TOKENS[rank]} for rank in range(2)]
    )  # fmt: skip
    truth = sum(RIGHT) / sum(SAMPLES)
    lesson.check("the mean of accuracies is not the accuracy", abs(wrong - truth) > 0.1,
                 f"{percent(wrong)}, and {sum(RIGHT)} of {sum(SAMPLES)} are {percent(truth)}")  # fmt: skip
    lesson.check("sums of both, divided at the end, are", abs(right - truth) < 1e-6, percent(right))
    losses: TokenLosses = pair.run(compare_token_losses, lesson.options.seed)[0]
    lesson.check("the mean over own tokens gives DDP another gradient", losses.own > 0.05,
                 f"{percent(losses.own)} off the gradient over all {sum(TOKENS)} tokens")  # fmt: skip
    lesson.check("the sum over own, divided by all, gives the right one", losses.all < 1e-5, f"{losses.all:.0e} off")
    weight = sum(TOKENS) / (2 * TOKENS[1])
    lesson.shows(
        f"with {TOKENS[0]} and {TOKENS[1]} tokens, each token of rank 1 weighed {weight:g} times as much as it should. "
        "Reduce sums and counts, divide once, and for a loss multiply by the number of ranks, by which DDP divides."
    )
