"""What each sample costs, by formula; and where in a training step the most memory is needed, by kind of tensor."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.budget.ledger import KINDS, Ledger, SavedBytes
from pytorch_02_training_optimization.src.budget.network import (
    BLOCK_KEEPS,
    Batch,
    activation_bytes,
    block_keeps,
    count_parameters,
    make_network,
    random_batch,
)
from pytorch_02_training_optimization.src.budget.states import optimizer_tensors
from shared.lesson import Lesson
from shared.units import bytes_text, percent

import torch
import torch.nn.functional as F
from torch import nn

MIB = 2**20


def saved_bytes(model: nn.Module, batch: Batch) -> int:
    """What autograd saves of the loss, counted; parameters and batch are there anyway."""
    x, y = batch
    saved = SavedBytes([*model.parameters(), x, y])
    with saved:
        F.cross_entropy(model(x), y)
    return saved.size_bytes


def show_activations(lesson: Lesson) -> None:
    lesson.section(
        "What each sample costs",
        "The other account grows with the batch: what autograd saves of the forward pass until backward has used it. "
        "The network of this lesson is a row of blocks x + down(gelu(up(norm(x)))), the half of a transformer that holds "
        "most of its weights. One line of its table for each tensor that a derivative needs:",
    )
    device = lesson.device
    channels, depth = lesson.pick(full=1024, cpu=128, quick=32), lesson.pick(full=16, cpu=8, quick=4)
    keeps = block_keeps(channels)
    total = sum(keeps.values())
    lesson.table([{"saved": name, "needed as": BLOCK_KEEPS[name], "numbers a sample": numbers,
                   "share": percent(numbers / total)} for name, numbers in keeps.items()])  # fmt: skip
    generator = random.Random(lesson.options.seed)
    dtypes = [torch.float32, torch.bfloat16] if device.type != "mps" else [torch.float32]
    right, trials = 0, lesson.pick(full=20, quick=8)
    for i in range(trials):
        batch_size, width, blocks = generator.randint(1, 70), generator.randint(1, 50), generator.randint(1, 4)
        dtype = dtypes[i % len(dtypes)]
        model = make_network(width, blocks, device, dtype)
        found = saved_bytes(model, random_batch(batch_size, device, dtype))
        right += found == activation_bytes(batch_size, width, blocks, dtype, device)
    lesson.check("the formula is right to the byte", right == trials,
                 f"{right} of {trials} random networks, {len(dtypes)} dtypes")  # fmt: skip
    inside = (keeps["up(…)"] + keeps["gelu(…)"]) / total
    lesson.check("four fifths lie around the GELU", inside > 0.75, f"{percent(inside)}, 8 C of 10 C + 2")
    one, two = (activation_bytes(n, channels, depth, torch.float32, device) for n in (1, 2))
    each, parameters = two - one, count_parameters(channels, depth)
    lesson.record("activations of a sample", each, "B", channels=channels, depth=depth)
    even = 16 * parameters / each
    lesson.shows(
        f"with {depth} blocks of {channels} channels a sample keeps {bytes_text(each)}, and the {parameters:,} parameters "
        f"with Adam take {bytes_text(16 * parameters)}. They are even at {even:,.0f} samples. Below that, memory goes to "
        "the model, and a smaller batch buys little; above it, to activations, and a leaner optimizer buys little. Find "
        "out on which side you are before you change anything."
    )


@dataclass
class Step:
    """Two training steps under a ledger: where each phase of them ends, as a moment."""

    ledger: Ledger
    phases: list[tuple[str, int]]

    def phase_of(self, moment: int) -> str:
        return next((name for name, stop in self.phases if moment < stop), self.phases[-1][0])


def train_under_watch(channels: int, depth: int, batch_size: int, device: torch.device, *, steps: int = 2,
                      limit_bytes: int | None = None) -> Step:  # fmt: skip
    """`steps` steps of Adam, everything made inside the ledger and labelled by kind."""
    phases: list[tuple[str, int]] = []
    with Ledger(device, limit_bytes=limit_bytes) as ledger:

        @contextmanager
        def phase(name: str) -> Iterator[None]:
            yield
            phases.append((name, ledger.moment))

        with phase("build"):
            model = make_network(channels, depth, device)
            ledger.label("parameters", model.parameters())
            optimizer = torch.optim.Adam(
                model.parameters(), foreach=False
            )  # on a GPU foreach is the default; see below
            x, y = random_batch(batch_size, device)
            ledger.label("batch", (x, y))
        for _ in range(steps):
            with phase("forward"), ledger.label_saved():
                loss = F.cross_entropy(model(x), y)
            with phase("backward"):
                handles = [parameter.register_post_accumulate_grad_hook(lambda p: ledger.label("gradients", [p.grad]))
                           for parameter in model.parameters()]  # fmt: skip
                loss.backward()
                del loss
            for handle in handles:
                handle.remove()
            with phase("step"):
                optimizer.step()
                ledger.label("optimizer", optimizer_tensors(optimizer))
            with phase("zero_grad"):
                optimizer.zero_grad()
    return Step(ledger, phases)


def peaks_of_phases(step: Step) -> list[tuple[str, int, int]]:
    """Of each phase its name, the moment at which most was alive in it, and how much that was."""
    peaks, start = [], 0
    for name, stop in step.phases:
        totals = [sum(values) for values in zip(*step.ledger.series(start, stop).values(), strict=True)]
        if totals:
            largest = max(range(len(totals)), key=totals.__getitem__)
            peaks.append((name, start + largest, totals[largest]))
        start = stop
    return peaks


def show_step(lesson: Lesson) -> None:
    device = lesson.device
    channels, depth = lesson.pick(full=1024, cpu=128, quick=32), lesson.pick(full=16, cpu=8, quick=4)
    even = 16 * count_parameters(channels, depth) / activation_bytes(1, channels, depth, torch.float32, device)
    sizes = {"small": max(1, int(even / 8)), "large": int(2 * even)}
    lesson.section(
        "Where the peak is",
        "Memory runs out at one moment of a step, so that moment is what a cure must lower. Two steps with Adam are "
        "counted tensor by tensor and sorted by kind, once with a small batch and once with a large one. A temporary is "
        "what backward and the optimizer make on their way and nobody keeps.",
    )
    steps = {name: train_under_watch(channels, depth, size, device) for name, size in sizes.items()}
    parameters = 4 * count_parameters(channels, depth)
    found, rows = {}, []
    for name, step in steps.items():
        ledger = step.ledger
        found[name] = ledger.by_kind(ledger.peak_moment), step.phase_of(ledger.peak_moment)
        lesson.record("peak of a step", ledger.peak_bytes, "B", batch=sizes[name], phase=found[name][1])
        for phase, moment, live in peaks_of_phases(step)[-4:-1]:
            kinds = ledger.by_kind(moment)
            mark = " ◀" if moment == ledger.peak_moment else ""
            rows.append({"batch": sizes[name], "most during": phase + mark, "sum, MiB": live / MIB}
                        | {kind: kinds[kind] / MIB for kind in KINDS if kind != "batch"})  # fmt: skip
    lesson.table(rows)
    for name, (kinds, _) in found.items():
        peak = steps[name].ledger.peak_bytes
        lesson.check(
            f"the kinds add up to the peak of the {name} batch", sum(kinds.values()) == peak, f"{peak:,} bytes"
        )
    small, large = found["small"], found["large"]
    lesson.check("a small batch has its peak in the optimizer's step", small[1] == "step",
                 f"{percent(small[0]['activations'] / steps['small'].ledger.peak_bytes)} of it activations")  # fmt: skip
    lesson.check("a large one at the beginning of backward", large[1] == "backward" and large[0]["gradients"] < parameters / 2,
                 f"{percent(large[0]['gradients'] / parameters)} of the gradients are there yet")  # fmt: skip
    kept = activation_bytes(sizes["large"], channels, depth, torch.float32, device)
    steady = 3 * parameters + kept
    rest = steps["large"].ledger.peak_bytes - steady
    lesson.check("weights, Adam, activations by formula: most of it", 0.8 < steady / steps["large"].ledger.peak_bytes < 1,
                 f"{bytes_text(steady)}; the rest is {bytes_text(rest)}")  # fmt: skip
    lesson.figure("step_by_kind", lambda *axes: draw_steps(axes, steps, sizes), columns=2)
    lesson.shows(
        f"gradients and activations never meet in full: when the first are complete, the others are gone. So the peak of a "
        f"large batch is 12 bytes of each parameter, the activations, and {percent(rest / steps['large'].ledger.peak_bytes)} "
        "on top; that of a small one is 16 bytes of each parameter, and some more while Adam computes. A cure for "
        "activations cannot lower the second peak, nor one for gradients the first. Picture: step_by_kind.png."
    )


def draw_steps(axes: Sequence[Any], steps: dict[str, Step], sizes: dict[str, int]) -> None:
    hatches = ("", "//", "..", "", "xx", "\\\\")
    greys = ("0.35", "0.6", "0.8", "#7fb2e5", "0.9", "#f0a35e")
    for axis, (name, step) in zip(axes, steps.items(), strict=True):
        first, last = step.phases[0][1], step.phases[-1][1]
        lines = step.ledger.series(first, last)
        shown = [kind for kind in KINDS if any(lines[kind])]
        stacks = axis.stackplot(range(last - first), [[count / MIB for count in lines[kind]] for kind in shown],
                                step="post", linewidth=0.3, edgecolor="black", labels=shown,
                                colors=[greys[KINDS.index(kind)] for kind in shown])  # fmt: skip
        for stack, kind in zip(stacks, shown, strict=True):
            stack.set_hatch(hatches[KINDS.index(kind)])
        start = first
        for phase, stop in step.phases[1:]:
            axis.axvline(stop - first, color="black", linewidth=0.6, linestyle=":", marker="")
            if phase != "zero_grad":
                axis.annotate(phase, ((start + stop) / 2 - first, 0.99), xycoords=("data", "axes fraction"), ha="center",
                              va="top", fontsize=8, rotation=90 if phase == "forward" else 0)  # fmt: skip
            start = stop
        peak = step.ledger.peak_moment
        axis.annotate("peak", (peak - first, step.ledger.peak_bytes / MIB), (0, 5), textcoords="offset points", ha="center",
                      fontsize=9, arrowprops={"arrowstyle": "-", "linewidth": 0.6})  # fmt: skip
        axis.set(xlim=(0, last - first), ylim=(0, 1.2 * step.ledger.peak_bytes / MIB), ylabel="alive (MiB)",
                 xlabel="tensors made and freed, in order")  # fmt: skip
        axis.set_title(f"{name.capitalize()} batch: {sizes[name]:,} samples")
        axis.grid(visible=False)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend(handles[::-1], labels[::-1], fontsize=8, loc="lower right", framealpha=0.95)
