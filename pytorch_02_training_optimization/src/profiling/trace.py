"""A recorded trace as plain data: spans of time, which of them lies in which, and how much of each is its own."""

import gc
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.device import synchronize

import torch
from torch.profiler import ProfilerActivity, profile, supported_activities

Kind = Literal["operator", "label", "backward", "python", "runtime"]
BACKWARD = "autograd::engine::evaluate_function: "
# Of torch/csrc/autograd/record_function: what record_function opens, and a node of the backward pass.
USER_SCOPE, BACKWARD_SCOPE = 7, 1
OF_THE_RUNTIME = re.compile(r"(cuda|cu|hip)?[A-Z][\w ]*$")  # cudaLaunchKernel, Activity Buffer Request


@dataclass(frozen=True)
class Span:
    """Something that began and ended: a label of yours, an operator, a step of the backward pass, a Python function,
    or a call to the GPU's runtime, such as the launch of a kernel.

    `sequence` counts the nodes that autograd made in the forward pass, -1 where it did not watch; a step of the
    backward pass has the number of the node that it belongs to.
    """

    name: str
    start_us: float
    end_us: float
    kind: Kind = "operator"
    sequence: int = -1
    shapes: tuple[tuple[int, ...], ...] = ()  # of the inputs that are tensors
    thread: int = 0

    @property
    def us(self) -> float:
        return self.end_us - self.start_us


def record(function: Callable[[], object], device: torch.device, **options: Any) -> profile:
    """Runs `function` under torch.profiler, on `device` too; `options` are the profiler's."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library reports a missing GPU as an error
    activities = {ProfilerActivity.CPU, ProfilerActivity.CUDA} if device.type == "cuda" else {ProfilerActivity.CPU}
    # acc_events: keep what every cycle recorded; without it 2.11 to 2.15 warn that it will be cleared.
    with profile(activities=activities & supported_activities(), acc_events=True, **options) as profiler:
        function()
        synchronize(device)
    return profiler


@contextmanager
def without_collector() -> Iterator[None]:
    """A trace is tens of thousands of objects, and Python's garbage collector would go through all of them again and
    again, in the middle of what is measured; timeit turns it off, too.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def spans_of(profiler: profile) -> list[Span]:
    """What happened on the CPU, in order of time; a span comes before those that lie in it."""
    return in_order(
        Span(event.name, event.time_range.start, event.time_range.end, _kind(event.name, event.scope),
             event.sequence_nr, _shapes(event.input_shapes), event.thread)
        for event in profiler.events()
        if event.device_type.name == "CPU" and not event.is_async and event.name != "[memory]"
    )  # fmt: skip


def read_events(path: Path) -> list[dict[str, Any]]:
    """All entries of a trace file, as they stand there."""
    events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return events


def read_trace(path: Path) -> list[Span]:
    """The same from a file that export_chrome_trace wrote; its times are µs since another beginning."""
    events = read_events(path)
    kinds: dict[str, Kind] = {"cpu_op": "operator", "user_annotation": "label", "python_function": "python",
                              "cuda_runtime": "runtime", "cuda_driver": "runtime"}  # fmt: skip
    return in_order(
        Span(event["name"], event["ts"], event["ts"] + event["dur"],
             "backward" if event["name"].startswith(BACKWARD) else kinds[event["cat"]],
             event["args"].get("Sequence number", -1), _shapes(event["args"].get("Input Dims")), event["tid"])
        for event in events
        if event.get("ph") == "X" and event.get("cat") in kinds
    )  # fmt: skip


def _kind(name: str, scope: int) -> Kind:
    if name.startswith(BACKWARD) or scope == BACKWARD_SCOPE:
        return "backward"
    if scope == USER_SCOPE:
        return "label"
    if "(" in name or name.startswith(("<built-in", "nn.Module: ")):
        return "python"
    return "runtime" if OF_THE_RUNTIME.match(name) else "operator"


def _shapes(dims: Sequence[Any] | None) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(dim) for dim in dims or () if dim and all(isinstance(size, int) for size in dim))


def in_order(spans: Iterable[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: (span.thread, span.start_us, -span.end_us))


def parents(spans: Sequence[Span]) -> list[int | None]:
    """For each span the index of the innermost one around it; `spans` in order."""
    found: list[int | None] = []
    open_spans: list[int] = []
    for span in spans:
        while open_spans and not _holds(spans[open_spans[-1]], span):
            open_spans.pop()
        found.append(open_spans[-1] if open_spans else None)
        open_spans.append(len(found) - 1)
    return found


def _holds(outer: Span, inner: Span) -> bool:
    return outer.thread == inner.thread and inner.start_us < outer.end_us and inner.end_us <= outer.end_us


def self_times(spans: Sequence[Span]) -> list[float]:
    """The µs of each span that no span inside it accounts for."""
    own = [span.us for span in spans]
    for index, parent in enumerate(parents(spans)):
        if parent is not None:
            own[parent] -= spans[index].us
    return own


@dataclass
class Row:
    """What key_averages adds up under one name."""

    name: str
    count: int = 0
    self_us: float = 0.0
    total_us: float = 0.0


def add_up(spans: Sequence[Span], key: Callable[[Span], str] = lambda span: span.name) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for span, own_us in zip(spans, self_times(spans), strict=True):
        row = rows.setdefault(key(span), Row(key(span)))
        row.count += 1
        row.self_us += own_us
        row.total_us += span.us
    return rows


def fold(
    spans: Sequence[Span], name: Callable[[Span], str | None], amounts: Sequence[float] | None = None
) -> Counter[tuple[str, ...]]:
    """Stack → µs spent at its top, or the sum of other `amounts` of the spans.

    Spans that `name` answers None for count for the span around them. Written as `a;b;c 12`, one stack a line, this is
    what flame-graph viewers read.
    """
    paths: list[tuple[str, ...]] = []
    stacks: Counter[tuple[str, ...]] = Counter()
    for span, parent, amount in zip(spans, parents(spans), amounts or self_times(spans), strict=True):
        around = () if parent is None else paths[parent]
        shown = name(span)
        paths.append(around if shown is None else (*around, shown))
        stacks[paths[-1]] += amount  # type: ignore[assignment]  # a Counter of µs
    return stacks


def within(spans: Sequence[Span], outer: Span) -> Iterator[Span]:
    """The spans that lie in `outer`, on any thread, without itself."""
    return (span for span in spans if outer.start_us <= span.start_us and span.end_us <= outer.end_us and span != outer)


def device_spans(path: Path) -> list[Span]:
    """What a GPU did, from a trace file: kernels, copies and fills, in order of their start."""
    busy = ("kernel", "gpu_memcpy", "gpu_memset")
    return sorted(
        (
            Span(event["name"], event["ts"], event["ts"] + event["dur"])
            for event in read_events(path)
            if event.get("cat") in busy
        ),
        key=lambda span: span.start_us,
    )


def union_us(spans: Iterable[Span]) -> float:
    """How long at least one of the spans was running."""
    total, end = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start_us):
        total += max(0.0, span.end_us - max(end, span.start_us))
        end = max(end, span.end_us)
    return total
