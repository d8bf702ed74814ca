"""The mini-project: profile, fix what the trace names, profile again, until it names nothing more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pytorch_02_training_optimization.src.profiling.diagnosis import Finding, diagnose, phases_of
from pytorch_02_training_optimization.src.profiling.parts import (
    SLOW,
    BatchByBatch,
    MeterByBatch,
    MeterOnDevice,
    PreparedOnce,
    forward,
    optimizer_fused,
    validate,
)
from pytorch_02_training_optimization.src.profiling.trace import Span, device_spans, record, spans_of, union_us
from pytorch_02_training_optimization.src.profiling.training import PHASES, SIDE, Recipe, Task, Training
from shared.lesson import Lesson
from shared.timing import Timing, compare, ratio
from shared.units import percent, significant

import torch.nn.functional as F
from torch.profiler import profile

IDLE = 0.5  # a GPU that rests for longer waits for Python
WORTH_IT = 1.05  # below it, a fix costs more attention than it gives back
GAPS = "gaps between kernels"


@dataclass(frozen=True)
class Repair:
    what: str
    changes: Mapping[str, Any]  # fields of a Recipe


# What helps against which symptom in which phase. Which of them is needed, and in what order, the traces decide.
REPAIRS = {
    ("data", "a call per image"): Repair("transform whole batches", {"source": BatchByBatch}),
    ("data", "the same work every epoch"): Repair("do it once, before training", {"source": PreparedOnce}),
    ("forward", "copies"): Repair("leave them out", {"forward": forward}),
    ("loss", "many small calls"): Repair("F.cross_entropy", {"loss": F.cross_entropy}),
    ("optimizer", "many small calls"): Repair("fused=True", {"make_optimizer": optimizer_fused}),
    ("metrics", "a call per image"): Repair("compare whole batches", {"meter": MeterByBatch}),
    ("metrics", "waiting for a number"): Repair("add up on the device", {"meter": MeterOnDevice}),
    ("validation", "a graph for nothing"): Repair("inference_mode()", {"validate": validate}),
    ("replay", GAPS): Repair("a CUDA graph", {"captures": True}),
}


@dataclass(frozen=True)
class Round:
    """A recipe, and what its trace says."""

    recipe: Recipe
    shares: dict[str, float]  # of the epoch's time, by phase
    findings: list[Finding]  # all of them; the first is the next to be repaired

    @property
    def finding(self) -> Finding | None:
        return self.findings[0] if self.findings else None


def find_gaps(profiler: profile, spans: Sequence[Span], recipe: Recipe) -> Finding | None:
    """Whether the GPU rests most of the time; None without kernels in the trace, and once the step is one graph."""
    if recipe.captures:
        return None
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        kernels = device_spans(path)
    labels = [span for span in spans if span.kind == "label" and span.name in PHASES]
    busy = union_us(kernels) / (max(span.end_us for span in labels) - min(span.start_us for span in labels))
    if not kernels or busy > IDLE:
        return None
    return Finding("replay", GAPS, f"{len(kernels)} kernels keep the GPU busy for {percent(busy)}", 1 - busy)


def examine(recipe: Recipe, task: Task, seed: int) -> Round:
    training = Training(recipe, task, seed)
    training.warm_up()
    profiler = record(training.epoch, task.device, record_shapes=True)
    spans = spans_of(profiler)
    batches = len(task.test.labels) // task.batch_size
    findings = diagnose(spans, task.batch_size, task.batch_size * SIDE**2, batches)
    phases = phases_of(spans)
    total_us = sum(phase.us for phase in phases.values())
    if not findings and (gaps := find_gaps(profiler, spans, recipe)):
        findings = [gaps]
    return Round(recipe, {name: phase.us / total_us for name, phase in phases.items()}, findings)


def repair(recipe: Recipe, task: Task, seed: int) -> list[Round]:
    """Rounds of profile and fix, each of the phase that takes most of the time of those that show a symptom."""
    rounds = [examine(recipe, task, seed)]
    while finding := rounds[-1].finding:
        changes = REPAIRS[finding.phase, finding.symptom].changes
        rounds.append(examine(replace(rounds[-1].recipe, **changes), task, seed))
    return rounds


def time_rounds(rounds: Sequence[Round], task: Task, seed: int, turns: int, slot_s: float) -> list[Timing]:
    """An epoch of every round's recipe, unwatched, measured in turn."""
    trainings = {str(at): Training(one.recipe, task, seed) for at, one in enumerate(rounds)}
    timings = compare({at: training.epoch for at, training in trainings.items()}, task.device, rounds=turns,
                      budget_s=slot_s * turns * len(rounds))  # fmt: skip
    return list(timings.values())


def losses_of(recipe: Recipe, task: Task, seed: int, epochs: int = 2) -> list[float]:
    training = Training(recipe, task, seed)
    return [training.epoch().loss for _ in range(epochs)]


def show_repairs(lesson: Lesson, task: Task) -> list[Round]:
    lesson.section(
        "From profile to fix, again and again",
        "Now the loop of this trade: profile, look at the phase that takes most of the time and shows something odd, fix "
        "that and nothing else, measure with the profiler off, profile again. What is odd is read from the trace: a call "
        "for each image, nodes of a graph that no backward pass visits, far more numbers read than handed over, many "
        "small calls. What a fix can bring at most is known before: if a share p of the time goes, the whole is at most "
        "1/(1 - p) times as fast (Amdahl, 1967).",
    )
    seed = lesson.options.seed
    rounds = repair(SLOW, task, seed)
    timings = time_rounds(rounds, task, seed, lesson.pick(full=9, quick=3), lesson.pick(full=0.02, quick=0.005))
    rows, gains, deviations = [], [], []
    right = losses_of(rounds[0].recipe, task, seed)
    for at, one in enumerate(rounds[:-1]):
        finding = one.finding
        assert finding is not None
        gains.append(ratio(timings[at], timings[at + 1]).median)
        product = ratio(timings[0], timings[at + 1])
        fixed = losses_of(rounds[at + 1].recipe, task, seed)
        deviations.append(max(abs(a / b - 1) for a, b in zip(fixed, right, strict=True)))
        lesson.record(
            "epoch", timings[at + 1].median_s * 1e3, "ms", timings[at + 1], after=f"{finding.phase}: {finding.symptom}"
        )
        rows.append({"fix": at + 1, "phase": finding.phase, "has": percent(finding.share), "the trace shows": finding.symptom,
                     "at most": f"{finding.bound:.2f}x", "gained": f"{gains[-1]:.2f}x",
                     "in all": f"{product.median:.1f}x"})  # fmt: skip
    lesson.items({f"{at}  {one.finding.phase}": f"{one.finding.evidence} → {REPAIRS[one.finding.phase, one.finding.symptom].what}"
                  for at, one in enumerate(rounds, 1) if one.finding})  # fmt: skip
    lesson.table(rows)
    bounds = [one.finding.bound for one in rounds if one.finding]
    lesson.check("after the last fix the trace shows nothing odd", rounds[-1].finding is None, f"{len(bounds)} fixes")
    equal = sum(deviation == 0 for deviation in deviations)
    lesson.check("every recipe computes the same losses", max(deviations) < 1e-4,
                 f"{max(deviations):.0e} off at most, {equal} equal to the bit")  # fmt: skip
    faster = ratio(timings[0], timings[-1])
    symptoms = [{(finding.phase, finding.symptom) for finding in one.findings} for one in rounds]
    repaired = [(one.finding.phase, one.finding.symptom) for one in rounds if one.finding]
    back = sum(symptom in later for at, symptom in enumerate(repaired) for later in symptoms[at + 1 :])
    lesson.check("what was fixed never shows up again", back == 0,
                 f"{sum(map(len, symptoms))} findings in {len(rounds)} traces")  # fmt: skip
    lesson.figure("fix_by_fix", lambda axis: draw_rounds(axis, rounds, timings))
    best = max(range(len(gains)), key=lambda at: gains[at])
    little = [one.finding for one in rounds if one.finding and one.finding.bound < WORTH_IT]
    first, *later = (phase for phase, _ in repaired)
    again = f"{first} came up again after its first fix, with another cause. " if first in later else ""
    above = [at for at, (gain, bound) in enumerate(zip(gains, bounds, strict=True), 1) if gain > 1.02 * bound]
    beyond = (
        f"Where more was gained than the bound allows (fix {', '.join(map(str, above))}), the share was too small: watching "
        "stretches the phases of many short calls, and what leaves the forward pass leaves the backward pass, too. "
        if above
        else ""
    )
    left_alone = (
        f"A bound below {WORTH_IT}x is known before a line is changed ({len(little)} of these): in your own work you would "
        "leave such a phase alone. "
        if little
        else ""
    )
    lesson.shows(
        f"{len(gains)} fixes make an epoch {faster.median:.1f} times as fast; fix {best + 1} alone gains {gains[best]:.1f}x. "
        f"{again}{left_alone}{beyond}The shares move with every fix, so profile again after each, and do not trust a small "
        "one to a per cent: another program may have had the core. Picture: fix_by_fix.png."
    )
    return rounds


def draw_rounds(axis: Any, rounds: Sequence[Round], timings: Sequence[Timing]) -> None:
    hatches = ["", "///", "...", "\\\\\\", "xxx", "---", "+++", "ooo"]
    greys = ["#0b5fa5", "#f0c9a8", "#d9d9d9", "#9fc6e8", "#c2410c", "#e6d5f2", "#bfe3c8", "#ffffff"]
    names = ["as it came", *(f"{one.finding.phase}:\n{one.finding.symptom}" for one in rounds if one.finding)]
    left = [0.0] * len(rounds)
    for place, phase in enumerate(PHASES):
        widths = [timing.median_s * 1e3 * one.shares[phase] for one, timing in zip(rounds, timings, strict=True)]
        if any(widths):
            axis.barh(range(len(rounds)), widths, left=left, color=greys[place], hatch=hatches[place], edgecolor="black",
                      linewidth=0.5, label=phase)  # fmt: skip
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for at, end in enumerate(left):
        axis.text(end + left[0] * 0.01, at, f"{significant(end)} ms", va="center", fontsize=9)
    axis.set_yticks(range(len(rounds)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set(
        xlabel="short epoch, unwatched (ms), divided as the trace divides it",
        title="An epoch as it came, and after each fix",
        xlim=(0, left[0] * 1.12),
    )
    axis.legend(fontsize=9, loc="lower right")
    axis.grid(visible=False, axis="y")
