"""Layers that see the part and not the batch: BatchNorm, whose statistics are the part's, and dropout, which draws anew."""

from collections.abc import Callable

from pytorch_02_training_optimization.src.accumulation.loops import fill_gradients
from pytorch_02_training_optimization.src.accumulation.task import BATCH_SIZE, CPU, PARTS, gradients_of, joined, off_by
from pytorch_02_training_optimization.src.letters.rows import CLASSES, PIXELS, load_letters
from shared.lesson import Lesson
from shared.units import percent

import torch
from torch import nn


class MaskFromList(nn.Module):
    """Dropout whose mask was drawn for the whole batch beforehand; each part takes its own rows of it."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask, self.first = mask, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.mask[self.first : self.first + len(x)]
        self.first = (self.first + len(x)) % len(self.mask)
        return x * rows


def draw_mask(width: int, generator: torch.Generator) -> torch.Tensor:
    """(64, width): half of the numbers 0, the others 2, as nn.Dropout(0.5) multiplies."""
    return 2 * (torch.rand(BATCH_SIZE, width, generator=generator) > 0.5).double()


def network_with(make: Callable[[], nn.Module], width: int, seed: int) -> nn.Sequential:
    """256 → width → layer → tanh → width → layer → tanh → 10, in float64; the same weights whatever the layer."""
    torch.manual_seed(seed)
    first, second, last = nn.Linear(PIXELS, width), nn.Linear(width, width), nn.Linear(width, CLASSES)
    return nn.Sequential(first, make(), nn.Tanh(), second, make(), nn.Tanh(), last).double()


def gradient(model: nn.Module, parts: int, seed: int) -> torch.Tensor:
    """Of one batch of 64 letters in so many parts, with the random generator at `seed` before the first."""
    letters = load_letters(1000).to(CPU, torch.float64)
    torch.manual_seed(seed)
    fill_gradients(model, letters.x[:BATCH_SIZE], letters.y[:BATCH_SIZE], parts)
    return joined(gradients_of(model))


def old_share_left(parts: int, momentum: float) -> float:
    """How much of a BatchNorm's running mean is still the old one after one step in so many parts."""
    means = []
    for start in (0.0, 1.0):
        norm = nn.BatchNorm1d(1, momentum=momentum).double()
        assert norm.running_mean is not None
        norm.running_mean.fill_(start)
        for part in torch.linspace(-1, 1, BATCH_SIZE, dtype=torch.float64).view(-1, 1).chunk(parts):
            norm(part)
        means.append(norm.running_mean.item())
    return means[1] - means[0]


def slower_momentum(momentum: float, parts: int) -> float:
    """The momentum with which `parts` updates forget as much as one does with `momentum`."""
    return float(1 - (1 - momentum) ** (1 / parts))


def show_layers(lesson: Lesson) -> None:
    width, seed = lesson.pick(full=64, quick=32), lesson.options.seed
    lesson.section(
        "Layers that see the part and not the batch",
        "All of this holds as long as each sample goes through the model by itself. BatchNorm normalises a sample with the mean "
        "and variance of those beside it, and its part has 8 of them, not 64: normalization_layers of project 01 measured how "
        f"the gradient suffers. GroupNorm looks at one sample only. Here is one batch, whole and in {PARTS} parts, in float64.",
    )
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "BatchNorm": lambda: nn.BatchNorm1d(width),
        "BatchNorm in eval()": lambda: nn.BatchNorm1d(width).eval(),
        "GroupNorm": lambda: nn.GroupNorm(8, width),
        "LayerNorm": lambda: nn.LayerNorm(width),
        "Dropout": nn.Dropout,
        "Dropout, masks of the batch": lambda: MaskFromList(draw_mask(width, generator)),
    }
    table, off = [], {}
    for name, make in layers.items():
        model = network_with(make, width, seed)
        whole, parts = (gradient(model, count, seed) for count in (1, PARTS))
        off[name] = off_by(parts, whole)
        table.append({"layer": name, f"{PARTS} parts off by":
                      percent(off[name]) if off[name] > 1e-9 else f"{off[name]:.0e}",
                      "": "" if off[name] > 1e-9 else "equal"})  # fmt: skip
    lesson.table(table)
    safe = ("none", "GroupNorm", "LayerNorm", "BatchNorm in eval()", "Dropout, masks of the batch")
    lesson.check("one sample at a time: equal", max(off[name] for name in safe) < 1e-13,
                 f"GroupNorm to {off['GroupNorm']:.0e}; BatchNorm in eval() too, as it looks at nobody")  # fmt: skip
    lesson.check("BatchNorm: another gradient", off["BatchNorm"] > 0.05, f"{percent(off['BatchNorm'])} off")
    draws = lesson.pick(full=30, quick=12)
    model = network_with(nn.Dropout, width, seed)
    pairs = [(gradient(model, 1, seed + i), gradient(model, PARTS, seed + i), gradient(model, 1, seed + draws + i))
             for i in range(draws)]  # fmt: skip
    by_parts = sum(off_by(parts, whole) for whole, parts, _ in pairs) / draws
    by_seed = sum(off_by(other, whole) for whole, _, other in pairs) / draws
    lesson.check("dropout: other masks, as with another seed", 0.7 < by_parts / by_seed < 1.4,
                 f"{percent(by_parts)} off in parts, {percent(by_seed)} between two seeds")  # fmt: skip
    left = {parts: old_share_left(parts, 0.1) for parts in (1, PARTS)}
    lesson.check("BatchNorm's running mean is updated in every part",
                 abs(left[1] - 0.9) < 1e-12 and abs(left[PARTS] - 0.9**PARTS) < 1e-12,
                 f"a step leaves {percent(left[PARTS])} of the old, not {percent(left[1])}")  # fmt: skip
    slower = slower_momentum(0.1, PARTS)
    lesson.check("a smaller momentum puts that right", abs(old_share_left(PARTS, slower) - 0.9) < 1e-12,
                 f"1 - 0.9^(1/{PARTS}) = {slower:.4f} in place of 0.1")  # fmt: skip
    lesson.shows(
        f"with BatchNorm the gradient of {PARTS} parts is {percent(off['BatchNorm'])} off, and no factor repairs it. Take "
        "GroupNorm or LayerNorm, or freeze the statistics with eval() when you fine-tune. Dropout differs by chance and not in "
        "what it means: leave it as it is, and switch it off in the test that compares your loops."
    )
