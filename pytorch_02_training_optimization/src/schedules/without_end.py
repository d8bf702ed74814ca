"""Chapter of lr_schedules: warm-up, stable, decay, a schedule that does not have to know when the training ends."""

import copy
import math
from collections.abc import Sequence
from typing import Any

from pytorch_02_training_optimization.src.letters.rows import Letters, load_letters
from pytorch_02_training_optimization.src.schedules.curves import cosine, warmup_stable_decay
from pytorch_02_training_optimization.src.schedules.letters import (
    Momentum,
    draw_batches,
    judge,
    start_weights,
    train,
    with_error,
)
from shared.lesson import Lesson
from shared.units import percent

import torch

BATCH_SIZE, WARMUP = 64, 10
STABLE_PEAK, COSINE_PEAK = 0.04, 0.08  # each near its best in the comparison of schedules


def spread(rates: Sequence[float], seeds: int) -> torch.Tensor:
    return torch.tensor(rates)[:, None].expand(-1, seeds)


def train_branches(letters: Letters, batches: torch.Tensor, lengths: Sequence[int], seed: int
                   ) -> tuple[list[Momentum], int]:  # fmt: skip
    """One training at a constant rate; from it a copy for each length, whose last fifth goes down to 0. And all steps."""
    seeds, at, ends, spent = batches.shape[1], 0, [], 0
    trunk = Momentum(start_weights(seed, seeds, 1, letters.x.device))
    for length in lengths:
        curve = [STABLE_PEAK * warmup_stable_decay(step, WARMUP, length, length // 5) for step in range(length)]
        leave = length - length // 5
        train(trunk, letters, batches[at:leave], spread(curve[at:leave], seeds))
        branch = copy.deepcopy(trunk)
        train(branch, letters, batches[leave:length], spread(curve[leave:], seeds))
        spent += leave - at + length - leave
        at = leave
        ends.append(branch)
    return ends, spent


def train_cosine(letters: Letters, batches: torch.Tensor, planned: int, seed: int) -> Momentum:
    """A cosine planned for `planned` steps, as many of it as there are batches."""
    seeds = batches.shape[1]
    optimizer = Momentum(start_weights(seed, seeds, 1, letters.x.device))
    curve = [COSINE_PEAK * min(1.0, (step + 1) / WARMUP) * cosine(step, planned) for step in range(len(batches))]
    train(optimizer, letters, batches, spread(curve, seeds))
    return optimizer


def show_without_end(lesson: Lesson) -> None:
    lengths = lesson.pick(full=(150, 300, 450), quick=(50, 100, 150))
    seeds = lesson.pick(full=6, quick=3)
    lesson.section(
        "Warm-up, stable, decay: no end needed",
        "A cosine has to know the number of steps before the first one, and its middle is no finished model. Warm-up, stable, "
        "decay (WSD) keeps the rate up and decides late: whenever you want a result, copy the state and decay the copy, while "
        "the training itself goes on. That is why many language models are trained so today. One trunk with a branch for each of "
        f"{len(lengths)} lengths, against a cosine of its own for each, {seeds} seeds, standard errors in brackets:",
    )
    device, seed = lesson.device, lesson.options.seed
    letters = load_letters(lesson.pick(full=9000, quick=4000), device)
    test = load_letters(lesson.pick(full=2000, quick=400), device, train=False)
    batches = draw_batches(seed, lengths[-1], seeds, len(letters.y), BATCH_SIZE)
    branches, spent = train_branches(letters, batches, lengths, seed)
    table, apart, ends, stopped = [], [], [], []
    for length, branch in zip(lengths, branches, strict=True):
        wave = train_cosine(letters, batches[:length], length, seed)
        stable, fallen = (judge(optimizer.parameters, test)[0] for optimizer in (branch, wave))
        apart.append((stable - fallen).mean().item())
        ends.append(stable.mean().item())
        lesson.record("test loss", ends[-1], "nats", schedule="WSD branch", steps=length)
        lesson.record("test loss", fallen.mean().item(), "nats", schedule="cosine", steps=length)
        early = judge(train_cosine(letters, batches[:length], lengths[-1], seed).parameters, test)[0]
        stopped.append(early.mean().item())
        table.append({"steps": length, "branch of one trunk": with_error(stable), "cosine of its own": with_error(fallen),
                      "difference": with_error(stable - fallen), f"cosine for {lengths[-1]}": with_error(early)})  # fmt: skip
    lesson.table(table)
    own = lengths[-1] - lengths[-1] // 5 + sum(length // 5 for length in lengths)
    lesson.check("one trunk and its branches cost fewer steps", spent == own < sum(lengths),
                 f"{spent} instead of {sum(lengths)}: {percent(1 - spent / sum(lengths))} saved")  # fmt: skip
    lesson.check("a branch is as good as a cosine planned for it", max(apart) < 0.12,
                 f"at worst {max(apart):+.3f} of loss, at best {min(apart):+.3f}")  # fmt: skip
    lesson.check("a longer training ends lower", ends[0] > ends[-1], f"{ends[0]:.3f} and {ends[-1]:.3f}")
    lesson.figure("without_end", lambda axis: draw_branches(axis, lengths))
    lesson.shows(
        f"{spent} steps gave {len(lengths)} finished models; their differences to the planned cosines are "
        f"{', '.join(f'{value:+.3f}' for value in apart)}. The long cosine, interrupted at {lengths[0]}, stood at "
        f"{stopped[0]:.3f}, the branch at {ends[0]:.3f}. If you know the length and want one model, take a cosine or a line; if "
        "you may go on, or want results on the way, keep the rate up and decay copies."
    )


def draw_branches(axis: Any, lengths: Sequence[int]) -> None:
    last = lengths[-1]
    for number, length in enumerate(lengths):
        curve = [STABLE_PEAK * warmup_stable_decay(step, WARMUP, length, length // 5) for step in range(length)]
        leave = length - length // 5
        begin = 0 if length == last else leave - 1
        axis.plot(range(begin, length), curve[begin:], "-", marker="", color="#0b5fa5",
                  linewidth=2 if length == last else 1.2, label="one trunk, three branches" if number == 0 else None)  # fmt: skip
        wave = [COSINE_PEAK * min(1.0, (step + 1) / WARMUP) * cosine(step, length) for step in range(length)]
        axis.plot(range(length), wave, "--", marker="", color="#c2410c", linewidth=1,
                  label="a cosine for each length" if number == 0 else None)  # fmt: skip
    axis.set(xlabel="step", ylabel="learning rate", ylim=(0, math.ceil(100 * COSINE_PEAK + 1) / 100),
             title="A cosine is planned for its end; a branch is not")  # fmt: skip
    axis.legend(fontsize=9)
