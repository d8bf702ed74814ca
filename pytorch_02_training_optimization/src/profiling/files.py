"""What a trace is good for outside of Python: a file for a viewer, a flame graph, and what sampling sees instead."""

import re
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

from pytorch_02_training_optimization.src.profiling.trace import Span, add_up, fold, read_trace, record, spans_of
from pytorch_02_training_optimization.src.profiling.training import PHASES, Recipe, Task, Training
from shared.lesson import Lesson
from shared.units import bytes_text, percent

from torch.profiler import profile

TRACE, STACKS = "trace_before.json", "stacks_before.txt"
OWN_FOLDER = Path(__file__).resolve().parent
OWN_FUNCTION = re.compile(r"profiling[/\\](\w+)\.py\(\d+\): (\w+)")  # as the profiler names a function of this folder
THE_REST = "the loop itself"  # backward and optimizer, which are not ours
# Around everything else: the loop of the training, and who starts it.
LOOP = {"epoch", "labelled", "compute", "record", "<lambda>", "show_stacks", "collect", "__enter__", "__exit__"}


def show_trace_file(lesson: Lesson, profiler: profile, spans: Sequence[Span]) -> None:
    lesson.section(
        "The trace as a file",
        "export_chrome_trace() writes every span with its begin, its length, its thread and what was recorded of it, "
        "as JSON. In a viewer you see at a glance what no table shows: what happens at the same time, and where nothing "
        "happens. This run's file lies beside its record; the lesson reads it back.",
    )
    path = lesson.folder / TRACE
    profiler.export_chrome_trace(str(path))
    read = read_trace(path)
    size = path.stat().st_size
    lesson.items(
        {
            "to look at it": f"open https://ui.perfetto.dev (or chrome://tracing in Chrome) and drop {TRACE} on the page; it "
            "stays on your machine",
            "to move": "W and S zoom, A and D go left and right; a click on a span shows its shapes",
            "to ask": 'Perfetto answers SQL: select name, count(*), sum(dur) from slice group by name order by 3 desc',
        }
    )  # fmt: skip
    labels, kept = (Counter(span.name for span in some if span.kind == "label") for some in (spans, read))
    lesson.check("every label is in the file", labels == kept, f"{labels.total()} of them, {len(labels)} names")
    own, from_file = (add_up([span for span in some if span.kind != "runtime"]) for some in (spans, read))
    apart = max(abs(row.self_us - from_file[name].self_us) for name, row in own.items() if name in from_file)
    slack_us = 0.01 * max(row.count for row in from_file.values())  # the file has whole nanoseconds
    lesson.check("and tells the same self times", own.keys() == from_file.keys() and apart <= slack_us,
                 f"{len(own)} names, {apart:.1g} µs apart at most")  # fmt: skip
    lesson.record("trace file", size, "B", spans=len(read))
    lesson.shows(
        f"{len(read):,} spans take {bytes_text(size)}, {size / len(read):.0f} bytes each. At that rate a minute of this "
        f"training would fill {bytes_text(size * 60e6 / (spans[-1].end_us - spans[0].start_us))}: record a few steps, not "
        "a run. (A .json.gz in the name packs the file, and viewers open it as it is.)"
    )


# Stacks


def own_name(span: Span) -> str | None:
    """What a flame graph of this training shows: its functions, its labels and the operators below them."""
    if span.kind == "python":
        found = OWN_FUNCTION.search(span.name)
        return found[2] if found and found[2] not in LOOP else None
    if span.kind == "label":
        return span.name if span.name in PHASES else None
    return span.name.removeprefix("autograd::engine::evaluate_function: ")


def cut_below_operators(stacks: Mapping[tuple[str, ...], float]) -> Counter[tuple[str, ...]]:
    """Operators that an operator calls count for it: a flame graph for people, not for kernels."""
    cut: Counter[tuple[str, ...]] = Counter()
    for path, us in stacks.items():
        depth = next((i for i, name in enumerate(path) if "::" in name or "Backward" in name), len(path))
        cut[path[: depth + 1]] += us  # type: ignore[assignment]  # a Counter of µs
    return cut


def innermost(path: Sequence[str], functions: set[str]) -> str:
    return next((name for name in reversed(path) if name in functions), THE_REST)


def shares(stacks: Mapping[tuple[str, ...], float], functions: set[str]) -> Counter[str]:
    """Share of the time (or of the samples) by the innermost of these functions in each stack."""
    found: Counter[str] = Counter()
    for path, amount in stacks.items():
        found[innermost(path, functions)] += amount / sum(stacks.values())  # type: ignore[assignment]
    return found


def share_inside(stacks: Mapping[tuple[str, ...], float], name: str) -> float:
    """Share of the time (or of the samples, or of the spans) in this function, whatever it calls and whoever called it."""
    return sum(amount for path, amount in stacks.items() if name in path) / sum(stacks.values())


class Sampler:
    """Looks at the stack of the thread that made it, every few milliseconds, from a thread beside it.

    The program is not changed and pays for no call; what is seen is a sample, with a sample's error.
    """

    def __init__(self, interval_s: float = 0.002) -> None:
        self.interval_s = interval_s
        self.watched = threading.get_ident()
        self.stacks: Counter[tuple[str, ...]] = Counter()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(
            min(self._switch_s, self.interval_s / 4)
        )  # 5 ms by default: Python lets nobody in earlier
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        sys.setswitchinterval(self._switch_s)

    def _look(self) -> None:
        while not self._done.wait(self.interval_s):
            frame: FrameType | None = sys._current_frames().get(self.watched)
            path: list[str] = []
            while frame is not None:
                if Path(frame.f_code.co_filename).parent == OWN_FOLDER:
                    path.append(frame.f_code.co_name)
                frame = frame.f_back
            self.stacks[tuple(reversed(path))] += 1


def collect(training: Training, samples: int) -> Counter[tuple[str, ...]]:
    """Stacks of at least so many samples, seen while whole epochs run."""
    with Sampler() as sampler:
        while sampler.stacks.total() < samples:
            training.epoch()
    return sampler.stacks


def show_stacks(lesson: Lesson, recipe: Recipe, task: Task) -> None:
    lesson.section(
        "Which of your lines: flame graph and sampling",
        "with_stack=True records the Python functions, too. Folded up, function within function, they are a flame "
        "graph: the width of a bar is its time, and below a bar stands what called it. The other kind of profiler takes "
        "samples: it looks at the stack every few milliseconds, and counts. Both, of the same training:",
    )
    training = Training(recipe, task, lesson.options.seed)
    training.warm_up()
    spans = spans_of(record(training.epoch, task.device, with_stack=True))
    stacks = cut_below_operators(fold(spans, own_name))
    stacks = Counter({path: us for path, us in stacks.items() if path and path[0] in PHASES})
    functions = {
        match[2] for span in spans if span.kind == "python" and (match := OWN_FUNCTION.search(span.name))
    } - LOOP
    samples = collect(training, lesson.pick(full=300, quick=60))
    traced, sampled = (shares(some, functions) for some in (stacks, samples))
    lesson.table(
        [{"innermost function of ours": name, "traced": percent(traced[name]), "sampled": percent(sampled[name])}
         for name, _ in traced.most_common(9)]
    )  # fmt: skip
    (lesson.folder / STACKS).write_text(
        "".join(f"{';'.join(path)} {us:.0f}\n" for path, us in sorted(stacks.items())), encoding="utf-8"
    )
    lesson.figure("flame_graph", lambda axis: draw_flames(axis, stacks))
    by_count, by_time, by_sample = (
        share_inside(some, "batches") for some in (fold(spans, own_name, [1] * len(spans)), stacks, samples)
    )
    lesson.check("most spans of the trace lie inside batches()", by_count > 0.5,
                 f"{percent(by_count)} of {len(spans):,}")  # fmt: skip
    python = sum(span.kind == "python" for span in spans)
    made = sum(span.kind == "python" and own_name(span) == "__getitem__" for span in spans)
    images = len(task.train.labels) + len(task.test.labels)
    lesson.check("every call of a Python function is a span", made == images,
                 f"{python:,}; __getitem__ {made} times for {images} images")  # fmt: skip
    met = {name for path in samples for name in path if name.isidentifier()} - LOOP
    lesson.check("what the samples meet is in the trace, too", met <= functions, f"{len(met)} functions of ours")
    error = 2 * (by_sample * (1 - by_sample) / samples.total()) ** 0.5
    lesson.shows(
        f"batches() has {percent(by_time)} of the time by the trace and {percent(by_sample)} by the samples. A trace pays for "
        f"each of its {len(spans):,} spans, and so makes a part of many small calls look longer than it is. {samples.total()} "
        f"samples cost nothing per call; where nothing disturbs, they are right to about {percent(error)} (two standard "
        "errors). The sampler here is 30 lines; py-spy does the same from outside, on a program that already runs: "
        f"`py-spy record -o flame.svg --pid 1234`. Picture: flame_graph.png; {STACKS} opens in speedscope.app."
    )


def draw_flames(axis: Any, stacks: Mapping[tuple[str, ...], float]) -> None:
    """Each level of the stacks is a row; a bar is as wide as its time and stands on the bar that called it."""
    total = sum(stacks.values())
    widths: Counter[tuple[str, ...]] = Counter()
    for path, us in stacks.items():
        for depth in range(1, len(path) + 1):
            widths[path[:depth]] += us / total  # type: ignore[assignment]
    left: dict[tuple[str, ...], float] = {(): 0.0}
    filled: Counter[tuple[str, ...]] = Counter()
    depths = max(map(len, widths))
    shades = ["#e7eef6", "#f7e3d3", "#dcefdc", "#eee1f6", "#eeeeee"]
    for path in sorted(widths, key=lambda path: (len(path), -widths[path])):
        around = path[:-1]
        left[path] = left[around] + filled[around]
        filled[around] += widths[path]
        axis.barh(len(path) - 1, widths[path], left=left[path], height=0.95, color=shades[(len(path) + len(path[-1]) % 3) % 5],
                  edgecolor="black", linewidth=0.4)  # fmt: skip
        letters = int(widths[path] * 100)
        name = path[-1].removeprefix("aten::")
        if letters >= 3:
            shown = name if len(name) <= letters else name[: letters - 1] + "…"
            axis.text(left[path] + widths[path] / 2, len(path) - 1, shown, ha="center", va="center", fontsize=8)
    axis.set(xlabel="share of the epoch's time", ylabel="function within function", yticks=range(depths), xlim=(0, 1),
             title="Flame graph of the slow training")  # fmt: skip
    axis.grid(visible=False)
