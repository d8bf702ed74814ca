"""Each rank is a thread of this process; a network of lists passes the tensors, and knows when all wait for each other."""

import math
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shared.practice import Wrong, expect
from shared.traps import expect_close, shown

import torch


class Stopped(BaseException):
    """Ends a rank that would wait for ever, or whose partner has failed."""


@dataclass(eq=False)
class Request:
    """A tensor on its way; `sent` is what it held when it left."""

    network: "Network"
    rank: int
    to: int
    tensor: torch.Tensor
    sent: torch.Tensor
    is_received: bool = False
    is_waited_for: bool = False

    def wait(self) -> None:
        self.is_waited_for = True
        self.network.wait_until(self.rank, lambda: self.is_received, f"for rank {self.to} to receive")
        expect(
            torch.equal(self.tensor, self.sent),
            f"rank {self.rank} wrote into a tensor that it was still sending to rank {self.to}: until wait() returns, some of "
            "the old numbers may leave and some of the new",
        )


class Network:
    """Delivers between n ranks, each a thread. A lock around everything, so that one rank acts at a time."""

    def __init__(self, n: int) -> None:
        self.n, self.alive, self.is_stopped = n, n, False
        self.changed = threading.Condition()
        self.ways: dict[tuple[int, int], deque[Request]] = defaultdict(deque)
        self.waiting: dict[int, tuple[str, Callable[[], bool]]] = {}
        self.stuck = ""

    def wait_until(self, rank: int, is_ready: Callable[[], bool], what: str) -> None:
        with self.changed:
            self.waiting[rank] = what, is_ready
            self.look()
            self.changed.wait_for(lambda: self.is_stopped or is_ready())
            del self.waiting[rank]
            if not is_ready():
                raise Stopped

    def look(self) -> None:
        """Stops everything once all ranks that are left wait for something that none of them will do."""
        if self.waiting and len(self.waiting) == self.alive and not any(ready() for _, ready in self.waiting.values()):
            waits = [f"rank {rank} waits {what}" for rank, (what, _) in sorted(self.waiting.items())]
            self.stuck = self.stuck or ", ".join(waits[:3])
            self.is_stopped = True
        self.changed.notify_all()

    def leave(self, has_failed: bool) -> None:
        with self.changed:
            self.alive -= 1
            self.is_stopped |= has_failed
            self.look()


class Link:
    """What one rank is given; keeps its requests."""

    def __init__(self, network: Network, rank: int) -> None:
        self.network, self.rank, self.world_size = network, rank, network.n
        self.requests: list[Request] = []

    def isend(self, t: torch.Tensor, to: int) -> Request:
        self.expect_partner(t, to, "isend")
        request = Request(self.network, self.rank, to, t, t.clone())
        self.requests.append(request)
        with self.network.changed:
            self.network.ways[self.rank, to].append(request)
            self.network.changed.notify_all()
        return request

    def recv(self, t: torch.Tensor, source: int) -> None:
        self.expect_partner(t, source, "recv")
        way = self.network.ways[source, self.rank]
        self.network.wait_until(self.rank, lambda: bool(way), f"for a tensor from rank {source}")
        with self.network.changed:
            request = way.popleft()
            fits = (t.numel(), t.dtype) == (request.sent.numel(), request.sent.dtype)
            expect(fits, f"rank {self.rank} receives into {shown(t)} what rank {source} sent: {shown(request.sent)}")
            t.copy_(request.sent.view_as(t))
            request.is_received = True
            self.network.changed.notify_all()

    def expect_partner(self, t: object, other: object, name: str) -> None:
        expect(isinstance(t, torch.Tensor), f"link.{name} of rank {self.rank} was given {shown(t)}; give it a tensor")
        assert isinstance(t, torch.Tensor)
        expect(
            t.is_contiguous(), f"link.{name} of rank {self.rank} was given a tensor that is not contiguous: {shown(t)}"
        )
        is_other = isinstance(other, int) and 0 <= other < self.world_size and other != self.rank
        expect(is_other, f"link.{name} of rank {self.rank} was given rank {shown(other)}, of {self.world_size} ranks")


def run_ranks(answer: Any, tensors: Sequence[torch.Tensor], call: str) -> list[Link]:
    """all_reduce in all ranks at once, on these tensors; the first error of any rank is raised here."""
    network = Network(len(tensors))
    links = [Link(network, rank) for rank in range(len(tensors))]
    errors: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        try:
            answer.all_reduce(tensors[rank], links[rank])
        except BaseException as error:
            if not isinstance(error, Stopped):
                errors[rank] = error
        network.leave(rank in errors)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(len(tensors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _, error in sorted(errors.items()):
        if isinstance(error, Wrong):
            raise Wrong(f"{call}: {error}")
        raise error
    expect(not network.stuck, f"{call}: all ranks that are left wait, for ever: {network.stuck}")
    return links


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int, *shape: int) -> list[torch.Tensor]:
        return [torch.rand(shape, generator=generator) + 0.5 for _ in range(n)]

    cases = [
        ("the example", [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])]),
        ("2 ranks, 6 numbers", draw(2, 6)),
        ("1 rank", draw(1, 5)),
        ("3 ranks, 90 numbers", draw(3, 90)),
        ("4 ranks, a matrix of 5 x 7", draw(4, 5, 7)),
        ("4 ranks, a transposed matrix", [x.t() for x in draw(4, 6, 9)]),
        ("3 ranks, every second column", [x[:, ::2] for x in draw(3, 4, 10)]),
        ("7 ranks, 3 numbers: some chunks are empty", draw(7, 3)),
        ("5 ranks, a tensor without dimensions", draw(5)),
        ("5 ranks, no number", draw(5, 0)),
        ("6 ranks, 1,000 numbers", draw(6, 10, 100)),
        ("4 ranks, int64", [(100 * x).long() for x in draw(4, 11)]),
        ("3 ranks, float64", [x.double() for x in draw(3, 2, 8)]),
    ]
    calls = {f"all_reduce, {case}": tensors for case, tensors in cases}
    links = {call: expect_reduced(answer, call, tensors) for call, tensors in calls.items()}
    for call, tensors in calls.items():
        expect_few_numbers_sent(call, links[call], tensors[0].numel())


def expect_reduced(answer: Any, call: str, tensors: list[torch.Tensor]) -> list[Link]:
    right = torch.stack(tensors).double().sum(0)
    links = run_ranks(answer, tensors, call)
    for rank, (x, link) in enumerate(zip(tensors, links, strict=True)):
        expect_close(x, right, f"{call}: x in rank {rank}", 1e-6)
        forgotten = sum(not request.is_waited_for for request in link.requests)
        expect(forgotten == 0, f"{call}: rank {rank} returned with {forgotten} requests that it never waited for; its x may "
               "be written to while they still read it")  # fmt: skip
        lost = sum(not request.is_received for request in link.requests)
        expect(lost == 0, f"{call}: {lost} tensors of rank {rank} were never received")
    for rank, x in enumerate(tensors):
        if not torch.equal(x, tensors[0]):
            apart = (x - tensors[0]).abs().max().item()
            expect(False, f"{call}: rank {rank} has not the same bits as rank 0, {apart:.0e} apart; each sum has to be made in "
                   "one place and copied")  # fmt: skip
    return links


def expect_few_numbers_sent(call: str, links: Sequence[Link], count: int) -> None:
    n = len(links)
    for rank, link in enumerate(links):
        sizes = [request.sent.numel() for request in link.requests]
        most, largest = 2 * (n - 1), math.ceil(count / n)
        expect(
            len(sizes) <= most and max(sizes, default=0) <= largest,
            f"{call}: right, but rank {rank} sends {len(sizes)} tensors of up to {max(sizes, default=0)} numbers; "
            f"{most} of up to {largest} are enough",
        )


def sends_all_to_rank_0(x: torch.Tensor, link: Any) -> None:
    total = x.contiguous()
    if link.rank > 0:
        link.isend(total, 0).wait()
        answer = torch.empty_like(total)
        link.recv(answer, 0)
        x.copy_(answer)
        return
    total = total.clone()
    for rank in range(1, link.world_size):
        other = torch.empty_like(total)
        link.recv(other, rank)
        total += other
    for rank in range(1, link.world_size):
        link.isend(total, rank).wait()
    x.copy_(total)


def ring(x: torch.Tensor, link: Any, waits_first: bool = False, waits: bool = True, returns: bool = True) -> None:
    """The ring; what is switched off is the mistake."""
    rank, n = link.rank, link.world_size
    flat = x.contiguous().view(-1)
    chunks = flat.tensor_split(n)
    for step in range(2 * (n - 1)):
        mine = chunks[(rank - step - 1) % n]
        taken = torch.empty_like(mine)
        request = link.isend(chunks[(rank - step) % n], (rank + 1) % n)
        if waits_first:
            request.wait()
        link.recv(taken, (rank - 1) % n)
        if waits:
            request.wait()
        mine.copy_(mine + taken if step < n - 1 else taken)
    if returns:
        x.copy_(flat.view_as(x))


def waits_before_it_receives(x: torch.Tensor, link: Any) -> None:
    ring(x, link, waits_first=True)


def never_waits(x: torch.Tensor, link: Any) -> None:
    ring(x, link, waits=False)


def sums_a_copy(x: torch.Tensor, link: Any) -> None:
    ring(x, link, returns=False)


def passes_on_whole_tensors(x: torch.Tensor, link: Any) -> None:
    """Each rank adds up by itself whatever comes by."""
    passing = x.clone(memory_format=torch.contiguous_format)
    for _ in range(link.world_size - 1):
        taken = torch.empty_like(passing)
        request = link.isend(passing, (link.rank + 1) % link.world_size)
        link.recv(taken, (link.rank - 1) % link.world_size)
        request.wait()
        x += taken
        passing = taken


def receives_where_it_sends(x: torch.Tensor, link: Any) -> None:
    passing = x.clone(memory_format=torch.contiguous_format)
    for _ in range(link.world_size - 1):
        request = link.isend(passing, (link.rank + 1) % link.world_size)
        link.recv(passing, (link.rank - 1) % link.world_size)
        request.wait()
        x += passing


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "sends all to rank 0": ({"all_reduce": sends_all_to_rank_0}, "are enough"),
    "waits before it receives": ({"all_reduce": waits_before_it_receives}, "rank 0 waits for rank 1 to receive"),
    "never waits": ({"all_reduce": never_waits}, "requests that it never waited for"),
    "sums a copy of a view": ({"all_reduce": sums_a_copy}, "a transposed matrix: x in rank 0"),
    "passes on whole tensors": ({"all_reduce": passes_on_whole_tensors}, "has not the same bits as rank 0"),
    "receives into what it still sends": ({"all_reduce": receives_where_it_sends}, "that it was still sending"),
}
