"""Chapters of lr_schedules: why a constant rate stops falling, and what a decay buys on letters at which peak."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from pytorch_02_training_optimization.src.letters.rows import Letters, load_letters
from pytorch_02_training_optimization.src.schedules.curves import (
    cosine,
    polynomial,
    step_decay,
    warmup_stable_decay,
)
from pytorch_02_training_optimization.src.schedules.letters import (
    Momentum,
    draw_batches,
    judge,
    start_weights,
    train,
    with_error,
)
from shared.lesson import Lesson

import torch

BATCH_SIZE = 64

# Noise

START, NOISY_STEPS = 100.0, 100
NOISY: dict[str, Callable[[int], float]] = {
    "constant 0.5": lambda step: 0.5,
    "constant 0.05": lambda step: 0.05,
    "step, from 0.5": lambda step: 0.5 * step_decay(step, 40),
    "linear, from 0.5": lambda step: 0.5 * polynomial(step, NOISY_STEPS),
    "cosine, from 0.5": lambda step: 0.5 * cosine(step, NOISY_STEPS),
    "1 / (t + 1)": lambda step: 1 / (step + 1),
}


def predict_noisy(rates: Sequence[float]) -> tuple[float, float]:
    """What is left of the start, squared, and the variance, after w -= rate (w + noise) with noise of variance 1."""
    left, variance = START, 0.0
    for rate in rates:
        left, variance = (1 - rate) * left, (1 - rate) ** 2 * variance + rate**2
    return left**2, variance


def walk_noisy(rates: Sequence[float], walkers: int, generator: torch.Generator) -> torch.Tensor:
    """The ends (walkers,) of that many walks."""
    w = torch.full((walkers,), START, dtype=torch.float64)
    for rate in rates:
        w -= rate * (w + torch.randn(walkers, generator=generator, dtype=torch.float64))
    return w


def show_noise(lesson: Lesson) -> None:
    walkers = lesson.pick(full=20_000, quick=4000)
    lesson.section(
        "What a decay is for: noise",
        "The smallest model of a training: one weight, the loss w² / 2, and a gradient with noise, w + n. Two things keep it "
        f"from 0: what is left of the start ({START:g}) and the noise of the last steps. A large rate forgets both fast, and "
        "lets new noise in. At a constant rate the variance settles at rate / (2 - rate) and stays. For any schedule two "
        f"lines of recursion predict both. {NOISY_STEPS} steps, {walkers:,} walks:",
    )
    generator = torch.Generator().manual_seed(lesson.options.seed)
    table, off, expected = [], [], {}
    for name, rate in NOISY.items():
        rates = [rate(step) for step in range(NOISY_STEPS)]
        left, variance = predict_noisy(rates)
        expected[name] = left + variance
        found = walk_noisy(rates, walkers, generator).square().mean().item()
        error = math.sqrt((4 * left * variance + 2 * variance**2) / walkers)
        off.append(abs(found - expected[name]) / error)
        table.append({"rate": name, "left of the start": f"{left:.1e}", "noise": f"{variance:.4f}",
                      "predicted w²": f"{expected[name]:.4f}", "measured": f"{found:.4f}"})  # fmt: skip
    lesson.table(table)
    lesson.check("the prediction holds for every schedule", max(off) < 5, f"{max(off):.1f} standard errors at worst")
    settled = predict_noisy([0.5] * NOISY_STEPS)[1]
    lesson.check("a constant rate settles at rate / (2 - rate)", abs(settled - 0.5 / 1.5) < 1e-9, f"{settled:.4f}")
    falling = [expected[f"{name}, from 0.5"] for name in ("step", "linear", "cosine")]
    constants = expected["constant 0.05"], expected["constant 0.5"]
    lesson.check("every decay beats both constants", max(falling) < min(constants),
                 f"{max(falling):.4f} at most, the constants {constants[0]:.3f} and {constants[1]:.3f}")  # fmt: skip
    lesson.check("1 / (t + 1) is the plain mean of all gradients", abs(expected["1 / (t + 1)"] - 1 / NOISY_STEPS) < 1e-12,
                 f"1 / {NOISY_STEPS}: no unbiased guess from {NOISY_STEPS} draws is better")  # fmt: skip
    lesson.shows(
        f"the same peak, brought down in a line, leaves {expected['linear, from 0.5']:.3f} instead of "
        f"{expected['constant 0.5']:.3f}. 1 / t is best here and nearly nowhere else: it needs to know the curvature, and a "
        "network has many, so its flat directions would never arrive. Cosine and line are the compromise that the field uses."
    )


# Letters

RATES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)


def curve(name: str, step: int, steps: int) -> float:
    return {
        "constant": 1.0,
        "step": step_decay(step, math.ceil(steps / 3)),
        "linear": polynomial(step, steps),
        "cosine": cosine(step, steps),
        "stable, decay": warmup_stable_decay(step, 1, steps, steps // 5),
    }[name]


NAMES = ("constant", "step", "linear", "cosine", "stable, decay")


def show_effect(lesson: Lesson) -> None:
    steps, seeds = lesson.pick(full=300, quick=50), lesson.pick(full=6, quick=4)
    count, held_out = lesson.pick(full=8000, quick=3600), lesson.pick(full=1000, quick=400)
    lesson.section(
        "Constant against decay, fairly",
        f"Now a network. SGD with momentum reads letters, {steps} steps of {BATCH_SIZE}, {len(NAMES)} schedules x {len(RATES)} "
        f"peak rates x {seeds} seeds, the same starts and batches for all. The peak is chosen on letters of its own, and the "
        "loss on new letters is compared twice: at the peak that suits the constant rate, and each at its own best peak; in "
        "brackets the standard error.",
    )
    device, seed = lesson.device, lesson.options.seed
    everything = load_letters(count + held_out, device)
    letters, validation = (
        Letters(everything.x[part], everything.y[part]) for part in (slice(count), slice(count, None))
    )
    test = load_letters(lesson.pick(full=2000, quick=400), device, train=False)
    shape = torch.tensor([[curve(name, step, steps) for name in NAMES] for step in range(steps)])
    rates = (shape[:, :, None] * torch.tensor(RATES)).flatten(1).repeat_interleave(seeds, dim=1)
    parameters = start_weights(seed, seeds, len(NAMES) * len(RATES), device)
    losses = train(Momentum(parameters), letters, draw_batches(seed, steps, seeds, count, BATCH_SIZE), rates)
    form = (len(NAMES), len(RATES), seeds)
    choosing, reached = (judge(parameters, part)[0].view(form) for part in (validation, test))
    best = choosing.mean(dim=2).argmin(dim=1).tolist()
    common = best[0]
    table = []
    for i, name in enumerate(NAMES):
        same, own = reached[i, common], reached[i, best[i]]
        lesson.record("test loss", own.mean().item(), "nats", schedule=name, peak=RATES[best[i]])
        table.append({"schedule": name, f"test loss at {RATES[common]:g}": with_error(same),
                      "gain on constant": "–" if i == 0 else with_error(reached[0, common] - same),
                      "own best peak": RATES[best[i]], "loss there": with_error(own)})  # fmt: skip
    lesson.table(table)
    gains = [reached[0, common] - reached[i, common] for i in range(len(NAMES))]
    stable, line = NAMES.index("stable, decay"), NAMES.index("linear")
    high = reached[0, -1] - reached[stable, -1]
    lesson.check("the last fifth alone, brought down, lowers the loss", high.mean() > 0,
                 f"by {with_error(high)} at {RATES[-1]:g}; the other four fifths are the same")  # fmt: skip
    lesson.check("above it, constant suffers more than linear",
                 (reached[0, -1] - reached[line, -1]).mean() > 0,
                 f"{reached[0, -1].mean():.2f} against {reached[line, -1].mean():.2f} at {RATES[-1]:g}")  # fmt: skip
    lesson.check("linear wants a higher peak than constant, or the same", best[line] >= common,
                 f"{RATES[best[line]]:g} and {RATES[common]:g}; its mean is half the peak")  # fmt: skip
    tuned = [reached[i, best[i]] for i in range(len(NAMES))]
    leader = min(range(len(NAMES)), key=lambda i: choosing[i, best[i]].mean().item())
    together = losses.view(steps, *form)[:, :, common].mean(dim=-1)
    lesson.figure("effect", lambda *axes: draw_effect(axes, reached, together), columns=2)
    same = ", ".join(f"{NAMES[i]} {gains[i].mean():+.3f}" for i in range(1, len(NAMES)))
    lesson.shows(
        f"at the constant rate's best peak the gains are {same}: a schedule with a lower mean rate may gain nothing there. "
        f"At its own peak linear gains {(tuned[0] - tuned[line]).mean():+.3f}; lowest on the letters that chose is "
        f"{NAMES[leader]}. So tune the peak with the schedule, and "
        "report both. In the left picture see when the gain comes: at the end, as the rate goes to 0."
    )


def draw_effect(axes: Sequence[Any], reached: torch.Tensor, losses: torch.Tensor) -> None:
    """`losses` (steps, schedules): at the common peak."""
    over_steps, over_rates = axes
    window = max(1, len(losses) // 15)
    smooth = losses.unfold(0, window, 1).mean(dim=-1)
    for i, name in enumerate(NAMES):
        marks = i * len(smooth) // 30, len(smooth) // 6
        over_steps.plot(range(window, window + len(smooth)), smooth[:, i], markevery=marks, label=name)
        errors = reached[i].std(dim=1) / math.sqrt(reached.shape[2])
        over_rates.errorbar(RATES, reached[i].mean(dim=1), yerr=errors, capsize=3, label=name)
    over_steps.set(
        xlabel="step", ylabel=f"loss of the batch, mean of {window} steps", title="At the constant rate's best peak"
    )
    over_rates.set(
        xscale="log", xlabel="peak rate", ylabel="loss on new letters", title="At every peak (bars: standard error)"
    )
    low = reached.mean(dim=2).min().item()
    over_rates.set_ylim(low - 0.05, min(reached[reached.isfinite()].max().item(), low + 1.1))
    over_rates.legend(fontsize=9)
