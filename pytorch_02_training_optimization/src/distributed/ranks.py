"""What a rank knows of itself, and the collectives by which ranks know of each other."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytorch_02_training_optimization.src.distributed.workers import Workers, choose_backend, device_of
from shared.lesson import Lesson

import torch
import torch.distributed as dist

# What torchrun tells each process, and what it is for.
VARIABLES = {
    "RANK": "which of all processes this one is",
    "WORLD_SIZE": "how many there are",
    "LOCAL_RANK": "which on this machine: the GPU to take",
    "LOCAL_WORLD_SIZE": "how many are on this machine",
    "GROUP_RANK": "which machine (node) this is",
    "MASTER_ADDR": "where rank 0 listens,",
    "MASTER_PORT": "and on which port",
    "TORCHELASTIC_RESTART_COUNT": "how often all were started again",
}


@dataclass(frozen=True)
class Introduction:
    """What one rank says of itself."""

    process: int
    variables: dict[str, str | None]
    rank: int
    world_size: int
    device: str
    drawn: list[float]
    drawn_apart: list[float]
    note: float


def introduce(seed: int) -> Introduction:
    """In a rank. `note` is a tensor that rank 0 alone has written 7 to; each begins with the same generator state."""
    rank = dist.get_rank()
    note = torch.zeros(1)
    if rank == 0:
        note.fill_(7)
    dist.barrier()  # by now rank 0 has written
    drawn = torch.rand(3).tolist()
    torch.manual_seed(seed + 1 + rank)
    return Introduction(os.getpid(), {name: os.environ.get(name) for name in VARIABLES}, rank, dist.get_world_size(),
                        str(device_of(rank)), drawn, torch.rand(3).tolist(), note.item())  # fmt: skip


def show_ranks(lesson: Lesson, pair: Workers) -> None:
    lesson.section(
        "What a rank is",
        "Distributed training is one script that is started n times. Each copy is a process of its own, with its own "
        "memory, its own Python and, on GPUs, its own GPU. Its number is its rank, which it reads from its environment, "
        "where torchrun has put it. Nothing is shared; what a rank knows of the others, it was sent. Here are two:",
    )
    said: list[Introduction] = pair.run(introduce, lesson.options.seed)
    lesson.table(
        [{"variable": name, **{f"rank {rank}": person.variables[name] or "–" for rank, person in enumerate(said)},
          "says": says} for name, says in VARIABLES.items()]
    )  # fmt: skip
    lesson.text(
        "MASTER_ADDR and MASTER_PORT are empty because these two met through a file, so that no port has to be free. "
        "dist.init_process_group() reads all of it, and from then on dist.get_rank() answers."
    )
    processes = [person.process for person in said]
    lesson.check("each rank is a process of its own", len({os.getpid(), *processes}) == 1 + len(said),
                 f"process {processes[0]} and {processes[1]}; the lesson is {os.getpid()}")  # fmt: skip
    lesson.check("ranks count from 0, and the variables say the same",
                 [(person.rank, person.world_size) for person in said] == [(0, 2), (1, 2)]
                 and all(person.variables["RANK"] == str(person.rank) for person in said),
                 f"{[person.rank for person in said]} of {said[0].world_size}")  # fmt: skip
    lesson.check("what rank 0 writes, rank 1 does not see", [person.note for person in said] == [7, 0],
                 f"the same variable is {said[0].note:g} and {said[1].note:g}")  # fmt: skip
    first, second = (person.drawn[0] for person in said)
    lesson.check("from the same seed both draw the same numbers", said[0].drawn == said[1].drawn,
                 f"{first:.4f} and {second:.4f}")  # fmt: skip
    first, second = (person.drawn_apart[0] for person in said)
    lesson.check("from seed + rank they do not", said[0].drawn_apart != said[1].drawn_apart,
                 f"{first:.4f} and {second:.4f}")  # fmt: skip
    reason = choose_backend(lesson.device)[1]
    lesson.shows(
        f"the messages go through {pair.backend} ({reason}), and the two compute on {said[0].device} and "
        f"{said[1].device}. Equal seeds give equal weights at the start, which is wanted, and equal dropout masks and "
        "augmentations in all ranks, which is not: draw the weights from seed, and the rest from seed + rank."
    )


# Collectives

Collective = Callable[[torch.Tensor], torch.Tensor]


def broadcast(x: torch.Tensor) -> torch.Tensor:
    dist.broadcast(x, src=0)
    return x


def all_reduce(x: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(x)  # op=SUM unless you ask for MAX, MIN, PRODUCT …
    return x


def all_gather(x: torch.Tensor) -> torch.Tensor:
    whole = x.new_empty(dist.get_world_size() * len(x))
    dist.all_gather_into_tensor(whole, x)
    return whole


def reduce_scatter(x: torch.Tensor) -> torch.Tensor:
    part = x.new_empty(len(x) // dist.get_world_size())
    dist.reduce_scatter_tensor(part, x)
    return part


def reduce_scatter_then_all_gather(x: torch.Tensor) -> torch.Tensor:
    return all_gather(reduce_scatter(x))


COLLECTIVES: dict[str, Collective] = {
    "broadcast from 0": broadcast,
    "all_reduce": all_reduce,
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
}


def call_collectives() -> dict[str, torch.Tensor]:
    """In a rank: its numbers, and what each collective makes of them."""
    rank = dist.get_rank()
    start = torch.arange(1.0, 5.0) * 10**rank
    calls = {**COLLECTIVES, "both in turn": reduce_scatter_then_all_gather}
    return {"before": start} | {name: call(start.clone().to(device_of(rank))).cpu() for name, call in calls.items()}


def boxes(x: torch.Tensor) -> str:
    return "│" + "│".join(f"{value:>2.0f}" for value in x.tolist()) + "│"


def draw_collectives(results: Sequence[dict[str, torch.Tensor]]) -> str:
    """One line for each collective, one column for each rank; a rank's numbers in boxes."""
    names = ["before", *COLLECTIVES]
    label = max(map(len, names)) + 2
    columns = [[f"rank {rank}", *(boxes(result[name]) for name in names)] for rank, result in enumerate(results)]
    widths = [max(map(len, column)) + 4 for column in columns]
    lines = []
    for name, *cells in zip(["", *names], *columns, strict=True):
        lines.append(name.ljust(label) + "".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)))
    return "\n".join(line.rstrip() for line in lines)


def show_collectives(lesson: Lesson, pair: Workers) -> None:
    lesson.section(
        "Four collectives, with the numbers",
        "A collective is a call that every rank makes, in the same order, each with its own tensor; it returns when "
        "the others have come along. Four of them carry nearly all training. Rank 0 begins with 1 to 4, rank 1 with "
        "ten times as much, so you can see whose numbers went where:",
    )
    results: list[dict[str, torch.Tensor]] = pair.run(call_collectives)
    lesson.drawing(draw_collectives(results))
    starts = [result["before"] for result in results]
    total, joined = sum(starts, torch.zeros(4)), torch.cat(starts)
    for claim, name, expected in (
        ("broadcast: all get what one rank has", "broadcast from 0", [starts[0], starts[0]]),
        ("all_reduce: all get the sum of all", "all_reduce", [total, total]),
        ("all_gather: all get all, in order of rank", "all_gather", [joined, joined]),
        ("reduce_scatter: each gets its part of the sum", "reduce_scatter", list(total.chunk(2))),
    ):
        right = [torch.equal(result[name], x) for result, x in zip(results, expected, strict=True)]
        lesson.check(claim, all(right), f"rank 1: {boxes(results[1][name])}")
    same = all(torch.equal(result["both in turn"], result["all_reduce"]) for result in results)
    lesson.check("all_reduce is a reduce_scatter and then an all_gather", same, boxes(results[0]["both in turn"]))
    sizes = [len(results[0][name]) for name in ("all_gather", "reduce_scatter")]
    lesson.shows(
        f"all_gather makes {sizes[0]} numbers of 4, reduce_scatter {sizes[1]}, all_reduce keeps 4. DDP is built on "
        "all_reduce. Taken apart into its two halves it gives FSDP, where a rank holds the sum of its part and nothing "
        "else until somebody needs the whole."
    )
