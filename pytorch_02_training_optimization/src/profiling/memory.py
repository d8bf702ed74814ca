"""Memory over the time of a step: every allocation in the trace, who made it, and what is left of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pytorch_02_training_optimization.src.profiling.trace import Span, read_events, read_trace, record
from pytorch_02_training_optimization.src.profiling.training import PHASES, Recipe, Task, Training
from shared.lesson import Lesson
from shared.units import bytes_text

DEVICE_TYPES = {"cpu": 0, "cuda": 1}  # of c10/core/DeviceType.h, as a trace has them
BLOCK_BYTES = {"cpu": 1, "cuda": 512}  # the GPU's allocator rounds up to these


@dataclass(frozen=True)
class Moment:
    """So many bytes more are alive than when recording began."""

    at_us: float
    alive_bytes: int


def memory_over_time(path: Path, device_type: int) -> list[Moment]:
    """Every change of a device's memory, in order, from a trace that was recorded with profile_memory=True."""
    events = read_events(path)
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events
                     if event.get("name") == "[memory]" and event["args"]["Device Type"] == device_type)  # fmt: skip
    moments, alive = [], 0
    for at_us, change in changes:
        alive += change
        moments.append(Moment(at_us, alive))
    return moments


def alive_at(moments: Sequence[Moment], at_us: float) -> int:
    return next((moment.alive_bytes for moment in reversed(moments) if moment.at_us <= at_us), 0)


def peak_within(moments: Sequence[Moment], span: Span) -> int:
    """The most that was alive at any time of the span."""
    inside = [moment.alive_bytes for moment in moments if span.start_us <= moment.at_us <= span.end_us]
    return max([alive_at(moments, span.start_us), *inside])


def record_memory(recipe: Recipe, task: Task, seed: int) -> tuple[list[Span], list[Moment], dict[str, int], Training]:
    """Labels, memory and allocated bytes by operator of the second epoch of a training."""
    training = Training(recipe, task, seed)
    training.warm_up()
    profiler = record(training.epoch, task.device, profile_memory=True)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        labels = [span for span in read_trace(path) if span.kind == "label" and span.name in PHASES]
        moments = memory_over_time(path, DEVICE_TYPES.get(task.device.type, -1))
    is_cpu = task.device.type == "cpu"
    taken = {
        row.key: row.self_cpu_memory_usage if is_cpu else row.self_device_memory_usage
        for row in profiler.key_averages()
    }
    return labels, moments, taken, training


def show_memory(lesson: Lesson, recipes: Mapping[str, Recipe], task: Task) -> None:
    lesson.section(
        "Memory over the time of a step",
        "With profile_memory=True each allocation and each return is in the trace. By operator they say who takes; along "
        "the time axis they say when, and where the peak is that decides whether a batch fits. (memory_profiling of "
        "project 00 takes the allocator itself apart.) A training step as it was after the first fix, with batches made "
        "from bytes, and what it left:",
    )
    found = {name: record_memory(recipe, task, lesson.options.seed) for name, recipe in recipes.items()}
    name, (labels, moments, taken, training) = next(iter(found.items()))
    if not moments:
        lesson.check("the training ran while memory was asked for", len(labels) > 0, f"{len(labels)} labels")
        lesson.skip("memory over time, by phase and operator.", "a profiler that sees this device's allocations")
        lesson.shows(f"on this device the trace holds no allocations; {len(labels)} labels came through.")
        return
    step = [label for label in labels if label.end_us <= next(one for one in labels if one.name == "metrics").end_us]
    start = alive_at(moments, step[0].start_us)
    lesson.table(
        [{"phase": label.name, "peak": bytes_text(peak_within(moments, label) - start),
          "left at its end": bytes_text(alive_at(moments, label.end_us) - start)} for label in step]
    )  # fmt: skip
    largest = sorted(taken.items(), key=lambda item: -item[1])[:5]
    lesson.table([{"operator": operator, "takes, in the epoch": bytes_text(size)} for operator, size in largest])
    ends = {label.name: alive_at(moments, label.end_us) for label in step}
    gradients = sum(parameter.nbytes for parameter in training.model.parameters())
    results = task.batch_size * 10 * 4 + 4
    slack = (BLOCK_BYTES[task.device.type] - 1) * (len(list(training.model.parameters())) + 2)
    grown, given_back = ends["backward"] - ends["data"], ends["backward"] - ends["optimizer"]
    lesson.check("after backward, gradients, logits and loss are new", 0 <= grown - gradients - results <= slack,
                 f"{grown:,} B; {gradients:,} + {results:,}")  # fmt: skip
    lesson.check("optimizer and zero_grad() leave no gradient behind", 0 <= given_back - gradients <= slack,
                 f"{given_back:,} B given back")  # fmt: skip
    peaks = {
        name: max(peak_within(one, label) - alive_at(one, label.start_us) for label in some if label.name == "data")
        for name, (some, one, _, _) in found.items()
    }
    for name, peak in peaks.items():
        lesson.record("peak while a batch is made", peak, "B", data=name)
    most, least = max(peaks, key=lambda name: peaks[name]), min(peaks, key=lambda name: peaks[name])
    lesson.check("a batch made from bytes takes far more on its way", peaks[most] > 3 * peaks[least],
                 f"{bytes_text(peaks[most])}, {bytes_text(peaks[least])} where it is only picked")  # fmt: skip
    lesson.figure("memory_over_time", lambda *axes: draw_memory(axes, found), columns=len(found))
    batch = task.batch_size * 16 * 16 * 4
    peak_label = max(step, key=lambda label: peak_within(moments, label))
    lesson.shows(
        f"with batches made {most}, the peak falls into {peak_label.name}: {bytes_text(peaks[most])} for a batch of "
        f"{bytes_text(batch)}. The network's own memory, {bytes_text(grown)}, is small beside it. A memory profile often "
        "points at the same line as the clock does: what is moved costs time, and while it is moved it takes room. "
        "Picture: memory_over_time.png."
    )


def draw_memory(axes: Sequence[Any], found: Mapping[str, tuple[list[Span], list[Moment], Any, Any]]) -> None:
    top = max(moment.alive_bytes for _, moments, _, _ in found.values() for moment in moments) / 1024
    for axis, (name, (labels, moments, _, _)) in zip(axes, found.items(), strict=True):
        start = labels[0].start_us
        axis.step([(moment.at_us - start) / 1e3 for moment in moments], [moment.alive_bytes / 1024 for moment in moments],
                  where="post", marker="", linewidth=1.2)  # fmt: skip
        outer = [label for label in labels if not any(one.start_us < label.start_us < one.end_us for one in labels)]
        for place, label in enumerate(outer):
            axis.axvspan(
                (label.start_us - start) / 1e3,
                (label.end_us - start) / 1e3,
                color="#888888",
                alpha=0.18 * (place % 2),
                linewidth=0,
            )
            if label.us > 0.03 * (outer[-1].end_us - start):
                axis.text(((label.start_us + label.end_us) / 2 - start) / 1e3, top * 1.04, label.name, rotation=90, fontsize=8,
                          ha="center", va="bottom")  # fmt: skip
        axis.set(xlabel="time (ms)", ylabel="alive (KiB)", ylim=(0, top * 1.4))
        axis.set_title(f"batches made {name}", fontsize=11)
