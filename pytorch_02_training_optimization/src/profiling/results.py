"""Before and after: whole epochs side by side, accuracy, gaps between the calls, and the distance to the limit."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pytorch_02_training_optimization.src.profiling.looking import first_step
from pytorch_02_training_optimization.src.profiling.parts import SLOW
from pytorch_02_training_optimization.src.profiling.repairs import losses_of
from pytorch_02_training_optimization.src.profiling.trace import (
    Span,
    device_spans,
    parents,
    read_events,
    record,
    spans_of,
    union_us,
    within,
)
from pytorch_02_training_optimization.src.profiling.training import PHASES, Recipe, Task, Training, shortened
from shared.hardware import matmul_peak
from shared.lesson import Lesson
from shared.timing import compare, measure, ratio
from shared.units import percent, rate_text, seconds_text

import torch
from torch import nn
from torch.profiler import profile

TRACE = "trace_after.json"


def train(recipe: Recipe, task: Task, seed: int, epochs: int) -> float:
    """Accuracy on the test images after so many epochs."""
    training = Training(recipe, task, seed)
    return [training.epoch().test_accuracy for _ in range(epochs)][-1]


def show_before_and_after(lesson: Lesson, task: Task, final: Recipe) -> list[list[Span]]:
    """Returns the spans of a short epoch before and after."""
    epochs, seeds = lesson.pick(full=4, quick=2), 3
    lesson.section(
        "Before and after",
        "Whole epochs of the full size, slow and repaired in turn, so that a busy machine slows both. Then the question "
        f"that decides whether it was a fix at all: is the accuracy the same? {epochs} epochs from {seeds} seeds, each "
        "with both.",
    )
    trainings = {"as it came": Training(SLOW, task, 0), "repaired": Training(final, task, 0)}
    timings = compare({name: training.epoch for name, training in trainings.items()}, task.device,
                      rounds=7, budget_s=lesson.pick(full=2.0, quick=0.3))  # fmt: skip
    faster = ratio(timings["as it came"], timings["repaired"])
    images = len(task.train.labels)
    rows = []
    for name, timing in timings.items():
        lesson.record("epoch", timing.median_s * 1e3, "ms", timing, recipe=name)
        lesson.record("training images", images / timing.median_s, "1/s", timing, recipe=name)
        rows.append({"recipe": name, "an epoch": seconds_text(timing.median_s), "images/s": images / timing.median_s,
                     "a step, validation included": seconds_text(timing.median_s / task.steps)})  # fmt: skip
    lesson.table(rows, best=1)
    first = lesson.options.seed
    both = [[train(recipe, task, (first + turn) % 2**32, epochs) for recipe in (SLOW, final)] for turn in range(seeds)]
    lesson.table([{"seed": (first + turn) % 2**32, "as it came": percent(slow), "repaired": percent(fast)}
                  for turn, (slow, fast) in enumerate(both)])  # fmt: skip
    least = 5 if task.device.type == "cuda" and final.captures else 3
    shortest = timings["as it came"].best_s / timings["repaired"].best_s  # of what nothing disturbed
    lesson.check(f"the repaired epoch is at least {least} times as fast", shortest >= least,
                 f"{shortest:.1f}x by the shortest of {faster.n} each")  # fmt: skip
    apart = max(abs(slow - fast) for slow, fast in both)
    allowed = max(0.02, 3 / len(task.test.labels))
    lesson.check("with the same seed, accuracy is the same", apart <= allowed,
                 f"{percent(apart)} apart at most, of {len(task.test.labels)} images")  # fmt: skip
    spread = max(slow for slow, _ in both) - min(slow for slow, _ in both)
    short = shortened(task, 2, 1, lesson.pick(full=64, quick=16))
    profilers = [record_epoch(recipe, short) for recipe in (SLOW, replace(final, captures=False))]
    profilers[1].export_chrome_trace(str(lesson.folder / TRACE))
    before, after = (spans_of(profiler) for profiler in profilers)
    lesson.figure("before_and_after", lambda *axes: draw_steps(axes, before, after), rows=2)
    more = min(round(faster.median), 20)
    longer = train(final, task, first, more * epochs)
    lesson.record("accuracy", longer, "1", epochs=more * epochs)
    lesson.shows(
        f"{faster.median:.1f} times as fast ({faster.p20:.1f} to {faster.p80:.1f} in {faster.n} rounds), with accuracies "
        f"{percent(apart)} apart where seeds alone move them by "
        f"{percent(spread)}. Time is what you buy with it: {more * epochs} epochs of the repaired training take about as "
        f"long as {round(more * epochs / faster.median)} of the slow one, and end at {percent(longer)} instead of "
        f"{percent(both[0][0])}. Picture: before_and_after.png; {TRACE} is its lower half, for the viewer."
    )
    return [before, after]


def record_epoch(recipe: Recipe, task: Task) -> profile:
    training = Training(recipe, task, 0)
    training.warm_up()
    return record(training.epoch, task.device)


def draw_steps(axes: Sequence[Any], before: Sequence[Span], after: Sequence[Span]) -> None:
    """The second step of both trainings, each on its own time axis: labels above, operators of your code below."""
    for axis, spans, name in zip(axes, (before, after), ("as it came", "repaired"), strict=True):
        step = first_step(spans)
        labels = [span for span in within(spans, step) if span.kind == "label" and span.name in PHASES]
        outer = [span for span in calls_in(spans) if step.start_us <= span.start_us and span.end_us <= step.end_us]
        for row, bars in ((1, labels), (0, outer)):
            axis.broken_barh([((bar.start_us - step.start_us) / 1e3, bar.us / 1e3) for bar in bars], (row - 0.35, 0.7),
                             facecolors=["#9fc6e8", "#f0c9a8"] * (len(bars) // 2 + 1) if row else "#0b5fa5",
                             edgecolor="black" if row else None, linewidth=0.4)  # fmt: skip
        for label in labels:
            if label.us > 0.09 * step.us:
                axis.text(
                    (label.start_us + label.us / 2 - step.start_us) / 1e3,
                    1,
                    label.name,
                    ha="center",
                    va="center",
                    fontsize=9,
                )
        axis.set_yticks([0, 1], ["operators", "labels"])
        axis.set(
            xlabel="time in the step (ms)",
            title=f"{name}: {step.us / 1e3:.2f} ms, {len(outer):,} calls",
            xlim=(0, step.us / 1e3),
        )
        axis.grid(visible=False, axis="y")


# Gaps


def calls_in(spans: Sequence[Span]) -> list[Span]:
    """The operators and steps of the backward pass that no other one called."""
    around = parents(spans)
    return [
        span
        for span, parent in zip(spans, around, strict=True)
        if span.kind in ("operator", "backward") and (parent is None or spans[parent].kind == "label")
    ]


def calls_and_gaps(spans: Sequence[Span]) -> tuple[float, float]:
    """Of the training part of an epoch: calls in a step, and the share of the time in which none of them ran."""
    labels = [span for span in spans if span.kind == "label" and span.name in PHASES]
    end_us = next(span.start_us for span in labels if span.name == "validation")
    calls = [span for span in calls_in(spans) if span.end_us <= end_us]
    steps = sum(span.name == "backward" for span in labels)
    return len(calls) / steps, 1 - union_us(calls) / (end_us - labels[0].start_us)


def show_gaps(lesson: Lesson, task: Task, final: Recipe, before: Sequence[Span], after: Sequence[Span]) -> None:
    lesson.section(
        "What happens between the calls",
        "An operator takes some microseconds of checks and bookkeeping before its first number, and between two of them "
        "Python runs. On a GPU both are visible as gaps: kernels of 2 µs with 10 µs of nothing after each. Such a program "
        "is launch-bound. A faster GPU does nothing for it; fewer launches, fused kernels or a CUDA graph do.",
    )
    rows, calls = [], {}
    for name, spans in {"as it came": before, "repaired": after}.items():
        calls[name], gap = calls_and_gaps(spans)
        rows.append({"recipe": name, "calls a step": round(calls[name]),
                     "time outside of all calls": percent(gap)})  # fmt: skip
    lesson.table(rows)
    lesson.check("the repaired step makes far fewer calls", calls["as it came"] > 5 * calls["repaired"],
                 f"{calls['as it came'] / calls['repaired']:.0f} times fewer")  # fmt: skip
    if final.captures:
        said = show_kernels(lesson, shortened(task, 4, 1), final)
    else:
        lesson.skip("kernels and the gaps between them, and a CUDA graph that closes the gaps.",
                    "an NVIDIA GPU whose kernels the profiler can see")  # fmt: skip
        said = "On a GPU, watch the row of kernels in Perfetto: where it is mostly empty, Python is the limit."
    lesson.shows(
        f"{rows[0]['calls a step']:,} calls became {rows[1]['calls a step']}, and {rows[1]['time outside of all calls']} of "
        f"what is left is Python between them. {said}"
    )


def show_kernels(lesson: Lesson, task: Task, final: Recipe) -> str:
    """The GPU's side, without and with the graph; returns what it shows."""
    rows, busy, launches = [], {}, {}
    for name, recipe in {"one launch each": replace(final, captures=False), "CUDA graph": final}.items():
        with TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            record_epoch(recipe, task).export_chrome_trace(str(path))
            kernels = device_spans(path)
            names = Counter(event["name"] for event in read_events(path)
                            if event.get("cat") == "cuda_runtime")  # fmt: skip
        launches[name] = names["cudaGraphLaunch"]
        wall_us = max(span.end_us for span in kernels) - kernels[0].start_us
        busy[name] = union_us(kernels) / wall_us
        rows.append({"way": name, "kernels and copies": len(kernels), "graph launches": launches[name],
                     "GPU busy": percent(busy[name])})  # fmt: skip
        lesson.record("GPU busy", busy[name], "1", way=name)
    lesson.table(rows)
    losses = [losses_of(recipe, task, 0) for recipe in (replace(final, captures=False), final)]
    apart = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
    lesson.check("the graph computes the same losses", apart < 1e-4, f"{apart:.0e} apart")
    lesson.check(
        "each captured step is one launch", launches["CUDA graph"] == task.steps, f"{launches['CUDA graph']} launches"
    )
    return (f"The GPU worked for {percent(busy['one launch each'])} of the time while each kernel was launched alone, and for "
            f"{percent(busy['CUDA graph'])} as one graph.")  # fmt: skip


# Limits


def training_flops(model: nn.Module, batch_size: int) -> int:
    """Operations of a training step in its matrix products, forwards and backwards.

    A product of (B, in) and (in, out) takes 2 x B x in x out; the weight's gradient takes as many, and so does the
    input's, which the first layer need not compute.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    products = [2 * batch_size * layer.in_features * layer.out_features for layer in layers]
    return 3 * sum(products) - products[0]


def show_limit(lesson: Lesson, task: Task, final: Recipe) -> None:
    lesson.section(
        "What is left: the share of the peak",
        "When is a training fast enough? Count what it has to compute, and hold it against what this device computes at "
        "best. The share says how much there is still to win, and so when to stop.",
    )
    recipe = replace(final, captures=False)
    training = Training(recipe, task, 0)
    batch = next(training.train_source.batches(None))
    training.compute(*batch)
    profiler = record(lambda: training.compute(*batch), task.device, with_flops=True)
    counted = sum(row.flops for row in profiler.key_averages() if row.key in ("aten::addmm", "aten::mm"))
    flops = training_flops(training.model, task.batch_size)
    peak = matmul_peak(task.device, torch.float32)
    rows, images_per_s, shares, calls = [], [], [], []
    sizes = [task.batch_size * factor for factor in (1, 4, 16)]
    for size in sizes:
        x = torch.randn(size, *batch[0].shape[1:], device=task.device)
        y = torch.randint(10, (size,), device=task.device)
        timing = measure(
            lambda: training.compute(x, y), task.device, budget_s=lesson.pick(full=0.3, quick=0.05), cold_cache=False
        )
        rate = training_flops(training.model, size) / timing.median_s
        images_per_s.append(size / timing.median_s)
        calls.append(len(calls_in(spans_of(record(lambda: training.compute(x, y), task.device)))))
        shares.append(rate / peak.value if peak else None)
        lesson.record("step", rate / 1e12, "TFLOP/s", timing, peak, batch_size=size)
        rows.append({"batch size": size, "calls": calls[-1], "a step": seconds_text(timing.median_s),
                     "images/s": images_per_s[-1], "products": rate_text(rate, "FLOP/s"),
                     "limit": rate_text(peak.value, "FLOP/s") if peak else "unknown",
                     "share": percent(shares[-1])})  # fmt: skip
    lesson.table(rows)
    if peak:
        lesson.note(f"The limit: {peak.source}.")
    lesson.check("the profiler counts the same operations", counted == flops, f"{counted:,}, by formula {flops:,}")
    lesson.check("16 times the images take as many calls", len(set(calls)) == 1,
                 f"{calls[0]} at {sizes[0]} and at {sizes[-1]:,}")  # fmt: skip
    lesson.shows(
        f"at a batch of {sizes[0]} the step reaches {percent(shares[0])} of the limit, at {sizes[-1]:,} "
        f"{percent(shares[-1])}, with {images_per_s[-1] / images_per_s[0]:.1f} times as many images a second: the same calls "
        "serve more images. No line of the program is at fault any "
        "more; a small network in small batches is all overhead. A larger batch is another training (learning rate, "
        "noise, number of steps), so that is no repair but a decision. torch.compile, which fuses the rest, has a script "
        "of its own: torch_compile."
    )
