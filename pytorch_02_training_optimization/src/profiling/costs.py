"""What it costs to be watched: time for each span while the program runs, by what is recorded."""

from typing import Any

from pytorch_02_training_optimization.src.profiling.trace import record, spans_of
from pytorch_02_training_optimization.src.profiling.training import Recipe, Task, Training
from shared.lesson import Lesson
from shared.timing import Timing, measure
from shared.traps import operations
from shared.units import percent, seconds_text

from torch.profiler import record_function

LEVELS: dict[str, dict[str, Any]] = {
    "operators": {},
    "+ shapes": {"record_shapes": True},
    "+ memory": {"profile_memory": True},
    "+ stacks": {"with_stack": True},
}


def measure_under_profiler(training: Training, options: dict[str, Any], budget_s: float) -> tuple[Timing, int]:
    """How long a step takes while it is recorded, without what the profiler does afterwards; and its spans."""
    batch = next(training.train_source.batches(None))

    def step() -> None:
        training.compute(*batch)

    spans = sum(span.kind != "runtime" for span in spans_of(record(step, training.task.device, **options)))
    timings = []
    record(lambda: timings.append(measure(step, training.task.device, budget_s=budget_s, cold_cache=False)),
           training.task.device, **options)  # fmt: skip
    return timings[0], spans


def show_costs(lesson: Lesson, slow: Recipe, task: Task) -> None:
    lesson.section(
        "What looking costs",
        "A tracing profiler stops at each call to note the time, so it slows the program down, and most where calls are "
        "many and short: the picture is bent towards them. Here is a training step (the batch is made already) with "
        "more and more recorded. What the profiler does after the last step is not in these times.",
    )
    training = Training(slow, task, lesson.options.seed)
    training.warm_up()
    budget_s = lesson.pick(full=0.1, quick=0.001)
    batch = next(training.train_source.batches(None))
    plain = measure(lambda: training.compute(*batch), task.device, budget_s=budget_s, cold_cache=False)
    rows: list[dict[str, object]] = [{"recorded": "nothing", "spans": 0, "a step, ms": plain.median_s * 1e3,
                                      "of the unwatched step": "100 %", "µs a span": None}]  # fmt: skip
    counts = {}
    for name, options in LEVELS.items():
        timing, counts[name] = measure_under_profiler(training, options, budget_s)
        lesson.record("step", timing.median_s * 1e3, "ms", timing, recorded=name, spans=counts[name])
        rows.append({"recorded": name, "spans": counts[name], "a step, ms": timing.median_s * 1e3,
                     "of the unwatched step": percent(timing.median_s / plain.median_s),
                     "µs a span": (timing.median_s - plain.median_s) * 1e6 / counts[name]})  # fmt: skip
    lesson.table(rows)

    def enter_label() -> None:
        with record_function("forward"):
            pass

    label = measure(enter_label, task.device, budget_s=0.02, cold_cache=False)
    lesson.record("label, nobody looking", label.median_s * 1e6, "µs", label)
    lesson.check("shapes and memory are notes on the same spans",
                 counts["operators"] == counts["+ shapes"] == counts["+ memory"], f"{counts['operators']:,} spans")  # fmt: skip
    lesson.check("stacks add the calls between Python functions", counts["+ stacks"] > 1.2 * counts["operators"],
                 f"{counts['+ stacks'] - counts['operators']:,} more")  # fmt: skip
    calls = operations(enter_label)
    lesson.check("a label calls operators when nobody looks, too", len(calls) >= 2,
                 f"{len(calls)} for each label, {seconds_text(label.median_s)}")  # fmt: skip
    slowdown = float(rows[1]["a step, ms"]) / float(rows[0]["a step, ms"])  # type: ignore[arg-type]
    lesson.shows(
        f"with operators alone this step took {slowdown:.1f} times as long, with stacks "
        f"{float(rows[-1]['a step, ms']) / float(rows[0]['a step, ms']):.1f} times. So take shares from a trace, never "  # type: ignore[arg-type]
        "the speed of your program, and time every fix with the profiler off. Record what you ask for and no more; "
        "labels around whole phases are cheap, labels around single images are not."
    )
