"""Reading a trace: one step on a time axis, the table of operators, and which steps to record."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pytorch_02_training_optimization.src.profiling.diagnosis import phases_of
from pytorch_02_training_optimization.src.profiling.trace import (
    BACKWARD,
    Span,
    add_up,
    read_trace,
    record,
    spans_of,
    within,
)
from pytorch_02_training_optimization.src.profiling.training import PHASES, Recipe, Task, Training
from shared.lesson import Lesson
from shared.units import percent

from torch.profiler import ProfilerAction, ProfilerActivity, profile, schedule

WIDTH = 64  # characters of the drawn time axis
CALLS = ("operator", "backward")  # kinds of spans in which PyTorch computes


def first_step(spans: Sequence[Span]) -> Span:
    """From the first batch being made to the second."""
    starts = [span.start_us for span in spans if span.kind == "label" and span.name == "data"]
    return Span("step", starts[0], starts[1], "label")


def draw_step(spans: Sequence[Span], step: Span) -> str:
    """A line for each phase of a training step; a block is drawn where the phase ran for at least half of its time."""
    lines = []
    cell_us = step.us / WIDTH
    for name in PHASES:
        inside = [span for span in within(spans, step) if span.kind == "label" and span.name == name]
        if not inside:
            continue
        axis = ""
        for cell in range(WIDTH):
            left = step.start_us + cell * cell_us
            busy_us = sum(max(0.0, min(span.end_us, left + cell_us) - max(span.start_us, left)) for span in inside)
            axis += "█" if busy_us >= cell_us / 2 else "·" if busy_us else " "
        lines.append(f"{name:<10}│{axis}│{sum(span.us for span in inside) / 1e3:7.2f} ms")
    return "\n".join([*lines, f"{'':10} 0{f'{step.us / 1e3:.1f} ms':>{WIDTH - 1}}"])


def calls_of_a_step(spans: Sequence[Span]) -> list[Counter[str]]:
    """For each training step its operators and labels from forward to metrics, in order of the steps."""
    starts = [span for span in spans if span.kind == "label" and span.name == "forward"]
    ends = [span for span in spans if span.kind == "label" and span.name == "metrics"]
    return [
        Counter(span.name for span in within(spans, Span("step", start.start_us, end.end_us)) if span.kind != "runtime")
        for start, end in zip(starts, ends, strict=True)
    ]


def show_trace(lesson: Lesson, task: Task, spans: Sequence[Span]) -> None:
    lesson.section(
        "One step as a trace",
        "A profiler writes down when each operator began and ended. Thousands of them tell nobody anything, so name "
        'the parts of your step: `with record_function("forward"):` puts a label of yours into the trace. Six labels '
        f"and one step of {task.batch_size} images:",
    )
    step = first_step(spans)
    lesson.drawing(draw_step(spans, step))
    inside = list(within(spans, step))
    operators = [span for span in inside if span.kind in CALLS]
    labels = [span for span in inside if span.kind == "label" and span.name in PHASES]
    calls = {name: phase.calls.total() for name, phase in phases_of(inside).items()}
    rows = [{"label": label.name, "ms": label.us / 1e3, "of the step": percent(label.us / step.us),
             "operators": sum(span.kind in CALLS for span in within(inside, label)),
             "called by your code": calls[label.name]} for label in labels]  # fmt: skip
    lesson.table(rows)
    labelled = sum(int(str(row["operators"])) for row in rows)
    lesson.check("every operator of the step lies in one of the labels", labelled == len(operators),
                 f"{labelled:,} of {len(operators):,}")  # fmt: skip
    steps = calls_of_a_step(spans)
    lesson.check("every step makes the same calls", all(step == steps[0] for step in steps),
                 f"{steps[0].total():,} from forward to metrics, in {len(steps)} steps")  # fmt: skip
    lesson.check("most calls of a step make its data", 2 * calls["data"] > sum(calls.values()),
                 f"{calls['data']:,} of your calls, {calls['data'] / task.batch_size:.0f} for each image")  # fmt: skip
    lesson.record("step, profiled", step.us / 1e3, "ms", batch_size=task.batch_size)
    longest = max(labels, key=lambda label: label.us)
    network_us = sum(label.us for label in labels if label.name in ("forward", "backward"))
    lesson.shows(
        f"{percent(longest.us / step.us)} of this step is {longest.name}, and {percent(network_us / step.us)} is the network, "
        f"forwards and backwards. {len(operators):,} operators ran for {task.batch_size} images. You called "
        f"{sum(calls.values()):,} of them; the others are called by those."
    )


def shortened_name(name: str) -> str:
    """Names of backward steps without what all have in common, and any name to 36 characters."""
    name = name.removeprefix(BACKWARD)
    return name if len(name) <= 36 else f"{name[:22]}…{name[-13:]}"


def add_totals(profiler: profile) -> float:
    """The mistake: a total holds everything inside, so inner operators count again for each one around them."""
    return sum(float(row.cpu_time_total) for row in profiler.key_averages())


def add_self_times(profiler: profile) -> float:
    """Right: self time is what no inner operator accounts for, so each moment counts once."""
    return sum(float(row.self_cpu_time_total) for row in profiler.key_averages())


def show_table(lesson: Lesson, profiler: profile, spans: Sequence[Span]) -> None:
    lesson.section(
        "Self time and total time",
        "key_averages() adds up all spans of one name. Total is from begin to end; self leaves out what other spans "
        "inside account for. Sort by self: it says where the time is spent, while a total says on whose behalf. The "
        "lesson adds up by itself, from the bare spans, and compares. (DataLoader and optimizers bring labels of their own, "
        "with a # in the name.)",
    )
    own = add_up(spans)
    by_self = sorted(own.values(), key=lambda row: -row.self_us)
    whole_us = sum(row.self_us for row in own.values())
    lesson.table(
        [{"name": shortened_name(row.name), "calls": row.count, "self, ms": row.self_us / 1e3,
          "of all": percent(row.self_us / whole_us), "total, ms": row.total_us / 1e3,
          "µs a call": row.total_us / row.count} for row in by_self[:8]]
    )  # fmt: skip
    library = {row.key: row for row in profiler.key_averages() if row.device_type.name == "CPU"}
    apart = max(abs(row.self_us - library[name].self_cpu_time_total) for name, row in own.items())
    lesson.check("our sums are key_averages(), name by name",
                 apart < 1 and all(row.count == library[name].count for name, row in own.items()),
                 f"{len(own)} names, {apart:.1g} µs apart at most")  # fmt: skip
    totals_us, selves_us = add_totals(profiler), add_self_times(profiler)
    lesson.check("added up, totals count the same time again", totals_us > selves_us,
                 f"{totals_us / 1e3:.1f} ms in a recording of {selves_us / 1e3:.1f} ms")  # fmt: skip
    shapes = [row for row in profiler.key_averages(group_by_input_shape=True) if row.key == "aten::linear"]
    lesson.text("One name may hide several jobs. key_averages(group_by_input_shape=True) keeps them apart; it needs "
                "record_shapes=True. The layers of the network, by input and weight:")  # fmt: skip
    shapes.sort(key=lambda row: -row.cpu_time_total)
    lesson.table([{"operator": row.key, "input": str(row.input_shapes[0]), "weight": str(row.input_shapes[1]),
                   "calls": row.count, "µs a call": row.cpu_time_total / row.count} for row in shapes])  # fmt: skip
    lesson.check("three layers are three rows of one name", len(shapes) == 3 and len({row.count for row in shapes}) == 1,
                 f"{shapes[0].count} calls each")  # fmt: skip
    labels = {span.name for span in spans if span.kind == "label"}
    operators = [row for row in by_self if row.name.startswith("aten::")]
    outside_us = sum(row.self_us for row in by_self if row.name in labels)
    lesson.shows(
        f"no operator stands out: {operators[0].name} leads with {percent(operators[0].self_us / whole_us)}, and there are "
        f"{sum(row.count for row in operators):,} calls of {len(operators)} operators. What labels keep for themselves, "
        f"{percent(outside_us / whole_us)} of the time, passed outside of every operator: Python, between the calls. A "
        "program like this is not cured by a faster operator, only by fewer calls."
    )


def profile_the_first_step(training: Training) -> Counter[str]:
    """The mistake: what the first step does, it does once. Returns its operators."""
    return _operators_of_a_step(training)


def profile_a_later_step(training: Training) -> Counter[str]:
    """Right: some steps go by before one is recorded."""
    for x, y in itertools.islice(training.train_source.batches(None), 3):
        training.compute(x, y)
    return _operators_of_a_step(training)


def _operators_of_a_step(training: Training) -> Counter[str]:
    batch = next(training.train_source.batches(None))
    spans = spans_of(record(lambda: training.compute(*batch), training.task.device))
    return Counter(span.name for span in spans if span.kind == "operator")


def recorded_steps(training: Training, plan: Callable[[int], ProfilerAction], steps: int) -> list[list[int]]:
    """The numbers of the steps in each trace that the profiler hands over, as the trace files tell."""
    cycles: list[list[int]] = []
    batches = itertools.cycle(list(training.train_source.batches(None)))
    with TemporaryDirectory() as folder:

        def keep(profiler: profile) -> None:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            numbers = (span.name.partition("ProfilerStep#")[2] for span in read_trace(path))
            cycles.append(sorted(int(number) for number in numbers if number))

        activities = [ProfilerActivity.CPU]
        with profile(activities=activities, schedule=plan, on_trace_ready=keep, acc_events=True) as profiler:
            for x, y in itertools.islice(batches, steps):
                training.compute(x, y)
                profiler.step()  # tells the profiler that a step has ended
    return cycles


def show_schedule(lesson: Lesson, recipe: Recipe, task: Task) -> None:
    lesson.section(
        "Which steps to record",
        "The first steps of a program load libraries, allocate memory and make the optimizer's state; they say nothing "
        "about the thousands that follow. And a trace of an hour fits into no viewer. A schedule picks: wait (the "
        "profiler is off), warmup (it runs, and what it writes is thrown away), active (recorded), and so on again.",
    )
    seed, steps = lesson.options.seed, 12
    plan = schedule(wait=2, warmup=1, active=2, repeat=2)
    signs = {ProfilerAction.NONE: "·", ProfilerAction.WARMUP: "w", ProfilerAction.RECORD: "R",
             ProfilerAction.RECORD_AND_SAVE: "R!"}  # fmt: skip
    lesson.drawing(
        "schedule(wait=2, warmup=1, active=2, repeat=2)\n"
        + "step     " + "".join(f"{step:>4}" for step in range(steps)) + "\n"
        + "profiler " + "".join(f"{signs[plan(step)]:>4}" for step in range(steps)) + "\n"
        + "· off   w warm-up   R recorded   R! recorded, then on_trace_ready is called"
    )  # fmt: skip
    cycles = recorded_steps(Training(recipe, task, seed), plan, steps)
    planned = [step for step in range(steps) if signs[plan(step)].startswith("R")]
    lesson.check("the trace files hold the planned steps", [step for cycle in cycles for step in cycle] == planned,
                 f"of {steps} steps: " + " and ".join(str(cycle) for cycle in cycles))  # fmt: skip
    first = profile_the_first_step(Training(recipe, task, seed))
    later = profile_a_later_step(Training(recipe, task, seed))
    extra = first - later
    lesson.check("the first step does more than a later one", extra.total() > 0 and not later - first,
                 f"{first.total():,} operators, later {later.total():,}")  # fmt: skip
    name, count = max(extra.items(), key=lambda item: item[1])
    lesson.shows(
        f"{len(planned)} of {steps} steps are in the files, in {len(cycles)} traces. Had you profiled the first step, "
        f"{extra.total()} operators that never come again would stand in your table, {count} of them {name}: the "
        "optimizer makes its state. The number of a step is the one that profiler.step() has counted."
    )
