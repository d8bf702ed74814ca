"""All cures on one picture: the peak of a training step against the time that it takes."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.budget.checkpoints import (
    checkpoint_each,
    cut_after_products,
    error_of,
    recompute_each,
    size_of_error,
    sizes_of,
)
from pytorch_02_training_optimization.src.budget.lean import step_inside_backward
from pytorch_02_training_optimization.src.budget.ledger import Ledger
from pytorch_02_training_optimization.src.budget.network import (
    Batch,
    Network,
    ProductFlops,
    RunBlocks,
    keep_all,
    make_network,
    random_batch,
)
from pytorch_02_training_optimization.src.budget.offload import PagedAdam, Shelf, on_the_shelf, shelf_for
from pytorch_02_training_optimization.src.budget.packing import WAYS as PACKINGS
from pytorch_02_training_optimization.src.budget.packing import Context
from shared.lesson import Lesson
from shared.timing import compare, ratio
from shared.units import bytes_text, percent, significant

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Cure:
    """How a step is made: how blocks run, what becomes of saved tensors, in how many parts, and where Adam steps."""

    run_blocks: RunBlocks = keep_all
    context: Context = lambda model, batch: nullcontext()
    parts: int = 1
    steps_inside: bool = False
    pages_to: Shelf | None = None  # where Adam's averages live, if not on the device
    rounds: bool = False  # whether gradients are rounded


def forward_and_backward(cure: Cure, model: Network, batch: Batch) -> None:
    x, y = batch
    for some_x, some_y in zip(x.chunk(cure.parts), y.chunk(cure.parts), strict=True):
        with cure.context(model, (some_x, some_y)):
            loss = F.cross_entropy(model(some_x, cure.run_blocks), some_y, reduction="sum") / len(y)
        loss.backward()


def gradients_of(cure: Cure, model: Network, batch: Batch) -> list[torch.Tensor]:
    model.zero_grad()
    forward_and_backward(cure, model, batch)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return gradients


def make_step(cure: Cure, model: Network, batch: Batch) -> Callable[[], None]:
    """A whole training step with Adam. A model whose Adam steps inside backward must not be used for other cures."""
    optimizer: torch.optim.Optimizer | PagedAdam | None = None
    if cure.steps_inside:
        step_inside_backward(model)
    elif cure.pages_to:
        optimizer = PagedAdam(list(model.parameters()), cure.pages_to)
    else:
        optimizer = torch.optim.Adam(model.parameters(), foreach=False)

    def step() -> None:
        forward_and_backward(cure, model, batch)
        if optimizer:
            optimizer.step()
        model.zero_grad()

    return step


def count_step(cure: Cure, channels: int, depth: int, batch_size: int, device: torch.device) -> tuple[int, int]:
    """The peak of the second step, in bytes, and the operations of its products."""
    with Ledger(device) as ledger:
        step = make_step(cure, make_network(channels, depth, device), random_batch(batch_size, device))
        step()
        ledger.restart_peak()
        with ProductFlops() as products:
            step()
    return ledger.peak_bytes, products.count


def show_tradeoff(lesson: Lesson) -> None:
    device = lesson.device
    channels, depth, batch_size = sizes_of(lesson)
    lesson.section(
        "Memory against time",
        "Every cure on one scale: the peak of a whole step with Adam, counted, and the time of that step, all of them timed "
        "in turn so that the machine's moods hit them alike. The operations of its products say how much of the time is "
        "work; the rest is passes over memory, the way to the shelf, and Python.",
    )
    torch.manual_seed(lesson.options.seed)
    with ExitStack() as stack:
        shelf = stack.enter_context(shelf_for(device))
        cures = {
            "keep all": Cure(),
            "pieces end at products": Cure(cut_after_products),
            "checkpoint": Cure(checkpoint_each),
            "recompute (ours)": Cure(recompute_each),
            "bfloat16 while waiting": Cure(context=PACKINGS["bfloat16"], rounds=True),
            "int8 while waiting": Cure(context=PACKINGS["int8"], rounds=True),
            "offload": Cure(context=on_the_shelf(shelf)),
            "4 parts": Cure(parts=4),
            "Adam inside backward": Cure(steps_inside=True),
            "checkpoint, 4 parts": Cure(checkpoint_each, parts=4),
            "offload, paged Adam": Cure(context=on_the_shelf(shelf), pages_to=shelf),
        }
        counts = {name: count_step(cure, channels, depth, batch_size, device) for name, cure in cures.items()}
        model, batch = make_network(channels, depth, device), random_batch(batch_size, device)
        right = gradients_of(cures["keep all"], model, batch)
        errors = {name: error_of(gradients_of(cure, model, batch), right) for name, cure in cures.items()}
        steps = {name: make_step(cure, make_network(channels, depth, device) if cure.steps_inside else model, batch)
                 for name, cure in cures.items()}  # fmt: skip
        timings = compare(
            steps, device, rounds=lesson.pick(full=5, quick=2), budget_s=lesson.pick(full=6.0, quick=0.05)
        )
    base_bytes, base_flops = counts["keep all"]
    longer = {name: ratio(timing, timings["keep all"]).median for name, timing in timings.items()}
    rows = []
    for name, (peak, flops) in counts.items():
        lesson.record("peak of a step", peak, "B", cure=name)
        lesson.record("time of a step", timings[name].median_s * 1e3, "ms", timings[name], cure=name)
        rows.append({"cure": name, "peak": bytes_text(peak), "share": percent(peak / base_bytes),
                     "products": f"{flops / base_flops:.2f}x", "time": f"{longer[name]:.2f}x",
                     "gradient off by": size_of_error(errors[name])})  # fmt: skip
    lesson.table(rows)
    exact = [name for name, cure in cures.items() if not cure.rounds]
    lesson.check("only packing changes the gradient", max(errors[name] for name in exact) < 1e-4,
                 f"the others agree to {significant(max(errors[name] for name in exact), 1)}")  # fmt: skip
    alone = [
        name
        for name, cure in cures.items()
        if name != "keep all" and not (cure.steps_inside or cure.parts > 1 or cure.pages_to)
    ]
    lesson.check("every cure for activations lowers this peak", all(counts[name][0] < 0.85 * base_bytes for name in alone),
                 f"to {percent(min(counts[name][0] for name in alone) / base_bytes)} at best, alone")  # fmt: skip
    inside = counts["Adam inside backward"][0]
    lesson.check(
        "a cure for gradients does not",
        inside > 0.97 * base_bytes,
        f"{percent(inside / base_bytes)} of the peak is left",
    )
    lowest = min(counts, key=lambda name: counts[name][0])
    lesson.check("least of all: what waits is all away", lowest == "offload, paged Adam",
                 f"{bytes_text(counts[lowest][0])}: weights, gradients, a block's work")  # fmt: skip
    free = [name for name, (_, flops) in counts.items() if flops == base_flops]
    lesson.check("most of them multiply nothing twice", len(free) > len(cures) / 2, f"{len(free)} of {len(cures)}")
    lesson.figure("memory_against_time", lambda axis: draw_tradeoff(axis, counts, longer, base_bytes))
    half = [name for name in counts if counts[name][0] <= base_bytes / 2]
    quickest = min(half, key=longer.__getitem__) if half else ""
    winner = (f"of those that halve the peak, the quickest here is '{quickest}', at {longer[quickest]:.2f} times the time"
              if half else "none of them halves the peak at sizes as small as these")  # fmt: skip
    lesson.shows(
        f"{winner}. On another machine it may be another: small blocks on a CPU pay for Python and for passes over memory, "
        "which hardly shows beside the products of a large one on a GPU. Points to the lower left are better; what has "
        "another point there can be left out. Picture: memory_against_time.png."
    )


def draw_tradeoff(axis: Any, counts: Mapping[str, tuple[int, int]], longer: Mapping[str, float], base: int) -> None:
    markers = "osD^vPX*<>h"
    for (name, (peak, _)), marker in zip(counts.items(), markers, strict=True):
        is_beaten = any(counts[other][0] <= peak and longer[other] < longer[name] for other in counts if other != name)
        axis.plot(100 * peak / base, longer[name], linestyle="none", marker=marker, markersize=8, color="black",
                  markerfacecolor="white" if is_beaten else "black", label=name)  # fmt: skip
    axis.axhline(1, color="0.6", linewidth=0.8, marker="")
    axis.set(xlim=(0, 108), xlabel="most alive in a step (% of keeping all)", ylabel="time of a step (times that of keeping all)",
             title="Memory against time")  # fmt: skip
    axis.legend(
        fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5), title="filled: nothing is\nlower and quicker"
    )
