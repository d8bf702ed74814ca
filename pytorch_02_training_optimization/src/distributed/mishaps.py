"""What stops a distributed training: parameters without a gradient, unequal numbers of batches, a collective that one
rank skips. Each is shown with its message, and with what the message leaves out.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from pytorch_02_training_optimization.src.distributed.ring import ring_all_reduce
from pytorch_02_training_optimization.src.distributed.traffic import Traffic
from pytorch_02_training_optimization.src.distributed.workers import Workers
from shared.lesson import Lesson

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.distributed.constants import default_pg_timeout
from torch.nn.parallel import DistributedDataParallel

TIMEOUT_S = 1.0  # in the lesson; PyTorch waits for minutes


def error_of(function: Callable[[], object]) -> str:
    """What `function` raises, in one line, without the place in PyTorch's own C++; "" where it raises nothing."""
    try:
        function()
    except RuntimeError as error:
        text = re.sub(r"\[[^]]*\.(cc|cpp|h):\d+\] ", "", " ".join(str(error).split()))
        return text.partition(". This is typically caused by")[0]
    return ""


# Parameters without a gradient


class TwoHeads(nn.Module):
    """A body with two heads, of which a batch uses one or both; `second` is the one that is often left out."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
        hidden = self.body(x)
        return self.first(hidden) + self.second(hidden) if both else self.first(hidden)


@dataclass(frozen=True)
class HeadsSeen:
    """What one rank saw: messages, all-reduces per step, and the gradient of the second head's bias."""

    default: list[str]
    found: list[str]
    frozen: list[str]
    default_all_reduces: int
    found_all_reduces: int
    bias_gradient: float
    names: list[str]


def train_two_heads() -> HeadsSeen:
    """In a rank: two steps in which the second head is left out, under DDP as it is and with each of two cures."""
    x = torch.ones(3, 4)

    def two_steps(model: DistributedDataParallel, both: bool = False) -> list[str]:
        return [error_of(lambda: model(x, both).sum().backward()) for _ in range(2)]

    default = two_steps(DistributedDataParallel(TwoHeads()))
    searching = DistributedDataParallel(TwoHeads(), find_unused_parameters=True)
    found = two_steps(searching)
    with Traffic() as traffic:
        searching.zero_grad()
        searching(x, dist.get_rank() == 0).sum().backward()  # rank 0 alone uses the second head
    gradient = searching.module.second.bias.grad
    frozen_model = TwoHeads()
    frozen_model.second.requires_grad_(False)
    frozen = two_steps(DistributedDataParallel(frozen_model))
    plain = DistributedDataParallel(TwoHeads())
    with Traffic() as plain_traffic:
        plain(x, True).sum().backward()
    return HeadsSeen(
        default, found, frozen, plain_traffic.counts()["all-reduce"], traffic.counts()["all-reduce"],
        float(gradient) if gradient is not None else 0.0, [name for name, _ in searching.module.named_parameters()],
    )  # fmt: skip


def show_unused(lesson: Lesson, pair: Workers) -> None:
    lesson.section(
        "Parameters that received no gradient",
        "DDP sends a bucket when all of its gradients are there. A parameter that the loss does not depend on never "
        "reports, so its bucket waits. A model with two heads, of which this batch uses one, stops in its second step:",
    )
    first, second = pair.run(train_two_heads)
    message = first.default[1]
    sentences = message.split(". ")
    indices = [int(i) for i in re.findall(r"rank 0: ([\d ]+)", message)[0].split()] if "rank 0" in message else []
    lesson.items({"it says": f"RuntimeError: {sentences[0]}.", "and, at its end": f"… {ending_of(message)}"})
    named = [first.names[index] for index in indices]
    lesson.check("the first step passes, the second one fails", first.default[0] == "" and message != "",
                 "DDP notices when it begins the next forward()")  # fmt: skip
    lesson.check("the numbers are places in model.named_parameters()", named == ["second.weight", "second.bias"],
                 f"{indices} are {', '.join(named)}")  # fmt: skip
    lesson.check("find_unused_parameters=True cures it", first.found == second.found == ["", ""], "two steps, no error")
    lesson.check("its price: a search in each step, and an all-reduce",
                 first.found_all_reduces == first.default_all_reduces + 1,
                 f"{first.found_all_reduces} in place of {first.default_all_reduces}: who used what")  # fmt: skip
    lesson.check("a head that one rank used gets half of its gradient",
                 first.bias_gradient == second.bias_gradient == 1.5,
                 f"{first.bias_gradient} of 3 samples: rank 1 adds 0")  # fmt: skip
    lesson.check("requires_grad_(False) before wrapping cures it for free", first.frozen == ["", ""],
                 "DDP never waits for what is frozen")  # fmt: skip
    lesson.shows(
        f"{', '.join(named)} kept the bucket from leaving. Ask first whether these parameters should be without a "
        "gradient: a forgotten head, or an output that the loss ignores, is the usual reason, and the message is right "
        "to stop you. Freeze what is not trained, and search only where the choice really changes from batch to batch."
    )


def ending_of(message: str) -> str:
    """The sentence about the parameters' numbers."""
    found = re.search(r"Parameter indices which did not receive grad for rank \d+: [\d ]+", message)
    return found.group().strip() if found else message[-80:]


# Unequal numbers of batches


@dataclass(frozen=True)
class Uneven:
    """What one rank saw: steps done, the error that ended them, the last gradient, and the weights afterwards."""

    steps: int
    error: str
    gradients: list[float]
    weight: float


def train_uneven(joined: bool, timeout_s: float) -> Uneven:
    """In a rank: three batches in rank 0 and two in rank 1, where step k has the gradient k + 1 in each rank."""
    group = dist.new_group(timeout=timedelta(seconds=timeout_s))
    model = DistributedDataParallel(nn.Linear(1, 1, bias=False), process_group=group)
    gradients: list[float] = []

    def train() -> None:
        for step in range(3 - dist.get_rank()):
            model.zero_grad()
            model(torch.full((1, 1), step + 1.0)).sum().backward()
            gradients.append(model.module.weight.grad.item())
            with torch.no_grad():
                model.module.weight -= 0.1 * model.module.weight.grad

    def train_joined() -> None:
        with Join([model]):
            train()

    error = error_of(train_joined if joined else train)
    return Uneven(len(gradients), error, gradients, model.module.weight.item())


def show_uneven(lesson: Lesson, pair: Workers) -> None:
    timeout_s = 2 * TIMEOUT_S  # two steps have to pass before
    lesson.section(
        "When one rank runs out of batches",
        "Rank 0 has three batches and rank 1 has two: a file was shorter, or a filter took more away. In its third step "
        f"rank 0 waits for a partner that has gone home. The limit of waiting is {timeout_s:g} s here:",
    )
    alone, joined = (pair.run(train_uneven, how, timeout_s) for how in (False, True))
    lesson.table(
        [{"": name, "rank 0 steps": answers[0].steps, "rank 1 steps": answers[1].steps,
          "rank 0's gradients": ", ".join(f"{g:g}" for g in answers[0].gradients),
          "ends": answers[0].error[:34] + "…" if answers[0].error else "in peace"}
         for name, answers in {"as it is": alone, "with Join([model])": joined}.items()]
    )  # fmt: skip
    lesson.check("without help, rank 0 waits in its third step", alone[0].steps == 2 and "imed out" in alone[0].error,
                 f"{alone[0].steps} of 3 done")  # fmt: skip
    lesson.check("with Join it does all three", (joined[0].steps, joined[1].steps) == (3, 2) and not joined[0].error,
                 f"{joined[0].steps} and {joined[1].steps} steps")  # fmt: skip
    lesson.check("the last gradient counts the missing rank as 0", joined[0].gradients == [1, 2, 1.5],
                 f"{joined[0].gradients[-1]:g} of 3: one of two ranks")  # fmt: skip
    lesson.check("both end with the same weights", joined[0].weight == joined[1].weight, f"{joined[0].weight:.4f}")
    lesson.shows(
        f"Join answers for the rank that has finished, and the {joined[0].steps}rd step is {joined[0].gradients[-1]:g} "
        "in place of 3: a batch of half the size with the learning rate of a full one. It also asks all ranks before "
        "every step whether anybody has finished. Simpler, where you can: give every rank the same number of batches, "
        "as DistributedSampler does by padding, and count them before you start."
    )


# A skipped collective


def log_on_rank_0_only(group: dist.ProcessGroup) -> None:
    """The mistake: only rank 0 prints the loss, so only rank 0 asks for the mean of all."""
    if dist.get_rank() == 0:
        loss = torch.ones(1)
        dist.all_reduce(loss, group=group)


def log_on_rank_0(group: dist.ProcessGroup) -> None:
    """Right: all ranks compute the mean, and rank 0 prints it."""
    loss = torch.ones(1)
    dist.all_reduce(loss, group=group)


def skip_a_bad_batch(group: dist.ProcessGroup) -> None:
    """The mistake: rank 1 meets a loss that is not finite and goes on to the next batch; rank 0 knows of nothing."""
    loss = torch.tensor(float("nan") if dist.get_rank() == 1 else 1.0)
    if loss.isfinite():
        dist.all_reduce(torch.ones(1), group=group)


def skip_together(group: dist.ProcessGroup) -> None:
    """Right: a batch is skipped when it is bad for anybody, and everybody hears of it."""
    loss = torch.tensor(float("nan") if dist.get_rank() == 1 else 1.0)
    is_good = loss.isfinite().float()
    dist.all_reduce(is_good, op=dist.ReduceOp.MIN, group=group)
    if is_good:
        dist.all_reduce(torch.ones(1), group=group)


def everyone_sends_first(group: dist.ProcessGroup) -> None:
    """The mistake: both ranks send, and both return from it only when the other one receives."""
    other = 1 - dist.get_rank()
    dist.send(torch.ones(1), other, group=group)
    dist.recv(torch.ones(1), other, group=group)


def ask_who_is_missing(group: dist.ProcessGroup) -> None:
    """monitored_barrier, which only rank 0 reaches."""
    if dist.get_rank() == 0:
        dist.monitored_barrier(group, timedelta(seconds=TIMEOUT_S))


def call_in_another_order(group: dist.ProcessGroup) -> None:
    """The mistake: both ranks make two collectives, each in its own order."""
    calls = [lambda: dist.all_reduce(torch.ones(1), group=group), lambda: dist.broadcast(torch.ones(1), 0, group=group)]
    for call in calls if dist.get_rank() == 0 else reversed(calls):
        call()


@dataclass(frozen=True)
class Waited:
    """What one rank saw of a mistake: the error, "" for none, and the seconds until it came."""

    error: str
    elapsed_s: float


def make_mistake(mistake: Callable[[dist.ProcessGroup], None], timeout_s: float, in_detail: bool = False) -> Waited:
    """In a rank: makes the mistake in a group of its own, so that the default group stays whole."""
    if in_detail:
        dist.set_debug_level(dist.DebugLevel.DETAIL)  # as TORCH_DISTRIBUTED_DEBUG=DETAIL does
    group = dist.new_group(timeout=timedelta(seconds=timeout_s))
    dist.set_debug_level(dist.DebugLevel.OFF)
    start = time.perf_counter()
    error = error_of(lambda: mistake(group))
    return Waited(error, time.perf_counter() - start)


def still_works() -> float:
    """In a rank: a ring all-reduce in the default group."""
    x = torch.ones(4)
    ring_all_reduce(x)
    return x.sum().item()


def show_hang(lesson: Lesson, pair: Workers) -> None:
    lesson.section(
        "A collective that one rank skips",
        "The worst failure has no message: the job runs, GPUs at 100 %, and no step ever ends. Some rank made a "
        "collective that another one did not. NCCL gives up after ten minutes, gloo after thirty; with a limit of "
        f"{TIMEOUT_S:g} s you can watch it, and read what each says:",
    )
    mistakes = {"log_on_rank_0_only": log_on_rank_0_only, "skip_a_bad_batch": skip_a_bad_batch,
                "everyone_sends_first": everyone_sends_first}  # fmt: skip
    seen: dict[str, list[Waited]] = {
        name: pair.run(make_mistake, mistake, TIMEOUT_S) for name, mistake in mistakes.items()
    }
    barrier: list[Waited] = pair.run(make_mistake, ask_who_is_missing, 10.0)
    order: list[Waited] = pair.run(make_mistake, call_in_another_order, 10.0, True)
    cured = [pair.run(make_mistake, cure, 10.0) for cure in (log_on_rank_0, skip_together)]
    lesson.table(
        [{"mistake": name, "rank 0 waits": f"{first.elapsed_s:.2f} s", "rank 1 waits": f"{second.elapsed_s:.2f} s",
          "rank 0 says": first.error} for name, (first, second) in seen.items()]
    )  # fmt: skip
    lesson.items(
        {
            '"Timed out waiting 1000ms"': "how long this rank has waited, in milliseconds",
            '"recv operation"': "it waits for a message from another rank; it does not say which, nor in which call",
            '"Connection closed by peer"': "the other rank is gone: its log, not this one, has the reason",
            '"Watchdog caught collective operation timeout"': "NCCL's words for the same; SeqNum counts the "
            "collectives so far, and the rank with the lower number is the one that skipped",
        }
    )
    waits = [seen[name][0] for name in ("log_on_rank_0_only", "skip_a_bad_batch")]
    lesson.check("rank 0 waits until the limit, for a rank that never comes",
                 all("imed out" in wait.error and wait.elapsed_s > 0.9 * TIMEOUT_S for wait in waits),
                 f"{waits[0].elapsed_s:.2f} s and {waits[1].elapsed_s:.2f} s")  # fmt: skip
    lesson.check("the rank that made the mistake has no error at all",
                 not any(seen[name][1].error for name in ("log_on_rank_0_only", "skip_a_bad_batch")),
                 "rank 1 went on")  # fmt: skip
    both = seen["everyone_sends_first"]
    lesson.check("two ranks that both send first wait for each other", all(wait.error for wait in both),
                 "neither reaches its recv")  # fmt: skip
    lesson.check("the same code, called by all ranks, does not wait", not any(w.error for wait in cured for w in wait),
                 "log_on_rank_0, skip_together")  # fmt: skip
    lesson.text("Two tools name the culprit, and both are worth a restart when a job hangs:")
    lesson.items(
        {
            "dist.monitored_barrier()": barrier[0].error.partition(" Original")[0],
            "TORCH_DISTRIBUTED_DEBUG=DETAIL": "Detected mismatch between collectives on ranks … "
            + order[0].error.rpartition("aspects:")[2].strip().replace("ALLREDUCEvs", "ALLREDUCE vs"),
        }
    )
    lesson.check("monitored_barrier names the rank that is missing", "Rank 1 failed" in barrier[0].error, "Rank 1")
    lesson.check("in DETAIL both calls are named, and nobody waits",
                 "ALLREDUCE" in order[0].error and "BROADCAST" in order[0].error and order[0].elapsed_s < 10,
                 f"after {order[0].elapsed_s:.2f} s")  # fmt: skip
    lesson.check("gloo waits half an hour by default", default_pg_timeout.total_seconds() == 1800,
                 f"{default_pg_timeout.total_seconds() / 60:.0f} min; init_process_group(timeout=…) sets it")  # fmt: skip
    lesson.check("the other groups of these ranks are unharmed", pair.run(still_works) == [8.0, 8.0], "a ring, 8 and 8")
    lesson.shows(
        f"rank 0 complained after {waits[0].elapsed_s:.1f} s of waiting, and the rank to blame after none: read all "
        "logs, not the first one. Keep every collective out of `if rank == 0`, out of try/except, and out of anything that "
        "depends on a rank's own data; let all ranks agree first, as skip_together does. To see where each process "
        "stands now: py-spy dump --pid PID."
    )
