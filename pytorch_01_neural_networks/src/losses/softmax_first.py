"""Softmax in front of cross-entropy, which applies its own: what it does to loss, gradient and learning."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_01_neural_networks.src.losses.formulas import softmax_floor
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
import torch.nn.functional as F
from torch import nn

CLASSES, FEATURES, CLUSTERS = 10, 16, 30
LR, BATCH_SIZE = 0.1, 64
EVERY = 10  # steps between two measurements of the accuracy
GOAL = 0.8  # accuracy

LossOfLogits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def softmax_before_cross_entropy(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mistake: cross_entropy has a softmax of its own, so this one makes it the second."""
    return F.cross_entropy(z.softmax(1), y)


@dataclass(frozen=True)
class Samples:
    """Points (N, FEATURES) in clusters, three of them for each class, and their classes (N)."""

    x: torch.Tensor
    y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


def make_samples(train_count: int, test_count: int, device: torch.device) -> Samples:
    centres = 1.5 * torch.randn(CLUSTERS, FEATURES)
    of_cluster = torch.arange(CLUSTERS) % CLASSES
    cluster = torch.randint(CLUSTERS, (train_count + test_count,))
    x, y = centres[cluster] + torch.randn(len(cluster), FEATURES), of_cluster[cluster]
    parts = (x[:train_count], y[:train_count], x[train_count:], y[train_count:])
    return Samples(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class Learning:
    """What a training left: the loss of each step, and the accuracy on the test samples at every EVERYth."""

    losses: list[float]
    accuracies: list[float]

    def steps_to(self, goal: float) -> int | None:
        """The first step at which the accuracy was measured as `goal` or more."""
        return next((EVERY * i for i, accuracy in enumerate(self.accuracies) if accuracy >= goal), None)


def train(samples: Samples, loss_of: LossOfLogits, lr: float, steps: int, seed: int) -> Learning:
    """Plain SGD. The same seed begins with the same weights and draws the same batches, whatever the loss."""
    generator = torch.Generator().manual_seed(seed)
    device = samples.x.device
    model = nn.Sequential(nn.Linear(FEATURES, 64, device=device), nn.ReLU(), nn.Linear(64, CLASSES, device=device))
    with torch.no_grad():
        for parameter in model.parameters():
            bound = 1 / math.sqrt(parameter.shape[-1])
            parameter.copy_(bound * (2 * torch.rand(parameter.shape, generator=generator) - 1))
    losses, accuracies = [], []
    for step in range(steps + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                accuracies.append((model(samples.test_x).argmax(1) == samples.test_y).float().mean())
        batch = torch.randint(len(samples.x), (BATCH_SIZE,), generator=generator).to(device)
        loss = loss_of(model(samples.x[batch]), samples.y[batch])
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= lr * parameter.grad
        losses.append(loss.detach())
    return Learning(torch.stack(losses).tolist(), torch.stack(accuracies).tolist())


def gradient_lengths(z: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """The length of the gradient in the logits, with cross-entropy alone and with softmax before it."""
    lengths = []
    for loss_of in (F.cross_entropy, softmax_before_cross_entropy):
        logits = z.clone().requires_grad_()
        loss_of(logits, y).backward()
        assert logits.grad is not None
        lengths.append(logits.grad.norm().item())
    return lengths[0], lengths[1]


def show_softmax_first(lesson: Lesson) -> None:
    lesson.section(
        "Softmax before cross-entropy",
        "The most common mistake with this loss, and nothing warns of it: the model ends in softmax and the loss applies "
        "another one. It still learns, so nobody looks. What arrives at the loss are probabilities, numbers between 0 "
        "and 1, and as logits those can hardly say anything. First the gradient of one sample with 10 classes:",
    )
    y = torch.tensor([0], device=lesson.device)
    states = {"undecided": 0.0, "wrong by 5": -5.0, "wrong by 12": -12.0, "right by 3": 3.0}
    rows, ratios = [], {}
    for state, lead in states.items():
        z = torch.zeros(1, CLASSES, device=lesson.device)
        if lead > 0:
            z[0, 0] = lead
        else:
            z[0, 1] = -lead
        right, wrong = gradient_lengths(z, y)
        ratios[state] = right / wrong
        rows.append({"the sample is": state, "loss": f"{F.cross_entropy(z, y).item():.3f}",
                     "with softmax before": f"{softmax_before_cross_entropy(z, y).item():.3f}",
                     "gradient": significant(right), "softmax before it": significant(wrong),
                     "times smaller": significant(right / wrong)})  # fmt: skip
    lesson.table(rows)
    lesson.check("an undecided sample: gradient C times too small", math.isclose(ratios["undecided"], CLASSES, rel_tol=1e-4),
                 f"{ratios['undecided']:.4f}; softmax has slope 1/C there")  # fmt: skip
    lesson.check("a sure mistake: next to no gradient", ratios["wrong by 12"] > 1000,
                 f"{significant(ratios['wrong by 12'])} times smaller")  # fmt: skip
    sure = torch.full((1, CLASSES), -50.0, device=lesson.device)
    sure[0, 0] = 50
    lowest, floor = softmax_before_cross_entropy(sure, y).item(), softmax_floor(CLASSES)
    lesson.check("a perfect answer still costs log(1 + (C - 1)/e)", math.isclose(lowest, floor, rel_tol=1e-5),
                 f"{lowest:.4f} for 10 classes, {softmax_floor(1000):.2f} for 1,000")  # fmt: skip
    show_learning(lesson, floor)


def show_learning(lesson: Lesson, floor: float) -> None:
    steps = lesson.pick(full=2000, quick=400)
    samples = make_samples(*lesson.pick(full=(4000, 2000), quick=(2000, 500)), lesson.device)
    lesson.text(
        f"Now a whole training: {FEATURES} features, {CLASSES} classes of three clusters each, a net with one hidden layer "
        f"and plain SGD. All three runs start from the same weights and see the same batches. The third has the mistake "
        f"and, as a cure by hand, a learning rate {CLASSES} times as large."
    )
    seed = lesson.options.seed
    runs = {
        "cross-entropy of logits": train(samples, F.cross_entropy, LR, steps, seed),
        "softmax before it": train(samples, softmax_before_cross_entropy, LR, steps, seed),
        f"softmax before it, lr x {CLASSES}": train(samples, softmax_before_cross_entropy, LR * CLASSES, steps, seed),
    }
    right, wrong, louder = runs.values()
    shown = [0, 50, 100, 200, steps // 2, steps]
    lesson.table(
        [{"accuracy after": name, **{f"{step}": percent(run.accuracies[step // EVERY]) for step in dict.fromkeys(shown)},
          f"steps to {percent(GOAL)}": reached(run, steps), "last loss": f"{sum(run.losses[-50:]) / 50:.3f}"}
         for name, run in runs.items()]
    )  # fmt: skip
    first = right.steps_to(GOAL)
    lesson.check(f"logits reach {percent(GOAL)} in this run", first is not None, f"after {first} steps")
    assert first is not None
    then = wrong.accuracies[first // EVERY]
    lesson.check("at that step softmax-first is far behind", then < GOAL - 0.15, f"{percent(then)} at step {first}")
    later = wrong.steps_to(GOAL)
    lesson.check("it needs more than three times the steps", later is None or later > 3 * first,
                 f"{reached(wrong, steps)} against {first} to {percent(GOAL)}")  # fmt: skip
    lowest = min(wrong.losses + louder.losses)
    lesson.check("its loss cannot fall below the floor", lowest > floor - 1e-5,
                 f"lowest {lowest:.4f}, floor {floor:.4f}; logits {min(right.losses):.4f}")  # fmt: skip
    lesson.figure("softmax_before_cross_entropy", lambda axis: draw_learning(axis, runs))
    behind, still = (100 * (right.accuracies[-1] - run.accuracies[-1]) for run in (wrong, louder))
    lesson.shows(
        f"one softmax too many leaves the net {behind:.0f} points of accuracy behind after {steps:,} steps (picture "
        f"softmax_before_cross_entropy.png). With a learning rate {CLASSES} times as large it is {abs(still):.1f} points "
        f"{'behind' if still >= 0 else 'ahead'}; a search for a better learning rate hides the mistake, and so it survives "
        f"in working code. The sign to look for: a loss that starts at log C = {math.log(CLASSES):.2f} and never gets below "
        f"{floor:.2f}."
    )


def reached(run: Learning, steps: int) -> str:
    step = run.steps_to(GOAL)
    return f"not in {steps:,}" if step is None else f"{step:,}"


def draw_learning(axis: Any, runs: dict[str, Learning]) -> None:
    for name, run in runs.items():
        measured: Sequence[int] = range(0, EVERY * len(run.accuracies), EVERY)
        axis.plot(measured, [100 * accuracy for accuracy in run.accuracies], label=name, marker="")
    axis.axhline(100 / CLASSES, color="black", linewidth=1, linestyle=":", marker="")
    axis.annotate("guessing", (measured[-1], 100 / CLASSES), (0, 4), textcoords="offset points", ha="right", fontsize=9)
    axis.set(
        xlabel="step", ylabel="test accuracy, %", title="The same net and batches, one softmax too many", ylim=(0, 102)
    )
    axis.legend(loc="lower right", bbox_to_anchor=(1, 0.12))
