"""Label smoothing: a target that leaves some probability to the other classes, and the logits that it asks for."""

import math

from pytorch_01_neural_networks.src.losses.formulas import smoothed_targets, smoothing_gap
from shared.lesson import Lesson

import torch
import torch.nn.functional as F

EPSILONS = (0.0, 0.01, 0.1, 0.2)


def learn_logits(epsilon: float, class_count: int, steps: int, lr: float = 2.0) -> list[float]:
    """The lead of the right logit over the others after each step of gradient descent on free logits, from all 0."""
    z, y = torch.zeros(1, class_count, dtype=torch.float64, requires_grad=True), torch.tensor([0])
    leads = []
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(F.cross_entropy(z, y, label_smoothing=epsilon), z)
        with torch.no_grad():
            z -= lr * gradient
            leads.append((z[0, 0] - z[0, 1]).item())
    return leads


def show_label_smoothing(lesson: Lesson) -> None:
    classes, steps = 10, lesson.pick(full=4000, quick=1000)
    lesson.section(
        "Label smoothing",
        "With a target of exactly 1 no logit is ever large enough: each step makes the lead of the right class larger, "
        "and the model surer than it should be. Smoothing takes epsilon from the target and shares it among all C "
        "classes. Then there is a best lead, and past it the gradient pulls back. Here the logits themselves learn, "
        f"for {classes} classes and {steps:,} steps:",
    )
    leads = {epsilon: learn_logits(epsilon, classes, steps) for epsilon in EPSILONS}
    rows, off = [], []
    for epsilon in EPSILONS:
        target = smoothed_targets(torch.tensor([0]), classes, epsilon, torch.float64)[0]
        best = smoothing_gap(classes, epsilon) if epsilon else math.inf
        if epsilon >= 0.1:
            off.append(abs(leads[epsilon][-1] - best))
        rows.append({"epsilon": f"{epsilon:g}", "target, right class": f"{target[0]:.3f}", "others": f"{target[1]:.3f}",
                     "lead, half way": f"{leads[epsilon][steps // 2 - 1]:.3f}", "at the end": f"{leads[epsilon][-1]:.3f}",
                     "best lead, by the formula": f"{best:.3f}" if epsilon else "infinite"})  # fmt: skip
    lesson.table(rows)
    lesson.check("the lead stops at log of the targets' ratio", max(off) < 1e-3,
                 f"epsilon 0.1: log(0.91 / 0.01) = {smoothing_gap(classes, 0.1):.4f}, off by {max(off):.0e}")  # fmt: skip
    plain = leads[0.0]
    grown = plain[-1] - plain[steps // 2 - 1]
    lesson.check("without smoothing it never stops", abs(grown - math.log(2)) < 0.1,
                 f"twice the steps, {grown:.3f} more: it grows as log(steps)")  # fmt: skip
    z, y = torch.zeros(1, classes, dtype=torch.float64), torch.tensor([0])
    z[0, 0] = smoothing_gap(classes, 0.1)
    lowest = F.cross_entropy(z, y, label_smoothing=0.1).item()
    target = smoothed_targets(y, classes, 0.1, torch.float64)[0]
    entropy = -(target * target.log()).sum().item()
    lesson.check("the loss ends at the entropy of the target, not at 0", math.isclose(lowest, entropy, rel_tol=1e-9),
                 f"{lowest:.4f} at best")  # fmt: skip
    z[0, 0] += 2
    surer = F.cross_entropy(z, y, label_smoothing=0.1).item()
    lesson.check("a surer answer costs more", surer > lowest + 0.01, f"{surer:.4f} with a lead of {z[0, 0]:.2f}")
    best_of_tenth = smoothing_gap(classes, 0.1)
    lesson.shows(
        f"with epsilon 0.1 the right class may be {100 * target[0]:.0f} % sure and no more, a lead of {best_of_tenth:.2f}; "
        f"without it the lead was {plain[-1]:.2f} and growing. Two things to remember when you read a smoothed loss: it does "
        f"not end at 0 (here at {lowest:.2f}), and a validation loss without smoothing is another number."
    )
