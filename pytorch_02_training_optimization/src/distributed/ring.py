"""All-reduce from nothing but send and receive: the ring, its bytes, and what it costs on this machine."""

import time
from collections.abc import Callable, Sequence

from pytorch_02_training_optimization.src.distributed.traffic import Traffic
from pytorch_02_training_optimization.src.distributed.workers import Workers, device_of
from shared.device import synchronize
from shared.hardware import measure_cpu_bandwidth, memory_bandwidth
from shared.lesson import Lesson
from shared.timing import Timing, ratio
from shared.units import bytes_text, percent, seconds_text, significant

import torch
import torch.distributed as dist

RING = 4  # ranks in the drawing
MIB = 2**20

# By hand


def pass_on(give: torch.Tensor, take: torch.Tensor) -> None:
    """Gives one tensor to the next rank and takes one from the rank before, at the same time.

    Both are posted before either is waited for. If every rank first sent and then received, each would wait for its
    neighbour to receive, for ever.
    """
    rank, n = dist.get_rank(), dist.get_world_size()
    to_next = dist.P2POp(dist.isend, give, (rank + 1) % n)
    from_last = dist.P2POp(dist.irecv, take, (rank - 1) % n)
    for request in dist.batch_isend_irecv([to_next, from_last]):
        request.wait()


def ring_all_reduce(x: torch.Tensor, after_step: Callable[[], object] = lambda: None) -> None:
    """Sums the contiguous `x` over all ranks, in place, in 2 (n - 1) steps of one chunk each.

    `after_step` is called after each step. (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms".)
    """
    rank, n = dist.get_rank(), dist.get_world_size()
    chunks = x.view(-1).tensor_split(n)  # views: what is written to them is written to x
    for step in range(n - 1):  # reduce-scatter: a chunk goes around and grows, until rank r holds the sum of r + 1
        mine = chunks[(rank - step - 1) % n]
        taken = torch.empty_like(mine)
        pass_on(chunks[(rank - step) % n], taken)
        mine += taken
        after_step()
    for step in range(n - 1):  # all-gather: the finished chunks go around once more
        pass_on(chunks[(rank - step + 1) % n], chunks[(rank - step) % n])
        after_step()


def all_reduce_through_rank_0(x: torch.Tensor) -> None:
    """The obvious way, which does not grow: rank 0 receives everything, adds it up, and sends it to each rank."""
    n = dist.get_world_size()
    if dist.get_rank() == 0:
        others = [torch.empty_like(x) for _ in range(1, n)]
        for rank, other in enumerate(others, 1):
            dist.recv(other, rank)
            x += other
        for rank in range(1, n):
            dist.send(x, rank)
    else:
        dist.send(x, 0)
        dist.recv(x, 0)


WAYS: dict[str, Callable[[torch.Tensor], object]] = {
    "ring": ring_all_reduce,
    "through rank 0": all_reduce_through_rank_0,
    "dist.all_reduce": dist.all_reduce,
}


def numbers_of(rank: int, count: int, seed: int) -> torch.Tensor:
    """The numbers that a rank begins with, which any process can compute."""
    return torch.randn(count, generator=torch.Generator().manual_seed(seed + 1000 * rank))


def reduce_in_every_way(count: int, seed: int) -> dict[str, tuple[torch.Tensor, int]]:
    """In a rank: what each way makes of the same numbers, and how many bytes this rank sends for it."""
    rank, results = dist.get_rank(), {}
    for name, reduce in WAYS.items():
        x = numbers_of(rank, count, seed).to(device_of(rank))
        with Traffic() as traffic:
            reduce(x)
        results[name] = x.cpu(), sum(call.size_bytes for call in traffic.calls if call.name == "send")
    return results


def take_snapshots() -> list[torch.Tensor]:
    """In a rank: its tensor before the first and after each step of a ring that adds up ones, so that it counts."""
    x = torch.ones(dist.get_world_size(), device=device_of(dist.get_rank()))
    snapshots = [x.cpu().clone()]
    ring_all_reduce(x, lambda: snapshots.append(x.cpu().clone()))
    return snapshots


def draw_ring(snapshots: Sequence[Sequence[torch.Tensor]]) -> str:
    """`snapshots` by rank and step as boxes: one line for each rank, one column for each step."""
    titles = ["start", *(f"step {step}" for step in range(1, len(snapshots[0])))]
    width = 2 * len(snapshots[0][0]) + 1
    lines = [" " * 8 + "   ".join(title.ljust(width) for title in titles)]
    for rank, steps in enumerate(snapshots):
        boxes = ["│" + "│".join(f"{value:.0f}" for value in x.tolist()) + "│" for x in steps]
        lines.append(f"rank {rank}  " + "   ".join(boxes))
    return "\n".join(line.rstrip() for line in lines)


def show_ring(lesson: Lesson, pair: Workers) -> None:
    lesson.section(
        "All-reduce as a ring",
        "The obvious all-reduce sends everything to rank 0, which adds up and sends back: with n ranks, n - 1 tensors "
        "go in and out of one process while the others wait. The ring has no such place. The tensor is cut into n "
        "chunks; in each step every rank gives one chunk to the next rank and takes one from the rank before. After "
        f"n - 1 steps each rank holds one finished chunk, after n - 1 more all of them. Here {RING} ranks begin with "
        "ones, so each number counts how many ranks are in it:",
    )
    count, seed = lesson.pick(full=1_200_000, quick=12_000), lesson.options.seed
    with Workers(RING) as ring:
        snapshots = ring.run(take_snapshots)
        found = {2: pair.run(reduce_in_every_way, count, seed), RING: ring.run(reduce_in_every_way, count, seed)}
        uneven = [ring.run(reduce_in_every_way, odd, seed) for odd in (3, 4, 1001)]
    lesson.drawing(draw_ring(snapshots))
    middle = [steps[RING - 1] for steps in snapshots]
    done = [(x == RING).nonzero().flatten().tolist() for x in middle]
    lesson.check("half-way, rank r has finished chunk r + 1 and no other",
                 done == [[(rank + 1) % RING] for rank in range(RING)],
                 f"the {RING}s after step {RING - 1} are at {[at for (at,) in done]}")  # fmt: skip
    size_bytes = 4 * count
    lesson.table(
        [{"ranks": n, "way": way, "most that one rank sends": bytes_text(most), "in tensors": most / size_bytes,
          "formula": formula} for n, answers in found.items() for way, formula in
         (("ring", f"2 ({n} - 1) / {n}"), ("through rank 0", f"{n} - 1"))
         for most in [max(answer[way][1] for answer in answers)]]
    )  # fmt: skip
    every = [*found.values(), *uneven]
    apart = max(worst_difference(answer, way) for answers in every for answer in answers for way in WAYS)
    lesson.check("both ways agree with dist.all_reduce", apart < 1e-6,
                 f"{apart:.0e} at worst, also where n does not divide the size")  # fmt: skip
    same = all(torch.equal(answers[0]["ring"][0], answer["ring"][0]) for answers in every for answer in answers)
    lesson.check("after the ring all ranks hold the same bits", same, f"{len(every)} sizes and rings")
    sent = {n: [answer["ring"][1] for answer in answers] for n, answers in found.items()}
    lesson.check("each rank of a ring sends 2 (n - 1) / n of the tensor",
                 all(sends == [2 * (n - 1) * size_bytes // n] * n for n, sends in sent.items()),
                 ", ".join(f"{n} ranks: {sends[0]:,} of {size_bytes:,} bytes" for n, sends in sent.items()))  # fmt: skip
    through = {n: answers[0]["through rank 0"][1] for n, answers in found.items()}
    lesson.check("through rank 0, its share grows with n", all(sends == (n - 1) * size_bytes
                 for n, sends in through.items()), f"{through[RING] / size_bytes:g} tensors with {RING} ranks")  # fmt: skip
    lesson.shows(
        f"with {RING} ranks a ring sends {sent[RING][0] / size_bytes:g} tensors from each rank, with 1024 it would be "
        f"{2 * 1023 / 1024:.3f}: the time hardly depends on how many take part, which is why data parallel training "
        "grows. That all ranks hold the same bits matters as much: each will make the same optimizer step, and nobody "
        "ever compares the weights."
    )


def worst_difference(answer: dict[str, tuple[torch.Tensor, int]], way: str) -> float:
    """How far one way is from the library's, relative to its largest number."""
    oracle = answer["dist.all_reduce"][0]
    return float((answer[way][0] - oracle).abs().max() / oracle.abs().max())


# What it costs


def time_all_reduces(sizes: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """In a rank: seconds of each all-reduce, by its size in bytes.

    Every rank must make the same calls, so a stopwatch that decides for itself how often to measure would leave one
    rank waiting. The number of rounds is fixed, and each one begins together.
    """
    device = device_of(dist.get_rank())
    samples: dict[int, list[float]] = {size: [] for size in sizes}
    tensors = {size: torch.randn(size // 4, device=device) for size in sizes}
    for turn in range(rounds + 1):
        for size, x in tensors.items():
            x.mul_(1e-3)  # so that sums of sums stay finite
            elapsed_s = time_together(lambda: dist.all_reduce(x), device)
            if turn:  # the first round opens connections
                samples[size].append(elapsed_s)
    return samples


def time_together(work: Callable[[], object], device: torch.device) -> float:
    dist.barrier()
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def time_packing(pieces: int, numbers: int, rounds: int) -> tuple[list[float], list[float]]:
    """In a rank: seconds for an all-reduce of each piece, and for one of all pieces packed into one tensor."""
    device = device_of(dist.get_rank())
    small, packed = torch.zeros(pieces, numbers, device=device), torch.zeros(pieces * numbers, device=device)
    apart_s, together_s = [], []
    for _ in range(rounds):
        apart_s.append(time_together(lambda: [dist.all_reduce(piece) for piece in small], device))
        together_s.append(time_together(lambda: dist.all_reduce(packed), device))
    return apart_s, together_s


def timing_of(samples_s: Sequence[float]) -> Timing:
    return Timing(tuple(samples_s), 1, "wall clock, all ranks begin together", 1)


# One direction, in GB/s: what the maker states for the link of one GPU or of one machine.
LINKS = {
    "NVLink 4 (H100, H200)": 450.0,
    "PCIe 5.0 x16": 63.0,
    "InfiniBand 400 Gbit/s": 50.0,
    "PCIe 4.0 x16": 31.5,
    "Ethernet 100 Gbit/s": 12.5,
    "Ethernet 10 Gbit/s": 1.25,
    "Ethernet 1 Gbit/s": 0.125,
}
GPT2_BYTES = 4 * 124_439_808  # the gradients of the smallest GPT-2 in float32


def ring_seconds(size_bytes: float, world_size: int, bytes_per_s: float) -> float:
    """The least time for a ring all-reduce: each rank's share of the bytes over its link."""
    return 2 * (world_size - 1) / world_size * size_bytes / bytes_per_s


def show_cost(lesson: Lesson, pair: Workers) -> None:
    lesson.section(
        "What an all-reduce costs",
        "An all-reduce takes a fixed time, whatever its size, and then time by the byte. People compare machines by "
        "the bus bandwidth, bytes sent by one rank over time: 2 (n - 1) / n x size / time, which does not depend on n. "
        f"Two ranks here, by {pair.backend}:",
    )
    sizes = [4 * 2**10, 256 * 2**10, *(mib * MIB for mib in lesson.pick(full=(4, 64), cpu=(4, 32), quick=(1, 4)))]
    rounds = lesson.pick(full=15, quick=5)
    per_rank = pair.run(time_all_reduces, sizes, rounds)
    timings = {size: timing_of([max(slowest) for slowest in zip(*(answer[size] for answer in per_rank), strict=True)])
               for size in sizes}  # fmt: skip
    limit = memory_bandwidth(lesson.device) if pair.backend == "nccl" else measure_cpu_bandwidth()
    limit_gb_s = limit.value / 1e9 if limit else None
    rates = {
        size: lesson.record("all-reduce", size / timing.median_s / 1e9, "GB/s", timing, limit,
                            ranks=2, bytes=size, backend=pair.backend)
        for size, timing in timings.items()
    }  # fmt: skip  # with two ranks the bus bandwidth is size / time
    lesson.table(
        [{"size": bytes_text(size), "time (ms)": 1e3 * timing.median_s, "bus bandwidth (GB/s)": rates[size],
          "memory (GB/s)": limit_gb_s, "share": percent(rates[size] / limit_gb_s if limit_gb_s else None)}
         for size, timing in timings.items()]
    )  # fmt: skip
    pieces, numbers = lesson.pick(full=400, quick=60), 64
    apart_s, together_s = pair.run(time_packing, pieces, numbers, 5)[0]
    saved = ratio(timing_of(apart_s), timing_of(together_s))
    lesson.check("packed, the same bytes go in a fraction of the time", saved.median > 2,
                 f"{pieces} tensors of {numbers} numbers, one by one: {saved.median:.0f}x")  # fmt: skip
    lesson.text("Whether a training scales is arithmetic. The gradients of GPT-2 small, 0.5 GB in float32, on 8 ranks:")
    times = {link: ring_seconds(GPT2_BYTES, 8, rate * 1e9) for link, rate in LINKS.items()}
    lesson.table([{"link": link, "GB/s": LINKS[link], "all-reduce": seconds_text(s)} for link, s in times.items()])
    largest = sizes[-1]
    small_s, rate = timings[sizes[0]].median_s, rates[largest] * 1e9
    lesson.shows(
        f"{bytes_text(sizes[0])} take {seconds_text(small_s)} here, in which {bytes_text(small_s * rate)} could have "
        "been sent: below that size you wait for the call. So gradients are packed into buckets before they are sent. "
        f"A step of GPT-2 that computes for 100 ms would hide {seconds_text(times['NVLink 4 (H100, H200)'])} on NVLink "
        f"without a trace, and wait {significant(times['Ethernet 10 Gbit/s'] / 0.1, 2)} times as long as it computes "
        "on 10 Gbit/s."
    )
