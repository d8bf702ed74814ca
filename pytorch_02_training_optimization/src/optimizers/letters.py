"""Chapters of optimizer_comparison: a sweep over learning rates for each optimizer, on letters, and how it misleads."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.letters.rows import CLASSES, PIXELS, Letters, load_letters
from pytorch_02_training_optimization.src.optimizers.rules import (
    SGD,
    Adam,
    AdamW,
    Momentum,
    Muon,
    Nesterov,
    Rate,
    RMSprop,
    Rule,
)
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
import torch.nn.functional as F

HIDDEN = 64
BATCH_SIZE = 64
# (out, in) of each layer, as in nn.Linear. R below is the number of runs that train side by side.
LAYERS = ((HIDDEN, PIXELS), (HIDDEN, HIDDEN), (CLASSES, HIDDEN))
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)

MakeRules = Callable[[list[torch.Tensor], Rate], list[Rule]]


def muon_for_hidden(parameters: list[torch.Tensor], lr: Rate) -> list[Rule]:
    """Muon for the two hidden matrices, AdamW for the rest; scaled so that one lr serves both."""
    hidden, rest = [parameters[0], parameters[2]], [parameters[1], *parameters[3:]]
    return [Muon(hidden, lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"), AdamW(rest, lr)]


RULES: dict[str, MakeRules] = {
    "SGD": lambda parameters, lr: [SGD(parameters, lr)],
    "momentum": lambda parameters, lr: [Momentum(parameters, lr)],
    "Nesterov": lambda parameters, lr: [Nesterov(parameters, lr)],
    "RMSprop": lambda parameters, lr: [RMSprop(parameters, lr)],
    "Adam": lambda parameters, lr: [Adam(parameters, lr)],
    "AdamW": lambda parameters, lr: [AdamW(parameters, lr)],
    "Muon + AdamW": muon_for_hidden,
}


def start_weights(seed: int, seeds: int, copies: int, device: torch.device) -> list[torch.Tensor]:
    """Weight (R, out, in) and bias (R, 1, out) of each layer, R = copies x seeds: `copies` times the same starts."""
    generator = torch.Generator().manual_seed(seed)
    parameters = []
    for rows, columns in LAYERS:
        weight = math.sqrt(2 / columns) * torch.randn(seeds, rows, columns, generator=generator)
        parameters += [weight.repeat(copies, 1, 1).to(device), torch.zeros(copies * seeds, 1, rows, device=device)]
    return [parameter.requires_grad_() for parameter in parameters]


def scores(parameters: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """(R, B, 256) → (R, B, 10): R networks, each with its own batch."""
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = torch.relu(torch.baddbmm(bias, x, weight.mT))
    return torch.baddbmm(parameters[-1], x, parameters[-2].mT)


def draw_batches(seed: int, steps: int, seeds: int, count: int) -> torch.Tensor:
    """Which letters each step sees (steps, seeds, B): the same for every optimizer and every rate."""
    return torch.randint(count, (steps, seeds, BATCH_SIZE), generator=torch.Generator().manual_seed(seed))


def train_side_by_side(make: MakeRules, rates: tuple[float, ...], parameters: list[torch.Tensor],
                       letters: Letters, batches: torch.Tensor) -> None:  # fmt: skip
    """Trains R = rates x seeds networks in one loop, run i with rate i // seeds and the batches of seed i % seeds.

    The runs share the products, not the numbers: the loss is a sum over runs, so each has its own gradient.
    """
    seeds = batches.shape[1]
    lr = torch.tensor(rates, device=letters.x.device).repeat_interleave(seeds).view(-1, 1, 1)
    rules = make(parameters, lr)
    for batch in batches.to(letters.x.device).repeat(1, len(rates), 1):
        logits = scores(parameters, letters.x[batch])
        loss = F.cross_entropy(logits.flatten(0, 1), letters.y[batch].flatten(), reduction="sum") / BATCH_SIZE
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        for rule in rules:
            rule.step()


@torch.no_grad()
def accuracies(parameters: list[torch.Tensor], letters: Letters) -> torch.Tensor:
    """(R,): the share of `letters` that each run reads right; one that diverged reads none with confidence."""
    logits = scores(parameters, letters.x.expand(len(parameters[0]), -1, -1))
    return (logits.argmax(dim=-1) == letters.y).float().mean(dim=1).cpu()


@dataclass(frozen=True)
class Sweep:
    """Accuracies (rates, seeds) of one optimizer, on the letters that choose the rate and on those that judge it."""

    validation: torch.Tensor
    test: torch.Tensor

    @property
    def best(self) -> int:
        """The number of the rate that validates best."""
        return int(self.validation.mean(dim=1).argmax())


def run_alone(
    letters: Letters, batches: torch.Tensor, seed: int, lr: float, device: torch.device
) -> list[torch.Tensor]:
    """The run of seed 0 with torch.nn.functional and torch.optim.AdamW: the oracle of `train_side_by_side`."""
    stacked = start_weights(seed, batches.shape[1], 1, device)
    parameters = [parameter[0].detach().squeeze(0).requires_grad_() for parameter in stacked]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    for batch in batches[:, 0].to(device):
        x = letters.x[batch]
        for layer in range(0, len(parameters), 2):
            x = F.linear(torch.relu(x) if layer else x, parameters[layer], parameters[layer + 1])
        optimizer.zero_grad()
        F.cross_entropy(x, letters.y[batch]).backward()
        optimizer.step()
    return parameters


def show_sweep(lesson: Lesson) -> dict[str, Sweep]:
    count = lesson.pick(full=8000, cpu=3000, quick=250)
    held_out = lesson.pick(full=3000, cpu=1000, quick=200)
    steps = lesson.pick(full=600, cpu=200, quick=40)
    seeds = lesson.pick(full=8, cpu=4, quick=2)
    lesson.section(
        "A fair comparison: letters",
        "Which optimizer is best? The question has an answer only when each had the same chance: the same starts, "
        f"batches and steps, and the same number of tries at its learning rate. Here a network of {PIXELS}-{HIDDEN}-"
        f"{HIDDEN}-{CLASSES} reads drawn letters, {steps} steps of {BATCH_SIZE}: {len(RATES)} rates x {seeds} seeds for "
        "each, and the rate is chosen on letters of its own, not on the test. All runs of an optimizer train side by "
        "side, as one stack of matrices with a rate for each.",
    )
    seed = lesson.options.seed
    everything = load_letters(count + held_out, lesson.device)
    training = everything[:count]
    validation = everything[count:]
    test = load_letters(lesson.pick(full=4000, cpu=2000, quick=200), lesson.device, train=False)
    batches = draw_batches(seed, steps, seeds, count)
    sweeps = {}
    for name in lesson.progress(RULES, "learning rates", len(RULES)):
        parameters = start_weights(seed, seeds, len(RATES), lesson.device)
        train_side_by_side(RULES[name], RATES, parameters, training, batches)
        sweeps[name] = Sweep(*(accuracies(parameters, part).view(-1, seeds) for part in (validation, test)))
    table = []
    for name, sweep in sweeps.items():
        reached = sweep.test[sweep.best]
        lesson.record("test accuracy", 100 * reached.mean().item(), "%", optimizer=name, lr=RATES[sweep.best])
        table.append({"optimizer": name, "best lr": f"{RATES[sweep.best]:g}",
                      "validation (%)": 100 * sweep.validation[sweep.best].mean().item(),
                      "test (%)": 100 * reached.mean().item(),
                      "worst, best seed": f"{100 * reached.min():.1f}, {100 * reached.max():.1f}",
                      "rates within 5 points": f"{within_points(sweep, 0.05)} of {len(RATES)}"})  # fmt: skip
    lesson.table(table)
    off = alone_against_stack(training, batches[:10], seed, lesson.device)
    lesson.check("a run of the stack is the run alone with torch.optim", off < 1e-4, f"AdamW, weights to {off:.0e}")
    chosen = [RATES[sweep.best] for sweep in sweeps.values()]
    lesson.check("no best rate at the end of the range", min(chosen) > RATES[0] and max(chosen) < RATES[-1],
                 f"{min(chosen):g} to {max(chosen):g}, tried {RATES[0]:g} to {RATES[-1]:g}")  # fmt: skip
    lesson.check(
        "the best rates lie far apart", max(chosen) / min(chosen) > 9, f"a factor of {max(chosen) / min(chosen):.0f}"
    )
    tuned = {name: sweep.test[sweep.best].mean().item() for name, sweep in sweeps.items()}
    lesson.figure("learning_rates", lambda axis: draw_sweeps(axis, RATES, sweeps))
    first, last = max(tuned, key=lambda name: tuned[name]), min(tuned, key=lambda name: tuned[name])
    difference = sweeps[first].test[sweeps[first].best] - sweeps[last].test[sweeps[last].best]
    error = difference.std().item() / math.sqrt(seeds)
    lesson.shows(
        f"tuned alike, {first} leads and {last} comes last, {100 * (tuned[first] - tuned[last]):.1f} points apart, "
        f"with a standard error of {100 * error:.1f} over {seeds} seeds. AdamW and Adam differ little, since {steps} steps at "
        f"{RATES[sweeps['AdamW'].best]:g} decay the weights by only "
        f"{percent(1 - (1 - 0.01 * RATES[sweeps['AdamW'].best]) ** steps)}. On a network this small a rate that "
        "is three times off costs more than the wrong optimizer."
    )
    return sweeps


def alone_against_stack(letters: Letters, batches: torch.Tensor, seed: int, device: torch.device) -> float:
    """The largest difference between the weights of the first run in a stack and those of the same run alone."""
    rates = (1e-3, 1e-2)
    parameters = start_weights(seed, batches.shape[1], len(rates), device)
    train_side_by_side(RULES["AdamW"], rates, parameters, letters, batches)
    alone = run_alone(letters, batches, seed, rates[0], device)
    return max((own[0].squeeze(0) - other).abs().max().item() for own, other in zip(parameters, alone, strict=True))


def within_points(sweep: Sweep, points: float) -> int:
    """How many rates validate within `points` of the best: how forgiving the optimizer is."""
    means = sweep.validation.mean(dim=1)
    return int((means >= means.max() - points).sum())


def draw_sweeps(axis: Any, rates: tuple[float, ...], sweeps: dict[str, Sweep]) -> None:
    for name in ("SGD", "momentum", "RMSprop", "AdamW", "Muon + AdamW"):
        means = 100 * sweeps[name].validation.mean(dim=1)
        low, high = (100 * getattr(sweeps[name].validation, end)(dim=1) for end in ("amin", "amax"))
        axis.errorbar(rates, means, yerr=torch.stack([means - low, high - means]), capsize=3, label=name)
    axis.axhline(100 / CLASSES, color="black", linewidth=0.8)
    axis.text(rates[-1], 100 / CLASSES - 0.8, "guessing", fontsize=9, ha="right", va="top")
    axis.set(xscale="log", xlabel="learning rate", ylabel="validation accuracy (%)",
             title="Each optimizer has its own range (bars: worst and best seed)")  # fmt: skip
    axis.legend(fontsize=9)


def show_one_rate_for_all(lesson: Lesson, sweeps: dict[str, Sweep]) -> None:
    lesson.section(
        "An unfair comparison: one learning rate for all",
        "Many comparisons give every optimizer the same learning rate, often one that suits the author's favourite. The runs "
        "are there already; this table only reads them differently. Test accuracy in per cent; where nobody reads 15 % "
        "nobody has won:",
    )
    winners, spreads, table = {}, {}, []
    for i, rate in enumerate(RATES):
        means = {name: 100 * sweep.test[i].mean().item() for name, sweep in sweeps.items()}
        winner = max(means, key=lambda name: means[name])
        if means[winner] > 15:  # below that nobody has learned anything
            winners[rate], spreads[rate] = winner, means[winner] - min(means.values())
        row = {name.partition(" ")[0]: round(mean) for name, mean in means.items()}
        table.append({"lr": f"{rate:g}", **row, "winner": winners.get(rate, "–")})
    lesson.table(table)
    adam, sgd = (100 * sweeps[name].test.mean(dim=1) for name in ("AdamW", "SGD"))
    ahead, behind = int((adam - sgd).argmax()), int((sgd - adam).argmax())
    lead, lag = (adam - sgd)[ahead].item(), (sgd - adam)[behind].item()
    lesson.check("one rate says AdamW, another says SGD", lead > 5 and lag > 5,
                 f"by {lead:.0f} points at {RATES[ahead]:g}, by {lag:.0f} at {RATES[behind]:g}")  # fmt: skip
    lesson.check("who wins depends on the rate", len(set(winners.values())) >= 2,
                 f"{len(set(winners.values()))} winners over {len(winners)} rates")  # fmt: skip
    tuned = [100 * sweep.test[sweep.best].mean().item() for sweep in sweeps.values()]
    fair = max(tuned) - min(tuned)
    lesson.check("unfairness is larger than all real differences", max(spreads.values()) > 1.2 * fair,
                 f"{significant(max(spreads.values()))} points between best and worst, tuned {significant(fair)}")  # fmt: skip
    lesson.shows(
        f"at {RATES[ahead]:g} this is a paper in which AdamW beats SGD by {lead:.0f} points, at "
        f"{RATES[behind]:g} one in which SGD wins by {lag:.0f}; tuned, all {len(sweeps)} are within "
        f"{fair:.1f}. When you read a comparison, look first for how each learning rate was found, and how many tries "
        "each optimizer had."
    )
