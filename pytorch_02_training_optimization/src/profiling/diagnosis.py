"""From a trace to advice: which part of an epoch takes the time, what is odd about it, and what a fix can bring."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from pytorch_02_training_optimization.src.profiling.trace import Span, parents
from pytorch_02_training_optimization.src.profiling.training import PHASES

# Counts, not times: what they find is the same on every machine and however busy it is.
MANY_CALLS = 10  # in one phase of one step
PASSES = 8  # numbers read for each number handed over
FAR_LONGER = 3  # than a usual turn: another program had the core meanwhile
COPIES = ("aten::clone", "aten::contiguous", "aten::_to_copy", "aten::copy_")
READS = ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero")
# They look at their input or pick from it, and read no more of it than they return.
READ_A_PART = {
    "aten::index", "aten::gather", "aten::select", "aten::index_select", "aten::unsqueeze", "aten::unflatten",
    "aten::flatten", "aten::view", "aten::reshape", "aten::split", "aten::narrow", "aten::slice", "aten::unbind",
}  # fmt: skip


@dataclass
class Phase:
    """What an epoch did under one label, without what it did under labels inside."""

    name: str
    turn_us: list[float] = field(default_factory=list)  # of each time that the label was entered
    calls: Counter[str] = field(default_factory=Counter)  # operators that your code called; not those that they call
    numbers_read: int = 0
    graph_nodes: set[int] = field(default_factory=set)  # that autograd made, and no backward pass used

    @property
    def turns(self) -> int:
        return len(self.turn_us)

    @property
    def us(self) -> float:
        """A turn that took far longer than the others was interrupted by the machine, and counts as a usual one."""
        if not self.turn_us:
            return 0.0
        usual = sorted(self.turn_us)[(len(self.turn_us) - 1) // 2]
        return sum(us if us <= FAR_LONGER * usual else usual for us in self.turn_us)


@dataclass(frozen=True)
class Finding:
    phase: str
    symptom: str
    evidence: str
    share: float  # of the epoch's time

    @property
    def bound(self) -> float:
        """Amdahl: how many times faster the whole can become if this phase takes no time at all."""
        return 1 / (1 - self.share)


def phases_of(spans: Sequence[Span]) -> dict[str, Phase]:
    """The epoch in `spans`, by label."""
    around = parents(spans)
    used = {span.sequence for span in spans if span.kind == "backward"}
    found = {name: Phase(name) for name in PHASES}
    own_us: dict[int, float] = {}
    for index, span in enumerate(spans):
        if _is_phase(span):
            own_us[index] = span.us
        parent = around[index]
        called_by_you = span.kind == "operator"
        while parent is not None and not _is_phase(spans[parent]):
            called_by_you = called_by_you and spans[parent].kind == "label"  # PyTorch's own labels are looked through
            parent = around[parent]
        if parent is None:
            continue
        phase = found[spans[parent].name]
        if _is_phase(span):
            own_us[parent] -= span.us
        if called_by_you:
            phase.calls[span.name] += 1
            if span.name not in READ_A_PART and span.shapes:
                phase.numbers_read += max(map(prod, span.shapes))
        if span.kind == "operator" and span.sequence >= 0 and span.sequence not in used:
            phase.graph_nodes.add(span.sequence)
    for index, us in own_us.items():
        found[spans[index].name].turn_us.append(us)
    return found


def _is_phase(span: Span) -> bool:
    return span.kind == "label" and span.name in PHASES


def diagnose(spans: Sequence[Span], batch_size: int, numbers_per_batch: int, batches: int) -> list[Finding]:
    """What is odd in an epoch of so many batches (training and validation), the largest phase first."""
    found = phases_of(spans)
    total_us = sum(phase.us for phase in found.values())
    findings = []
    for phase in found.values():
        turns = batches if phase.name == "validation" else max(1, phase.turns)
        if symptom := find_symptom(phase, turns, batch_size, numbers_per_batch):
            findings.append(Finding(phase.name, *symptom, phase.us / total_us))
    return sorted(findings, key=lambda finding: -finding.share)


def find_symptom(phase: Phase, turns: int, batch_size: int, numbers_per_batch: int) -> tuple[str, str] | None:
    """Name and evidence of the first symptom that the phase shows, the costliest kind first; None where it shows none."""
    most, count = phase.calls.most_common(1)[0] if phase.calls else ("", 0)
    if count / turns >= batch_size:
        return "a call per image", f"{most} {count / turns:.0f} times in a step of {batch_size}"
    if len(phase.graph_nodes) > 2 * turns:
        return "a graph for nothing", f"{len(phase.graph_nodes)} nodes that no backward pass visits"
    if phase.name == "data" and phase.numbers_read / turns > PASSES * numbers_per_batch:
        return (
            "the same work every epoch",
            f"{phase.numbers_read / turns / numbers_per_batch:.0f} numbers read for each handed over",
        )
    if phase.name == "forward" and (copies := sum(phase.calls[name] for name in COPIES)):
        return "copies", f"{copies / turns:.0f} copies in a step, of tensors that are there already"
    if sum(phase.calls.values()) / turns > MANY_CALLS:
        return "many small calls", f"{sum(phase.calls.values()) / turns:.0f} operators in a step"
    if reads := sum(phase.calls[name] for name in READS):
        return "waiting for a number", f"{reads / turns:.0f} reads in a step"
    return None
