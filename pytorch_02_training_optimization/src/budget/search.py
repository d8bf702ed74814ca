"""The largest batch: found by trying, predicted from two small ones, and divided where it does not fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pytorch_02_training_optimization.src.budget.ledger import Ledger
from pytorch_02_training_optimization.src.budget.network import (
    INPUTS,
    Batch,
    Network,
    activation_bytes,
    count_parameters,
    make_network,
    random_batch,
)
from pytorch_02_training_optimization.src.budget.states import optimizer_tensors
from shared.lesson import Lesson
from shared.units import bytes_text, percent, significant

import torch
import torch.nn.functional as F

MIB = 2**20


# Found


def largest_that_fits(fits: Callable[[int], bool], most: int = 2**20) -> tuple[int, list[tuple[int, bool]]]:
    """The largest size up to `most` for which `fits`, or 0; and every size that was tried, with its answer.

    Doubles until one fails, then halves the gap between the largest that fits and the smallest that does not. What
    fits must fit in every smaller size as well.
    """
    tried: list[tuple[int, bool]] = []

    def works(size: int) -> bool:
        tried.append((size, fits(size)))
        return tried[-1][1]

    good, size = 0, 1
    while size <= most and works(size):
        good, size = size, 2 * size
    bad = min(size, most + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        if works(middle):
            good = middle
        else:
            bad = middle
    return good, tried


@contextmanager
def allocator_limit(device: torch.device, budget_bytes: int) -> Iterator[None]:
    """Within the block CUDA's allocator may reserve `budget_bytes` more than now; then it raises OutOfMemoryError."""
    torch.cuda.empty_cache()
    before = torch.cuda.get_per_process_memory_fraction(device)
    total = torch.cuda.get_device_properties(device).total_memory
    allowed = torch.cuda.memory_reserved(device) + budget_bytes
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


def train_plainly(channels: int, depth: int, batch_size: int, device: torch.device, steps: int) -> None:
    model = make_network(channels, depth, device)
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    x, y = random_batch(batch_size, device)
    for _ in range(steps):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


@dataclass(frozen=True)
class Trial:
    """Whether `steps` training steps fit into a budget: counted by tensors, or by CUDA's allocator itself."""

    channels: int
    depth: int
    device: torch.device
    budget_bytes: int
    steps: int = 2  # the optimizer's state is made in the first one, so only the second has all at once
    by_allocator: bool = False

    def __call__(self, batch_size: int) -> bool:
        limit = (allocator_limit(self.device, self.budget_bytes) if self.by_allocator
                 else Ledger(self.device, limit_bytes=self.budget_bytes))  # fmt: skip
        try:
            with limit:
                train_plainly(self.channels, self.depth, batch_size, self.device, self.steps)
        except torch.OutOfMemoryError:
            return False
        return True


def sample_bytes(channels: int, depth: int, device: torch.device) -> int:
    """A sample in the batch (INPUTS float32 and a target of 8 bytes) and its activations."""
    one, two = (activation_bytes(n, channels, depth, torch.float32, device) for n in (1, 2))
    return two - one + 4 * INPUTS + 8


def show_largest_batch(lesson: Lesson) -> tuple[Trial, int]:
    device = lesson.device
    channels, depth = lesson.pick(full=512, cpu=64, quick=32), lesson.pick(full=12, cpu=6, quick=2)
    parameters = count_parameters(channels, depth)
    budget = 64 * parameters
    lesson.section(
        "The largest batch, found",
        f"{parameters:,} parameters, trained with Adam in {bytes_text(budget)}. How large may the batch be? Double it until "
        "a step fails, then halve the gap. Each attempt builds the model anew, so that nothing of the last one is in "
        "the way, and does two steps, not one.",
    )
    trial = Trial(channels, depth, device, budget)
    found, tried = largest_that_fits(trial)
    lesson.text(", ".join(f"{size} {'fits' if fits else 'fails'}" for size, fits in tried) + ".")
    lesson.record("largest batch", found, "samples", budget_bytes=budget, attempts=len(tried))
    lesson.check("it fits, and one sample more does not", trial(found) and not trial(found + 1),
                 f"{found:,} samples after {len(tried)} attempts")  # fmt: skip
    once, _ = largest_that_fits(Trial(channels, depth, device, budget, steps=1))
    lesson.check("tried with one step, a larger one seems to fit", once > found and not trial(once),
                 f"{once:,} samples; the second step fails")  # fmt: skip
    missed = 8 * parameters / sample_bytes(channels, depth, device)
    lesson.check("by as many as would have stood in Adam's place", 0.8 < (once - found) / missed < 1.1,
                 f"{once - found:,}; 8 bytes of each parameter are {missed:,.0f} samples")  # fmt: skip
    lesson.shows(
        f"{len(tried)} attempts find one answer of {2**20:,}: {found:,}. Search with what you will run: as many "
        "steps as the optimizer needs to be complete, the longest sequences of your data, and the evaluation that comes "
        "between. Then stay a few percent below: lengths vary, and the allocator's pieces do not always fit together."
    )
    return trial, found


# Predicted


def peak_at(trial: Trial, batch_size: int) -> int:
    """The most bytes alive in two steps with that batch, without any limit."""
    with Ledger(trial.device) as ledger:
        train_plainly(trial.channels, trial.depth, batch_size, trial.device, trial.steps)
    return ledger.peak_bytes


@dataclass(frozen=True)
class Line:
    """Peak memory as a straight line: fixed_bytes + bytes_each * batch."""

    fixed_bytes: float
    bytes_each: float

    @classmethod
    def through(cls, one: tuple[int, int], other: tuple[int, int]) -> "Line":
        (batch, peak), (other_batch, other_peak) = one, other
        slope = (other_peak - peak) / (other_batch - batch)
        return cls(peak - slope * batch, slope)

    def largest(self, budget_bytes: int) -> int:
        return int((budget_bytes - self.fixed_bytes) / self.bytes_each)


def show_prediction(lesson: Lesson, trial: Trial, found: int) -> None:
    lesson.section(
        "The largest batch, predicted",
        "Nobody wants to crash a rented GPU a dozen times to learn one number. Two small batches should do: everything that "
        "grows with the batch grows by the same bytes for each sample, so two peaks give a line, and the line meets the "
        "budget at the answer. If the two are well chosen.",
    )
    even = (
        16
        * count_parameters(trial.channels, trial.depth)
        / activation_bytes(1, trial.channels, trial.depth, torch.float32, trial.device)
    )
    sizes = int(even), int(1.5 * even)
    peaks = {size: peak_at(trial, size) for size in (1, 2, *sizes)}
    line = Line.through(*((size, peaks[size]) for size in sizes))
    flat = Line.through((1, peaks[1]), (2, peaks[2]))
    rows = []
    for (one, other), drawn in (((1, 2), flat), (sizes, line)):
        answer = drawn.largest(trial.budget_bytes)
        rows.append({"two batches": f"{one} and {other}", "peaks": f"{bytes_text(peaks[one])}, {bytes_text(peaks[other])}",
                     "for each sample": bytes_text(drawn.bytes_each), "without any": bytes_text(drawn.fixed_bytes),
                     "largest batch": f"{answer:,}"})  # fmt: skip
    lesson.table(rows, best=1)
    predicted = line.largest(trial.budget_bytes)
    lesson.record("largest batch, predicted", predicted, "samples", from_batches=f"{sizes[0]}, {sizes[1]}")
    lesson.check("two batches predict the largest one", predicted == found, f"{predicted:,} predicted, {found:,} found")
    wrong = flat.largest(trial.budget_bytes)
    lesson.check(
        "batches of 1 and 2 predict nonsense",
        wrong > 3 * found,
        f"{wrong:,} samples, {wrong / found:.0f} times too many",
    )
    itself = sample_bytes(trial.channels, trial.depth, trial.device)
    lesson.check("a sample costs its activations and itself", 0.85 < itself / line.bytes_each < 1,
                 f"{itself:,} of {line.bytes_each:,.0f} bytes; little is temporary")  # fmt: skip
    if trial.device.type == "cuda" and torch.cuda.memory_reserved(trial.device) > 0:
        # cuBLAS takes a workspace of 32 MiB and more from the same budget, so it must be small beside it.
        larger = replace(trial, budget_bytes=trial.budget_bytes + 1024 * MIB, by_allocator=True)
        foretold, (really, attempts) = line.largest(larger.budget_bytes), largest_that_fits(larger)
        lesson.record("largest batch, CUDA's allocator", really, "samples", budget_bytes=larger.budget_bytes,
                      attempts=len(attempts), foretold=foretold)  # fmt: skip
        lesson.check("CUDA's own limit is reached no later", 0.5 * foretold < really <= 1.02 * foretold,
                     f"{really:,} samples with a GiB more, {foretold:,} foretold")  # fmt: skip
    else:
        lesson.skip("The same held against the GPU's own allocator, with torch.cuda.set_per_process_memory_fraction "
                    "and its real OutOfMemoryError.", "a CUDA GPU")  # fmt: skip
    several = [max(1, int(even * part / 8)) for part in lesson.pick(full=range(1, 25), quick=range(1, 25, 4))]
    lesson.figure("largest_batch", lambda axis: draw_prediction(axis, trial, found, several, line, sizes))
    lesson.shows(
        f"with 1 or 2 samples the peak lies in the optimizer's step, where no activation is alive, so the batch seems to "
        f"cost {bytes_text(flat.bytes_each)} a sample instead of {bytes_text(line.bytes_each)}. Take batches whose "
        "peaks differ by much more than the model, or measure three and see that they lie on a line. On a GPU measure "
        "torch.cuda.max_memory_reserved(), which is what runs out. Picture: largest_batch.png."
    )


def draw_prediction(axis: Any, trial: Trial, found: int, sizes: list[int], line: Line, used: tuple[int, int]) -> None:
    peaks = [peak_at(trial, size) / MIB for size in sizes]
    axis.plot(sizes, peaks, linestyle="none", marker="o", label="measured")
    ends = (0, 1.15 * found)
    axis.plot(ends, [(line.fixed_bytes + line.bytes_each * size) / MIB for size in ends], marker="",
              label=f"line through {used[0]} and {used[1]}")  # fmt: skip
    axis.axhline(trial.budget_bytes / MIB, color="black", linewidth=1, linestyle="--", marker="", label="budget")
    axis.annotate(
        f"{found:,} samples", (found, trial.budget_bytes / MIB), (-8, 8), textcoords="offset points", ha="right"
    )
    axis.annotate("here the optimizer's step is the peak", (sizes[0], peaks[0]), (60, -24), textcoords="offset points",
                  fontsize=9, arrowprops={"arrowstyle": "->", "linewidth": 0.8})  # fmt: skip
    axis.set(xlabel="samples in the batch", ylabel="most alive in two steps (MiB)", xlim=(0, ends[1]), ylim=(0, None),
             title="The largest batch from two small ones")  # fmt: skip
    axis.legend(loc="lower right")


# Divided


def accumulate(model: Network, batch: Batch, parts: int) -> None:
    """The gradient of the mean loss, in equal parts one after the other."""
    x, y = batch
    for some_x, some_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        (F.cross_entropy(model(some_x), some_y, reduction="sum") / len(y)).backward()


def gradients_in_parts(model: Network, batch: Batch, parts: int) -> list[torch.Tensor]:
    model.zero_grad()
    accumulate(model, batch, parts)
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def ledger_of_parts(channels: int, depth: int, batch_size: int, parts: int, device: torch.device) -> Ledger:
    """The ledger of forward and backward in `parts`, with Adam's state already there."""
    with Ledger(device) as ledger:
        model = make_network(channels, depth, device)
        optimizer = torch.optim.Adam(model.parameters(), foreach=False)
        batch = random_batch(batch_size, device)
        accumulate(model, batch, parts)
        optimizer.step()
        ledger.label("optimizer", optimizer_tensors(optimizer))
        optimizer.zero_grad()
        ledger.restart_peak()
        handles = [parameter.register_post_accumulate_grad_hook(lambda p: ledger.label("gradients", [p.grad]))
                   for parameter in model.parameters()]  # fmt: skip
        accumulate(model, batch, parts)
        for handle in handles:
            handle.remove()
    return ledger


def show_parts(lesson: Lesson) -> None:
    device = lesson.device
    channels, depth = lesson.pick(full=1024, cpu=128, quick=32), lesson.pick(full=12, cpu=6, quick=3)
    parameters = 4 * count_parameters(channels, depth)
    each = activation_bytes(1, channels, depth, torch.float32, device)
    batch_size = 16 * max(1, round(8 * parameters / each / 16))
    lesson.section(
        "The same batch in parts",
        "The first cure costs nothing but a loop: the batch in parts, their gradients added up (gradient_accumulation has "
        "the traps of that). Each part keeps only its own activations. But look at what is added as well:",
    )
    counts = (1, 2, 4, 8)
    found = {parts: ledger_of_parts(channels, depth, batch_size, parts, device) for parts in counts}
    rows, gradients_there = [], {}
    for parts, ledger in found.items():
        kinds = ledger.by_kind(ledger.peak_moment)
        gradients_there[parts] = kinds["gradients"]
        lesson.record("peak in parts", ledger.peak_bytes, "B", parts=parts, batch=batch_size)
        rows.append({"parts": parts, "samples in each": batch_size // parts, "peak": bytes_text(ledger.peak_bytes),
                     "gradients at the peak": percent(kinds["gradients"] / parameters),
                     "activations of a part": bytes_text(each * batch_size // parts)})  # fmt: skip
    lesson.table(rows)
    model, batch = make_network(channels, depth, device), random_batch(batch_size, device)
    whole = gradients_in_parts(model, batch, 1)
    error = max(((a - b).norm() / b.norm()).item() for parts in counts[1:]
                for a, b in zip(gradients_in_parts(model, batch, parts), whole, strict=True))  # fmt: skip
    lesson.check("the gradient is that of the whole batch", error < 1e-4, f"to {significant(error, 1)} of its length")
    lesson.check("from the second part on, all gradients are there",
                 min(gradients_there[parts] for parts in counts[1:]) >= 0.99 * parameters > gradients_there[1],
                 f"{bytes_text(parameters)}; with one part {percent(gradients_there[1] / parameters)}")  # fmt: skip
    saved = {parts: found[1].peak_bytes - found[parts].peak_bytes for parts in counts}
    lesson.check("16 bytes of each parameter stay, however many parts", found[8].peak_bytes > 4 * parameters,
                 f"{bytes_text(4 * parameters)} of {bytes_text(found[8].peak_bytes)} with 8 parts")  # fmt: skip
    half = saved[2] / (each * batch_size / 2)
    lesson.shows(
        f"two parts save {bytes_text(saved[2])}, {percent(half)} of the activations that they no longer keep: the "
        f"gradients of the first part lie there while the second one runs. Eight save {bytes_text(saved[8])}. Where one "
        "sample does not fit, or the parameters alone, no division of the batch helps, and the next sections may."
    )
