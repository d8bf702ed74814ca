"""Copies: between CPU and GPU over the link, or within main memory where there is no GPU."""

from collections.abc import Callable
from typing import Any

from shared.hardware import link_bandwidth
from shared.lesson import Lesson
from shared.timing import compare, measure, ratio
from shared.units import bytes_text, percent, seconds_text

import torch


def measure_transfers(lesson: Lesson) -> None:
    if lesson.device.type == "cuda":
        link_transfers(lesson)
        overlap_with_compute(lesson)
    else:
        lesson.section(
            "Copies between CPU and GPU",
            "A GPU has memory of its own, and the link to it is 50 to 200 times slower than that memory.",
        )
        lesson.skip(
            "Transfers from 4 KiB to 1 GiB, pageable and pinned, both ways, and their overlap with compute.",
            "a CUDA GPU",
        )
        memory_copies(lesson)


def fit_latency_and_bandwidth(sizes: list[int], seconds: list[float]) -> tuple[float, float]:
    """The latency (s) and bandwidth (B/s) for which latency + size/bandwidth comes closest, in relative terms.

    Least squares on the deviation divided by the measured time, so that microseconds count as much as milliseconds.
    A fit that asks for a negative latency gets none.
    """
    size, time = torch.tensor(sizes, dtype=torch.float64), torch.tensor(seconds, dtype=torch.float64)
    scale = size.max()  # keeps the two columns alike in size
    matrix = torch.stack([1 / time, size / scale / time], dim=1)
    latency, slope = torch.linalg.lstsq(matrix, torch.ones_like(time)[:, None]).solution[:, 0].tolist()
    if latency < 0:
        latency, slope = 0.0, (matrix[:, 1].sum() / (matrix[:, 1] ** 2).sum()).item()
    return latency, scale.item() / slope


def link_transfers(lesson: Lesson) -> None:
    lesson.section(
        "Copies between CPU and GPU",
        "The GPU can only read pages that stay where they are. A copy from ordinary, pageable memory therefore goes "
        "through a small pinned staging buffer first; memory that you pin yourself skips that step, and lets "
        "non_blocking=True return at once. You pay for pinning once, when you allocate.",
    )
    limit = link_bandwidth(lesson.device)
    sizes = [2**power for power in lesson.pick(full=range(12, 31, 2), quick=range(12, 23, 2))]
    rows: list[dict[str, object]] = []
    seconds: dict[str, list[float]] = {
        "pageable to GPU": [],
        "pinned to GPU": [],
        "GPU to pageable": [],
        "GPU to pinned": [],
    }
    for size in lesson.progress(sizes, "copying"):
        on_gpu = torch.randint(0, 256, (size,), device=lesson.device, dtype=torch.uint8)
        pageable = on_gpu.cpu()
        pinned = pageable.pin_memory()
        ways: dict[str, Callable[[], object]] = {
            "pageable to GPU": lambda: on_gpu.copy_(pageable),
            "pinned to GPU": lambda: on_gpu.copy_(pinned, non_blocking=True),
            "GPU to pageable": lambda: pageable.copy_(on_gpu),
            "GPU to pinned": lambda: pinned.copy_(on_gpu, non_blocking=True),
        }
        row: dict[str, object] = {"size": bytes_text(size)}
        for way, copy in ways.items():
            timing = measure(
                copy,
                lesson.device,
                budget_s=lesson.pick(full=0.05, quick=0.02),
                cold_cache=False,
                hide_launch="pinned" in way,
            )
            seconds[way].append(timing.median_s)
            row[way] = lesson.record(
                "transfer", size / timing.median_s / 1e9, "GB/s", timing, limit, way=way, bytes=size
            )
        rows.append(row)
    lesson.text("Rates in GB/s:")
    lesson.table(rows)
    fits = []
    for way, times in seconds.items():
        latency, bandwidth = fit_latency_and_bandwidth(sizes, times)
        worst = max(abs((latency + size / bandwidth) / time - 1) for size, time in zip(sizes, times, strict=True))
        lesson.record("latency", latency * 1e6, "µs", way=way)
        lesson.record("fitted bandwidth", bandwidth / 1e9, "GB/s", None, limit, way=way)
        fits.append(
            {
                "way": way,
                "latency": seconds_text(latency),
                "bandwidth (GB/s)": bandwidth / 1e9,
                "limit": limit.value / 1e9 if limit else None,
                "share": percent(bandwidth / limit.value if limit else None),
                "worst deviation": percent(worst),
            }
        )
    lesson.text("The model time = latency + size / bandwidth, fitted to each column:")
    lesson.table(fits)
    largest = -1
    gain = seconds["pageable to GPU"][largest] / seconds["pinned to GPU"][largest]
    pinned.bitwise_not_()  # something new to send
    on_gpu.copy_(pinned, non_blocking=True)
    pageable.copy_(on_gpu)  # in the same stream, so after it; and it waits
    lesson.check("what comes back is what was sent", torch.equal(pageable, pinned), f"{bytes_text(sizes[-1])} compared")
    if not lesson.quick:
        lesson.check(
            "pinned memory is faster for large copies to the GPU", gain > 1, f"{gain:.2f}x at {bytes_text(sizes[-1])}"
        )
    latency, bandwidth = fit_latency_and_bandwidth(sizes, seconds["pinned to GPU"])
    half = latency * bandwidth
    lesson.shows(
        f"a pinned copy costs {seconds_text(latency)} before the first byte moves, so anything under about "
        f"{bytes_text(max(1.0, half))} is mostly waiting. Gather small tensors into one before you send them; pin what "
        "you send often."
    )

    def draw(ax: Any) -> None:
        for way, times in seconds.items():
            ax.plot(
                [size / 2**20 for size in sizes],
                [size / s / 1e9 for size, s in zip(sizes, times, strict=True)],
                label=way,
            )
        if limit:
            ax.axhline(limit.value / 1e9, color="black", linewidth=1, label="link, one direction")
        ax.set(xscale="log", yscale="log", title="Copies between CPU and GPU", xlabel="size (MiB)", ylabel="GB/s")
        ax.legend()

    lesson.figure("transfers", draw)


def overlap_with_compute(lesson: Lesson) -> None:
    lesson.section(
        "Copying while computing",
        "Copies have engines of their own, so a copy on one stream can run beside a product on another. Eight batches are "
        "processed one after the other, then with batch i + 1 sent while batch i is computed.",
    )
    n, batches, dtype = lesson.pick(full=4096, quick=512), 8, torch.float16
    # Three for two buffers, so that none holds the numbers of its next batch already: a wait forgotten would show.
    host = [torch.randn(n, n).to(dtype).pin_memory() for _ in range(3)]
    buffers = [torch.empty(n, n, device=lesson.device, dtype=dtype) for _ in range(2)]
    weight = torch.randn(n, n, device=lesson.device).to(dtype)
    out = torch.empty_like(weight)
    copy_s = measure(
        lambda: buffers[0].copy_(host[0], non_blocking=True), lesson.device, budget_s=0.05, cold_cache=False
    ).median_s
    product_s = measure(
        lambda: torch.mm(buffers[0], weight, out=out), lesson.device, budget_s=0.05, cold_cache=False
    ).median_s
    repeats = max(1, round(copy_s / product_s))  # as much arithmetic as copying: the most there is to gain
    copies = torch.cuda.Stream()

    def compute(buffer: torch.Tensor) -> None:
        for _ in range(repeats):
            torch.mm(buffer, weight, out=out)

    def one_after_the_other() -> None:
        for batch in range(batches):
            buffers[0].copy_(host[batch % 3], non_blocking=True)
            compute(buffers[0])

    def overlapped() -> None:
        main = torch.cuda.current_stream()
        copies.wait_stream(main)
        computed: list[torch.cuda.Event | None] = [None, None]  # when the last reader of each buffer was done
        for batch in range(batches):
            slot = batch % 2
            with torch.cuda.stream(copies):
                if event := computed[slot]:
                    copies.wait_event(event)
                buffers[slot].copy_(host[batch % 3], non_blocking=True)
                arrived = copies.record_event()
            main.wait_event(arrived)
            compute(buffers[slot])
            computed[slot] = main.record_event()

    timings = compare(
        {"one after the other": one_after_the_other, "overlapped": overlapped},
        lesson.device,
        budget_s=lesson.pick(full=1.0, quick=0.2),
    )
    last_products = []
    for way in (one_after_the_other, overlapped):
        out.zero_()
        way()
        last_products.append(out.clone())
    apart = (last_products[0] - last_products[1]).abs().max().item()
    largest = last_products[0].abs().max().item()
    gain = ratio(timings["one after the other"], timings["overlapped"])
    # The first batch has nothing to be copied beside, and the last one nothing to be computed beside.
    compute_s = repeats * product_s
    ideal = batches * (copy_s + compute_s) / (copy_s + compute_s + (batches - 1) * max(copy_s, compute_s))
    for way, timing in timings.items():
        lesson.record("pipeline", timing.median_s * 1e3, "ms", timing, way=way, batches=batches)
    lesson.table([{"way": way, f"{batches} batches": seconds_text(timing.median_s)} for way, timing in timings.items()])
    lesson.check(
        "no batch was computed before it had arrived", apart <= 1e-2 * largest, f"last product: {apart:.1e} apart"
    )
    if not lesson.quick:
        lesson.check("overlapping beats one after the other", gain.median > 1.05, f"{gain}; at most {ideal:.2f}x")
    lesson.shows(
        f"of a possible {ideal:.2f}x, overlapping gave {gain.median:.2f}x. A data loader with pin_memory=True and "
        "non_blocking=True copies, plus work that does not wait, gives you this in training."
    )


def memory_copies(lesson: Lesson) -> None:
    lesson.section(
        "Copies within main memory",
        "Without a GPU the same model is tried on plain copies: time = latency + size / bandwidth. The latency here is the "
        "price of a PyTorch call; the bandwidth is that of main memory once the caches are too small.",
    )
    sizes = [2**power for power in lesson.pick(full=range(12, 31, 2), cpu=range(12, 29, 2), quick=range(12, 23, 2))]
    rows, seconds, fresh_seconds = [], [], []
    for size in lesson.progress(sizes, "copying"):
        source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=lesson.device)
        target = torch.empty_like(source)
        timings = compare(
            {"into a buffer": lambda: target.copy_(source), "into new memory": lambda: source.clone()},
            lesson.device,
            rounds=5,
            budget_s=lesson.pick(full=0.2, quick=0.05),
        )
        seconds.append(timings["into a buffer"].median_s)
        fresh_seconds.append(timings["into new memory"].median_s)
        row: dict[str, object] = {"size": bytes_text(size)}
        for way, timing in timings.items():
            row[f"{way} (GB/s)"] = lesson.record(
                "copy", size / timing.median_s / 1e9, "GB/s", timing, way=way, bytes=size
            )
        rows.append(row)
    lesson.table(rows)
    latency, bandwidth = fit_latency_and_bandwidth(sizes, seconds)
    worst = max(abs((latency + size / bandwidth) / time - 1) for size, time in zip(sizes, seconds, strict=True))
    lesson.record("latency", latency * 1e6, "µs")
    lesson.record("fitted bandwidth", bandwidth / 1e9, "GB/s")
    lesson.check("the copy is equal to its source", torch.equal(source, target), f"{bytes_text(sizes[-1])} compared")
    lesson.check(
        "a small copy is mostly latency: 4 times the bytes take less than 3 times as long",
        seconds[1] < 3 * seconds[0],
        f"{seconds[1] / seconds[0]:.1f}x from {bytes_text(sizes[0])} to {bytes_text(sizes[1])}",
    )
    fit = "so caches bend the line: no single bandwidth fits" if worst > 0.5 else "so the line describes all sizes"
    lesson.shows(
        f"the fit says {seconds_text(latency)} and {bandwidth / 1e9:.1f} GB/s, with deviations up to {percent(worst)}, {fit}. "
        f"At {bytes_text(sizes[-1])} a copy into new memory takes {fresh_seconds[-1] / seconds[-1]:.1f} times as long as "
        "one into a buffer that is kept, since the operating system has to find the pages first."
    )

    def draw(ax: Any) -> None:
        mib = [size / 2**20 for size in sizes]
        ax.plot(mib, [size / s / 1e9 for size, s in zip(sizes, seconds, strict=True)], label="into a buffer")
        ax.plot(mib, [size / s / 1e9 for size, s in zip(sizes, fresh_seconds, strict=True)], label="into new memory")
        ax.plot(
            mib,
            [size / (latency + size / bandwidth) / 1e9 for size in sizes],
            color="black",
            linewidth=1,
            marker="",
            label="latency + size/bandwidth",
        )
        ax.set(
            xscale="log", title="Copies within main memory", xlabel="size (MiB)", ylabel="GB/s copied", ylim=(0, None)
        )
        ax.legend()

    lesson.figure("copies", draw)
