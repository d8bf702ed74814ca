"""How do several processes train one model, and what goes wrong between them?

Two real processes start on this machine, on its loopback, with gloo on a CPU or NCCL on two GPUs. You will build the
all-reduce from send and receive, DDP from an all-reduce, and hold both against PyTorch's; count what DDP and FSDP send
and hold, byte for byte; read the messages of a hang, of unused parameters and of a killed worker before they cost you a
night; and bring a killed training back to the same last bit (chapters in distributed/).

    python src/distributed_training.py            about 40 seconds
    python src/distributed_training.py --quick    the same path with tiny sizes, some ten seconds
"""

import copy
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.distributed.elastic import show_elastic, show_interval, show_launch
from pytorch_02_training_optimization.src.distributed.metrics import show_metrics
from pytorch_02_training_optimization.src.distributed.mishaps import show_hang, show_uneven, show_unused
from pytorch_02_training_optimization.src.distributed.ranks import show_collectives, show_ranks
from pytorch_02_training_optimization.src.distributed.replicas import show_by_hand, show_ddp
from pytorch_02_training_optimization.src.distributed.ring import show_cost, show_ring
from pytorch_02_training_optimization.src.distributed.shards import show_memory, show_shards
from pytorch_02_training_optimization.src.distributed.workers import Workers, choose_backend
from pytorch_02_training_optimization.src.distributed.wrapper import show_buckets, show_buffers, show_no_sync
from shared.datasets import load_images
from shared.lesson import Lesson
from shared.units import bytes_text, percent

import torch
from torch import nn
from torch.utils.data import DistributedSampler

# DataParallel


class CountsItsSamples(nn.Module):
    """A layer that remembers in a buffer how many samples it has seen."""

    seen: torch.Tensor

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return self.linear(x)


def data_parallel_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, parts: int) -> int:
    """One backward() as nn.DataParallel does it, on one device; returns the bytes of weights that were copied for it.

    The first part uses the model itself, as the first GPU does; every other part has a copy that lives for this step.
    """
    replicas = [model, *(copy.deepcopy(model) for _ in range(parts - 1))]  # replicate
    pieces = x.chunk(parts)  # scatter
    outputs = [replica(piece) for replica, piece in zip(replicas, pieces, strict=True)]  # one thread for each
    nn.functional.cross_entropy(torch.cat(outputs), y).backward()  # gather: the loss is computed on the first GPU
    for replica in replicas[1:]:
        for parameter, copied in zip(model.parameters(), replica.parameters(), strict=True):
            assert parameter.grad is not None
            assert copied.grad is not None
            parameter.grad += copied.grad  # the gradients come back to the first GPU
    return sum(parameter.nbytes for replica in replicas[1:] for parameter in replica.parameters())


def show_data_parallel(lesson: Lesson) -> None:
    parts, count = 4, 64
    lesson.section(
        "nn.DataParallel, and why not",
        "Old code wraps a model in nn.DataParallel: one line, one process, a thread for each GPU. Before you keep it, "
        "look at what each step does: copy the model to every GPU, deal out the batch, run the copies in threads that "
        "share one Python, gather the outputs on the first GPU, and send all gradients there. Its steps by hand, in "
        f"{parts} parts:",
    )
    torch.manual_seed(lesson.options.seed)
    model = CountsItsSamples(256, 10)
    whole = copy.deepcopy(model)
    x, y = torch.randn(count, 256), torch.randint(10, (count,))
    nn.functional.cross_entropy(whole(x), y).backward()
    copied = data_parallel_step(model, x, y, parts)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    lesson.table(
        [{"GPUs": n, "DataParallel: sent by the first": bytes_text((n - 1) * weights),
          "received by it": bytes_text((n - 1) * weights), "DDP: sent by each": bytes_text(2 * (n - 1) * weights / n)}
         for n in (2, 4, 8)]
    )  # fmt: skip
    pairs = zip(model.parameters(), whole.parameters(), strict=True)
    far = max(float((a.grad - b.grad).abs().max()) for a, b in pairs if a.grad is not None and b.grad is not None)
    lesson.check("the gradient is that of the whole batch", far < 1e-6, f"{far:.0e} off")
    lesson.check("in every step the model is copied n - 1 times", copied == (parts - 1) * weights,
                 f"{bytes_text(copied)} for {parts} GPUs; DDP copies it once, at the start")  # fmt: skip
    lesson.check("what the copies wrote into buffers is lost", model.seen == count // parts,
                 f"{model.seen} of {count} samples counted")  # fmt: skip
    lesson.check("its own documentation recommends DDP", "DistributedDataParallel" in (nn.DataParallel.__doc__ or ""),
                 "help(nn.DataParallel)")  # fmt: skip
    if torch.cuda.device_count() >= 2:
        on_gpus = CountsItsSamples(256, 10).cuda()
        nn.DataParallel(on_gpus)(x.cuda())
        lesson.check("nn.DataParallel loses the same", on_gpus.seen < count, f"{on_gpus.seen} of {count} counted")
    else:
        lesson.skip("nn.DataParallel itself, whose copies lose the same counts.", "two GPUs")
    if not torch.cuda.is_available():
        wrapped = nn.DataParallel(model)
        lesson.check("without a GPU nn.DataParallel does nothing", wrapped.device_ids == [], "device_ids is []")
    lesson.shows(
        f"with 8 GPUs the first one sends {bytes_text(7 * weights)} and receives as much in every step, and holds all "
        f"outputs; DDP sends {bytes_text(14 * weights / 8)} from each. Where "
        'you meet it, names in state_dict() begin with "module.", as DDP\'s do: save model.module.state_dict().'
    )


# Samplers


def indices_of(count: int, rank: int, world_size: int, epoch: int = 0, seed: int = 0) -> list[int]:
    """What DistributedSampler deals out: one shuffle that all ranks agree on, padded from its own head, every n-th."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    missing = -count % world_size
    while missing > 0:
        order += order[:missing]
        missing = -len(order) % world_size
    return order[rank::world_size]


def epoch_orders(count: int, epochs: int, *, forget_set_epoch: bool) -> list[list[int]]:
    """The order in which rank 0 of two sees its samples, epoch by epoch; the mistake leaves out one line."""
    sampler: DistributedSampler[int] = DistributedSampler(range(count), num_replicas=2, rank=0)  # type: ignore[arg-type]
    orders = []
    for epoch in range(epochs):
        if not forget_set_epoch:
            sampler.set_epoch(epoch)
        orders.append(list(sampler))
    return orders


def dealt_with_seeds(count: int, seeds: Sequence[int]) -> Counter[int]:
    """How often each sample is dealt in one epoch when rank r shuffles with seeds[r]."""
    n = len(seeds)
    dealt: Counter[int] = Counter()
    for rank, seed in enumerate(seeds):
        dealt.update(DistributedSampler(range(count), n, rank, seed=seed))  # type: ignore[arg-type]
    return dealt


def draw_dealing(count: int, world_size: int) -> str:
    """One line for each rank: the samples that it gets, those that another rank has too in brackets."""
    dealt = [indices_of(count, rank, world_size) for rank in range(world_size)]
    times = Counter(index for indices in dealt for index in indices)
    rows = [" ".join((f"({i})" if times[i] > 1 else f"{i} ").rjust(5) for i in indices) for indices in dealt]
    return "\n".join(f"rank {rank} {row}" for rank, row in enumerate(rows))


def show_sampler(lesson: Lesson) -> None:
    count, world_size = 10, 4
    lesson.section(
        "The sampler: who gets which sample",
        "Each rank has its own DataLoader, so something has to see to it that they do not all read the same. "
        f"DistributedSampler shuffles alike in all ranks and gives rank r every n-th. {count} samples do not divide by "
        f"{world_size}; in brackets is what was dealt twice, so that all have as many:",
    )
    lesson.drawing(draw_dealing(count, world_size))
    sizes = [(n, world, rank, epoch) for n in (1, 3, 10, 64) for world in (1, 2, 4, 7) for rank in range(world)
             for epoch in (0, 3)]  # fmt: skip
    right = 0
    for n, world, rank, epoch in sizes:
        sampler: DistributedSampler[int] = DistributedSampler(range(n), world, rank)  # type: ignore[arg-type]
        sampler.set_epoch(epoch)
        right += list(sampler) == indices_of(n, rank, world, epoch)
    lesson.check(
        "seven lines deal what DistributedSampler deals", right == len(sizes), f"{right} of {len(sizes)} cases"
    )
    dealt = dealt_with_seeds(count, [0] * world_size)
    twice = [index for index, times in dealt.items() if times == 2]
    lesson.check("to make it even, some samples are dealt twice", len(twice) == -count % world_size and len(dealt) == count,
                 f"{len(twice)} of {count}: an evaluation would count them twice")  # fmt: skip
    dropped = [
        index
        for rank in range(world_size)
        for index in DistributedSampler(range(count), world_size, rank, drop_last=True)
    ]  # type: ignore[arg-type]
    lesson.check("with drop_last=True some are not dealt in this epoch", len(set(dropped)) == len(dropped) == 8,
                 f"{len(dropped)} of {count}; other ones in the next")  # fmt: skip
    n = 64
    forgotten, right_orders = (epoch_orders(n, 3, forget_set_epoch=forget) for forget in (True, False))
    lesson.items(
        {
            f"{name}, epoch {epoch}": " ".join(map(str, order[:12])) + " …"
            for name, orders in (("set_epoch forgotten", forgotten), ("with set_epoch", right_orders))
            for epoch, order in enumerate(orders)
        }
    )
    lesson.check("without set_epoch every epoch has the same order", forgotten[0] == forgotten[1] == forgotten[2],
                 f"3 epochs of {len(forgotten[0])} samples")  # fmt: skip
    lesson.check(
        "with it each has its own", len({tuple(order) for order in right_orders}) == 3, "the seed is seed + epoch"
    )
    many = lesson.pick(full=100_000, quick=20_000)
    agreed, disagreed = (dealt_with_seeds(many, seeds) for seeds in ([0, 0], [0, 1]))
    unseen = 1 - len(disagreed) / many
    lesson.check("ranks that shuffle by other seeds miss a quarter", len(agreed) == many and abs(unseen - 0.25) < 0.02,
                 f"{percent(unseen)} of {many:,} samples unseen, as many dealt twice")  # fmt: skip
    evaluated = sum(dealt.values())
    lesson.shows(
        f"of {count} samples {evaluated} are dealt to {world_size} ranks, which is harmless in training and wrong in an "
        "evaluation: there, give rank r the indices range(r, count, n) without padding, let no collective depend on the "
        f"number of batches, and add up sums and counts. The forgotten set_epoch and the seed of one's own give no "
        f"error; the first repeats one order for ever, the second leaves {percent(unseen)} of the data out of an epoch."
    )


def main(argv: list[str] | None = None) -> int:
    title = "Distributed training: collectives, DDP, FSDP, samplers, launching, and what goes wrong between ranks."
    with Lesson(__file__, argv, title=title) as lesson, ExitStack() as running:
        data = load_images("glyphs", train=True, count=lesson.pick(full=2048, quick=256))
        images, labels = data.images.float() / 255 - 0.5, data.labels
        few = images[:256], labels[:256]
        backend = choose_backend(lesson.device)[0]
        pair = running.enter_context(Workers(2, backend, lesson.options.seed))
        # What stops a group is shown on the CPU, where a timeout is an error and not the end of the process.
        on_cpu = pair if backend == "gloo" else running.enter_context(Workers(2, "gloo", lesson.options.seed))
        show_ranks(lesson, pair)
        show_collectives(lesson, pair)
        show_ring(lesson, pair)
        show_cost(lesson, pair)
        show_by_hand(lesson, pair, *few)
        show_ddp(lesson, pair, images, labels)
        show_data_parallel(lesson)
        show_buckets(lesson, pair)
        show_no_sync(lesson, pair, *few)
        show_buffers(lesson, pair)
        show_unused(lesson, on_cpu)
        show_uneven(lesson, on_cpu)
        show_hang(lesson, on_cpu)
        show_sampler(lesson)
        show_metrics(lesson, pair)
        seen = show_shards(lesson, pair, *few)
        show_memory(lesson, seen)
        show_launch(lesson)
        show_elastic(lesson, on_cpu)
        show_interval(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
