"""Why is this training slow, which line is to blame, and how do you know before you change anything?

A training that looks like many: a Dataset with transforms, a DataLoader, a loop. It is slow, and you will not guess why.
First you learn to look: a trace of one step, self time, the schedule, the file for the viewer, flame graph and sampling,
and what looking itself costs (profiling/). Then code reads the trace, names the bottleneck and what a fix can bring at
most; it is fixed, measured, profiled again, until nothing odd is left. At the end: how much faster, is the accuracy the
same, and how far is it still to the limit of this machine?

    python src/profile_and_optimize.py            about 40 seconds
    python src/profile_and_optimize.py --quick    the same path with tiny sizes, a few seconds
"""

import inspect
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.profiling.costs import show_costs
from pytorch_02_training_optimization.src.profiling.files import show_stacks, show_trace_file
from pytorch_02_training_optimization.src.profiling.looking import show_schedule, show_table, show_trace
from pytorch_02_training_optimization.src.profiling.memory import show_memory
from pytorch_02_training_optimization.src.profiling.parts import SLOW, BatchByBatch, ImagesOneByOne, MeterBySample
from pytorch_02_training_optimization.src.profiling.repairs import show_repairs
from pytorch_02_training_optimization.src.profiling.results import (
    show_before_and_after,
    show_gaps,
    show_limit,
    training_flops,
)
from pytorch_02_training_optimization.src.profiling.trace import record, spans_of, without_collector
from pytorch_02_training_optimization.src.profiling.training import Task, Training, make_task, shortened
from shared.hardware import matmul_peak
from shared.lesson import Lesson
from shared.timing import measure
from shared.units import percent, rate_text, seconds_text

import torch


def show_slow_training(lesson: Lesson, task: Task) -> None:
    lesson.section(
        "A training that is too slow",
        f"{len(task.train.labels):,} small pictures of letters, a network of three layers, batches of {task.batch_size}. "
        "The code is of the kind that one finds: nothing in it is wrong, all of it was easy to write. This is how an image "
        "is made, and how right answers are counted. Before you read on, write down what you would change first.",
    )
    lesson.drawing(textwrap.dedent(inspect.getsource(ImagesOneByOne.__getitem__)))
    lesson.drawing(textwrap.dedent(inspect.getsource(MeterBySample.add)))
    training = Training(SLOW, task, lesson.options.seed)
    results = [training.epoch() for _ in range(3)]
    timing = measure(training.epoch, task.device, budget_s=lesson.pick(full=0.6, quick=0.1))
    images_per_s = len(task.train.labels) / timing.median_s
    rate = training_flops(training.model, task.batch_size) * task.steps / timing.median_s
    peak = matmul_peak(task.device, torch.float32)
    lesson.record("epoch", timing.median_s * 1e3, "ms", timing, recipe="as it came")
    lesson.record("products", rate / 1e12, "TFLOP/s", timing, peak, recipe="as it came")
    lesson.items(
        {
            "an epoch": f"{seconds_text(timing.median_s)}, {images_per_s:,.0f} images/s",
            "loss by epoch": ", ".join(f"{result.loss:.3f}" for result in results),
            "its products": f"{rate_text(rate, 'FLOP/s')}"
            + (f", {percent(rate / peak.value)} of {rate_text(peak.value, 'FLOP/s')}" if peak else ""),
        }
    )
    lesson.check(
        "it learns", results[-1].loss < results[0].loss, f"loss {results[0].loss:.3f} to {results[-1].loss:.3f}"
    )
    share = rate / peak.value if peak else None
    lesson.check("its arithmetic is no reason for its slowness", share is None or share < 0.2,
                 f"{percent(share)} of what this device can do")  # fmt: skip
    lesson.shows(
        f"an epoch takes {seconds_text(timing.median_s)}, and the products of its network would take "
        + (f"{seconds_text(timing.median_s * share)} at the limit" if share else "far less")
        + ". A clock around the epoch says that it is slow; it does not say where. Clocks around parts would, if you knew "
        "which parts. A profiler needs no such guess."
    )


def main(argv: list[str] | None = None) -> int:
    title = "From a trace to the bottleneck to the fix, with the speed-up and the proof that nothing else changed."
    with Lesson(__file__, argv, title=title) as lesson, without_collector():
        task = make_task(
            lesson.pick(full=8192, cpu=2048, quick=128),
            lesson.pick(full=2048, cpu=512, quick=32),
            lesson.pick(full=128, cpu=64, quick=32),
            lesson.pick(full=512, cpu=64, quick=64),
            lesson.device,
        )
        seed = lesson.options.seed
        show_slow_training(lesson, task)
        few = lesson.pick(full=64, quick=16)  # images in a batch that is looked at span by span
        short, tiny = shortened(task, 2, 1, few), shortened(task, 4, 1, 8)
        training = Training(SLOW, short, seed)
        training.warm_up()
        profiler = record(training.epoch, lesson.device, record_shapes=True)
        spans = spans_of(profiler)
        show_trace(lesson, short, spans)
        show_table(lesson, profiler, spans)
        show_schedule(lesson, SLOW, tiny)
        show_trace_file(lesson, profiler, spans)
        show_stacks(lesson, SLOW, short)
        show_costs(lesson, SLOW, tiny)
        rounds = show_repairs(lesson, shortened(task, lesson.pick(full=4, quick=2), 1, few))
        final = rounds[-1].recipe
        eager = replace(final, captures=False)
        recipes = {"from bytes": replace(eager, source=BatchByBatch), "by picking": eager}
        show_memory(lesson, recipes, shortened(task, 1, 1))
        before, after = show_before_and_after(lesson, task, final)
        show_gaps(lesson, task, final, before, after)
        show_limit(lesson, task, final)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
