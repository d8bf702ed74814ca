"""The price: the first call, a cache that remembers it, compiling one block for all, and the modes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from pytorch_02_training_optimization.src.compilation.harness import (
    KeepGraphs,
    empty_cache,
    first_call_s,
    kernel_calls_in,
    kernels_in,
    operations_of,
    run_and_read,
)
from shared.agreement import deviation
from shared.lesson import Lesson
from shared.timing import Timing, compare, ratio
from shared.units import seconds_text

import torch
import torch.nn.functional as F
from torch import nn

NEEDS_A_FULL_RUN = "a run without --quick, and a compiler; each of these takes seconds"


class Block(nn.Module):
    """The feed-forward half of a Transformer's layer, (B, C) -> (B, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x)), approximate="tanh"))


def elementwise(x: torch.Tensor) -> torch.Tensor:
    """Ten passes over memory for eager PyTorch, nothing that a library could do."""
    for _ in range(3):
        x = torch.sigmoid(x * 1.5 + 0.5) - 0.25
    return x


def break_even(first_s: float, before_s: float, after_s: float) -> float:
    """The number of calls after which compiling has paid: the first one included; infinite where it never does."""
    return math.inf if after_s >= before_s else 1 + (first_s - before_s) / (before_s - after_s)


def show_first_call(lesson: Lesson, has_inductor: bool) -> None:
    lesson.section(
        "The first call, and every other",
        'All three programs work inside the first call. The backends stop at one of them each: "eager" after Dynamo, '
        '"aot_eager" after AOTAutograd, and neither makes anything faster; they are for finding out which stage is to blame. '
        "A saving comes only with Inductor. So compiling pays after (first call) / (saving per call) calls:",
    )
    rows, width = lesson.pick(full=(8192, 1024), cpu=(256, 256), quick=(8, 16))
    works: dict[str, tuple[Any, torch.Tensor]] = {
        "elementwise": (elementwise, torch.randn(32 * rows, width, device=lesson.device)),
        "block": (Block(width).to(lesson.device), torch.randn(rows, width, device=lesson.device)),
    }
    backends = ["eager", "aot_eager"] + (["inductor"] if has_inductor and not lesson.quick else [])
    table, costs, worst = [], {}, {}
    for work, (function, x) in works.items():
        calls: dict[str, Callable[[], object]] = {"not compiled": lambda: function(x)}
        firsts = {"not compiled": 0.0}
        with torch.no_grad():
            right = function(x)
            for backend in backends:
                torch.compiler.reset()  # before the graph is compiled, not after: the calls are needed below
                compiled = torch.compile(function, backend=backend)
                firsts[backend] = first_call_s(lambda: compiled(x), lesson.device)
                calls[backend] = lambda compiled=compiled: compiled(x)
                lesson.record("first call", firsts[backend], "s", work=work, backend=backend)
            apart = max(deviation(call(), right) for call in calls.values())
            timings = compare(calls, lesson.device, budget_s=lesson.pick(full=1.0, quick=0.1))
        for backend, timing in timings.items():
            lesson.record("later call", timing.median_s * 1e3, "ms", timing, work=work, backend=backend)
            plain_s, gains = timings["not compiled"].median_s, ratio(timings["not compiled"], timing)
            gain = gains.median
            after_s = plain_s / gain if gains.p20 > 1.01 else plain_s  # less is within the noise: no saving
            calls_needed = break_even(firsts[backend], plain_s, after_s)
            costs[work, backend] = (firsts[backend], timing, gain, calls_needed)
            table.append({"function": work, "backend": backend,
                          "first call": seconds_text(firsts[backend]) if firsts[backend] else "–",
                          "every other": seconds_text(timing.median_s), "gain": f"{gain:.2f}x",
                          "pays after": "–" if backend != "inductor" else in_calls(calls_needed)})  # fmt: skip
        worst[work] = apart
    lesson.table(table)
    lesson.check("every backend gives the same numbers", max(worst.values()) < 1e-5,
                 ", ".join(f"{work} {apart:.0e} apart" for work, apart in worst.items()))  # fmt: skip
    last = backends[-1]
    dearest = {work: costs[work, last][0] / costs[work, last][1].median_s for work in works}
    lesson.check("the first call takes more than five of the others", min(dearest.values()) > 5,
                 f"{last}: " + ", ".join(f"{work} {count:,.0f} times" for work, count in dearest.items()))  # fmt: skip
    if last != "inductor":
        lesson.skip("What Inductor costs and saves, and a second compilation from its cache.", NEEDS_A_FULL_RUN)
        lesson.shows(
            f"even without Inductor a first call costs as much as {dearest['block']:,.0f} others of the block."
        )
        return
    cached_s = compile_from_cache(works, lesson)
    for work, fresh in cached_s.items():
        lesson.check(f"{work}: compiled again, Inductor has it on disk", fresh[1] == 0 and fresh[2] > 0,
                     f"{seconds_text(costs[work, last][0])}, then {seconds_text(fresh[0])}")  # fmt: skip
    lesson.figure("break_even", lambda *panels: draw_break_even(panels, costs, list(works)), columns=2)
    lesson.shows(
        f"elementwise work is {costs['elementwise', last][2]:.1f} times as fast compiled and "
        f"{when_it_pays(costs['elementwise', last][3])}; the block, most of whose time goes into two matrix products, is "
        f"{costs['block', last][2]:.2f} times as fast and {when_it_pays(costs['block', last][3])}. The cache, kept in "
        "TORCHINDUCTOR_CACHE_DIR, cuts the price for the next process, and torch.compiler.save_cache_artifacts() packs it up for "
        "another machine."
    )


def in_calls(count: float) -> str:
    """A number of calls in two digits, since the times behind it have no more."""
    if not math.isfinite(count):
        return "never"
    exact = math.ceil(count)
    return f"{round(exact, 2 - len(str(exact))):,} calls"


def when_it_pays(count: float) -> str:
    return f"pays after {in_calls(count)}" if math.isfinite(count) else "never pays, as far as the clock can tell"


def compile_from_cache(works: dict[str, tuple[Any, torch.Tensor]], lesson: Lesson) -> dict[str, tuple[float, int, int]]:
    """Seconds of a first call that a new process would see, and how often Inductor's cache missed and hit in it."""
    from torch._dynamo.utils import counters

    found = {}
    for work, (function, x) in works.items():
        torch.compiler.reset()
        counters.clear()
        with torch.no_grad():
            again_s = first_call_s(lambda: torch.compile(function)(x), lesson.device)
        found[work] = again_s, counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"]
    return found


def draw_break_even(panels: Sequence[Any], costs: dict[tuple[str, str], Any], works: Sequence[str]) -> None:
    for panel, work in zip(panels, works, strict=True):
        first_s, compiled, _, needed = costs[work, "inductor"]
        plain_s = costs[work, "not compiled"][1].median_s
        most = max(100.0, 20 * needed) if math.isfinite(needed) else 1e5
        counts = [most ** (step / 60) for step in range(61)]
        panel.loglog(counts, [count * plain_s for count in counts], marker="", label="not compiled")
        panel.loglog(
            counts, [first_s + (count - 1) * compiled.median_s for count in counts], marker="", label="compiled"
        )
        title = f"{work}: pays after {in_calls(needed)}" if math.isfinite(needed) else f"{work}: never pays here"
        if math.isfinite(needed):
            panel.axvline(needed, color="#525252", linewidth=1, linestyle=":")
        panel.set(title=title, xlabel="calls", ylabel="seconds in all")
        panel.legend()


# One block, many layers


class Stack(nn.Module):
    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def compile_whole(stack: Stack, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The usual way: one graph with all the layers in it."""
    return torch.compile(stack, **options)


def compile_each_block(stack: Stack, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Regional: all blocks run the same code, so the first one's graph serves the others, with their weights."""
    for block in stack.blocks:
        block.compile(**options)
    return stack


def run_block(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return block(x)  # type: ignore[no-any-return]


def compile_regions(stack: Stack, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """One graph for the whole, in which the marked function is a graph of its own, made once and called again."""
    region = torch.compiler.nested_compile_region(run_block)  # marked here: the compiler's import takes seconds

    def forward(x: torch.Tensor) -> torch.Tensor:
        for block in stack.blocks:
            x = region(block, x)
        return x

    return torch.compile(forward, **options)


WAYS: dict[str, Callable[..., Callable[[torch.Tensor], torch.Tensor]]] = {
    "the whole model": compile_whole,
    "block.compile()": compile_each_block,
    "nested_compile_region": compile_regions,
}


def show_blocks(lesson: Lesson, has_inductor: bool) -> None:
    depths = lesson.pick(full=[2, 4, 8], cpu=[1, 2, 4], quick=[1, 3])
    lesson.section(
        "Compile the block once, use it for every layer",
        "A language model is one block, repeated. Compiled as a whole it is one graph in which the block stands again and "
        "again, and Inductor works through every copy. Compile the block instead: weights are inputs of the graph, so one "
        f"graph serves all layers. Here for stacks of up to {depths[-1]} blocks, each from an empty cache:",
    )
    rows, width = lesson.pick(full=(2048, 1024), cpu=(256, 128), quick=(4, 8))
    backend = "inductor" if has_inductor and not lesson.quick else "eager"
    x = torch.randn(rows, width, device=lesson.device)
    measured_at = dict(zip(WAYS, (depths, [depths[0], depths[-1]], depths[-1:]), strict=True))
    firsts: dict[str, list[float]] = {way: [] for way in WAYS}
    sizes: dict[str, list[int]] = {}
    gains: dict[str, float] = {}
    table, worst, deepest = [], 0.0, depths[-1]
    with torch.no_grad():
        for way, compile_it in WAYS.items():
            for depth in measured_at[way]:
                stack = Stack(depth, width).to(lesson.device)
                right = stack(x)
                torch.compiler.reset()
                with empty_cache():
                    compiled = compile_it(stack, backend=backend)
                    firsts[way].append(first_call_s(lambda: compiled(x), lesson.device))
                lesson.record("first call of a stack", firsts[way][-1], "s", way=way, depth=depth, backend=backend)
                worst = max(worst, deviation(compiled(x), right))
            plain = Stack(deepest, width).to(lesson.device)
            timings = compare({"plain": lambda: plain(x), "compiled": lambda: compiled(x)}, lesson.device,
                              budget_s=lesson.pick(full=0.6, quick=0.02))  # fmt: skip
            gains[way] = ratio(timings["plain"], timings["compiled"]).median
            torch.compiler.reset()
            keep = KeepGraphs()
            compile_it(Stack(deepest, width).to(lesson.device), backend=keep)(x)
            sizes[way] = [len(operations_of(graph)) for graph in keep.graphs]
            table.append({"compiled": way, "graphs": len(keep), "calls in them": sum(sizes[way]),
                          "first call": seconds_text(firsts[way][-1]), "gain per call": f"{gains[way]:.2f}x"})  # fmt: skip
    lesson.table(table)
    one = len(operations_of_a_block(width, lesson.device))
    lesson.check("the whole model is one graph with every copy", sizes["the whole model"] == [deepest * one],
                 f"{deepest} x {one} = {deepest * one} operations")  # fmt: skip
    lesson.check("compiled by the block, one graph serves every layer", sizes["block.compile()"] == [one],
                 f"{one} operations for {deepest} layers")  # fmt: skip
    lesson.check("all three compute what the model computes", worst < 1e-4, f"{worst:.0e} apart at most")
    faster = firsts["the whole model"][-1] / firsts["block.compile()"][-1]
    if backend == "inductor":
        lesson.check("the block alone compiles faster than all its copies", faster > 1.2,
                     f"{faster:.1f} times, for {deepest} layers")  # fmt: skip
        lesson.figure("compile_time_by_depth", lambda axes: draw_depths(axes, measured_at, firsts))
    growth = [firsts[way][-1] / firsts[way][0] for way in ("the whole model", "block.compile()")]
    lesson.shows(
        f"from {depths[0]} to {deepest} layers the first call became {growth[0]:.1f} times as long for the whole "
        f"model and {growth[1]:.1f} times by the block ({backend}). What you give up is fusion across the border of two "
        f"blocks, and each block's call runs its guards: a call is {gains['block.compile()']:.2f} times as fast as "
        f"uncompiled, {gains['the whole model']:.2f} times as a whole. nested_compile_region keeps one graph, with "
        f"{sum(sizes['nested_compile_region'])} calls, and compiles the region once."
    )


def operations_of_a_block(width: int, device: torch.device) -> list[str]:
    torch.compiler.reset()
    keep = KeepGraphs()
    torch.compile(Block(width).to(device), backend=keep)(torch.randn(2, width, device=device))
    return operations_of(keep.graphs[0])


def draw_depths(axes: Any, measured_at: dict[str, list[int]], firsts: dict[str, list[float]]) -> None:
    for way in ("the whole model", "block.compile()"):
        axes.plot(measured_at[way], firsts[way], label=way)
    axes.set(title="Compiled as a whole, every layer is paid for", xlabel="blocks in the model",
             ylabel="first call, seconds", ylim=(0, None), xticks=measured_at["the whole model"])  # fmt: skip
    axes.legend()


# Modes


def two_products(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ up) @ down


MODES = "default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"
SETTINGS = {
    "triton.cudagraphs": "record the kernels, replay them with one launch",
    "max_autotune": "time several kernels for each product, keep the fastest",
    "coordinate_descent_tuning": "then vary its block sizes",
}


def show_modes(lesson: Lesson, has_inductor: bool) -> None:
    from torch._inductor import list_mode_options

    lesson.section(
        "Modes: more time for compiling, less for running",
        "A mode is a name for settings of Inductor. reduce-overhead is for small batches on a GPU, where the launches of the "
        "kernels take longer than the kernels. max-autotune tries several kernels for each matrix product and convolution. "
        "What each one switches on:",
    )
    modes = {mode: list_mode_options(mode) for mode in MODES}
    lesson.items({mode: ", ".join(options) or "nothing" for mode, options in modes.items()})
    lesson.items(SETTINGS)
    lesson.check("reduce-overhead is CUDA graphs and nothing else", list(modes["reduce-overhead"]) == ["triton.cudagraphs"],
                 str(modes["reduce-overhead"]))  # fmt: skip
    both = modes["reduce-overhead"] | modes["max-autotune-no-cudagraphs"]
    lesson.check("max-autotune is that and the search for fast kernels", modes["max-autotune"] == both,
                 f"{len(both)} settings")  # fmt: skip
    if lesson.quick or not has_inductor:
        lesson.skip("The first call and the speed of each mode.", NEEDS_A_FULL_RUN)
        lesson.shows(
            f"{len(modes)} modes are {len(both)} switches; options={{...}} of torch.compile sets them one by one."
        )
        return
    width = lesson.pick(full=1024, cpu=256, quick=16)
    inputs = [torch.randn(size, device=lesson.device) for size in ((32, width), (width, 4 * width), (4 * width, width))]
    right, codes, table = two_products(*inputs), {}, []
    calls: dict[str, Callable[[], object]] = {"not compiled": lambda: two_products(*inputs)}
    firsts, apart = {}, 0.0
    for mode in modes:
        compiled = torch.compile(two_products, mode=mode)
        made: list[Any] = []
        with empty_cache():
            firsts[mode] = first_call_s(lambda: made.extend(run_and_read(compiled, *inputs)), lesson.device)
        result, (codes[mode],) = made
        apart = max(apart, deviation(result, right))
        calls[mode] = lambda compiled=compiled: compiled(*inputs)
    timings: dict[str, Timing] = compare(calls, lesson.device, budget_s=0.5)
    for mode, timing in timings.items():
        lesson.record("mode", timing.median_s * 1e6, "µs", timing, mode=mode)
        own, library = kernel_calls_in(codes[mode]) if mode in codes else ("–", "–")
        table.append({"mode": mode, "first call": seconds_text(firsts[mode]) if mode in firsts else "–",
                      "own kernels": own, "library kernels": library, "per call": seconds_text(timing.median_s),
                      "gain": f"{ratio(timings['not compiled'], timing).median:.2f}x"})  # fmt: skip
    lesson.table(table)
    lesson.check("every mode gives the same numbers", apart < 1e-3, f"{apart:.0e} apart at most")
    overhead = ratio(timings["default"], timings["reduce-overhead"]).median
    if lesson.device.type == "cuda":
        complaint = read_after_the_next_call(inputs)
        lesson.check(
            "a CUDA graph's output is overwritten by the next call", "overwritten" in complaint, complaint[:60]
        )
        lesson.shows(
            f"reduce-overhead made a call {overhead:.2f} times as fast as the default mode. Its outputs live in the graph's own "
            "memory: clone what you keep beyond the next call."
        )
    else:
        kernels = kernels_in(codes["default"])
        same = kernels_in(codes["reduce-overhead"]) == kernels
        lesson.check("without CUDA, reduce-overhead writes the same kernels", same, f"{len(kernels)} of them")
        alike = [mode for mode in modes if kernels_in(codes[mode]) == kernels]
        lesson.shows(
            f"without CUDA there are no launches to save: {len(alike)} of {len(modes)} modes wrote the same kernels here, and "
            f"under max-autotune {kernel_calls_in(codes['max-autotune'])[1]} products stayed with the library. On a CPU leave "
            "the mode alone."
        )


def read_after_the_next_call(inputs: Sequence[torch.Tensor]) -> str:
    """The mistake: under CUDA graphs both results are the same memory. Returns what PyTorch says to it."""
    compiled = torch.compile(two_products, mode="reduce-overhead")
    for _ in range(3):  # the first calls warm up and record
        first = compiled(*inputs)
    compiled(inputs[0] + 1, *inputs[1:])
    try:
        first.sum().item()
    except RuntimeError as error:
        return " ".join(str(error).split())
    return ""
