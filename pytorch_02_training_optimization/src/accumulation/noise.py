"""The gradient noise scale: from which batch size on a larger batch is hardly worth it, read from the gradients themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pytorch_02_training_optimization.src.accumulation.loops import fill_gradients
from pytorch_02_training_optimization.src.accumulation.task import BATCH_SIZE, PARTS, Momentum, gradients_of, make_model
from pytorch_02_training_optimization.src.letters.rows import Letters, load_letters
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
import torch.nn.functional as F
from torch import nn


def squared_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([gradient.square().sum() for gradient in gradients]).sum()


def squared_norms_by_letter(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(N,): |g|² of each letter's own gradient, in one backward pass (Goodfellow 2015).

    The weight gradient of a Linear for one letter is delta x inputᵀ, so its squared norm is |delta|² |input|².
    """
    inputs, outputs = [], []
    for layer in model:
        if isinstance(layer, nn.Linear):
            inputs.append(x.detach())
            x = layer(x)
            outputs.append(x)
        else:
            x = layer(x)
    deltas = torch.autograd.grad(F.cross_entropy(x, y, reduction="sum"), outputs)
    squares = [delta.square().sum(1) * (given.square().sum(1) + 1)  # + 1: the bias
               for delta, given in zip(deltas, inputs, strict=True)]  # fmt: skip
    return torch.stack(squares).sum(0)


@dataclass(frozen=True)
class Noise:
    """|G|², the squared length of the true gradient, and tr Σ, the variance of one letter's gradient around it."""

    signal: float
    variance: float

    @property
    def scale(self) -> float:
        """In letters: the batch whose gradient is half signal and half noise."""
        return self.variance / self.signal


def exact_noise(model: nn.Sequential, letters: Letters) -> Noise:
    """Over all letters, one by one: what the estimate is to find."""
    model.zero_grad()
    F.cross_entropy(model(letters.x), letters.y).backward()
    signal = float(squared_norm(gradients_of(model)))
    return Noise(signal, float(squared_norms_by_letter(model, letters.x, letters.y).mean()) - signal)


def two_sizes(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor, parts: int) -> tuple[float, float]:
    """|G|² and tr Σ from one accumulated step: the parts are the small batches, their mean the large one.

    Both estimates are unbiased (McCandlish et al. 2018, appendix A.1); either may come out negative.
    """
    small, large = len(y) // parts, len(y)
    weights, total, mean_square = list(model.parameters()), None, 0.0
    for some_x, some_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        part = torch.autograd.grad(F.cross_entropy(model(some_x), some_y), weights)
        mean_square += float(squared_norm(part)) / parts
        total = part if total is None else tuple(a + b for a, b in zip(total, part, strict=True))
    assert total is not None
    whole = float(squared_norm(total)) / parts**2
    signal = (large * whole - small * mean_square) / (large - small)
    return signal, (mean_square - whole) / (1 / small - 1 / large)


def progress_by_batch(model: nn.Sequential, letters: Letters, sizes: Sequence[int], rates: Sequence[float],
                      generator: torch.Generator) -> dict[int, float]:  # fmt: skip
    """How far the loss over all letters falls by one step on the gradient of a batch, each size with the rate best for it.

    The mean over 12 batches, and over up to 128 of the small ones, which differ more.
    """
    weights = list(model.parameters())
    start = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        before = F.cross_entropy(model(letters.x), letters.y)
    found = {}
    for size in sizes:
        draws = max(12, min(128, 2048 // size))
        falls = torch.zeros(draws, len(rates), device=letters.x.device)
        for draw in range(draws):
            x, y = letters.batch(size, generator)
            gradients = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
            with torch.no_grad():
                for i, rate in enumerate(rates):
                    for weight, first, gradient in zip(weights, start, gradients, strict=True):
                        weight.copy_(first - rate * gradient)
                    falls[draw, i] = before - F.cross_entropy(model(letters.x), letters.y)
                for weight, first in zip(weights, start, strict=True):
                    weight.copy_(first)
        found[size] = float(falls.mean(0).max())
    return found


def show_noise(lesson: Lesson) -> None:
    lesson.section(
        "How large a batch is worth it",
        "Accumulation gives any batch size, at the price of fewer steps. A batch's gradient is the true one, G, plus noise, "
        "whose variance falls as 1 / batch size. At the noise scale, the variance for one letter over |G|², both are equal: far "
        "below it a batch twice as large is worth two steps, far above it nothing but time. The parts of an accumulated step "
        "tell it for free: how long the gradients of 8 are, and how long that of 64 is (McCandlish et al. 2018).",
    )
    seed, device = lesson.options.seed, lesson.device
    letters = load_letters(lesson.pick(full=2000, quick=500)).to(device)
    model = make_model(lesson.pick(full=64, quick=32), seed, device)
    rule, generator = Momentum(model.parameters(), 0.05), torch.Generator().manual_seed(seed)
    draws = lesson.pick(full=200, quick=40)
    moments, done = lesson.pick(full=(0, 60, 250), quick=(0, 30)), 0
    table, exact, errors = [], {}, []
    for moment in moments:
        for _ in range(moment - done):
            fill_gradients(model, *letters.batch(BATCH_SIZE, generator), 1)
            rule.step()
        done = moment
        exact[moment] = exact_noise(model, letters)
        pairs = torch.tensor([two_sizes(model, *letters.batch(BATCH_SIZE, generator), PARTS) for _ in range(draws)])
        means, standard_errors = pairs.double().mean(0), pairs.double().std(0) / draws**0.5
        right = torch.tensor([exact[moment].signal, exact[moment].variance], dtype=torch.float64)
        errors.append(float(((means - right) / standard_errors).abs().max()))
        estimate = float(means[1] / means[0])
        table.append({"after steps": moment, "|G|²": significant(exact[moment].signal, 2),
                      "variance": significant(exact[moment].variance, 2), "noise scale": f"{exact[moment].scale:,.0f} letters",
                      f"from {draws} steps in parts": f"{estimate:,.0f}",
                      "from one": f"{float(pairs[0, 1] / pairs[0, 0]):,.0f}"})  # fmt: skip
        lesson.record("noise scale", exact[moment].scale, "letters", step=moment)
    lesson.table(table)
    lesson.check("the parts' estimates are those of all letters, one by one", max(errors) < 6,
                 f"{max(errors):.1f} standard errors off at worst")  # fmt: skip
    first, last = exact[moments[0]].scale, exact[moments[-1]].scale
    sizes = lesson.pick(full=(4, 16, 64, 256, 1024, 4096), quick=(8, 64, 512, 4096))
    rates = [0.005 * 2**i for i in range(lesson.pick(full=10, quick=8))]
    falls = progress_by_batch(model, letters, sizes, rates, generator)
    most = falls[sizes[-1]] * (1 + last / sizes[-1])
    lesson.text("Does it say the truth? One step on batches of each size, with the learning rate that is best for it:")
    lesson.table([{"batch": size, "the loss falls by": falls[size], "of the most possible": percent(falls[size] / most),
                   "foretold: 1 / (1 + scale / batch)": percent(1 / (1 + last / size))} for size in sizes])  # fmt: skip
    small, large = sizes[0], sizes[-1]
    worth = (falls[small] / small) / (falls[large] / large)
    lesson.check("a letter in a small batch is worth more", worth > 1.3,
                 f"{worth:.0f} times the progress of one in the batch of {large:,}")  # fmt: skip
    half = batch_of_half(falls, most)
    lesson.check("the noise scale is right to an order of magnitude", 0.1 < half / last < 10,
                 f"half of the most with {half:,.0f} letters, foretold {last:,.0f}")  # fmt: skip
    lesson.figure("batch_size_worth", lambda axis: draw_worth(axis, falls, most, last))
    lesson.shows(
        f"{last:,.0f} letters were foretold as the batch of half the progress, {half:,.0f} it is. Expect no more: the formula "
        "assumes a loss equally curved in all directions and plain gradient descent. The authors saw it grow in long trainings; "
        f"here it went from {first:,.0f} to {last:,.0f}. One step's estimate scatters, and may be negative: average |G|² and "
        "the variance apart, over many steps, before you divide."
    )


def batch_of_half(falls: dict[int, float], most: float) -> float:
    """The batch with half of the most possible progress, between the sizes on a logarithmic axis, or the nearest size."""
    for (small, low), (large, high) in pairwise(falls.items()):
        if low < most / 2 <= high:
            return float(small * (large / small) ** ((most / 2 - low) / (high - low)))
    return float(min(falls, key=lambda size: abs(falls[size] - most / 2)))


def draw_worth(axis: Any, falls: dict[int, float], most: float, scale: float) -> None:
    sizes = torch.logspace(0, 13, 100, base=2)
    axis.plot(
        sizes.tolist(), (100 / (1 + scale / sizes)).tolist(), marker="", label="foretold: 1 / (1 + scale / batch)"
    )
    axis.plot(list(falls), [100 * fall / most for fall in falls.values()], "o", linestyle="", label="measured")
    axis.axvline(scale, color="black", linewidth=0.8, linestyle=":", marker="")
    axis.annotate(f"noise scale: {scale:,.0f}", (scale, 5), (6, 0), textcoords="offset points")
    axis.set(xscale="log", xlabel="letters in the batch", ylabel="progress of one step, % of the most possible",
             ylim=(0, 110), title="What a larger batch adds to one step")  # fmt: skip
    axis.legend(fontsize=9, loc="upper left")
