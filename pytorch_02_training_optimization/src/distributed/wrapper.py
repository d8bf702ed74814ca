"""What DistributedDataParallel does behind the wrapper: buckets, no_sync, and the buffers of BatchNorm."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.distributed.replicas import (
    gradients_of,
    joined,
    make_model,
    relative_distance,
    shard,
)
from pytorch_02_training_optimization.src.distributed.traffic import Traffic
from pytorch_02_training_optimization.src.distributed.workers import Workers, device_of
from shared.dispatch import name_of
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import bytes_text, percent, significant

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

LAYERS, WIDTH = 6, 256  # each layer has 257 KiB of weights and biases
MIB = 2**20

# Buckets


class Timeline(Traffic):
    """Also keeps, as letters, the order in which products (m) and all-reduces (A) were started."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = ""

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        before = len(self.calls)
        super().saw(operation, args, kwargs, result)
        if len(self.calls) > before:
            self.letters += "A"
        elif name_of(operation) == "mm.default":
            self.letters += "m"


def watch_backward(bucket_mib: float | None) -> tuple[str, list[int]]:
    """In a rank: the timeline of one backward() through LAYERS layers, and the bytes of each all-reduce."""
    device = device_of(dist.get_rank())
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    model = DistributedDataParallel(nn.Sequential(*layers).to(device), bucket_cap_mb=bucket_mib)
    x = torch.randn(8, WIDTH, device=device)
    model(x).sum().backward()  # after the first step DDP sorts its buckets by the order in which gradients came
    loss = model(x).sum()
    with Timeline() as timeline:
        loss.backward()
    return timeline.letters, [call.size_bytes for call in timeline.calls]


def show_buckets(lesson: Lesson, pair: Workers) -> None:
    lesson.section(
        "Buckets: sending while backward still computes",
        "DDP does better than our six lines. It packs gradients into buckets, because one call is cheaper than many, "
        "and sends a bucket as soon as its last gradient is there, while backward() computes those of the layers "
        f"before. Here {LAYERS} layers of {bytes_text(4 * WIDTH * (WIDTH + 1))} each: m is a matrix product of "
        "backward(), A an all-reduce that leaves.",
    )
    sizes: dict[str, float | None] = {"(left out)": None, "25": 25.0, "0.25": 0.25}
    seen: dict[str, tuple[str, list[int]]] = {name: pair.run(watch_backward, size)[0] for name, size in sizes.items()}
    lesson.table(
        [{"bucket_cap_mb=": name, "all-reduces": letters.count("A"), "largest": bytes_text(max(sent)),
          "backward()": " ".join(letters)} for name, (letters, sent) in seen.items()]
    )  # fmt: skip
    whole = 4 * LAYERS * WIDTH * (WIDTH + 1)
    lesson.check("every gradient is sent once, however it is packed",
                 all(sum(sent) == whole for _, sent in seen.values()),
                 f"{whole:,} bytes, of {LAYERS * WIDTH * (WIDTH + 1):,} parameters")  # fmt: skip
    (_, sent), (large, _), (small, _) = seen.values()
    behind = {name: letters[letters.index("A") :].count("m") for name, (letters, _) in seen.items()}
    lesson.check("one large bucket leaves when backward() is over", large.count("A") == 1 and large.endswith("A"),
                 f"after {large.count('m')} of {large.count('m')} products")  # fmt: skip
    lesson.check("small ones leave while it computes", behind["0.25"] > large.count("m") / 2,
                 f"{behind['0.25']} of {small.count('m')} products come after the first")  # fmt: skip
    lesson.check("left out, the first bucket is closed at 1 MiB", MIB <= sent[0] < MIB + 4 * WIDTH * (WIDTH + 1),
                 f"{bytes_text(sent[0])} leave while {behind['(left out)']} products are to come")  # fmt: skip
    lesson.shows(
        f"with buckets of 0.25 MiB, {percent(behind['0.25'] / small.count('m'))} of backward() can hide the network; "
        "with one bucket it hides nothing. The last bucket, of the first layers, is always waited for. PyTorch's choice "
        "is a first bucket of 1 MiB, so that sending begins early, and 25 MiB for the others, so that each call is worth "
        "its fixed cost."
    )


# no_sync


Accumulate = Callable[[DistributedDataParallel, Sequence[tuple[torch.Tensor, torch.Tensor]]], None]


def part_of_loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor, parts: int) -> torch.Tensor:
    return F.cross_entropy(model(x), y) / parts


def accumulate_with_no_sync(
    model: DistributedDataParallel, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    """Right: nothing is sent until the last micro-batch, whose backward() sends the sum of all."""
    for number, (x, y) in enumerate(batches, 1):
        with model.no_sync() if number < len(batches) else nullcontext():
            part_of_loss(model, x, y, len(batches)).backward()


def accumulate_and_sync_each(
    model: DistributedDataParallel, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    """The mistake that costs time only: each backward() sends what the next one will change."""
    for x, y in batches:
        part_of_loss(model, x, y, len(batches)).backward()


def no_sync_around_backward_only(
    model: DistributedDataParallel, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    """The mistake: forward() decides whether this pass will send, and it runs outside."""
    for number, (x, y) in enumerate(batches, 1):
        loss = part_of_loss(model, x, y, len(batches))
        with model.no_sync() if number < len(batches) else nullcontext():
            loss.backward()


def no_sync_for_all(model: DistributedDataParallel, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """The mistake that costs the training: the last micro-batch sends nothing either."""
    with model.no_sync():
        accumulate_and_sync_each(model, batches)


ACCUMULATIONS: tuple[tuple[str, Accumulate], ...] = (
    ("no_sync but for the last", accumulate_with_no_sync),
    ("no no_sync", accumulate_and_sync_each),
    ("no_sync around backward() only", no_sync_around_backward_only),
    ("no_sync for all", no_sync_for_all),
)


@dataclass(frozen=True)
class Accumulated:
    """All-reduces of one step, and how far its gradient is from the whole batch's and from rank 0's."""

    all_reduces: int
    sent_bytes: int
    from_whole: float
    from_rank_0: float


def accumulate(images: torch.Tensor, labels: torch.Tensor, seed: int, parts: int) -> dict[str, Accumulated]:
    """In a rank: one step of `parts` micro-batches, in every way."""
    rank, n = dist.get_rank(), dist.get_world_size()
    device = device_of(rank)
    images, labels = images.to(device), labels.to(device)
    whole = make_model(seed, device)
    F.cross_entropy(whole(images), labels).backward()
    oracle, found = joined(gradients_of(whole)), {}
    batches = list(zip(shard(images, rank, n).chunk(parts), shard(labels, rank, n).chunk(parts), strict=True))
    for name, way in ACCUMULATIONS:
        model = DistributedDataParallel(make_model(seed, device))
        with Traffic() as traffic:
            way(model, batches)
        gradient = joined(gradients_of(model))
        first = gradient.clone()
        dist.broadcast(first, src=0)
        sent = [call.size_bytes for call in traffic.calls if call.name == "all-reduce"]
        found[name] = Accumulated(len(sent), sum(sent), relative_distance(gradient, oracle),
                                  relative_distance(gradient, first))  # fmt: skip
    return found


def show_no_sync(lesson: Lesson, pair: Workers, images: torch.Tensor, labels: torch.Tensor) -> None:
    parts = 4
    lesson.section(
        "no_sync: one all-reduce for a whole step",
        f"With gradient accumulation a step has several micro-batches, here {parts}, and only their sum is needed by "
        "the others. Inside `with model.no_sync():` DDP adds to .grad and sends nothing. It belongs around forward and "
        "backward of all micro-batches but the last:",
    )
    found: dict[str, Accumulated] = pair.run(accumulate, images, labels, lesson.options.seed, parts)[1]
    lesson.table(
        [{"way": name, "all-reduces": one.all_reduces, "sent": bytes_text(one.sent_bytes),
          "off the whole batch": significant(one.from_whole, 2), "rank 1 off rank 0": significant(one.from_rank_0, 2)}
         for name, one in found.items()]
    )  # fmt: skip
    right, costly, outside, never = (found[name] for name, _ in ACCUMULATIONS)
    lesson.check("with no_sync, one all-reduce in place of one each",
                 (right.all_reduces, costly.all_reduces) == (1, parts),
                 f"{bytes_text(right.sent_bytes)} in place of {bytes_text(costly.sent_bytes)}")  # fmt: skip
    lesson.check("both give the gradient of the whole batch", max(right.from_whole, costly.from_whole) < 1e-5,
                 f"{right.from_whole:.0e} and {costly.from_whole:.0e} off")  # fmt: skip
    lesson.check("forward() outside of it, and everything is sent", outside.all_reduces == parts,
                 f"{outside.all_reduces} all-reduces, as without no_sync")  # fmt: skip
    lesson.check("no_sync for all: the ranks part, and no error says so",
                 never.all_reduces == 0 and never.from_rank_0 > 0.01,
                 f"rank 1's gradient is {percent(never.from_rank_0)} off rank 0's")  # fmt: skip
    lesson.shows(
        f"no_sync divides what is sent by {costly.sent_bytes // right.sent_bytes}, the number of micro-batches, and "
        "changes nothing else. Two of the ways to get it wrong are silent: one is slow, the other trains "
        "two networks. Count the all-reduces of a step once, as here, or look for them in the profiler."
    )


# Buffers


def watch_batch_norm() -> dict[str, Any]:
    """In a rank, whose batch is -1 and 1 around 0 in rank 0 and around 10 in rank 1: BatchNorm under DDP."""
    rank = dist.get_rank()
    device = device_of(rank)
    x = torch.tensor([[-1.0], [1.0]], device=device) + 10 * rank
    model: Any = DistributedDataParallel(nn.BatchNorm1d(1).to(device))
    memories = []
    for _ in range(2):
        out = model(x)
        memories.append(model.module.running_mean.item())
    mean, variance = statistics_over_ranks(x)
    return {"x": x.flatten().tolist(), "out": out.flatten().tolist(), "memories": memories,
            "together": ((x - mean) / (variance + model.module.eps).sqrt()).flatten().tolist()}  # fmt: skip


def statistics_over_ranks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of all ranks' samples, (B, C) -> (C,) each, from one all_reduce of sums: what SyncBatchNorm does.

    The variances of the ranks alone would not do: what is between their means would be lost.
    """
    sums = torch.stack([x.sum(dim=0), x.square().sum(dim=0), torch.full_like(x[0], len(x))])
    dist.all_reduce(sums)
    total, squares, count = sums
    mean = total / count
    return mean, squares / count - mean.square()


def run_library_sync_batch_norm() -> list[float] | str:
    """In a rank: what nn.SyncBatchNorm makes of the same batch, or says to it on a CPU."""
    device = device_of(dist.get_rank())
    x = torch.tensor([[-1.0], [1.0]], device=device) + 10 * dist.get_rank()
    layer = nn.SyncBatchNorm(1).to(device)
    if device.type == "cpu":
        return complaint(lambda: layer(x))
    return layer(x).flatten().tolist()  # type: ignore[no-any-return]


def show_buffers(lesson: Lesson, pair: Workers) -> None:
    lesson.section(
        "BatchNorm: each rank by its own half",
        "DDP averages gradients. What a layer computes over its batch, it computes over the rank's part alone, and what "
        "it remembers in buffers is not averaged either: before each forward() the buffers of rank 0 overwrite the "
        "others. Rank 0 is given -1 and 1, rank 1 the same around 10:",
    )
    seen = pair.run(watch_batch_norm)
    x = torch.tensor([one["x"] for one in seen]).view(-1, 1)
    whole = nn.BatchNorm1d(1)
    expected = whole(x).flatten().tolist()
    rows = {
        "input": [one["x"] for one in seen],
        "BatchNorm under DDP": [one["out"] for one in seen],
        "by statistics over all ranks": [one["together"] for one in seen],
        "one process with all four": [expected[:2], expected[2:]],
    }
    lesson.table([{"": name, **{f"rank {r}": shown(values) for r, values in enumerate(pairs)}}
                  for name, pairs in rows.items()])  # fmt: skip
    lesson.table(
        [{"running mean after": f"forward {step}", "rank 0": round(seen[0]["memories"][step - 1], 2),
          "rank 1": round(seen[1]["memories"][step - 1], 2), "rank 1, had it kept its own": round(10 * (1 - 0.9**step), 2)}
         for step in (1, 2)]
    )  # fmt: skip
    lesson.check("alone, the ranks' inputs cannot be told apart any more",
                 close(seen[0]["out"], seen[1]["out"]) and not close(seen[0]["x"], seen[1]["x"]),
                 f"both become {shown(seen[0]['out'])}")  # fmt: skip
    together = seen[0]["together"] + seen[1]["together"]
    lesson.check("sums over all ranks give the large batch's BatchNorm", close(together, expected),
                 f"rank 1: {shown(together[2:])}")  # fmt: skip
    kept = seen[1]["memories"]
    lesson.check("what rank 1 remembered is gone at the next forward()",
                 close(kept, [1.0, 1.0]), f"{kept[1]:.2f} in place of 1.90")  # fmt: skip
    lesson.check("the memory that is saved is of rank 0's samples alone", abs(seen[0]["memories"][1]) < 1e-5,
                 f"mean {seen[0]['memories'][1]:.1f}, of all samples it is {x.mean():g}")  # fmt: skip
    library = pair.run(run_library_sync_batch_norm)
    if pair.backend == "nccl":
        found = [*library[0], *library[1]]
        lesson.check("nn.SyncBatchNorm gives the same as our sums", close(found, together), shown(found))
    else:
        lesson.check("nn.SyncBatchNorm does this, on GPUs only", "to be on GPU" in library[0],
                     library[0].partition(" or ")[0])  # fmt: skip
    lesson.shows(
        f"a network with BatchNorm under DDP is not the network with the large batch: it normalises by "
        f"{len(x) // 2} samples in place of {len(x)}. How much that matters depends on how many a rank has: Wu and He "
        "(2018) saw ImageNet's error rise from 23.6 % with 32 in each GPU to 34.7 % with 2. With few, call "
        "nn.SyncBatchNorm.convert_sync_batchnorm(model) before you wrap it, or take LayerNorm or GroupNorm, which never "
        "look at other samples."
    )


def close(found: Sequence[float], expected: Sequence[float]) -> bool:
    return all(abs(a - b) < 1e-4 for a, b in zip(found, expected, strict=True))


def shown(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
