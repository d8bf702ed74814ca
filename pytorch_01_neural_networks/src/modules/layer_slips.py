"""Slips that look right in one comparison and not in another, what BatchNorm remembers, and the masks of Dropout."""

import math
from typing import Any

from pytorch_01_neural_networks.src.modules.layer_trials import CPU, TOLERANCE, compare_layers, pair_up
from pytorch_01_neural_networks.src.modules.own_layers import BatchNorm2d, Dropout, Embedding, LayerNorm, drop
from shared.agreement import deviation
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
from torch import nn

# Slips


class AddsEpsilonOutsideTheRoot(LayerNorm):
    """The mistake: sqrt(variance) + eps for sqrt(variance + eps), in float32 the same to five digits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, variance = x.mean(self.axes, keepdim=True), x.var(self.axes, correction=0, keepdim=True)
        y = (x - mean) / (variance.sqrt() + self.eps)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


class KeepsTheBiasedVariance(BatchNorm2d):
    """The mistake: the variance that divides the batch is also the one that is kept; it is (n - 1) / n of the other."""

    def update(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        super().update(mean, variance * (count - 1) / count, count)


class TrainsThePaddingRow(Embedding):
    """The mistake: padding_idx is zero at the start, and learns like any other row."""

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.weight[index]


class DropsWithoutScaling(Dropout):
    """The mistake: what is left is not made larger, so training sees smaller numbers than evaluation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.empty_like(x).bernoulli_(1 - self.p) if self.training else x


def slip_inputs() -> dict[str, tuple[type[nn.Module], dict[str, object], torch.Tensor]]:
    """For each slip: the library's layer, ours, its options and an input, in float64 on the CPU."""
    return {
        "LayerNorm": (AddsEpsilonOutsideTheRoot, {"normalized_shape": 256}, torch.randn(16, 256, dtype=torch.float64)),
        "BatchNorm2d": (KeepsTheBiasedVariance, {"num_features": 3}, torch.randn(2, 3, 3, 3, dtype=torch.float64)),
        "Embedding": (
            TrainsThePaddingRow,
            {"num_embeddings": 5, "embedding_dim": 4, "padding_idx": 0},
            torch.randint(5, (8, 6)) * (torch.arange(6) > 0),  # each row begins with padding
        ),
        "Dropout": (DropsWithoutScaling, {"p": 0.5}, torch.randn(8, 32, dtype=torch.float64)),
    }


def find_slip(name: str, slip: type[nn.Module], options: dict[str, object], x: torch.Tensor,
              dtype: torch.dtype) -> dict[str, float]:  # fmt: skip
    """Deviation by what is compared, first in training and then in evaluation; a buffer's error is seen in both."""
    ours, library = pair_up(name, slip, options, dtype, CPU)
    given = x.to(dtype) if x.is_floating_point() else x
    training = compare_layers(ours, library, given, True)
    evaluation = compare_layers(ours, library, given, False)
    return {
        "training": training.agreed.value,
        "gradient": training.agreed.gradient,
        "buffers": training.buffers,
        "evaluation": evaluation.agreed.value,
    }


def show_slips(lesson: Lesson) -> None:
    lesson.section(
        "What each comparison catches",
        "A test is worth as much as the mistakes that it finds. Four realistic slips, each in one line of a layer above, "
        "meet the same comparisons on the CPU: the output in training, its gradients, the buffers after it, and then "
        f"the output in evaluation. The tolerances are those from above, {TOLERANCE[torch.float32]:g} in float32 and "
        f"{TOLERANCE[torch.float64]:g} in float64.",
    )
    table, caught = [], {}
    for name, (slip, options, x) in slip_inputs().items():
        for dtype, tolerance in TOLERANCE.items():
            off = find_slip(name, slip, options, x, dtype)
            caught[name, dtype] = {part for part, value in off.items() if value > tolerance}
            marks = {
                part: f"{significant(value, 1)}{' !' if part in caught[name, dtype] else ''}"
                for part, value in off.items()
            }
            table.append({"slip": slip.__name__, "dtype": f"float{8 * dtype.itemsize}", **marks})
    lesson.table(table)
    single, double = torch.float32, torch.float64
    lesson.check("a misplaced eps passes in float32, not in float64",
                 not caught["LayerNorm", single] and "training" in caught["LayerNorm", double],
                 "too small for five digits, not for ten")  # fmt: skip
    lesson.check("a wrong running variance is invisible in training",
                 caught["BatchNorm2d", double] == {"buffers", "evaluation"}, "only buffers and evaluation tell")  # fmt: skip
    lesson.check("a padding row that learns shows in the gradient alone", caught["Embedding", double] == {"gradient"},
                 "all outputs are right")  # fmt: skip
    lesson.check("a missing scale shows in training, not in evaluation",
                 caught["Dropout", double] == {"training", "gradient"}, "where Dropout does nothing")  # fmt: skip
    alone = sum(bool(parts & {"training"}) for (_, dtype), parts in caught.items() if dtype == single)
    found = sum(bool(parts) for (_, dtype), parts in caught.items() if dtype == double)
    lesson.shows(
        f"comparing outputs in training and float32, as most tests do, finds {alone} of {len(caught) // 2} slips (! marks "
        f"what exceeds the tolerance); all comparisons together find {found}. Compare gradients, buffers and evaluation "
        "too, once in float64."
    )


# What BatchNorm remembers

BATCH_NORMS: dict[str, dict[str, Any]] = {
    "momentum=0.1": {"momentum": 0.1},
    "momentum=None": {"momentum": None},
    "track_running_stats=False": {"track_running_stats": False},
}


def show_running_statistics(lesson: Lesson) -> None:
    steps, shape = 20, (4, 3, 3, 3)
    per_channel = shape[0] * shape[2] * shape[3]
    lesson.section(
        "What BatchNorm remembers",
        "In training BatchNorm2d divides by the batch's own variance, and on the side it keeps running statistics for "
        "evaluation: running += momentum x (batch - running), beginning with mean 0 and variance 1. With momentum=None "
        "they are the plain mean of all batches so far. "
        f"After {steps} batches of {per_channel} numbers per channel, drawn with mean 3 and variance 4; channel 0:",
    )
    batches = [3 + 2 * torch.randn(shape, device=lesson.device) for _ in range(steps)]
    table, worst = [], 0.0
    kept: dict[str, nn.Module] = {}
    for name, options in BATCH_NORMS.items():
        ours, library = (kind(3, **options).to(lesson.device) for kind in (BatchNorm2d, nn.BatchNorm2d))
        for batch in batches:
            ours(batch), library(batch)
        pairs = list(zip(ours.buffers(), library.buffers(), strict=True))
        outputs = (layer.eval()(batches[0]) for layer in (ours, library))
        off = max([deviation(*outputs), *(deviation(*two) for two in pairs)])
        worst, kept[name] = max(worst, off), ours
        shown = [f"{buffer.flatten()[0].item():.4g}" for buffer in ours.buffers()] or ["none"] * 3
        table.append({"BatchNorm2d": name, **dict(zip(("running mean", "running var", "batches"), shown, strict=True)),
                      "off torch.nn by": significant(off, 1)})  # fmt: skip
    lesson.table(table)
    lesson.check(
        f"after {steps} batches buffers and eval() agree, all three", worst < 1e-5, f"off by {significant(worst, 1)}"
    )
    variances = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in batches])
    plain = kept["momentum=None"].get_buffer("running_var")
    off = deviation(plain, variances.mean(0))
    lesson.check("momentum=None: the mean of the unbiased variances", off < 1e-5, f"off by {significant(off, 1)}")
    biased = KeepsTheBiasedVariance(3, momentum=None).to(lesson.device)
    for batch in batches:
        biased(batch)
    share = (biased.get_buffer("running_var") / plain).mean().item()
    lesson.check("the biased variance would be too small by 1/n", abs(share - (1 - 1 / per_channel)) < 1e-4,
                 f"{percent(1 - share)} with n = {per_channel}")  # fmt: skip
    start_left = 0.9**steps
    lesson.check("eval() without statistics uses the batch's own",
                 torch.equal(kept["track_running_stats=False"](batches[0]),
                             kept["track_running_stats=False"].train()(batches[0])), "the same output in both modes")  # fmt: skip
    refusals = [complaint_of(layer) for layer in (BatchNorm2d(3), nn.BatchNorm2d(3))]
    lesson.check("one number per channel is refused in training", all(refusals), "ValueError, by both")
    lesson.shows(
        f"after {steps} steps with momentum 0.1, {percent(start_left)} of the running statistics is still the start, mean "
        "0 and variance 1: evaluate after very few steps and the model looks broken. momentum=None has no such start, "
        "and weighs old batches, from worse weights, like new ones."
    )


def complaint_of(layer: nn.Module) -> str:
    try:
        layer(torch.ones(1, 3, 1, 1))
    except ValueError as error:
        return str(error)
    return ""


# The masks of Dropout


def show_dropout(lesson: Lesson) -> None:
    n, p = lesson.pick(full=1_000_000, quick=100_000), 0.3
    lesson.section(
        "Dropout: the same mask, the same numbers",
        "A layer that rolls dice can be compared as well. On the CPU ours draws from the generator as the library does, "
        "so with one seed both have one mask. Elsewhere the library draws inside its kernel in another order; there we "
        "give our layer the library's mask, read off a vector of ones.",
    )
    seed, x = lesson.options.seed, torch.randn(n)
    outputs = []
    for layer in (Dropout(p), nn.Dropout(p)):
        torch.manual_seed(seed)
        outputs.append(layer(x))
    lesson.check("on the CPU: equal to the last bit with the same seed", torch.equal(*outputs), f"{n:,} numbers")
    x, library = x.to(lesson.device), nn.Dropout(p)
    torch.manual_seed(seed)
    keep = (library(torch.ones_like(x)) != 0).float()
    torch.manual_seed(seed)
    off = deviation(drop(x, keep, p), library(x))
    lesson.check(
        "given the library's mask, the same numbers",
        off < 1e-6,
        f"off by {significant(off, 1)} on {lesson.device.type}",
    )
    ones = Dropout(p)(torch.ones(n, device=lesson.device))
    share, error = (ones != 0).float().mean().item(), math.sqrt(p * (1 - p) / n)
    lesson.check("the share that is kept is 1 - p, to 5 standard errors", abs(share - (1 - p)) < 5 * error,
                 f"{share:.4f}, standard error {error:.4f}")  # fmt: skip
    mean_error = math.sqrt(p / (1 - p) / n)
    mean = ones.double().mean().item() if lesson.device.type != "mps" else ones.cpu().double().mean().item()
    lesson.check("what is left is larger by 1 / (1 - p): the mean stays", abs(mean - 1) < 5 * mean_error,
                 f"ones become 0 or {ones.max().item():.4f}, mean {mean:.4f}")  # fmt: skip
    spread = ones.cpu().double().var().item()
    lesson.check(
        "eval() hands the input on, not even a copy",
        all(kind(p).eval()(x) is x for kind in (Dropout, nn.Dropout)),
        "y is x, in both",
    )
    lesson.shows(
        f"{percent(1 - share)} of the numbers became 0, and the mean is {mean:.3f}. The price of the same mean is noise: "
        f"a constant 1 now has the variance {spread:.3f}, p / (1 - p). In evaluation there is none of it, so a model "
        "evaluated in training mode gives another answer each time."
    )
