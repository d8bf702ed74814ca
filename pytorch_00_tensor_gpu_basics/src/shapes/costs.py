"""What views cost: nothing when they are made, and sometimes a lot when they are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pytorch_00_tensor_gpu_basics.src.benchmarks.card import raised_to
from shared.hardware import Limit, memory_bandwidth
from shared.lesson import Lesson
from shared.timing import compare, measure
from shared.units import bytes_text, percent, seconds_text

import torch

CPU = torch.device("cpu")


def show_costs(lesson: Lesson) -> None:
    show_free_views(lesson)
    show_walks(lesson)
    show_contiguous(lesson)


# A view is free


def show_free_views(lesson: Lesson) -> None:
    lesson.section(
        "What a view costs, and what a copy costs",
        "A view writes a new header, whatever the size of the tensor; a GPU never hears of it. A copy reads and writes "
        "every number. Here x.T, beside a copy of x into memory that is there already.",
    )
    sides = lesson.pick(full=[16, 64, 256, 1024, 4096, 16384], cpu=[16, 64, 256, 1024, 4096], quick=[16, 64, 256, 1024])
    budget_s = lesson.pick(full=0.15, quick=0.04)
    sizes, views, copies = [], [], []
    for n in lesson.progress(sides, "sizes"):
        x = torch.randn(n, n, device=lesson.device)
        out = torch.empty_like(x)
        sizes.append(x.nbytes)
        views.append(measure(lambda: x.T, CPU, budget_s=budget_s))  # by Python's clock: the device has nothing to do
        copies.append(measure(lambda: out.copy_(x), lesson.device, budget_s=budget_s))
        lesson.record("view", views[-1].median_s * 1e6, "µs", views[-1], bytes=x.nbytes)
        lesson.record("copy", copies[-1].median_s * 1e6, "µs", copies[-1], bytes=x.nbytes)
    dearer = [copy.median_s / view.median_s for view, copy in zip(views, copies, strict=True)]
    lesson.table([{"x": f"{n:,} x {n:,}", "size": bytes_text(sizes[i]), "x.T": seconds_text(views[i].median_s),
                   "copy": seconds_text(copies[i].median_s), "copy / view": dearer[i]}
                  for i, n in enumerate(sides)])  # fmt: skip
    growth = views[-1].best_s / views[0].best_s
    lesson.check("a view costs the same at any size", growth < 5,
                 f"{growth:.2f}x for {sizes[-1] // sizes[0]:,} times the bytes")  # fmt: skip
    lesson.check("a copy of the largest costs at least 10 views", dearer[-1] > 10, f"{dearer[-1]:,.0f} of them")
    lesson.figure("view_and_copy", partial(draw_view_and_copy, sizes=sizes, seconds={
        "out.copy_(x)": [copy.median_s for copy in copies], "x.T": [view.median_s for view in views]}))  # fmt: skip
    lesson.shows(
        f"x.T takes {seconds_text(views[-1].median_s)} for {bytes_text(sizes[-1])} and {seconds_text(views[0].median_s)} for "
        f"{bytes_text(sizes[0])}; the copy takes {seconds_text(copies[-1].median_s)} and "
        f"{seconds_text(copies[0].median_s)}. Chain as many views as make your code clear. What counts is where a copy "
        "hides among them."
    )


def draw_view_and_copy(axis: Any, sizes: Sequence[int], seconds: Mapping[str, Sequence[float]]) -> None:
    for name, times in seconds.items():
        axis.plot(sizes, [1e6 * time for time in times], label=name)
    axis.set(xscale="log", yscale="log", xlabel="size of x", ylabel="time of one call (µs)",
             title="A view costs the same at every size, a copy pays for each byte")  # fmt: skip
    axis.set_xticks(sizes, [bytes_text(size) for size in sizes])
    axis.minorticks_off()
    axis.legend()


# Along the rows, and across

LINE_BYTES = 64  # what a processor fetches from memory at once: 64 on x86, 64 or 128 on ARM; a GPU fetches 32 at least


@dataclass(frozen=True)
class Walk:
    """One way through the matrices x, y and out, and the bytes that its result needs for each element of x."""

    name: str
    bytes_per_element: float
    across: bool  # whether memory is read or written out of order
    run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]


WALKS = (
    Walk("copy x", 8, False, lambda x, y, out: out.copy_(x)),
    Walk("copy x.T", 8, True, lambda x, y, out: out.copy_(x.T)),
    Walk("x + y", 12, False, lambda x, y, out: torch.add(x, y, out=out)),
    Walk("x.T + y.T, to out.T", 12, False, lambda x, y, out: torch.add(x.T, y.T, out=out.T)),
    Walk("x.T + y", 12, True, lambda x, y, out: torch.add(x.T, y, out=out)),
    Walk("x.sum()", 4, False, lambda x, y, out: x.sum()),
    Walk("x.T.sum()", 4, False, lambda x, y, out: x.T.sum()),
    Walk("x[:, ::16].sum()", 4 / 16, True, lambda x, y, out: x[:, ::16].sum()),
)


def lines_touched(x: torch.Tensor) -> int:
    """In how many lines of LINE_BYTES of its storage the elements of `x` lie."""
    places = torch.full(x.shape, x.storage_offset())
    for axis, (length, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        places += (stride * torch.arange(length)).view(-1, *[1] * (x.ndim - axis - 1))
    return len(torch.unique(places * x.element_size() // LINE_BYTES))


def show_walks(lesson: Lesson) -> None:
    n = lesson.pick(full=8192, cpu=6000, quick=512)
    lesson.section(
        "Reading along the rows, and across",
        f"A view is free until it is read. Memory comes in lines, of {LINE_BYTES} bytes on most processors, so 16 neighbours "
        f"in float32 arrive together, wanted or not. x and y are {n:,} x {n:,}, and a rate counts the bytes that the result "
        "needs, not those that travel for nothing.",
    )
    x, y = (torch.randn(n, n, device=lesson.device) for _ in range(2))
    out = torch.empty_like(x)
    timings = compare({walk.name: partial(walk.run, x, y, out) for walk in WALKS}, lesson.device,
                      rounds=5, budget_s=lesson.pick(full=1.5, quick=0.2))  # fmt: skip
    rates = {walk.name: walk.bytes_per_element * x.numel() / timings[walk.name].median_s for walk in WALKS}
    fastest = max(rates, key=rates.__getitem__)
    limit = raised_to(memory_bandwidth(lesson.device), rates[fastest], fastest)
    for name, rate in rates.items():
        lesson.record("walk", rate / 1e9, "GB/s", timings[name], limit, walk=name, n=n)
    lesson.table([{"walk": walk.name, "read": "across" if walk.across else "along",
                   "time": seconds_text(timings[walk.name].median_s), "GB/s": rates[walk.name] / 1e9,
                   "limit": limit.value / 1e9 if limit else None,
                   "share": percent(rates[walk.name] / limit.value if limit else None)}
                  for walk in WALKS])  # fmt: skip
    small = torch.empty(64, 64, device=lesson.device)
    touched = lines_touched(small), lines_touched(small[:, ::16]), lines_touched(small[::16])
    lesson.check("every 16th column touches every line of x", touched[0] == touched[1] == 16 * touched[2],
                 f"{touched[1]} of {touched[0]}; every 16th row {touched[2]}")  # fmt: skip
    torch.add(x.T, y, out=out)
    lesson.check(
        "x.T + y is right, however it is read", torch.equal(out, x.T.contiguous() + y), f"{out.numel():,} numbers"
    )
    lesson.check("an operation on x.T alone keeps its order", (small.T * 2).stride() == small.T.stride(),
                 f"stride {small.T.stride()} in and out")  # fmt: skip
    lesson.figure("walks", partial(draw_walks, rates=rates, limit=limit))

    def times(slow: str, fast: str) -> float:
        return timings[slow].median_s / timings[fast].median_s

    lesson.shows(
        f"copying x.T took {times('copy x.T', 'copy x'):.1f} times as long as copying x, and x.T + y "
        f"{times('x.T + y', 'x + y'):.1f} times as long as x + y, in which one matrix is read across: a line for a single "
        f"number. x.T.sum() took {times('x.T.sum()', 'x.sum()'):.2f} of the time of x.sum(), since a sum may be taken in any "
        f"order. And a sixteenth of the numbers took {times('x[:, ::16].sum()', 'x.sum()'):.2f} of the time of all."
    )


def draw_walks(axis: Any, rates: Mapping[str, float], limit: Limit | None) -> None:
    for across, style in ((False, {"color": "#0b5fa5", "label": "along the rows"}),
                          (True, {"color": "white", "hatch": "///", "label": "across"})):  # fmt: skip
        names = [walk.name for walk in WALKS if walk.across is across]
        bars = axis.barh([list(rates).index(name) for name in names], [rates[name] / 1e9 for name in names],
                         edgecolor="black", **style)  # fmt: skip
        axis.bar_label(
            bars, fmt="%.3g", padding=3, fontsize=9, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        )
    if limit:
        axis.axvline(limit.value / 1e9, color="black", linewidth=1.5, label=f"memory: {limit.kind}")
    axis.set_yticks(range(len(rates)), list(rates))
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.grid(visible=False, axis="y")
    axis.set(xlabel="GB/s of what the result needs")
    axis.set_title("The same matrix, read along its rows and across", pad=32)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


# When contiguous() pays


def pays_from(copy_s: float, as_it_is_s: float, contiguous_s: float) -> int | None:
    """The smallest number of uses for which one copy and fast uses beat slow uses; None where they are not slower.

    A difference below a tenth is what two measurements of the same thing may differ by, and counts as none.
    """
    saved_s = as_it_is_s - contiguous_s
    return int(copy_s / saved_s) + 1 if saved_s > 0.1 * contiguous_s else None


def show_contiguous(lesson: Lesson) -> None:
    n = lesson.pick(full=8192, cpu=3000, quick=512)
    lesson.section(
        "When contiguous() pays",
        "contiguous() walks across once and leaves rows for all that read later. Whether that pays depends on how often "
        "the result is used, and by whom. Three uses of x.T, and from which use on the copy is worth its time "
        f"({n:,} x {n:,}).",
    )
    x, y = (torch.randn(n, n, device=lesson.device) for _ in range(2))
    w = torch.randn(n, 256, device=lesson.device)
    out, narrow, straight = torch.empty_like(x), torch.empty_like(w), x.T.contiguous()
    rows_use = "softmax of each row"
    uses: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "+ y": lambda m: torch.add(m, y, out=out),
        rows_use: lambda m: torch.softmax(m, 1, out=out),
        "@ w, 256 columns": lambda m: torch.mm(m, w, out=narrow),
    }
    same = [torch.allclose(use(x.T).clone(), use(straight), rtol=1e-3, atol=1e-2) for use in uses.values()]
    ways: dict[tuple[str, str], Callable[[], object]] = {("contiguous", "x.T"): lambda: x.T.contiguous()}
    for name, use in uses.items():
        ways |= {(name, "x.T"): partial(use, x.T), (name, "its copy"): partial(use, straight)}
    timings = compare({f"{name} of {form}": run for (name, form), run in ways.items()}, lesson.device,
                      rounds=5, budget_s=lesson.pick(full=1.5, quick=0.2))  # fmt: skip
    seconds = {key: timing.median_s for key, timing in zip(ways, timings.values(), strict=True)}
    for (name, form), timing in zip(ways, timings.values(), strict=True):
        lesson.record("use", timing.median_s * 1e3, "ms", timing, use=name, form=form, n=n)
    copy_s = seconds["contiguous", "x.T"]
    first = {name: pays_from(copy_s, seconds[name, "x.T"], seconds[name, "its copy"]) for name in uses}
    lesson.table([{"use": name, "of x.T": seconds_text(seconds[name, "x.T"]),
                   "of its copy": seconds_text(seconds[name, "its copy"]), "copying": seconds_text(copy_s),
                   "pays from use": first[name] or "–"} for name in uses])  # fmt: skip
    lesson.check("both forms give the same results", all(same), f"{sum(same)} of {len(same)} uses")
    lesson.check(
        "contiguous() of a contiguous tensor costs nothing", straight.contiguous() is straight, "it is the tensor"
    )
    paying = [f"{name!r} from use {use} on" for name, use in first.items() if use]
    lesson.shows(
        (f"here the copy pays for {', '.join(paying)}. " if paying else "here the copy pays for none of the three. ")
        + f"softmax took {seconds_text(seconds[rows_use, 'x.T'])} on x.T; copying and softmax of the copy take "
        f"{seconds_text(copy_s + seconds[rows_use, 'its copy'])} together. Some functions make that copy themselves, at each "
        "call. So do not sprinkle contiguous() over your code; put one where a permuted tensor is about to be read many "
        "times, and measure."
    )
