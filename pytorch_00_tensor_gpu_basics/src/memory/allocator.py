"""What the caching allocator does with requests, drawn block by block, and how memory is lost between the blocks."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

from pytorch_00_tensor_gpu_basics.src.memory.caching_allocator import (
    MIB,
    SMALLEST_BLOCK,
    CachingAllocator,
    ExpandableAllocator,
    OutOfSegments,
    Step,
    draw,
    layout,
    round_up,
    run_trace,
)
from pytorch_00_tensor_gpu_basics.src.memory.gpu_allocator import (
    replay,
    replay_with_expandable_segments,
    why_not_comparable,
)
from shared.lesson import Lesson
from shared.units import bytes_text, significant

REQUESTS = (1, 513, MIB, MIB + 1, 9 * MIB + MIB // 2, 10 * MIB, 11 * MIB + MIB // 2, 21 * MIB)
TRACE = (
    Step("a", 6 * MIB),
    Step("b", 4 * MIB),
    Step("c", 8 * MIB),
    Step("a"),
    Step("d", 5 * MIB),
    Step("b"),
    Step("c"),
    Step("e", 12 * MIB),
    Step("e"),
    Step(),
    Step("d"),
    Step(),
)


def random_trace(generator: random.Random, length: int) -> list[Step]:
    """`length` requests of up to 24 MiB, half of them small; more than half of the tensors die on the way.

    Where two free blocks fit equally well, addresses decide, which no model can know: another size is drawn.
    """
    trace: list[Step] = []
    allocator, alive = CachingAllocator(), {}
    for i in range(length):
        size = 0
        while size == 0 or is_undecided(allocator, size):
            size = generator.randint(1, generator.choice((MIB, 24 * MIB)))
        trace.append(Step(f"t{i}", size))
        alive[f"t{i}"] = allocator.malloc(size)
        if generator.random() < 0.6:
            dying = generator.choice(list(alive))
            trace.append(Step(dying))
            allocator.free(alive.pop(dying))
        if generator.random() < 0.03:
            trace.append(Step())
            allocator.empty_cache()
    return trace


def is_undecided(allocator: CachingAllocator, size: int) -> bool:
    """Whether several free blocks are the best fit for `size`, of which not all are whole segments, and so the same."""
    pairs = allocator.fitting(round_up(size, SMALLEST_BLOCK))
    best = [segment for segment, block in pairs if block.size == pairs[0][1].size]
    return len(best) > 1 and any(len(segment.blocks) > 1 for segment in best)


def is_tidy(allocator: CachingAllocator, asked: Sequence[int]) -> bool:
    """No two free blocks are neighbours, no block is smaller than what was `asked` for, and every request has one."""
    blocks = [block for segment in allocator.segments for block in segment.blocks]
    pairs = [pair for segment in allocator.segments for pair in itertools.pairwise(segment.blocks)]
    return (
        all(left.requested or right.requested for left, right in pairs)
        and all(0 <= block.requested <= block.size and block.size % 512 == 0 for block in blocks)
        and sorted(block.requested for block in blocks if block.requested) == sorted(asked)
    )


def show_allocator(lesson: Lesson) -> None:
    lesson.section(
        "The caching allocator, drawn",
        "cudaMalloc is slow, and cudaFree waits for the GPU. So PyTorch asks for large segments, cuts blocks from them, "
        "and keeps both when a tensor dies. Blocks with a tensor in them are allocated, all segments are reserved; "
        "nvidia-smi sees the second number and your tensors explain the first. What follows runs on a model of the "
        "allocator with PyTorch's rules (src/memory/caching_allocator.py), here and on every machine.",
    )
    table = []
    for request in REQUESTS:
        allocator = CachingAllocator()
        block = allocator.malloc(request)
        table.append({"a tensor of": exact(request), "gets a block of": exact(block.size),
                      "in a new segment of": bytes_text(allocator.reserved_bytes)})  # fmt: skip
    lesson.table(table)
    scalars = CachingAllocator()
    run_trace(scalars, [Step(f"s{i}", 4) for i in range(4096)])
    first_segment = scalars.reserved_bytes
    scalars.malloc(4)
    lesson.check("4,096 scalars fill one segment, the next opens another",
                 (first_segment, scalars.reserved_bytes) == (2 * MIB, 4 * MIB),
                 f"512 B each, {bytes_text(scalars.allocated_bytes)} allocated for 16 KiB")  # fmt: skip
    lesson.text(
        "One segment of 20 MiB, one sign for each MiB: a letter for what a tensor holds, a dot for what is free. To the "
        "right, the MiB that are allocated, of those that are reserved."
    )
    allocator, blocks, lines, states = CachingAllocator(), {}, [], []
    for i, step in enumerate(TRACE):
        allocator = CachingAllocator()
        blocks = run_trace(allocator, TRACE[: i + 1])
        bar = draw(allocator.segments[0], blocks) if allocator.segments else ""
        states.append((allocator.allocated_bytes // MIB, allocator.reserved_bytes // MIB))
        lines.append(f"{step!s:<14}{bar:<27}{states[-1][0]:>3} of {states[-1][1]}")
    lesson.drawing("\n".join(lines))
    lesson.check("del gives nothing back: the block is free, and reserved", states[3] == (12, 20),
                 "after del a: 12 MiB of 20")  # fmt: skip
    lesson.check("a rest of up to 1 MiB stays with its block", states[4][0] - states[3][0] == 6,
                 f"d asked for 5 MiB and counts as {states[4][0] - states[3][0]}")  # fmt: skip
    lesson.check("free neighbours become one block", states[7] == (18, 20), "e lies where b and c were")
    lesson.check("empty_cache() keeps a segment with one live block", states[9] == (6, 20),
                 f"{states[9][1] - states[9][0]} MiB free in it, and not for others")  # fmt: skip
    lesson.check("it returns a segment without one", states[11] == (0, 0), "after del d: nothing is reserved")
    length = lesson.pick(full=300, quick=100)
    trace = random_trace(random.Random(lesson.options.seed), length)
    allocator = CachingAllocator()
    alive = run_trace(allocator, trace)
    lesson.check("after a random program every block has its place", is_tidy(allocator, asked_for(trace, list(alive))),
                 f"{len(trace)} steps, {len(allocator.segments)} segments")  # fmt: skip
    if can_replay(lesson, "that the GPU's own allocator cuts and joins the same blocks."):
        prefixes = [TRACE[: i + 1] for i in range(len(TRACE))]
        same = sum(replay(prefix) == model_layout(prefix) for prefix in prefixes)
        lesson.check("the GPU's allocator holds the same blocks after each step", same == len(prefixes),
                     f"{same} of {len(prefixes)} snapshots equal the model's")  # fmt: skip
        lesson.check("and after the random program", replay(trace) == model_layout(trace), f"{len(trace)} steps")
    lesson.shows(
        f"after del c the GPU still has all {states[6][1]} MiB reserved, {states[6][1] - states[6][0]} of them free for "
        "the next tensor. That is no leak. Read memory_allocated() for what your tensors take, memory_reserved() for "
        "what other programs cannot have. Call empty_cache() when another program needs the memory; between steps it "
        "only makes the next step pay for cudaMalloc again."
    )


def exact(size: int) -> str:
    return bytes_text(size) if (size % 1024 == 0 and size < MIB) or size % (MIB // 2) == 0 else f"{size:,} B"


def asked_for(trace: Sequence[Step], alive: Sequence[str]) -> list[int]:
    sizes = {step.name: step.size for step in trace if step.size}
    return [sizes[name] for name in alive]


def model_layout(trace: Sequence[Step], allocator: CachingAllocator | None = None) -> Any:
    allocator = allocator or CachingAllocator()
    run_trace(allocator, trace)
    return layout(allocator.segments)


def can_replay(lesson: Lesson, would_show: str) -> bool:
    """Whether the model can be held against a GPU here; says what is missing."""
    missing = "an NVIDIA or AMD GPU" if lesson.device.type != "cuda" else why_not_comparable()
    if missing:
        lesson.skip(would_show, missing)
    return not missing


# Fragmentation

LONG, SHORT = "acegi", "bdfhj"  # tensors that stay, and tensors that go
CAPACITY = 30 * MIB  # of the small GPU in this section


def alternate() -> list[Step]:
    """The mistake: what stays and what goes are made in turn, so each hole lies between two tensors that stay."""
    return [*(Step(name, 2 * MIB) for name in sorted(LONG + SHORT)), *(Step(name) for name in SHORT)]


def long_lived_first() -> list[Step]:
    """Right: what stays is made first, and what goes leaves one hole."""
    return [*(Step(name, 2 * MIB) for name in LONG + SHORT), *(Step(name) for name in SHORT)]


def outcome(allocator: CachingAllocator, trace: Sequence[Step]) -> str:
    """ "fits", or what the allocator says."""
    try:
        run_trace(allocator, trace)
    except OutOfSegments as error:
        return str(error)
    return "fits"


def growing(sizes: Sequence[int]) -> list[Step]:
    """cache = torch.cat([cache, new]) in a loop: each tensor is made before the one before it dies."""
    trace = [Step("t0", sizes[0])]
    for i, size in enumerate(sizes[1:], 1):
        trace += [Step(f"t{i}", size), Step(f"t{i - 1}")]
    return trace


def reserved_over(trace: Sequence[Step], allocator: CachingAllocator) -> list[int]:
    """Bytes reserved each time that a tensor has been made."""
    blocks, reserved = {}, []
    for step in trace:
        if step.size:
            blocks[step.name] = allocator.malloc(step.size)
            reserved.append(allocator.reserved_bytes)
        else:
            allocator.free(blocks.pop(step.name))
    return reserved


def show_fragmentation(lesson: Lesson) -> None:
    lesson.section(
        "Fragmentation",
        "A request needs one free block that is large enough; many small ones do not help, and the allocator cannot move "
        "a tensor that lives. Here a GPU of 30 MiB holds five tensors of 2 MiB that stay, with five holes between "
        "them. Then something asks for 4 MiB.",
    )
    request = Step("X", 4 * MIB)
    allocator = CachingAllocator(CAPACITY)
    blocks = run_trace(allocator, alternate())
    tidy = CachingAllocator(CAPACITY)
    tidy_blocks = run_trace(tidy, long_lived_first())
    lesson.drawing(f"made in turn       {draw(allocator.segments[0], blocks)}\n"
                   f"what stays, first  {draw(tidy.segments[0], tidy_blocks)}")  # fmt: skip
    free = allocator.reserved_bytes - allocator.allocated_bytes
    refusal = outcome(CachingAllocator(CAPACITY), [*alternate(), request])
    lesson.items({"made in turn": refusal})
    lesson.check("4 MiB do not fit although more is free", refusal != "fits" and free > request.size,
                 f"{bytes_text(free)} free in five holes")  # fmt: skip
    lesson.check("made in another order they fit",
                 outcome(CachingAllocator(CAPACITY), [*long_lived_first(), request]) == "fits",
                 "one hole of 10 MiB")  # fmt: skip
    equal = [Step(name, 2 * MIB) for name in "XYZ"]
    lesson.check("tensors of the size of the holes fit",
                 outcome(CachingAllocator(CAPACITY), [*alternate(), *equal]) == "fits",
                 "equal sizes fill the holes of their like")  # fmt: skip
    lesson.check("empty_cache() does not help",
                 outcome(CachingAllocator(CAPACITY), [*alternate(), Step(), request]) == refusal,
                 "the segment is in use; the allocator itself tries it first")  # fmt: skip
    lesson.check("nor do expandable segments, which move nothing",
                 outcome(ExpandableAllocator(CAPACITY), [*alternate(), request]) != "fits",
                 "the holes stay where they are")  # fmt: skip
    show_growth(lesson)


def show_growth(lesson: Lesson) -> None:
    lesson.text(
        "The commoner case is growth: each batch, sentence or cache is a little larger than the last, so what was "
        "given back is always a little too small. This is cache = torch.cat([cache, new]), as in the generation of "
        "text, with several remedies."
    )
    sizes = [size * MIB for size in range(12, 61, 2)]
    buckets = [2 ** (size - 1).bit_length() for size in sizes]
    ways = {
        "as it comes": reserved_over(growing(sizes), CachingAllocator()),
        "longest first": reserved_over(growing(sizes[::-1]), CachingAllocator()),
        "rounded up to 2^n": reserved_over(growing(buckets), CachingAllocator()),
        "expandable segments": reserved_over(growing(sizes), ExpandableAllocator()),
        "one buffer, made once": [sizes[-1]] * len(sizes),
    }
    live = [sizes[0], *(new + old for old, new in itertools.pairwise(sizes))]
    table = []
    for name, reserved in ways.items():
        lesson.record("reserved at the end", reserved[-1] / MIB, "MiB", way=name)
        table.append({"way": name, "reserved at the end, MiB": reserved[-1] // MIB,
                      "times the largest tensor": reserved[-1] / sizes[-1]})  # fmt: skip
    lesson.table(table)
    kept = ways["as it comes"][-1]
    lesson.check("growing step by step reserves the sum of all sizes", kept == sum(sizes),
                 f"{' + '.join(str(size // MIB) for size in sizes[:3])} + … = {kept // MIB:,} MiB")  # fmt: skip
    lesson.check("the longest first reserves what the first two need", set(ways["longest first"][1:]) == {sum(sizes[-2:])},
                 f"{sum(sizes[-2:]) // MIB} MiB from the second step on")  # fmt: skip
    lesson.check("powers of two reserve a few sizes only", ways["rounded up to 2^n"][-1] < kept / 3,
                 f"{ways['rounded up to 2^n'][-1] // MIB} MiB, for {len(set(buckets))} sizes")  # fmt: skip
    expandable = ways["expandable segments"][-1]
    lesson.check("expandable segments stay below 3 times what is alive", expandable < 3 * live[-1],
                 f"{expandable // MIB} MiB, {live[-1] // MIB} alive while copying")  # fmt: skip
    if can_replay(lesson, "the same growth on the GPU's allocator, with and without expandable segments."):
        lesson.check("the GPU's allocator reserves as much", replay(growing(sizes)) == model_layout(growing(sizes)),
                     f"{kept // MIB:,} MiB in {len(sizes)} segments")  # fmt: skip
        try:
            found = replay_with_expandable_segments(growing(sizes))
        except RuntimeError as error:
            lesson.skip(
                "the growth on the GPU with expandable_segments:True.", f"a GPU and driver that have them ({error})"
            )
        else:
            lesson.check("with expandable_segments:True too", found == model_layout(growing(sizes), ExpandableAllocator()),
                         f"{expandable // MIB} MiB, in a process started with PYTORCH_ALLOC_CONF")  # fmt: skip

    def draw_growth(axis: Any) -> None:
        for name, reserved in ways.items():
            axis.plot(range(1, len(sizes) + 1), [value / MIB for value in reserved], label=name, markevery=3)
        axis.fill_between(range(1, len(sizes) + 1), [value / MIB for value in live], color="0.85", label="alive")
        axis.set(xlabel="step: the tensor grows by 2 MiB", ylabel="reserved (MiB)", xlim=(1, len(sizes)), ylim=(0, None),
                 title=f"A tensor that grows to {sizes[-1] // MIB} MiB, and what the allocator reserves")  # fmt: skip
        axis.legend()

    lesson.figure("fragmentation", draw_growth)
    lesson.shows(
        f"a tensor that grows to {sizes[-1] // MIB} MiB took {kept // MIB:,} MiB, {significant(kept / sizes[-1])} times "
        "its size, for no segment was ever large enough for the next step. Make the buffer once at its final size, "
        "run the largest batch first, or round sizes up so that they repeat. Where you cannot: start Python with "
        "PYTORCH_ALLOC_CONF=expandable_segments:True (PYTORCH_CUDA_ALLOC_CONF in older code). The picture is fragmentation.png."
    )
