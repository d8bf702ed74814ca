"""The same code timed wrongly and rightly, and the synchronisation that hides in `.item()`."""

import time
from collections.abc import Callable

from shared.device import synchronize
from shared.lesson import Lesson
from shared.timing import compare, measure, ratio
from shared.units import rate_text, seconds_text, significant

import torch

GPU_N, GPU_N_QUICK = 8192, 4096  # a product that takes any GPU far longer than Python takes to queue it


def time_without_synchronizing(function: Callable[[], object]) -> float:
    """The mistake: a GPU call returns when its work is queued, so this clock reads how fast Python can queue."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def time_synchronized(function: Callable[[], object], device: torch.device) -> float:
    """Right for one call: nothing is queued before the clock starts, and nothing is left when it stops."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def show_timing_traps(lesson: Lesson) -> None:
    time_one_product(lesson)
    if lesson.device.type == "cpu":
        time_first_touch(lesson)
    read_losses(lesson)


def time_one_product(lesson: Lesson) -> None:
    lesson.section(
        "One product, timed four ways",
        "A benchmark answers the question that its clock was asked. A GPU takes work into a queue and hands control "
        "back at once; a first call also compiles, allocates and starts threads; one sample is at the mercy of "
        "whatever else ran. Here one matrix product is timed four ways. Believe the last one.",
    )
    if lesson.device.type == "cpu":
        n, dtype = lesson.pick(full=1024, quick=256), torch.float32
    else:
        n, dtype = lesson.pick(full=GPU_N, quick=GPU_N_QUICK), torch.float16
    a, b = (torch.randn(n, n, device=lesson.device, dtype=dtype) for _ in range(2))

    def product() -> torch.Tensor:
        return a @ b

    first_s = time_synchronized(product, lesson.device)
    unsynchronized_s = time_without_synchronizing(product)
    once_s = time_synchronized(product, lesson.device)
    right = measure(product, lesson.device)
    flops = 2 * n**3
    ways = {
        "first call": first_s,
        "no synchronisation": unsynchronized_s,
        "synchronised, once": once_s,
        f"median of {right.n}": right.median_s,
    }
    lesson.table(
        [
            {"way": way, "time": seconds_text(seconds), "would be": rate_text(flops / seconds, "FLOP/s")}
            for way, seconds in ways.items()
        ]
    )
    lesson.record("product", right.median_s * 1e3, "ms", right, n=n, dtype=dtype)
    apart = right.median_s / unsynchronized_s
    if lesson.device.type == "cpu":
        timings = compare(
            {"waits": lambda: (product(), synchronize(lesson.device)), "does not": product},
            lesson.device,
            budget_s=lesson.pick(full=1.0, quick=0.2),
        )
        difference = ratio(timings["waits"], timings["does not"])
        lesson.check(
            "on a CPU the work is done when the call returns", 0.7 < difference.median < 1.4, f"waiting: {difference}"
        )
        first = first_s / right.median_s
        lesson.shows(
            f"the first call took {first:.1f} times the median"
            + (", so it says little about the next thousand. " if first > 1.3 else ": the library was warm already. ")
            + "A CPU hides no queue; on a GPU the second line would be absurdly fast."
        )
    else:
        lesson.check(
            "without synchronisation the product seems at least 3 times faster than it is",
            apart > 3,
            f"{apart:.0f}x: {seconds_text(unsynchronized_s)} to queue, {seconds_text(right.median_s)} to compute",
        )
        lesson.shows(
            f"the unsynchronised clock promises {rate_text(flops / unsynchronized_s, 'FLOP/s')}, which no chip has. "
            f"The first call took {first_s / right.median_s:.1f} times the median: libraries load and kernels are "
            "chosen then. Warm up, wait, repeat, and report the median with its spread."
        )


def time_first_touch(lesson: Lesson) -> None:
    lesson.section(
        "Memory that nobody has touched",
        "torch.empty returns addresses, not memory: the operating system finds a page (4 KiB, or 2 MiB) when it is "
        "first written, and clears it. A benchmark that allocates its output inside the timed region measures that.",
    )
    count = lesson.pick(full=2**25, quick=2**24)  # at least 64 MiB: malloc keeps up to 32 MiB for reuse

    def fill_fresh_memory() -> None:
        torch.empty(count).fill_(1.0)

    reused = torch.empty(count)
    timings = compare(
        {"fresh": fill_fresh_memory, "reused": lambda: reused.fill_(1.0)},
        lesson.device,
        rounds=lesson.pick(full=9, quick=5),
        budget_s=lesson.pick(full=1.0, quick=0.2),
    )
    slower = ratio(timings["fresh"], timings["reused"])
    for name, timing in timings.items():
        lesson.record("fill", timing.median_s * 1e3, "ms", timing, memory=name, bytes=4 * count)
    lesson.check("writing fresh memory is slower than writing it again", slower.median > 1.1, f"{slower}")
    lesson.shows(
        f"of {seconds_text(timings['fresh'].median_s)} on fresh memory, "
        f"{1 - 1 / slower.median:.0%} went to finding pages. In a hot loop, write into a buffer that you keep (out=, "
        "copy_); PyTorch's GPU allocator does this for you by never giving memory back between steps."
    )


def read_every_step(x: torch.Tensor, steps: int) -> float:
    """The mistake: `.item()` needs the value now, so each step waits until the GPU has caught up."""
    total = 0.0
    for _ in range(steps):
        total += (x @ x).mean().item()
    return total


def read_once(x: torch.Tensor, steps: int) -> float:
    """The sum stays on the device, and one `.item()` at the end waits once."""
    total = torch.zeros((), device=x.device)
    for _ in range(steps):
        total += (x @ x).mean()
    return total.item()


def read_losses(lesson: Lesson) -> None:
    lesson.section(
        "The wait that hides in .item()",
        "float(x), x.item(), print(x), x.cpu() and `if x > 0` all need a number in Python, so they wait for the device "
        "to finish everything before it. A training loop that adds up loss.item() every step can lose a third of its "
        "speed that way; the cure is to keep the sum on the device and to read it once.",
    )
    steps = lesson.pick(full=100, quick=20)
    x = torch.randn(256, 256, device=lesson.device) / 16  # scaled so that products stay near 1
    budget_s = lesson.pick(full=1.0, quick=0.2)
    timings = compare(
        {"every step": lambda: read_every_step(x, steps), "once": lambda: read_once(x, steps)},
        lesson.device,
        budget_s=budget_s,
    )
    slower = ratio(timings["every step"], timings["once"])
    values = torch.randn(lesson.pick(full=10_000, quick=1_000), device=lesson.device)
    loops = compare(
        {
            "one by one": lambda: sum(values[i].item() for i in range(0, len(values), 100)),
            "on the device": lambda: values.sum().item(),
        },
        lesson.device,
        budget_s=budget_s,
    )
    per_read_s = loops["one by one"].median_s / (len(values) / 100)
    lesson.table(
        [
            {"loop": f".item() in each of {steps} steps", "time": seconds_text(timings["every step"].median_s)},
            {"loop": f"the same {steps} steps, .item() at the end", "time": seconds_text(timings["once"].median_s)},
            {"loop": "one x[i].item()", "time": seconds_text(per_read_s)},
            {
                "loop": f"the sum of all {len(values):,} values and one .item()",
                "time": seconds_text(loops["on the device"].median_s),
            },
        ]
    )
    lesson.record("item", per_read_s * 1e6, "µs")
    lesson.record("read every step", timings["every step"].median_s * 1e3, "ms", timings["every step"], steps=steps)
    lesson.record("read once", timings["once"].median_s * 1e3, "ms", timings["once"], steps=steps)
    same = read_every_step(x, steps), read_once(x, steps)
    lesson.check(
        "both loops add up the same number",
        abs(same[0] - same[1]) <= 1e-3 * max(1e-3, abs(same[0])),
        f"{same[0]:.6f} and {same[1]:.6f}",
    )
    whole_s = per_read_s * len(values)
    lesson.check(
        "adding in a Python loop is at least 10 times slower than on the device",
        whole_s > 10 * loops["on the device"].median_s,
        f"{whole_s / loops['on the device'].median_s:,.0f}x for {len(values):,} values",
    )
    if lesson.device.type == "cuda":
        lesson.check("reading every step is slower than reading once", slower.median > 1.05, f"{slower}")
    remedy = (
        f"each wait cost {seconds_text((timings['every step'].median_s - timings['once'].median_s) / steps)}, in "
        "which the GPU had nothing to do"
        if lesson.device.type == "cuda"
        else "a CPU has no queue to wait for, so the two loops take about the same time here; on a GPU they do not"
    )
    lesson.shows(
        f"{remedy}. Going through a tensor one x[i].item() at a time costs {seconds_text(per_read_s)} a number here, "
        f"where the device adds one in {significant(loops['on the device'].median_s / len(values) * 1e9)} ns."
    )
