"""profile_and_optimize: the whole lesson runs and all its checks hold; what it reads from a trace agrees with oracles."""

import gc
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src import profile_and_optimize
from pytorch_02_training_optimization.src.profiling import (
    diagnosis,
    files,
    looking,
    memory,
    parts,
    repairs,
    results,
    trace,
    training,
)
from pytorch_02_training_optimization.src.profiling.parts import SLOW
from pytorch_02_training_optimization.src.profiling.trace import Span
from pytorch_02_training_optimization.src.profiling.training import SIDE, Recipe, Split, Task, Training
from shared.dispatch import Watcher, name_of
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerAction, record_function, schedule

SECTIONS = [
    "A training that is too slow",
    "One step as a trace",
    "Self time and total time",
    "Which steps to record",
    "The trace as a file",
    "Which of your lines: flame graph and sampling",
    "What looking costs",
    "From profile to fix, again and again",
    "Memory over the time of a step",
    "Before and after",
    "What happens between the calls",
    "What is left: the share of the peak",
]
PICTURES = ["flame_graph.png", "fix_by_fix.png", "memory_over_time.png", "before_and_after.png"]
CPU = torch.device("cpu")
FAST = Recipe(
    source=parts.PreparedOnce,
    forward=parts.forward,
    loss=F.cross_entropy,
    make_optimizer=parts.optimizer_fused,
    meter=parts.MeterOnDevice,
    validate=parts.validate,
)

run = partial(run_quick, profile_and_optimize)


def noise_task(steps: int = 2, batch_size: int = 12, device: torch.device = CPU) -> Task:
    """A task of random bytes, with as many test batches as training batches."""
    generator = torch.Generator().manual_seed(0)

    def split() -> Split:
        images = torch.randint(256, (steps * batch_size, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(10, (steps * batch_size,), generator=generator))

    return Task(split(), split(), batch_size, width=16, device=device)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("profile_and_optimize")
    return *run(folder), folder / "profile_and_optimize"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=27)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    expect_pictures(record, folder, PICTURES)
    names = {measurement["name"] for measurement in record["measurements"]}
    assert {"epoch", "training images", "step", "trace file", "peak while a batch is made"} <= names
    assert all(measurement["value"] > 0 for measurement in record["measurements"])


def test_the_files_for_other_viewers_are_whole(lesson: tuple[dict[str, Any], str, Path]) -> None:
    _, _, folder = lesson
    for name in ("trace_before.json", "trace_after.json"):
        labels = {span.name for span in trace.read_trace(folder / name) if span.kind == "label"}
        assert {"data", "forward", "backward", "optimizer", "validation"} <= labels
    for line in (folder / "stacks_before.txt").read_text(encoding="utf-8").splitlines():
        path, _, us = line.rpartition(" ")
        assert path
        assert int(us) >= 0


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(profile_and_optimize, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_on_a_gpu_the_gaps_are_found_and_a_graph_closes_them(tmp_path: Path) -> None:
    record, text = run(tmp_path, "--device", "cuda", "--no-plots")
    claims = {check["claim"] for check in record["checks"]}
    assert "each captured step is one launch" in claims
    assert "the repaired epoch is at least 5 times as fast" in claims
    assert "a CUDA graph" in text


# Spans


def nested_spans(seed: int) -> list[Span]:
    """Spans of two threads, each in or beside the others, as a program makes them; times are whole numbers."""
    generator = random.Random(seed)
    spans: list[Span] = []

    def grow(start: int, end: int, thread: int, depth: int) -> None:
        at = start
        while at < end - 1 and depth < 5:
            left = generator.randint(at, end - 1)
            right = generator.randint(left + 1, end)
            spans.append(Span(generator.choice("abc"), left, right, thread=thread))
            grow(left, right, thread, depth + 1)
            at = right

    for thread in range(2):
        grow(0, 60, thread, 0)
    return trace.in_order(spans)


def holds(outer: Span, inner: Span) -> bool:
    return outer.thread == inner.thread and outer.start_us <= inner.start_us and inner.end_us <= outer.end_us


@pytest.mark.parametrize("seed", range(8))
def test_parents_are_the_innermost_spans_around(seed: int) -> None:
    spans = nested_spans(seed)
    for index, parent in enumerate(trace.parents(spans)):
        around = [one for one in range(index) if holds(spans[one], spans[index])]
        assert parent == (around[-1] if around else None)


@pytest.mark.parametrize("seed", range(8))
def test_self_times_give_each_moment_to_one_span(seed: int) -> None:
    spans = nested_spans(seed)
    own = [0] * len(spans)
    for thread in range(2):
        for moment in range(60):
            inside = [index for index, span in enumerate(spans)
                      if span.thread == thread and span.start_us <= moment < span.end_us]  # fmt: skip
            if inside:
                own[inside[-1]] += 1
    assert trace.self_times(spans) == own
    rows = trace.add_up(spans)
    assert sum(row.self_us for row in rows.values()) == sum(own)
    for name, row in rows.items():
        named = [span for span in spans if span.name == name]
        assert (row.count, row.total_us) == (len(named), sum(span.us for span in named))


@pytest.mark.parametrize("seed", range(8))
def test_the_union_counts_a_moment_once(seed: int) -> None:
    spans = nested_spans(seed)
    busy = sum(any(span.start_us <= moment < span.end_us for span in spans) for moment in range(60))
    assert trace.union_us(spans) == busy
    assert trace.union_us([]) == 0


def test_folded_stacks() -> None:
    spans = [Span("epoch", 0, 10), Span("unnamed", 1, 9), Span("add", 2, 5), Span("add", 6, 7)]

    def name(span: Span) -> str | None:
        return None if span.name == "unnamed" else span.name

    assert trace.fold(spans, name) == {("epoch",): 6, ("epoch", "add"): 4}
    assert trace.fold(spans, name, [1, 1, 1, 1]) == {("epoch",): 2, ("epoch", "add"): 2}


@pytest.mark.parametrize(
    ("name", "scope", "kind"),
    [
        ("aten::add", 0, "operator"),
        ("detach", 0, "operator"),
        ("cudaLaunchKernel", 0, "runtime"),
        ("cuLaunchKernelEx", 0, "runtime"),
        ("Activity Buffer Request", 0, "runtime"),
        ("forward", trace.USER_SCOPE, "label"),
        ("Optimizer.step#AdamW.step", trace.USER_SCOPE, "label"),
        ("AddmmBackward0", trace.BACKWARD_SCOPE, "backward"),
        ("autograd::engine::evaluate_function: AddmmBackward0", 0, "backward"),
        ("<built-in method relu of type object at 0x7f>", 0, "python"),
        ("parts.py(30): halve", 0, "python"),
        ("nn.Module: Linear_0", 0, "python"),
    ],
)
def test_kinds_of_spans(name: str, scope: int, kind: str) -> None:
    assert trace._kind(name, scope) == kind


def compute_something() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    with record_function("forward"):
        y = (x @ torch.randn(4, 2)).relu().sum()
    with record_function("backward"):
        y.backward()


def test_a_recording_and_its_file_tell_the_same(tmp_path: Path) -> None:
    profiler = trace.record(compute_something, CPU, record_shapes=True)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    recorded, read = trace.spans_of(profiler), trace.read_trace(tmp_path / "trace.json")
    for spans in (recorded, read):
        assert [span.name for span in spans if span.kind == "label"] == ["forward", "backward"]
        product = next(span for span in spans if span.name == "aten::matmul")
        assert product.shapes == ((3, 4), (4, 2))
        assert any(span.kind == "backward" for span in spans)
    own, from_file = trace.add_up(recorded), trace.add_up(read)
    assert own.keys() == from_file.keys()
    assert all(own[name].self_us == pytest.approx(from_file[name].self_us, abs=0.1) for name in own)
    label = next(span for span in recorded if span.name == "forward")
    inside = {span.name for span in trace.within(recorded, label)}
    assert {"aten::relu", "aten::sum"} <= inside
    assert "forward" not in inside


def test_the_gpus_side_of_a_trace(tmp_path: Path) -> None:
    events = [
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 5.0, "dur": 2.0},
        {"ph": "X", "cat": "gpu_memcpy", "name": "copy", "ts": 1.0, "dur": 1.0},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 0.0, "dur": 1.0},
        {"ph": "i", "name": "mark", "ts": 0.0},
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
    spans = trace.device_spans(path)
    assert [(span.name, span.us) for span in spans] == [("copy", 1.0), ("gemm", 2.0)]


def test_the_collector_comes_back_even_after_an_error() -> None:
    inside = []

    def fail() -> None:
        with trace.without_collector():
            inside.append(gc.isenabled())
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert [*inside, gc.isenabled()] == [False, True]


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with trace.without_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


# The parts: what is fast computes what is slow computes


@pytest.mark.parametrize("source", [parts.BatchByBatch, parts.PreparedOnce])
@pytest.mark.parametrize("seed", [None, 0, 7])
def test_all_sources_make_the_same_batches(source: type[training.Source], seed: int | None) -> None:
    task = noise_task(steps=3)

    def batches(kind: type[training.Source]) -> list[training.Batch]:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        made = kind(task.train, task.batch_size, CPU)
        return [*made.batches(generator), *made.batches(generator)]  # a second epoch draws on

    for (x, y), (right_x, right_y) in zip(batches(source), batches(parts.SampleBySample), strict=True):
        assert x.shape == (task.batch_size, SIDE, SIDE)
        torch.testing.assert_close(x, right_x)
        assert torch.equal(y, right_y)


def test_shifts_are_rolls() -> None:
    x = torch.randn(SIDE, SIDE)
    sources = parts.shift_sources(CPU)
    assert sources.shape == (parts.SHIFTS**2, SIDE**2)
    rolls = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    for source, roll in zip(sources, rolls, strict=True):
        assert torch.equal(x.flatten()[source].view(SIDE, SIDE), torch.roll(x, roll, (0, 1)))


def test_transforms_agree_with_the_library() -> None:
    x = torch.rand(5, 3, 32, 32)
    torch.testing.assert_close(parts.halve(x), F.avg_pool2d(x, 2))
    torch.testing.assert_close(parts.to_grey(x), torch.einsum("bchw,c->bhw", x, torch.tensor(parts.GREY)))
    stretched = parts.stretch_contrast(x)
    torch.testing.assert_close(stretched.mean((-1, -2)), torch.zeros(5, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(stretched.std((-1, -2)), torch.ones(5, 3), atol=0.01, rtol=0)
    assert parts.stretch_contrast(torch.ones(4, 4)).abs().max() == 0  # no division by nothing
    assert parts.scale(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0, 1]


@pytest.mark.parametrize("size", [0.1, 10.0, 100.0])
def test_the_loss_by_hand_is_cross_entropy(size: float) -> None:
    logits = (torch.randn(7, 10, dtype=torch.float64) * size).requires_grad_()
    y = torch.randint(10, (7,))
    own, library = parts.loss_by_hand(logits, y), F.cross_entropy(logits, y)
    torch.testing.assert_close(own, library, atol=1e-6, rtol=1e-6)  # its one-hot is float32, by the way
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (own, library)))


def test_both_optimizers_go_the_same_way() -> None:
    task = noise_task()
    models = []
    for make in (parts.optimizer_one_by_one, parts.optimizer_fused):
        torch.manual_seed(0)
        model = training.make_model(task)
        optimizer = make(model)
        for _ in range(4):
            F.cross_entropy(model(torch.ones(3, SIDE, SIDE)), torch.tensor([1, 2, 3])).backward()
            optimizer.step()
            optimizer.zero_grad()
        models.append(model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [parts.MeterBySample, parts.MeterByBatch, parts.MeterOnDevice])
def test_meters_count_right_answers_and_begin_again(kind: type[training.Meter]) -> None:
    meter = kind(CPU)
    for _ in range(2):
        meter.add(torch.eye(4), torch.tensor([0, 1, 0, 3]), torch.tensor(2.0))
        meter.add(torch.eye(4), torch.tensor([0, 0, 0, 0]), torch.tensor(4.0))
        assert meter.read(2, 8) == (3.0, 0.5)


def test_validation_counts_the_same_with_and_without_graphs() -> None:
    task = noise_task()
    model = training.make_model(task)
    source = parts.PreparedOnce(task.test, task.batch_size, CPU)
    slow, fast = (function(model, source.batches(None)) for function in (parts.validate_with_graphs, parts.validate))
    brute = sum(int(model(x[None]).argmax()) == int(y) for x, y in zip(source.pixels, source.labels, strict=True))
    assert slow == int(fast) == brute


def test_the_same_seed_trains_every_recipe_alike() -> None:
    task = noise_task(steps=3)
    runs = [Training(recipe, task, 3) for recipe in (SLOW, FAST)]
    for _ in range(2):
        slow, fast = (one.epoch() for one in runs)
        assert slow.loss == pytest.approx(fast.loss, rel=1e-5)
        assert (slow.train_accuracy, slow.test_accuracy) == (fast.train_accuracy, fast.test_accuracy)


def test_a_short_task_is_the_beginning_of_the_long_one() -> None:
    task = noise_task(steps=4, batch_size=6)
    short = training.shortened(task, 3, 1, 2)
    assert (short.steps, len(short.test.labels), short.batch_size, short.width) == (3, 2, 2, task.width)
    assert torch.equal(short.train.images, task.train.images[:6])


# Diagnosis

SLOW_PARTS: dict[tuple[str, str], dict[str, Any]] = {
    ("data", "a call per image"): {"source": parts.SampleBySample},
    ("data", "the same work every epoch"): {"source": parts.BatchByBatch},
    ("forward", "copies"): {"forward": parts.forward_with_copies},
    ("loss", "many small calls"): {"loss": parts.loss_by_hand},
    ("optimizer", "many small calls"): {"make_optimizer": parts.optimizer_one_by_one},
    ("metrics", "a call per image"): {"meter": parts.MeterBySample},
    ("metrics", "waiting for a number"): {"meter": parts.MeterByBatch},
    ("validation", "a graph for nothing"): {"validate": parts.validate_with_graphs},
}


def find(recipe: Recipe) -> set[tuple[str, str]]:
    with trace.without_collector():
        return {
            (finding.phase, finding.symptom)
            for finding in repairs.examine(recipe, noise_task(batch_size=16), 0).findings
        }


@pytest.mark.parametrize("fault", SLOW_PARTS)
def test_one_slow_part_is_found_and_nothing_else(fault: tuple[str, str]) -> None:
    assert find(replace(FAST, **SLOW_PARTS[fault])) == {fault}


def test_a_training_without_fault_has_no_finding() -> None:
    assert find(FAST) == set()


def test_every_symptom_has_a_repair_that_changes_its_part() -> None:
    assert {fault for fault in repairs.REPAIRS if fault[1] != repairs.GAPS} == SLOW_PARTS.keys()
    for fault, slow in SLOW_PARTS.items():
        changes = repairs.REPAIRS[fault].changes
        assert changes.keys() == slow.keys()
        assert changes != slow


def test_amdahls_bound() -> None:
    for share, bound in ((0.0, 1.0), (0.5, 2.0), (0.75, 4.0)):
        assert diagnosis.Finding("data", "slow", "", share).bound == bound


def test_a_phase_that_was_interrupted_counts_as_usual() -> None:
    assert diagnosis.Phase("data", [10, 11, 12]).us == 33
    assert diagnosis.Phase("data", [10, 11, 12, 5000]).us == 44
    assert diagnosis.Phase("data").us == 0


def test_phases_know_who_called() -> None:
    spans = trace.in_order(
        [
            Span("validation", 0, 100, "label"),
            Span("data", 10, 40, "label"),
            Span("enumerate(DataLoader)#x", 11, 39, "label"),
            Span("aten::stack", 12, 20, shapes=((2, 3), (4,))),
            Span("aten::cat", 13, 19, shapes=((50, 50),)),
            Span("aten::index", 21, 22, shapes=((9, 9),)),
            Span("aten::mm", 50, 60, sequence=7),
            Span("aten::add", 70, 80, sequence=8),
            Span("AddBackward0", 90, 91, "backward", sequence=8),
        ]
    )
    phases = diagnosis.phases_of(spans)
    assert phases["data"].calls == {"aten::stack": 1, "aten::index": 1}
    assert phases["data"].numbers_read == 6
    assert phases["validation"].calls == {"aten::mm": 1, "aten::add": 1}
    assert phases["validation"].graph_nodes == {7}
    assert (phases["data"].us, phases["validation"].us) == (30, 70)


# Looking


def test_a_step_is_drawn_to_scale() -> None:
    spans = [Span("data", 0, 750, "label"), Span("forward", 750, 1000, "label")]
    first, second, axis = looking.draw_step(spans, Span("step", 0, 1000, "label")).splitlines()
    assert first.partition("│")[2].startswith("█" * 48 + " " * 16 + "│")
    assert second.partition("│")[2].startswith(" " * 48 + "█" * 16 + "│")
    assert axis.endswith("1.0 ms")


@pytest.mark.parametrize("options", [{"wait": 1, "warmup": 1, "active": 1, "repeat": 2},
                                     {"skip_first": 2, "wait": 0, "warmup": 1, "active": 3, "repeat": 1}])  # fmt: skip
def test_recorded_steps_are_those_of_the_plan(options: Mapping[str, int]) -> None:
    plan = schedule(**options)
    recording = (ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE)
    cycles = looking.recorded_steps(Training(FAST, noise_task(), 0), plan, 8)
    assert len(cycles) == options["repeat"]
    assert [step for cycle in cycles for step in cycle] == [step for step in range(8) if plan(step) in recording]


def test_totals_count_again_and_self_times_do_not() -> None:
    profiler = trace.record(compute_something, CPU)
    spans = trace.spans_of(profiler)
    assert looking.add_totals(profiler) == pytest.approx(sum(span.us for span in spans), rel=1e-6)
    assert looking.add_self_times(profiler) == pytest.approx(sum(trace.self_times(spans)), rel=1e-6)
    assert looking.add_totals(profiler) > looking.add_self_times(profiler)


# Flame graph and sampling


def test_shares_of_functions() -> None:
    stacks = {("data", "batches", "halve"): 6.0, ("validation", "batches"): 2.0, ("optimizer",): 2.0}
    assert files.shares(stacks, {"batches", "halve"}) == {"halve": 0.6, "batches": 0.2, files.THE_REST: 0.2}
    assert files.share_inside(stacks, "batches") == 0.8


def test_what_an_operator_calls_counts_for_it() -> None:
    stacks = {("data", "aten::mean", "aten::sum"): 2.0, ("data", "aten::mean"): 1.0, ("data",): 4.0}
    assert files.cut_below_operators(stacks) == {("data", "aten::mean"): 3.0, ("data",): 4.0}


def test_the_sampler_sees_the_loop_and_gives_the_interpreter_back() -> None:
    before = sys.getswitchinterval()
    samples = files.collect(Training(SLOW, noise_task(), 0), 15)
    assert samples.total() >= 15
    assert sys.getswitchinterval() == before
    assert any("epoch" in path for path in samples)
    assert all(path.index("batches") < path.index("transform") for path in samples if "transform" in path)


# Memory


def test_memory_over_time(tmp_path: Path) -> None:
    def change(at_us: float, size: int, device: int = 0) -> dict[str, Any]:
        return {"name": "[memory]", "ts": at_us, "args": {"Bytes": size, "Device Type": device}}

    path = tmp_path / "trace.json"
    events = [
        change(3, -100),
        change(1, 100),
        change(2, 40),
        change(2.5, 999, device=1),
        {"name": "aten::add", "ts": 0},
    ]
    path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
    moments = memory.memory_over_time(path, 0)
    assert [(moment.at_us, moment.alive_bytes) for moment in moments] == [(1, 100), (2, 140), (3, 40)]
    assert [memory.alive_at(moments, at) for at in (0, 1, 2.9, 9)] == [0, 100, 140, 40]
    assert memory.peak_within(moments, Span("x", 1.5, 4)) == 140
    assert memory.peak_within(moments, Span("x", 3.5, 4)) == 40  # what lies there already
    assert [moment.alive_bytes for moment in memory.memory_over_time(path, 1)] == [999]


# Calls, gaps, operations


def test_calls_and_gaps() -> None:
    spans = trace.in_order(
        [
            Span("data", 0, 20, "label"),
            Span("aten::stack", 5, 15),
            Span("aten::cat", 6, 14),
            Span("cudaLaunchKernel", 16, 17, "runtime"),
            Span("backward", 20, 40, "label"),
            Span("MmBackward0", 25, 35, "backward"),
            Span("validation", 50, 90, "label"),
            Span("aten::mm", 55, 85),
        ]
    )
    assert [span.name for span in results.calls_in(spans)] == ["aten::stack", "MmBackward0", "aten::mm"]
    calls, gap = results.calls_and_gaps(spans)
    assert calls == 2
    assert gap == pytest.approx(1 - 20 / 50)


class Products(Watcher):
    """Adds up the operations of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        if name_of(operation).startswith(("mm.", "addmm.")):
            (rows, inner), (_, columns) = (x.shape for x in args[-2:])
            self.flops += 2 * rows * inner * columns


@pytest.mark.parametrize("batch_size", [1, 12])
def test_operations_of_a_step(batch_size: int) -> None:
    task = noise_task(batch_size=batch_size)
    one = Training(FAST, task, 0)
    batch = next(one.train_source.batches(None))
    with Products() as products:
        one.compute(*batch)
    assert results.training_flops(one.model, batch_size) == products.flops


# The GPU


@pytest.mark.gpu
def test_a_captured_step_trains_as_an_uncaptured_one() -> None:
    task = noise_task(steps=6, device=torch.device("cuda"))
    eager, captured = (Training(replace(FAST, captures=captures), task, 0) for captures in (False, True))
    for _ in range(3):
        assert eager.epoch().loss == pytest.approx(captured.epoch().loss, rel=1e-4)
    for one, other in zip(eager.model.parameters(), captured.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.gpu
def test_all_sources_make_the_same_batches_on_the_gpu() -> None:
    task = noise_task(device=torch.device("cuda"))
    makers: list[Callable[..., training.Source]] = [parts.SampleBySample, parts.BatchByBatch, parts.PreparedOnce]
    made = [
        list(make(task.train, task.batch_size, task.device).batches(torch.Generator().manual_seed(0)))
        for make in makers
    ]
    for other in made[1:]:
        for (x, y), (right_x, right_y) in zip(other, made[0], strict=True):
            assert x.is_cuda
            torch.testing.assert_close(x, right_x)
            assert torch.equal(y, right_y)
