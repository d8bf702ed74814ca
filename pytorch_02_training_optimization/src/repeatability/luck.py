"""What the bits do not decide: one ulp that grows, and seeds that differ more than the settings do."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.letters.rows import CLASSES, PIXELS, Letters, load_letters
from pytorch_02_training_optimization.src.repeatability.bits import flat
from pytorch_02_training_optimization.src.repeatability.task import BATCH_SIZE, HIDDEN
from shared.lesson import Lesson
from shared.units import percent

import torch
import torch.nn.functional as F

CPU = torch.device("cpu")
Weights = list[torch.Tensor]

# One ulp


@dataclass(frozen=True)
class Setting:
    name: str
    relu: bool
    momentum: float
    lr: float
    dtype: torch.dtype


CALM, LIVELY, SHARP = "tanh", "tanh, momentum 0.9", "tanh, momentum 0.9, float64"
CORNERS = "ReLU, momentum 0.9"
SETTINGS = (
    Setting(CALM, False, 0.0, 0.1, torch.float32),
    Setting(LIVELY, False, 0.9, 0.1, torch.float32),
    Setting(SHARP, False, 0.9, 0.1, torch.float64),
    Setting(CORNERS, True, 0.9, 0.05, torch.float32),
)
WIDTH = 64


def forward(weights: Weights, x: torch.Tensor, relu: bool) -> torch.Tensor:
    """x (B, 256) to scores (B, 10)."""
    for weight in weights[:-1]:
        x = x @ weight.T
        x = x.relu() if relu else x.tanh()
    return x @ weights[-1].T


def one_ulp_up(weights: Weights) -> Weights:
    """The same weights, but the largest of the first layer is the next number that its type has."""
    copies = [weight.clone() for weight in weights]
    first = copies[0].view(-1)
    place = first.argmax()
    first[place] = torch.nextafter(first[place], torch.full_like(first[place], math.inf))
    return copies


def start_weights(dtype: torch.dtype, generator: torch.Generator) -> Weights:
    shapes = (WIDTH, PIXELS), (WIDTH, WIDTH), (CLASSES, WIDTH)
    return [(torch.randn(shape, generator=generator) / math.sqrt(shape[1])).to(dtype) for shape in shapes]


@dataclass(frozen=True)
class Divergence:
    """The distance of two runs after each step, relative to the length of the weights; and how they read at the end."""

    distances: list[float]
    disagreement: float  # share of letters to which the two give another name
    accuracies: tuple[float, float]


def diverge(setting: Setting, letters: Letters, steps: int, seed: int) -> Divergence:
    """Trains two runs that see the same batches, and differ at the start by one ulp in one weight."""
    generator = torch.Generator().manual_seed(seed)
    first = start_weights(setting.dtype, generator)
    runs = [first, one_ulp_up(first)]
    moving = [[torch.zeros_like(weight) for weight in run] for run in runs]
    x, distances = letters.x.to(setting.dtype), []
    for _ in range(steps):
        batch = torch.randint(len(letters.y), (BATCH_SIZE,), generator=generator)
        for run, momentum in zip(runs, moving, strict=True):
            for weight in run:
                weight.requires_grad_()
            loss = F.cross_entropy(forward(run, x[batch], setting.relu), letters.y[batch])
            with torch.no_grad():
                for weight, move, gradient in zip(run, momentum, torch.autograd.grad(loss, run), strict=True):
                    weight -= setting.lr * move.mul_(setting.momentum).add_(gradient)
        ends = [flat(run).double() for run in runs]
        distances.append(((ends[0] - ends[1]).norm() / ends[0].norm()).item())
    with torch.no_grad():
        names = [forward(run, x, setting.relu).argmax(dim=1) for run in runs]
    right = [(name == letters.y).float().mean().item() for name in names]
    return Divergence(distances, (names[0] != names[1]).float().mean().item(), (right[0], right[1]))


def growth(found: Divergence) -> float:
    """How many times larger the distance is at the end than after ten steps, when rounding has set in."""
    return found.distances[-1] / found.distances[9]


def largest_jump(found: Divergence) -> float:
    """The largest growth from one step to the next, after the tenth."""
    return max(after / before for before, after in itertools.pairwise(found.distances[9:]))


def show_divergence(lesson: Lesson) -> None:
    steps = lesson.pick(full=500, quick=150)
    lesson.section(
        "One bit, and what becomes of it",
        "Two runs with the same batches; in one of them the largest weight of the first layer is larger by one ulp, the last "
        f"of its bits, once, before the first step. Distance of all weights over {steps} steps, relative to their length, on "
        "the CPU. Where it grows by a constant factor per step (a line in the picture), any difference in rounding becomes "
        "visible.",
    )
    letters = load_letters(lesson.pick(full=1500, quick=400), CPU)
    found = {}
    for setting in lesson.progress(SETTINGS, "pairs of runs", len(SETTINGS)):
        found[setting.name] = diverge(setting, letters, steps, lesson.options.seed)
        lesson.record("distance", found[setting.name].distances[-1], "relative", setting=setting.name, steps=steps)
    marks = [step for step in (10, 30, 100, 200, 300, 500) if step <= steps]
    lesson.table([{"network": name} | {f"step {step}": f"{pair.distances[step - 1]:.0e}" for step in marks}
                  | {"accuracy (%)": " and ".join(f"{100 * value:.1f}" for value in pair.accuracies),
                     "other names": percent(pair.disagreement)} for name, pair in found.items()])  # fmt: skip
    lesson.check("a calm training keeps the difference small", found[CALM].distances[-1] < 1e-5,
                 f"{found[CALM].distances[-1]:.0e} after {steps} steps")  # fmt: skip
    lesson.check("the same network with momentum spreads it", growth(found[LIVELY]) > 3 * growth(found[CALM]),
                 f"since step 10 {growth(found[LIVELY]):,.0f}-fold, {growth(found[CALM]):,.0f}-fold without")  # fmt: skip
    lesson.check("float64 begins lower and grows as well", found[SHARP].distances[9] < 1e-6 * found[LIVELY].distances[9]
                 and growth(found[SHARP]) > 3 * growth(found[CALM]),
                 f"from {found[SHARP].distances[9]:.0e} to {found[SHARP].distances[-1]:.0e}")  # fmt: skip
    lesson.figure("divergence", lambda axis: draw_divergence(axis, found))
    pair = found[LIVELY]
    lesson.shows(
        f"with momentum two runs that began one ulp apart give {percent(pair.disagreement)} of the letters another name at "
        f"the end, and read {100 * pair.accuracies[0]:.1f} and {100 * pair.accuracies[1]:.1f} % right. With ReLU a sample can "
        "cross the corner in one run only, and then a whole term of the gradient differs: the largest jump in one step was "
        f"{largest_jump(found[CORNERS]):.1f}-fold, {largest_jump(pair):.1f}-fold with tanh. More bits delay all this and do not "
        "end it. So compare bits over the first steps, and results over seeds."
    )


def draw_divergence(axis: Any, found: dict[str, Divergence]) -> None:
    for name, pair in found.items():
        steps = range(1, len(pair.distances) + 1)
        # A distance of 0 has no place on this axis; it can only be at the start, where one ulp drowned in a step.
        axis.plot(steps, [max(value, 1e-19) for value in pair.distances], label=name, marker="")
    axis.set(yscale="log", xlabel="step", ylabel="distance / length of the weights",
             title="Two runs that began one ulp apart")  # fmt: skip
    axis.legend(fontsize=9)


# Seeds

RATES = (0.01, 0.012)  # the two settings: a learning rate, and one that is a fifth larger
Z_TWO_SIDED, Z_POWER = 1.960, 0.842  # of the normal distribution: 5 % false alarms, 80 % of real differences found


def seeds_needed(spread: float, effect: float, *, paired: bool) -> int:
    """Seeds for each setting, so that a true difference of `effect` is found in 80 % of the studies.

    `spread`: standard deviation over seeds, of one setting or, if paired, of the difference on the same seed. The usual
    formula for a z-test, as in Cohen, Statistical Power Analysis for the Behavioral Sciences (1988), chapter 2.
    """
    once = ((Z_TWO_SIDED + Z_POWER) * spread / effect) ** 2
    return max(2, math.ceil(once if paired else 2 * once))


def final_accuracies(seeds: int, steps: int, letters: Letters, test: Letters, seed: int) -> torch.Tensor:
    """Test accuracies (2, seeds) of both settings, all trained side by side; run i of both has one start, one order."""
    generator, device = torch.Generator().manual_seed(seed), letters.x.device
    weights = []
    for rows, columns in ((HIDDEN, PIXELS), (CLASSES, HIDDEN)):
        drawn = math.sqrt(2 / columns) * torch.randn(seeds, rows, columns, generator=generator)
        weights.append(drawn.repeat(len(RATES), 1, 1).to(device).requires_grad_())
    lr = torch.tensor(RATES, device=device).repeat_interleave(seeds).view(-1, 1, 1)
    moving = [torch.zeros_like(weight) for weight in weights]
    for _ in range(steps):
        batch = torch.randint(len(letters.y), (seeds, BATCH_SIZE), generator=generator).to(device).repeat(len(RATES), 1)
        scores = torch.relu(letters.x[batch] @ weights[0].mT) @ weights[1].mT  # (2 x seeds, B, 10)
        loss = F.cross_entropy(scores.flatten(0, 1), letters.y[batch].flatten(), reduction="sum") / BATCH_SIZE
        with torch.no_grad():
            for weight, move, gradient in zip(weights, moving, torch.autograd.grad(loss, weights), strict=True):
                weight -= lr * move.mul_(0.9).add_(gradient)
    with torch.no_grad():
        scores = torch.relu(test.x @ weights[0].mT) @ weights[1].mT
    return (scores.argmax(dim=-1) == test.y).float().mean(dim=1).view(len(RATES), seeds).cpu()


def found_share(effect: float, spread: float, seeds: int, studies: int, generator: torch.Generator) -> float:
    """The share of simulated studies with so many seeds for each setting that find the effect."""
    means = (torch.randn(2, studies, generator=generator) * spread / math.sqrt(seeds)).double()
    error = spread * math.sqrt(2 / seeds)
    return ((effect + means[1] - means[0]).abs() > Z_TWO_SIDED * error).double().mean().item()


def show_seeds(lesson: Lesson) -> None:
    seeds, steps = lesson.pick(full=128, cpu=64, quick=32), lesson.pick(full=200, quick=60)
    lesson.section(
        "Reproducible is not significant",
        "A result that repeats to the bit is one draw from a distribution, repeated. Two settings, learning rates "
        f"{RATES[0]} and {RATES[1]}, each with {seeds} seeds, {steps} steps, on the same {seeds} starts and orders. How far "
        "apart are two seeds, and how far the two settings?",
    )
    letters = load_letters(lesson.pick(full=2000, quick=400), lesson.device)
    test = load_letters(lesson.pick(full=2000, quick=500), lesson.device, train=False)
    found = 100 * final_accuracies(seeds, steps, letters, test, lesson.options.seed).double()
    a, b = found
    spread, paired = math.sqrt((a.var() + b.var()).item() / 2), (b - a).std().item()
    effect, error = (b - a).mean().item(), (b - a).std().item() / math.sqrt(seeds)
    better, worse = (b, a) if effect > 0 else (a, b)
    against = (worse[:, None] > better[None, :]).double().mean().item()
    against_paired = (worse > better).double().mean().item()
    best_of_five = worse.view(-1)[: seeds // 5 * 5].view(-1, 5).amax(dim=1).mean().item() - worse.mean().item()
    lesson.table(
        [
            {"what": f"mean of lr {RATES[0]}, of lr {RATES[1]}", "points": f"{a.mean():.2f}, {b.mean():.2f}"},
            {"what": "difference (its standard error)", "points": f"{effect:+.2f} ({error:.2f})"},
            {"what": "standard deviation over seeds", "points": f"{spread:.2f}"},
            {"what": "the same, of the difference on one seed", "points": f"{paired:.2f}"},
            {"what": "worst to best seed of one setting", "points": f"{a.min():.1f} to {a.max():.1f}"},
            {"what": "best of five seeds, above their mean", "points": f"{best_of_five:+.2f}"},
        ]
    )  # fmt: skip
    lesson.record("spread over seeds", spread, "points", seeds=seeds)
    lesson.record("difference of settings", effect, "points", seeds=seeds)
    lesson.check("single pairs of runs contradict each other", 0 < against < 1,
                 f"in {percent(against)} of all pairs the worse setting wins")  # fmt: skip
    lesson.check("one setting's seeds are further apart than the settings", (a.max() - a.min()).item() > abs(effect),
                 f"{(a.max() - a.min()).item():.1f} points and {abs(effect):.1f}")  # fmt: skip
    lesson.check("the same start and order for both: less noise", paired < math.sqrt(2) * spread,
                 f"{paired:.2f} points, {math.sqrt(2) * spread:.2f} with seeds of their own")  # fmt: skip
    needs = {size: tuple(seeds_needed(sigma, size, paired=flag) for flag, sigma in ((False, spread), (True, paired)))
             for size in (2.0, 1.0, 0.5, 0.25)}  # fmt: skip
    lesson.text("Seeds for each setting that find a true difference in 80 % of all studies, at 5 % false alarms:")
    lesson.table([{"difference (points)": size, "seeds of their own": alone, "the same seeds": same}
                  for size, (alone, same) in needs.items()])  # fmt: skip
    n, studies = needs[0.25][0], 20_000
    power = found_share(0.25, spread, n, studies, torch.Generator().manual_seed(lesson.options.seed))
    lesson.check("simulated studies find it as often as promised", 0.78 < power < 0.87,
                 f"{percent(power)} of {studies:,} studies with {n} seeds")  # fmt: skip
    lesson.figure("seeds", lambda axis: draw_seeds(axis, found, spread))
    lesson.shows(
        f"with one seed each you would choose the worse setting in {percent(against)} of the cases, with one common seed in "
        f"{percent(against_paired)}. The best of five seeds is {best_of_five:.1f} points above the mean, by luck alone; the "
        f"settings differ by {abs(effect):.1f}. To find half a point here takes {needs[0.5][0]} seeds each, or "
        f"{needs[0.5][1]} common ones: give every run a seed, and every comparison many."
    )


def draw_seeds(axis: Any, found: torch.Tensor, spread: float) -> None:
    """Each seed a point, both settings of a seed joined by a line; beside them the means."""
    for place, (rate, row, marker) in enumerate(zip(RATES, found, "os", strict=True)):
        axis.plot(torch.full_like(row, place), row, linestyle="", marker=marker, alpha=0.5, color="#525252")
        axis.errorbar([place + 0.12 * (2 * place - 1)], [row.mean()], yerr=[row.std()], marker=marker, capsize=4,
                      color="black", label=f"lr {rate}: mean and standard deviation")  # fmt: skip
    axis.plot([0, 1], found, linestyle="-", linewidth=0.5, marker="", color="#9ca3af")
    axis.set(xlim=(-0.6, 1.6), xticks=(0, 1), ylabel="test accuracy (%)",
             title="Every line is a seed: the same start, two learning rates")  # fmt: skip
    axis.set_xticklabels([f"lr {rate}" for rate in RATES])
    axis.legend(fontsize=9)
