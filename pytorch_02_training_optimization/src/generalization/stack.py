"""Networks that train side by side, one for each seed, as one stack of matrices; and what is done to them by a recipe.

S networks (one for each seed), B samples in a batch, D numbers in a sample, H hidden units, 10 classes.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from pytorch_02_training_optimization.src.generalization.tasks import CLASSES, SIDE, Samples, Task

import torch
import torch.nn.functional as F

BATCH_SIZE, MOMENTUM = 64, 0.9

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]  # x (S, B, D) → the same, changed by lot


@dataclass(frozen=True)
class Recipe:
    """All that is decided about a training; each field but the first four is a cure, switched off by default."""

    steps: int
    count: int  # training samples
    width: int  # hidden units
    lr: float = 0.05
    dropout: float = 0.0
    decay: float = 0.0  # each step takes lr x decay of every weight
    smoothing: float = 0.0  # share of a label that is spread over all classes
    augment: Augment | None = None
    mixes: bool = False
    averaging: float = 0.0  # share of the old average that an exponential moving average keeps


@dataclass(frozen=True)
class Score:
    """Loss and accuracy of each network, (S,) on the CPU."""

    loss: torch.Tensor
    accuracy: torch.Tensor


@dataclass(frozen=True)
class Point:
    step: int
    train: Score
    validation: Score
    test: Score


@dataclass(frozen=True)
class Run:
    """The trained weights, and what was measured on the way; the last point is the end."""

    parameters: list[torch.Tensor]
    curve: list[Point]

    @property
    def end(self) -> Point:
        return self.curve[-1]


# The network


def start_weights(seeds: int, inputs: int, width: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Weights (S, D, H) and (S, H, 10), each followed by its biases (S, 1, H) and (S, 1, 10)."""
    parameters = []
    for rows, columns in ((inputs, width), (width, CLASSES)):
        parameters.append(math.sqrt(2 / rows) * torch.randn(seeds, rows, columns, generator=generator))
        parameters.append(torch.zeros(seeds, 1, columns))
    return parameters


def drop(x: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Dropout, inverted: what is left is scaled up, so that nothing has to be done in use."""
    keeps = torch.rand(x.shape, generator=generator) >= share
    return x * keeps.to(x.device) / (1 - share)


def logits_of(
    parameters: list[torch.Tensor], x: torch.Tensor, dropout: float = 0.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """(S, B, D) → (S, B, 10): each network reads its own batch."""
    weight, bias, out_weight, out_bias = parameters
    hidden = torch.relu(torch.baddbmm(bias, x, weight))  # (S, B, H)
    if dropout:
        assert generator is not None
        hidden = drop(hidden, dropout, generator)
    return torch.baddbmm(out_bias, hidden, out_weight)


@torch.no_grad()
def score(parameters: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> Score:
    """Of x (S, B, D) and y (S, B), or of (B, D) and (B,) for all networks alike."""
    seeds = len(parameters[0])
    x, y = x.expand(seeds, -1, -1), y.expand(seeds, -1)
    logits = logits_of(parameters, x)
    losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
    return Score(losses.mean(dim=1).cpu(), (logits.argmax(dim=-1) == y).float().mean(dim=1).cpu())


# What is done to a batch


def shift(x: torch.Tensor, generator: torch.Generator, farthest: int = 1) -> torch.Tensor:
    """Each letter moved by up to `farthest` pixels in both directions; what comes in at the edge is 0, the mean."""
    images = x.reshape(-1, SIDE, SIDE)  # (S x B, 16, 16)
    padded = F.pad(images, (farthest,) * 4)
    top, left = torch.randint(2 * farthest + 1, (2, len(images), 1, 1), generator=generator).to(x.device)
    axis = torch.arange(SIDE, device=x.device)
    pixel = (axis.view(1, SIDE, 1) + top) * padded.shape[-1] + axis + left
    return padded.flatten(1).gather(1, pixel.flatten(1)).view_as(x)


def flip(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every other letter mirrored, by lot."""
    is_flipped = (torch.rand(*x.shape[:2], 1, generator=generator) < 0.5).to(x.device)
    mirrored = x.unflatten(-1, (SIDE, SIDE)).flip(-1).flatten(-2)
    return torch.where(is_flipped, mirrored, x)


def cut_out(x: torch.Tensor, generator: torch.Generator, size: int = 4) -> torch.Tensor:
    """A square of `size` pixels set to 0 in each letter (DeVries and Taylor 2017, section 3)."""
    top, left = torch.randint(SIDE - size + 1, (2, *x.shape[:2], 1, 1), generator=generator).to(x.device)
    axis = torch.arange(SIDE, device=x.device)
    rows, columns = axis.view(SIDE, 1), axis
    is_cut = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
    return x.masked_fill(is_cut.flatten(-2), 0.0)


def smooth(targets: torch.Tensor, share: float) -> torch.Tensor:
    """Targets (…, 10) of which `share` is spread evenly over all classes (Szegedy et al. 2016, section 7)."""
    return (1 - share) * targets + share / targets.shape[-1]


def mix(x: torch.Tensor, targets: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup (Zhang et al. 2018, equation 1 with alpha = 1): each sample and its target blended with the next one's."""
    share = torch.rand(len(x), 1, 1, generator=generator).to(x.device)
    return share * x + (1 - share) * x.roll(1, 1), share * targets + (1 - share) * targets.roll(1, 1)


# Training


def draw_subsets(seeds: int, count: int, pool: int, seed: int) -> torch.Tensor:
    """(S, count): which samples of the pool each network learns from. A larger count holds the smaller one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(pool, generator=generator)[:count] for _ in range(seeds)])


def draw_batches(seeds: int, steps: int, count: int, seed: int) -> torch.Tensor:
    """(steps, S, B): which samples of its own set each network sees in each step; the same for every recipe."""
    return torch.randint(count, (steps, seeds, BATCH_SIZE), generator=torch.Generator().manual_seed(seed + 1))


def soft_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy for targets that are probabilities, mean over a batch, summed over the networks.

    The sum keeps them apart: the gradient of one network's weights comes from its own loss alone.
    """
    return -(targets * F.log_softmax(logits, dim=-1)).sum() / logits.shape[1]


def train(task: Task, recipe: Recipe, seeds: int, seed: int, watched: Iterable[int] = ()) -> Run:
    """Trains `seeds` networks at once: each has its own samples, start and batches, the same for every recipe.

    Measures after the steps in `watched`, and at the end.
    """
    device, watch = task.pool.x.device, {*watched, recipe.steps}
    own = draw_subsets(seeds, recipe.count, len(task.pool), seed).to(device)
    x_own, y_own = task.pool.x[own], task.pool.y[own]  # (S, count, D) and (S, count)
    starts = start_weights(seeds, x_own.shape[-1], recipe.width, torch.Generator().manual_seed(seed + 2))
    parameters = [start.to(device).requires_grad_() for start in starts]
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    averages = [parameter.detach().clone() for parameter in parameters]
    lot = torch.Generator().manual_seed(seed + 3)
    network = torch.arange(seeds, device=device).view(-1, 1)
    curve = []
    for step, batch in enumerate(draw_batches(seeds, recipe.steps, recipe.count, seed).to(device), 1):
        x, targets = x_own[network, batch], F.one_hot(y_own[network, batch], CLASSES).float()
        if recipe.augment:
            x = recipe.augment(x, lot)
        if recipe.mixes:
            x, targets = mix(x, targets, lot)
        loss = soft_loss(logits_of(parameters, x, recipe.dropout, lot), smooth(targets, recipe.smoothing))
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
                velocity.mul_(MOMENTUM).add_(gradient)
                if parameter.shape[1] > 1:  # weights and not biases; "Weight decay is for matrices" says why
                    parameter.mul_(1 - recipe.lr * recipe.decay)
                parameter.sub_(recipe.lr * velocity)
            for average, parameter in zip(averages, parameters, strict=True):
                average.lerp_(parameter, 1 - recipe.averaging)
        if step in watch:
            curve.append(measure_point(step, averages, Samples(x_own, y_own), task))
    return Run([average.clone() for average in averages], curve)


def measure_point(step: int, parameters: list[torch.Tensor], own: Samples, task: Task) -> Point:
    held_out = (score(parameters, part.x, part.y) for part in (task.validation, task.test))
    return Point(step, score(parameters, own.x, own.y), *held_out)


class Bench:
    """One task and one set of seeds, on which every recipe is tried; a recipe that was trained already is remembered."""

    def __init__(self, task: Task, plain: Recipe, seeds: int, seed: int) -> None:
        self.task, self.plain, self.seeds, self.seed = task, plain, seeds, seed
        self.runs: dict[Recipe, Run] = {}

    def run(self, **cure: object) -> Run:
        """The training without any cure, except for the fields of Recipe that are given."""
        recipe = replace(self.plain, **cure)  # type: ignore[arg-type]
        if recipe not in self.runs:
            watched = range(5, recipe.steps, 5) if recipe == self.plain else ()
            self.runs[recipe] = train(self.task, recipe, self.seeds, self.seed, watched)
        return self.runs[recipe]

    def gain(self, **cure: object) -> "Gain":
        return paired_gain(self.run(**cure).end.test.accuracy, self.run().end.test.accuracy)


@dataclass(frozen=True)
class Gain:
    """A difference of accuracies in points; printed with its standard error in brackets."""

    points: float
    error: float

    def __str__(self) -> str:
        return f"{self.points:+.1f} ({self.error:.1f})"


def paired_gain(treated: torch.Tensor, untreated: torch.Tensor) -> Gain:
    """Accuracies (S,) of the same seeds with and without: each seed is compared with itself."""
    difference = 100 * (treated - untreated)
    return Gain(difference.mean().item(), difference.std().item() / math.sqrt(len(difference)))


def unpaired_error(treated: torch.Tensor, untreated: torch.Tensor) -> float:
    """The standard error in points, had the two groups nothing in common."""
    return 100 * math.sqrt((treated.var() + untreated.var()).item() / len(treated))
