"""A rare class: what weights and focal loss change, and what they do not."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from pytorch_01_neural_networks.src.losses.formulas import binary_cross_entropy_with_logits, focal
from shared.lesson import Lesson
from shared.units import percent

import torch

RARE = 0.02  # share of yes
SHIFT = 2.0  # how far the yes lie from the no, in standard deviations


def make_rare(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Two features (N, 2), of which the first tells something, and yes or no (N) as 1.0 and 0.0.

    Two normal clouds of one width: the log-odds of a yes are log(RARE / (1 - RARE)) + SHIFT x0 - SHIFT² / 2.
    """
    y = (torch.rand(count) < RARE).float()
    x = torch.randn(count, 2)
    x[:, 0] += SHIFT * y
    return x.to(device), y.to(device)


def fit(x: torch.Tensor, y: torch.Tensor, loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], lr: float,
        steps: int) -> torch.Tensor:  # fmt: skip
    """Two slopes and a height, by gradient descent on all samples at once."""
    inputs = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    w = torch.zeros(3, device=x.device, requires_grad=True)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss_of(inputs @ w, y), w)
        with torch.no_grad():
            w -= lr * gradient
    return w.detach()


def average_precision(scores: torch.Tensor, y: torch.Tensor) -> float:
    """The mean, over all yes, of the precision down to it when sorted by score: 1 if all yes come first."""
    hits = y[scores.argsort(descending=True)]
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1, device=hits.device)
    return ((precision * hits).sum() / hits.sum()).item()


@dataclass(frozen=True)
class Report:
    """How a model does on the test samples when it says yes above `threshold`."""

    accuracy: float
    recall: float
    precision: float
    average_precision: float
    mean_probability: float


def report(z: torch.Tensor, y: torch.Tensor, threshold: float = 0.5) -> Report:
    p = torch.sigmoid(z)
    says = (p > threshold).float()
    hits, alarms = (says * y).sum().item(), says.sum().item()
    precision = hits / alarms if alarms else math.nan
    return Report(
        (says == y).float().mean().item(), hits / y.sum().item(), precision, average_precision(z, y), p.mean().item()
    )


def show_rare_class(lesson: Lesson) -> None:
    train_count, test_count = lesson.pick(full=(20_000, 50_000), quick=(10_000, 30_000))
    lesson.section(
        "A rare class",
        f"{percent(RARE)} of the samples are a yes, as with fraud or disease, and the two clouds overlap. Never saying yes "
        f"is {percent(1 - RARE)} right. The usual advice is class weights or focal loss. Here each trains the same small "
        f"model, which can represent the truth exactly, on {train_count:,} samples; tested on {test_count:,}. The last "
        "column but one judges the order alone, without any threshold; the last is the mean probability it gives.",
    )
    x, y = make_rare(train_count, lesson.device)
    test_x, test_y = make_rare(test_count, lesson.device)
    weight = ((1 - y).sum() / y.sum()).item()
    losses: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], float, int]] = {
        "plain": (binary_cross_entropy_with_logits, 2.0, 600),
        f"pos_weight {weight:.0f}": (lambda z, y: binary_cross_entropy_with_logits(z, y, weight), 0.15, 800),
        "focal, gamma 2": (lambda z, y: focal(z, y), 5.0, 600),
        f"focal, alpha {weight / (1 + weight):.2f}": (lambda z, y: focal(z, y, 2.0, weight / (1 + weight)), 12.0, 600),
    }
    fits = {name: fit(x, y, *how) for name, how in losses.items()}
    inputs = torch.cat([test_x, torch.ones_like(test_x[:, :1])], 1)
    scores = {name: inputs @ w for name, w in fits.items()}
    reports = {name: report(z, test_y) for name, z in scores.items()}
    lower = 1 / (1 + weight)  # as common as a yes was in training; its log-odds are -log(weight)
    reports[f"plain, yes above {percent(lower)}"] = report(scores["plain"], test_y, lower)
    best_order = average_precision(test_x[:, 0], test_y)
    lesson.table(
        [{"loss": name, "accuracy": percent(r.accuracy), "recall": percent(r.recall), "precision": percent(r.precision),
          "average precision": f"{r.average_precision:.3f}", "mean probability": percent(r.mean_probability)}
         for name, r in reports.items()]
    )  # fmt: skip
    plain, weighted, focal_plain, focal_alpha, shifted = reports.values()
    lesson.check("the plain loss finds few of the rare", plain.recall < 0.4 and plain.accuracy > 0.97,
                 f"recall {percent(plain.recall)} with {percent(plain.accuracy)} accuracy")  # fmt: skip
    lesson.check("pos_weight finds most, with many false alarms", weighted.recall > 0.7 and weighted.precision < 0.25,
                 f"recall {percent(weighted.recall)}, {1 / weighted.precision:.0f} alarms for each hit")  # fmt: skip
    lesson.check("so does the plain model with a lower threshold", abs(shifted.recall - weighted.recall) < 0.1,
                 f"recall {percent(shifted.recall)}, precision {percent(shifted.precision)}")  # fmt: skip
    heights = [fits[name][2].item() for name in list(fits)[:2]]
    raised = heights[1] - heights[0]
    lesson.check("the weight raises the logit by about its logarithm", abs(raised - math.log(weight)) < 1,
                 f"by {raised:.2f}; log {weight:.0f} = {math.log(weight):.2f}")  # fmt: skip
    lesson.check("focal without alpha decides nearly as plain does", abs(focal_plain.recall - plain.recall) < 0.1,
                 f"recall {percent(focal_plain.recall)}")  # fmt: skip
    orders = [r.average_precision for r in reports.values()]
    lesson.check("no loss sorts the samples better than another", max(orders) - min(orders) < 0.02,
                 f"{min(orders):.3f} to {max(orders):.3f}; the true order has {best_order:.3f}")  # fmt: skip
    lesson.check("only the plain loss gives probabilities that are true",
                 abs(plain.mean_probability - RARE) < 0.01 and min(weighted.mean_probability, focal_plain.mean_probability,
                                                                  focal_alpha.mean_probability) > 3 * RARE,
                 f"mean {percent(plain.mean_probability)}, the others from "
                 f"{percent(min(r.mean_probability for r in (weighted, focal_plain, focal_alpha)))}")  # fmt: skip
    gain = max(focal_plain.average_precision, focal_alpha.average_precision) - plain.average_precision
    verdict = "focal sorts better" if gain > 0.005 else "focal did not win"
    lesson.shows(
        f"{verdict} here (average precision {plain.average_precision + gain:.3f} at best, plain {plain.average_precision:.3f}), "
        "and a weight bought recall at the price of precision, as a threshold "
        "does. On this problem all of them learn one order and cut it at different places. So train plainly, then set the "
        "threshold by what a miss and a false alarm cost. Focal was made for detectors that see 100,000 easy backgrounds "
        "for each object, where the easy ones drown the gradient: try it there, and measure it against this baseline."
    )
