"""Joining and cutting: cat, stack, what growing in a loop costs, and split, chunk, unbind."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pytorch_00_tensor_gpu_basics.src.basics.numpy_bridge import one_thread
from pytorch_00_tensor_gpu_basics.src.shapes.looking import draw_result, new_bytes, shares_memory
from shared.drawing import beside, grid
from shared.lesson import Lesson
from shared.snippets import complaint, evaluate
from shared.timing import compare, ratio
from shared.units import bytes_text, seconds_text

import torch


def show_joining(lesson: Lesson) -> None:
    show_cat_and_stack(lesson)
    show_growing(lesson)
    show_cutting(lesson)


# cat and stack


def batch_by_cat(pictures: list[torch.Tensor]) -> torch.Tensor:
    """The mistake: cat makes no axis for the batch, so the channels of all pictures follow each other in one."""
    return torch.cat(pictures)


def batch_by_stack(pictures: list[torch.Tensor]) -> torch.Tensor:
    """Right: stack makes the axis. Each picture is (C, H, W); returns (B, C, H, W)."""
    return torch.stack(pictures)


def show_cat_and_stack(lesson: Lesson) -> None:
    lesson.section(
        "cat lengthens an axis, stack makes one",
        "cat glues tensors along an axis that they have: its lengths add up, and all others must agree. stack lays "
        "them side by side along an axis that they do not have yet, and all lengths must agree. Parts of a sequence "
        "are glued; samples become a batch by stack.",
    )
    a, b = (torch.arange(start, start + 6, device=lesson.device).view(2, 3) for start in (0, 10))
    lesson.drawing(beside(grid(a, "a"), grid(b, "b"), gap="   "))
    lesson.drawing(
        beside(*(draw_result(text, a=a, b=b) for text in ("torch.cat([a, b])", "torch.cat([a, b], dim=1)")), gap="   ")
    )
    lesson.drawing(draw_result("torch.stack([a, b])", a=a, b=b))
    stacked = [torch.stack([a, b], dim) for dim in range(3)]
    unsqueezed = [torch.cat([a.unsqueeze(dim), b.unsqueeze(dim)], dim) for dim in range(3)]
    lesson.check("stack is cat after an unsqueeze of each", all(map(torch.equal, stacked, unsqueezed)),
                 "dim 0, 1, 2: " + ", ".join(str(tuple(x.shape)) for x in stacked))  # fmt: skip
    glued = torch.cat([a, b])
    lesson.check("both copy", not any(shares_memory(result, x) for result in (glued, *stacked) for x in (a, b)),
                 f"{a.nbytes} + {b.nbytes} bytes make {new_bytes(glued, a)} new ones")  # fmt: skip
    pictures = [torch.rand(3, 32, 32, device=lesson.device) for _ in range(8)]
    wrong, batch = batch_by_cat(pictures), batch_by_stack(pictures)
    lesson.check("pictures become a batch by stack, not by cat",
                 wrong.shape == (24, 32, 32) and batch.shape == (8, 3, 32, 32),
                 f"{tuple(batch.shape)}; by cat {tuple(wrong.shape)}")  # fmt: skip
    mistakes = "torch.cat([a, b.T])", "torch.stack([a, b.T])"
    answers = {text: complaint(lambda: evaluate(text, a=a, b=b)) for text in mistakes}
    lesson.items(answers)
    lesson.check("lengths that do not agree are refused", all("size" in answer for answer in answers.values()),
                 f"{tuple(a.shape)} and {tuple(b.T.shape)}")  # fmt: skip
    mixed = torch.cat([torch.zeros(1000, dtype=torch.float16), torch.zeros(1, dtype=torch.float64)])
    lesson.check("types that do not agree are not: one wide part widens all", mixed.dtype == torch.float64,
                 f"{mixed.numel():,} numbers of {mixed.element_size()} bytes")  # fmt: skip
    lesson.shows(
        f"read the message of cat from its end: tensor number 1, counted from 0, has {b.T.shape[1]} columns where "
        f"{a.shape[1]} were expected. And count the axes afterwards: a batch of pictures has {batch.ndim}; the "
        f"glued one has {wrong.ndim}, and passes for one picture with {len(wrong)} channels."
    )


# Growing

PIECE_BYTES = 4096


def grow_by_cat(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mistake: each turn copies everything that was collected so far."""
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = torch.cat([whole, piece])
    return whole


def fill_a_buffer(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """Right where the pieces are needed together at every step: room for all of them, and each written once."""
    whole = pieces[0].new_empty(len(pieces) * len(pieces[0]))
    for room, piece in zip(whole.split(len(pieces[0])), pieces, strict=True):
        room.copy_(piece)
    return whole


def join_at_the_end(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """Right: a list grows without copying what is in it."""
    return torch.cat(list(pieces))


GROWERS = {"cat each turn": grow_by_cat, "fill a buffer": fill_a_buffer, "cat at the end": join_at_the_end}


def bytes_copied_by_growing(pieces: Sequence[torch.Tensor]) -> int:
    """What the calls of cat in `grow_by_cat` write, counted one by one."""
    steps = itertools.accumulate(pieces, lambda whole, piece: torch.cat([whole, piece]))
    return sum(step.nbytes for step in itertools.islice(steps, 1, None))  # the first is no copy but the first piece


def show_growing(lesson: Lesson) -> None:
    lesson.section(
        "Growing in a loop",
        "Collecting predictions, tokens or losses with x = torch.cat([x, new]) looks like append. But a tensor cannot "
        "grow: each turn makes a longer one and copies all that was there, 2 + 3 + ... + k pieces in the end. A piece "
        f"is {bytes_text(PIECE_BYTES)} here.",
    )
    counts = lesson.pick(full=[10, 30, 100, 300, 1000], quick=[5, 20, 80])
    rows, copied = [], {}
    seconds: dict[str, list[float]] = {way: [] for way in GROWERS}
    for count in lesson.progress(counts, "growing"):
        pieces = [torch.randn(PIECE_BYTES // 4, device=lesson.device) for _ in range(count)]
        results = [grow(pieces) for grow in GROWERS.values()]
        copied[count] = bytes_copied_by_growing(pieces)
        ways = {way: partial(grow, pieces) for way, grow in GROWERS.items()}
        with one_thread():  # small copies gain nothing from more, and a busy core would hold up each of the 1,000 calls
            timings = compare(ways, lesson.device, budget_s=lesson.pick(full=0.8, quick=0.1))
        for way, timing in timings.items():
            lesson.record("growing", timing.median_s * 1e3, "ms", timing, way=way, pieces=count)
            seconds[way].append(timing.median_s)
        rows.append({"pieces": count, "copied each turn": bytes_text(copied[count]),
                     "copied once": bytes_text(results[-1].nbytes),
                     **{way: seconds_text(timing.median_s) for way, timing in timings.items()}})  # fmt: skip
    lesson.table(rows)
    lesson.check("all three give the same tensor", all(torch.equal(result, results[0]) for result in results),
                 f"{results[0].numel():,} numbers")  # fmt: skip
    expected = {count: (count * (count + 1) // 2 - 1) * PIECE_BYTES for count in counts}
    lesson.check("k pieces cost k (k + 1) / 2 - 1 copies of a piece", copied == expected,
                 f"{bytes_text(copied[count])} for {count:,}")  # fmt: skip
    longer = ratio(timings["cat each turn"], timings["cat at the end"])
    lesson.check(
        "one cat at the end is at least twice as fast", longer.median > 2, f"{longer.median:,.0f}x for {count:,}"
    )
    lesson.figure("growing", partial(draw_growing, counts=counts, seconds=seconds))
    lesson.shows(
        f"for {count:,} pieces, cat in each turn copies {copied[count] / results[-1].nbytes:.0f} times the result. Append to "
        "a Python list and cat once. Where each step needs all that came before, as in a language model that writes "
        "token by token, allocate for the longest case and fill it."
    )


def draw_growing(axis: Any, counts: Sequence[int], seconds: Mapping[str, Sequence[float]]) -> None:
    for way, times in seconds.items():
        axis.plot(counts, [1e3 * time for time in times], label=way)
    ends = [counts[-1] / 10, counts[-1]]
    above = 3e3 * seconds["cat each turn"][-1]
    axis.plot(ends, [above / 100, above], color="black", linestyle="-", marker="", linewidth=1, label="ten times the pieces, "
              "a hundred times the time")  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="pieces of 4 KiB", ylabel="time (ms)",
             title="Growing in each turn is quadratic, joining once is not")  # fmt: skip
    axis.set_xticks(counts, [f"{count:,}" for count in counts])
    axis.minorticks_off()
    axis.legend()


# split, chunk, unbind

CUTS = {
    "x.split(4)": "pieces of 4; the last one may be shorter",
    "x.split([2, 7])": "these lengths, which must add up",
    "x.chunk(4)": "pieces of 9 / 4 rounded up",
    "x.tensor_split(4)": "4 pieces, as equal as can be",
    "x.tensor_split([2, 5])": "cut before 2 and before 5",
    "x.unbind()": "one for each index, without the axis",
}


def chunk_lengths(length: int, chunks: int) -> list[int]:
    """The lengths that chunk gives: `length` / `chunks` rounded up, again and again until all is dealt out."""
    size = -(-length // chunks)
    return [min(size, length - start) for start in range(0, length, size)]


def share_out_by_chunk(samples: torch.Tensor, workers: int) -> list[torch.Tensor]:
    """The mistake: chunk rounds the size up, and may run out of samples before it runs out of workers."""
    return list(samples.chunk(workers))


def share_out_evenly(samples: torch.Tensor, workers: int) -> list[torch.Tensor]:
    """Right: as many parts as workers, and none longer than another by more than one."""
    return list(samples.tensor_split(workers))


def show_cutting(lesson: Lesson) -> None:
    lesson.section(
        "split, chunk, unbind",
        "Cutting is the reverse of joining, with one difference: the pieces are views. They cost nothing, and a write to "
        "a piece is a write to the whole. Here x has 9 elements.",
    )
    x = torch.arange(9, device=lesson.device)
    made = {text: evaluate(text, x=x) for text in CUTS}
    lesson.table([{"call": text, "pieces": len(cut), "lengths": ", ".join(str(len(piece)) for piece in cut if piece.ndim)
                   or "scalars", "rule": CUTS[text]} for text, cut in made.items()])  # fmt: skip
    pieces = list(itertools.chain(*made.values()))
    lesson.check("every piece is a view of x", all(shares_memory(piece, x) for piece in pieces),
                 f"{len(pieces)} pieces, {sum(new_bytes(piece, x) for piece in pieces)} new bytes")  # fmt: skip
    back = torch.cat(x.split(4))
    lesson.check("cat undoes split, and copies", torch.equal(back, x) and not shares_memory(back, x),
                 f"{new_bytes(back, x)} new bytes")  # fmt: skip
    made["x.split(4)"][1][0] = -1
    lesson.check("a write to the second piece of 4 arrives in x[4]", x[4] == -1, f"x[4] is {x[4]}")
    limit = lesson.pick(full=40, quick=15)
    asked = list(itertools.product(range(1, limit + 1), repeat=2))
    cut = {(n, k): [len(piece) for piece in torch.empty(n).chunk(k)] for n, k in asked}
    foretold = sum(cut[n, k] == chunk_lengths(n, k) for n, k in asked)
    lesson.check(
        "chunk deals out n / k rounded up", foretold == len(asked), f"for {foretold:,} of {len(asked):,} n and k"
    )
    chunks, parts = share_out_by_chunk(x, 4), share_out_evenly(x, 4)
    lesson.check("chunk may give fewer than asked, tensor_split does not", (len(chunks), len(parts)) == (3, 4),
                 f"9 for 4 workers: {len(chunks)} and {len(parts)}")  # fmt: skip
    refusal = complaint(lambda: x.split([2, 6]))
    lesson.check("lengths that do not add up are refused", "sum exactly" in refusal, f"2 + 6 of {len(x)}")
    lesson.items({"PyTorch says": refusal})
    queries = torch.rand(2, 5, 12, device=lesson.device).chunk(3, dim=-1)[0]
    lesson.check("a piece of the last axis is not contiguous", not queries.is_contiguous(),
                 f"shape {tuple(queries.shape)}, stride {queries.stride()}")  # fmt: skip
    possible = [(n, k) for n, k in asked if k <= n]
    fewer = sum(len(cut[n, k]) < k for n, k in possible)
    lesson.shows(
        f"of the {len(possible):,} ways to cut up to {limit} elements into no more pieces than elements, chunk gives fewer "
        f"than asked in {fewer:,}. Deal its pieces out to workers, and some have nothing to do. Take tensor_split where "
        "the number of pieces matters, split where their length does."
    )
