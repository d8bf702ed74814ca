"""What one call costs before any arithmetic is done, and three ways to pay it less often."""

import logging
from collections.abc import Callable

from shared.lesson import Lesson
from shared.timing import Timing, compare, measure, ratio
from shared.units import seconds_text, significant

import torch

CHAIN = 64  # operations in a row, each too small to matter alone


def tiny_chain(x: torch.Tensor) -> torch.Tensor:
    """CHAIN element-wise operations, as they pile up in an optimiser or a normalisation written out in Python."""
    for _ in range(CHAIN // 2):
        x = x * 1.01
        x = x + 0.01
    return x


def measure_launches(lesson: Lesson) -> None:
    size_of_a_call(lesson)
    shorten_the_chain(lesson)


def size_of_a_call(lesson: Lesson) -> None:
    lesson.section(
        "The price of one call",
        "Before the first number is added, Python calls PyTorch, which checks types and shapes, makes the output and "
        "starts a kernel. That price is the same for one element as for a thousand, so small work is all price.",
    )
    sizes = lesson.pick(
        full=[1, 100, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000],
        cpu=[1, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000],
        quick=[1, 100, 10_000, 1_000_000],
    )
    rows, times = [], {}
    for count in lesson.progress(sizes, "adding"):
        a, b = (torch.randn(count, device=lesson.device) for _ in range(2))
        out = torch.empty_like(a)
        # Many calls in a row, one wait at the end: what a program pays, Python included.
        timing = _in_a_row(lambda: torch.add(a, b, out=out), count, lesson)
        times[count] = timing.median_s
        lesson.record("add", timing.median_s * 1e6, "µs", timing, elements=count)
        rows.append(
            {
                "elements": count,
                "one add": seconds_text(timing.median_s),
                "per element": seconds_text(timing.median_s / count),
            }
        )
    lesson.table(rows)
    floor, largest = times[sizes[0]], sizes[-1]
    lesson.check("100 elements cost about as much as one", times[100] < 2 * floor, f"{times[100] / floor:.2f}x")
    lesson.check(
        "an element of a large tensor is at least 20 times cheaper than a tensor of one",
        times[largest] / largest < floor / 20,
        f"{floor / (times[largest] / largest):,.0f}x",
    )
    half = floor * largest / times[largest]
    lesson.shows(
        f"a call costs {seconds_text(floor)} here whatever it does. A tensor needs about {significant(half, 2)} "
        "elements before the work takes as long as the call; below that, make one large call out of many small ones."
    )


def _in_a_row(function: Callable[[], object], elements: int, lesson: Lesson) -> Timing:
    # On a GPU enough calls that the wait at the end weighs nothing; a few of the large ones are enough.
    calls = min(100, max(5, 10**8 // elements)) if lesson.device.type != "cpu" else 1

    def several() -> None:
        for _ in range(calls):
            function()

    timing = measure(several, lesson.device, budget_s=lesson.pick(full=0.2, quick=0.05), cold_cache=False)
    return Timing(
        tuple(s / calls for s in timing.samples_s), calls * timing.calls_per_sample, timing.method, timing.threads
    )


def shorten_the_chain(lesson: Lesson) -> None:
    lesson.section(
        f"{CHAIN} tiny operations in a row",
        "One after the other, each operation pays the price of a call. A CUDA graph records the whole chain once and "
        "replays it with one call. torch.compile goes further: it writes one kernel that does all of it and keeps the "
        "intermediate values in registers.",
    )
    x = torch.randn(1024, device=lesson.device)
    ways: dict[str, Callable[[], object]] = {"one by one": lambda: tiny_chain(x)}
    results = {"one by one": tiny_chain(x)}
    if lesson.device.type == "cuda":
        replay, output = capture_graph(lambda: tiny_chain(x))
        replay()
        ways["CUDA graph"], results["CUDA graph"] = replay, output
    else:
        lesson.skip("The same chain as one CUDA graph.", "a CUDA GPU")
    if lesson.quick:
        lesson.skip("The chain compiled into one kernel.", "a run without --quick, since compiling takes seconds")
    else:
        # Without a GPU, compiling mentions its absence in a warning of its own.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        try:
            compiled = torch.compile(tiny_chain, fullgraph=True)
            results["compiled"] = compiled(x)
            ways["compiled"] = lambda: compiled(x)
        except Exception as error:  # no C++ compiler, or a Python that this torch cannot compile for
            reason = " ".join(str(error).split())[:120]
            lesson.skip(
                f"The chain compiled into one kernel ({type(error).__name__}: {reason}).",
                "a working compiler; `python lab.py doctor` names the missing piece",
            )
    timings = compare(ways, lesson.device, budget_s=lesson.pick(full=1.0, quick=0.2))
    rows = []
    for name, timing in timings.items():
        lesson.record("chain", timing.median_s * 1e6, "µs", timing, way=name, operations=CHAIN)
        rows.append(
            {
                "way": name,
                "whole chain": seconds_text(timing.median_s),
                "per operation": seconds_text(timing.median_s / CHAIN),
                "gain": f"{ratio(timings['one by one'], timing).median:.1f}x",
            }
        )
    fastest = min(range(len(rows)), key=lambda row: list(timings.values())[row].median_s)
    lesson.table(rows, best=fastest)
    expected = x.cpu().double()
    for _ in range(CHAIN // 2):
        expected = expected * 1.01 + 0.01
    worst = max((value.cpu().double() - expected).abs().max().item() for value in results.values())
    lesson.check(
        "every way gives the value that float64 gives",
        worst < 1e-4 * expected.abs().max().item(),
        f"largest difference {worst:.1e}",
    )
    for name in list(ways)[1:]:
        gain = ratio(timings["one by one"], timings[name])
        lesson.check(f"{name}: faster than one by one", gain.median > 1, f"{gain}")
    if len(ways) > 1:
        name = list(timings)[fastest]
        lesson.shows(
            f"{name} brought an operation from {seconds_text(timings['one by one'].median_s / CHAIN)} to "
            f"{seconds_text(timings[name].median_s / CHAIN)}, with the same numbers as a result. The arithmetic was "
            "never the cost."
        )
    else:
        lesson.shows(
            f"{CHAIN} calls on 1,024 numbers took {seconds_text(timings['one by one'].median_s)}, "
            f"{seconds_text(timings['one by one'].median_s / CHAIN)} each: the price of a call, not of the arithmetic."
        )


def capture_graph(function: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """Records the kernels of `function` once; returns the replay, and the tensor that each replay fills anew."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # capture wants the first, allocating runs behind it, on a stream of their own
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function()
    return graph.replay, output
