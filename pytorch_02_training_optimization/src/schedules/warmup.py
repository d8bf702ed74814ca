"""Chapters of lr_schedules: how far Adam goes in its first steps, and what a warm-up makes of a deep network."""

from collections.abc import Sequence
from typing import Any

from pytorch_02_training_optimization.src.letters.rows import Letters, load_letters
from pytorch_02_training_optimization.src.schedules.curves import polynomial
from pytorch_02_training_optimization.src.schedules.letters import (
    Adam,
    Momentum,
    Parameters,
    draw_batches,
    judge,
    start_weights,
    train,
    with_error,
)
from shared.lesson import Lesson
from shared.units import percent

import torch

BATCH_SIZE = 64


def flat(tensors: Parameters) -> torch.Tensor:
    """All numbers of the first network in a stack, in one row."""
    return torch.cat([x.detach()[0].flatten() for x in tensors]).cpu()


def root_mean_square(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


def adam_step_sizes(letters: Letters, seed: int, steps: int, lr: float) -> list[float]:
    """How far Adam moves a weight at each step, as a root mean square over all weights and in units of lr."""
    adam = Adam(start_weights(seed, 1, 1, letters.x.device))
    sizes = []
    for batch in draw_batches(seed, steps, 1, len(letters.y), BATCH_SIZE):
        before = flat(adam.parameters)
        train(adam, letters, batch[None], torch.full((1, 1), lr))
        sizes.append(root_mean_square(flat(adam.parameters) - before) / lr)
    return sizes


def momentum_step_sizes(letters: Letters, seed: int, steps: int, lr: float) -> list[float]:
    """The length of momentum's step at each step, in units of lr times the gradient of that step."""
    momentum = Momentum(start_weights(seed, 1, 1, letters.x.device))
    sizes = []
    for batch in draw_batches(seed, steps, 1, len(letters.y), BATCH_SIZE):
        before = flat(momentum.m)
        train(momentum, letters, batch[None], torch.full((1, 1), lr))
        after = flat(momentum.m)
        sizes.append(root_mean_square(after) / root_mean_square(after - momentum.momentum * before))
    return sizes


def moved_alike(letters: Letters, seed: int) -> float:
    """The share of weights that the first Adam step moves the same way on two different batches."""
    moves = []
    for number in range(2):
        adam = Adam(start_weights(seed, 1, 1, letters.x.device))
        before = flat(adam.parameters)
        batches = draw_batches(seed + 1 + number, 1, 1, len(letters.y), BATCH_SIZE)
        train(adam, letters, batches, torch.full((1, 1), 1e-3))
        moves.append((flat(adam.parameters) - before).sign())
    return (moves[0] == moves[1]).float().mean().item()


def show_first_steps(lesson: Lesson) -> None:
    steps, lr = lesson.pick(full=200, quick=50), 0.003
    lesson.section(
        "Why a warm-up: Adam's first steps",
        "Adam divides the mean gradient m by the root of the mean square v. At step 1 both come from one batch, so every "
        "weight moves by exactly lr, however small or doubtful its gradient. Later, gradients that change sign cancel in m "
        "and not in v, and the steps shrink by themselves. Momentum begins the other way round. A network that reads "
        f"letters, 256-64-64-10, batches of {BATCH_SIZE}:",
    )
    letters, seed = load_letters(lesson.pick(full=9000, quick=4000), lesson.device), lesson.options.seed
    adam, momentum = adam_step_sizes(letters, seed, steps, lr), momentum_step_sizes(letters, seed, steps, 0.02)
    shown = [step for step in (1, 2, 5, 10, 20, 50, 200) if step <= steps]
    lesson.table([{"step": step, "Adam: one weight moves (lr)": adam[step - 1],
                   "momentum: step / (lr x gradient)": momentum[step - 1]} for step in shown])  # fmt: skip
    alike = moved_alike(letters, seed)
    lesson.check("Adam's first step is lr for nearly every weight", 0.9 < adam[0] <= 1.0001,
                 f"{adam[0]:.3f} lr, root mean square")  # fmt: skip
    settled = sum(adam[-10:]) / 10
    lesson.check("later steps are less than half as long", settled < 0.5, f"{settled:.2f} lr at the end")
    lesson.check("two batches disagree about many first moves", 0.5 < alike < 0.95,
                 f"{percent(alike)} of the weights move the same way; by chance 50 %")  # fmt: skip
    grown = sum(momentum[-10:]) / 10
    lesson.check("momentum begins small and grows: a warm-up of its own", abs(momentum[0] - 1) < 1e-5 and grown > 1.5,
                 f"{momentum[0]:.2f}, at the end {grown:.1f}; at most 1 / (1 - 0.9) = 10")  # fmt: skip
    lesson.figure("first_steps", lambda axis: draw_first_steps(axis, adam, momentum))
    lesson.shows(
        f"Adam takes its longest steps, {adam[0] / settled:.1f} times what they will be, when it knows least: "
        f"{percent(1 - alike)} of the weights would have gone the other way on another batch. A warm-up multiplies exactly "
        "these steps by a small number. Bias correction (optimizer_comparison) makes their length right, which is not the "
        "same as short."
    )


def draw_first_steps(axis: Any, adam: Sequence[float], momentum: Sequence[float]) -> None:
    count = range(1, len(adam) + 1)
    axis.plot(count, adam, markevery=0.1, label="Adam: move of a weight / lr")
    axis.plot(count, momentum, markevery=0.1, label="momentum: step / (lr x gradient)")
    axis.set(xscale="log", yscale="log", xlabel="step", ylabel="size of the step", yticks=[0.2, 0.5, 1, 2, 5],
             yticklabels=["0.2", "0.5", "1", "2", "5"], title="Adam begins with its longest steps")  # fmt: skip
    axis.minorticks_off()
    axis.legend()


# What it does to a training

RATES = (0.003, 0.01, 0.03)
LAYERS = 10


def decay_after_warmup(step: int, over: int, steps: int) -> float:
    return min(1.0, (step + 1) / (over + 1)) * polynomial(step, steps)


@torch.no_grad()
def silent_share(parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
    """(R,): the share of hidden units that are 0 on every one of the letters x (N, 256), and so cannot learn."""
    x, silent = x.expand(len(parameters[0]), -1, -1), []
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = torch.relu(torch.baddbmm(bias, x, weight.mT))
        silent.append((x == 0).all(dim=1))  # (R, units)
    return torch.cat(silent, dim=1).float().mean(dim=1).cpu()


def show_warmup(lesson: Lesson) -> None:
    steps, seeds = lesson.pick(full=200, quick=60), lesson.pick(full=6, quick=3)
    lengths = (0, steps // 5)
    lesson.section(
        "What a warm-up changes",
        f"A network of {LAYERS} layers, where a bad step is passed on from layer to layer, under Adam: {len(RATES)} peak "
        f"rates, with a warm-up over {lengths[1]} of {steps} steps and without one, a line down to 0 in both, {seeds} seeds "
        "each from the same starts. A hidden unit is silent when it gives 0 for every letter: ReLU then passes no gradient "
        "back to it. In brackets the standard error.",
    )
    device, seed = lesson.device, lesson.options.seed
    letters = load_letters(lesson.pick(full=9000, quick=4000), device)
    test = load_letters(lesson.pick(full=2000, quick=400), device, train=False)
    curves = torch.tensor([[decay_after_warmup(step, over, steps) for over in lengths] for step in range(steps)])
    rates = (curves[:, :, None] * torch.tensor(RATES)).flatten(1).repeat_interleave(seeds, dim=1)
    parameters = start_weights(seed, seeds, len(lengths) * len(RATES), device, LAYERS)
    losses = train(Adam(parameters), letters, draw_batches(seed, steps, seeds, len(letters.y), BATCH_SIZE), rates)
    form = (len(lengths), len(RATES), seeds)
    reached, right = (x.view(form) for x in judge(parameters, test))
    highest = losses[1 : lengths[1]].amax(dim=0).view(form)  # the start itself is the same for both
    silent = silent_share(parameters, test.x[:400]).view(form)
    lesson.table(
        [{"peak rate": rate, "warm-up": over or "none", "highest early loss": highest[i, j].mean().item(),
          "silent units": percent(silent[i, j].mean().item()), "test loss": reached[i, j].mean().item(),
          "right (%)": with_error(100 * right[i, j], 1)}
         for j, rate in enumerate(RATES) for i, over in enumerate(lengths)]
    )  # fmt: skip
    for j, rate in enumerate(RATES):
        for i, over in enumerate(lengths):
            lesson.record("accuracy", 100 * right[i, j].mean().item(), "%", peak=rate, warmup=over)
    spike, calm = highest[0, -1].mean().item(), highest[1, -1].mean().item()
    lesson.check("at the highest rate the first steps throw it back", spike > 1.15 * calm,
                 f"up to {spike:.1f}, with a warm-up {calm:.1f}; from {losses[0].mean():.1f}")  # fmt: skip
    cold, warm = (silent[i, -1].mean().item() for i in range(2))
    lesson.check("and silence units", cold > warm, f"{percent(cold)} of them, with a warm-up {percent(warm)}")
    gain = reached[0] - reached[1]
    sure = gain[-1].mean() > 2 * gain[-1].std() / seeds**0.5
    lesson.figure("warmup", lambda axis: draw_warmup(axis, losses.view(steps, *form)[:, :, -1].mean(dim=-1), lengths))
    verdict = (
        "It widens the range of rates that work."
        if sure
        else f"With {steps} steps and {seeds} seeds that is within the noise."
    )
    lesson.shows(
        f"at {RATES[-1]:g} the cold start reads {percent(right[0, -1].mean().item())} of the letters and the warm one "
        f"{percent(right[1, -1].mean().item())}; the loss that a warm-up saves is {gain[-1].mean():+.3f} there and "
        f"{gain[0].mean():+.3f} at {RATES[0]:g}, where it mostly spends {lengths[1]} steps below the peak. {verdict} "
        "Normalisation and residual paths (project 01) help from the other side; transformers with Adam use both."
    )


def draw_warmup(axis: Any, losses: torch.Tensor, lengths: Sequence[int]) -> None:
    for i, over in enumerate(lengths):
        axis.plot(losses[:, i], markevery=0.1, label=f"warm-up over {over} steps" if over else "no warm-up")
    axis.set(
        xlabel="step",
        ylabel="loss of the batch, mean of seeds",
        title=f"Ten layers under Adam, peak rate {RATES[-1]:g}",
    )
    axis.legend()
