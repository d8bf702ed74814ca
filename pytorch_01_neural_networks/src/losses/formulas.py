"""Losses written from their formulas, a few lines each. N samples, C classes, D numbers for each embedding.

Each gives one number, or with reduction="none" one for each sample. Classes are whole numbers from 0 to C - 1.
"""

import math

import torch


def reduced(losses: torch.Tensor, reduction: str) -> torch.Tensor:
    """Their mean, their sum, or all of them ("none"). Raises ValueError for any other word."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is mean, sum or none, not {reduction!r}")
    return losses if reduction == "none" else getattr(losses, reduction)()


# Numbers: x is the prediction and y the target, of one shape


def mse(x: torch.Tensor, y: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    return reduced((x - y) ** 2, reduction)


def mae(x: torch.Tensor, y: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    return reduced((x - y).abs(), reduction)


def huber(x: torch.Tensor, y: torch.Tensor, delta: float = 1.0, reduction: str = "mean") -> torch.Tensor:
    """A parabola up to an error of `delta`, from there a straight line of slope delta (Huber 1964)."""
    error = (x - y).abs()
    return reduced(torch.where(error < delta, error**2 / 2, delta * (error - delta / 2)), reduction)


def smooth_l1(x: torch.Tensor, y: torch.Tensor, beta: float = 1.0, reduction: str = "mean") -> torch.Tensor:
    """Huber divided by its width: the slope of the straight part is always 1."""
    return huber(x, y, beta, reduction) / beta


def pinball(x: torch.Tensor, y: torch.Tensor, level: float, reduction: str = "mean") -> torch.Tensor:
    """Too low costs `level` for each unit, too high 1 - level (Koenker and Bassett 1978). PyTorch has no such loss."""
    short = y - x
    return reduced(torch.maximum(level * short, (level - 1) * short), reduction)


def gaussian_nll(mean: torch.Tensor, y: torch.Tensor, variance: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """-log of the normal density, without its constant log(2π)/2."""
    return reduced((variance.log() + (y - mean) ** 2 / variance) / 2, reduction)


def poisson_nll(log_rate: torch.Tensor, count: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """-log of the Poisson probability of `count`, without its constant log(count!)."""
    return reduced(log_rate.exp() - count * log_rate, reduction)


# Classes: z are logits of shape (N, C) or (N, C, …), classes are (N) or (N, …)


def log_sum_exp(z: torch.Tensor) -> torch.Tensor:
    """log of the sum of exp(z) over the classes, which are kept as one; the largest exponent is 0, so none overflows."""
    largest = z.amax(1, keepdim=True).detach()  # it cancels out, so it needs no gradient
    return largest + (z - largest).exp().sum(1, keepdim=True).log()


def log_softmax(z: torch.Tensor) -> torch.Tensor:
    return z - log_sum_exp(z)


def nll(log_p: torch.Tensor, classes: torch.Tensor, weight: torch.Tensor | None = None, ignore_index: int = -100,
        reduction: str = "mean") -> torch.Tensor:  # fmt: skip
    """-log p of the right class, times the weight of that class. The mean divides by the weights of the samples kept."""
    kept = classes != ignore_index
    known = classes.where(kept, 0)  # any class will do: its weight becomes 0
    weights = (log_p.new_ones(log_p.shape[1]) if weight is None else weight)[known] * kept
    losses = -log_p.gather(1, known.unsqueeze(1)).squeeze(1) * weights
    return losses.sum() / weights.sum() if reduction == "mean" else reduced(losses, reduction)


def cross_entropy(z: torch.Tensor, classes: torch.Tensor, weight: torch.Tensor | None = None,
                  ignore_index: int = -100, reduction: str = "mean") -> torch.Tensor:  # fmt: skip
    return nll(log_softmax(z), classes, weight, ignore_index, reduction)


def cross_entropy_with_probabilities(z: torch.Tensor, q: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """The target is a probability for each class: q has the shape of z and sums to 1."""
    return reduced(-(q * log_softmax(z)).sum(1), reduction)


def smoothed_targets(classes: torch.Tensor, class_count: int, epsilon: float, dtype: torch.dtype) -> torch.Tensor:
    """One-hot rows (N, C) that give away `epsilon`, shared by all C classes (Szegedy et al. 2016, section 7)."""
    one_hot = torch.nn.functional.one_hot(classes, class_count).to(dtype)
    return (1 - epsilon) * one_hot + epsilon / class_count


def smoothed_cross_entropy(z: torch.Tensor, classes: torch.Tensor, epsilon: float,
                           reduction: str = "mean") -> torch.Tensor:  # fmt: skip
    return cross_entropy_with_probabilities(z, smoothed_targets(classes, z.shape[1], epsilon, z.dtype), reduction)


def kl_divergence(log_p: torch.Tensor, q: torch.Tensor, log_target: bool = False,
                  reduction: str = "mean") -> torch.Tensor:  # fmt: skip
    """KL(q || p) = sum of q (log q - log p). First the prediction, as logarithms; then the target, as it is.

    `log_target` says that the target comes as logarithms too. "batchmean" divides by N, "mean" by N C.
    """
    if log_target:
        losses = q.exp() * (q - log_p)
    else:
        losses = torch.xlogy(q, q) - q * log_p  # xlogy: 0 log 0 is 0
    return losses.sum() / len(losses) if reduction == "batchmean" else reduced(losses, reduction)


# Yes or no: y is 0 or 1 or between, of the shape of the prediction


def binary_cross_entropy(p: torch.Tensor, y: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    return reduced(-(y * p.log() + (1 - y) * (1 - p).log()), reduction)


def softplus(z: torch.Tensor) -> torch.Tensor:
    """log(exp(0) + exp(z)), as log_sum_exp does it: no exponent is above 0, so nothing overflows."""
    largest = z.clamp(min=0).detach()
    return largest + ((-largest).exp() + (z - largest).exp()).log()


def softplus_with_a_kink(z: torch.Tensor) -> torch.Tensor:
    """The mistake: a usual way to write it, right in value. At z = 0 both parts have a kink and autograd says slope 0."""
    return torch.relu(z) + torch.log1p(torch.exp(-z.abs()))


def binary_cross_entropy_with_logits(z: torch.Tensor, y: torch.Tensor, pos_weight: float | torch.Tensor = 1.0,
                                     reduction: str = "mean") -> torch.Tensor:  # fmt: skip
    """-log sigmoid(z) for a yes, times `pos_weight`, and -log(1 - sigmoid(z)) for a no; sigmoid itself is not needed."""
    return reduced(pos_weight * y * softplus(-z) + (1 - y) * softplus(z), reduction)


def focal(z: torch.Tensor, y: torch.Tensor, gamma: float = 2.0, alpha: float | None = None,
          reduction: str = "mean") -> torch.Tensor:  # fmt: skip
    """Cross-entropy times (1 - p of the right answer)^gamma, which quiets what is right already (Lin et al. 2017, eq. 5).

    `alpha` weighs the yes by alpha and the no by 1 - alpha.
    """
    right_by = (2 * y - 1) * z
    losses = torch.sigmoid(-right_by) ** gamma * softplus(-right_by)
    return reduced(losses if alpha is None else losses * (alpha * y + (1 - alpha) * (1 - y)), reduction)


# Margins and distances


def hinge(z: torch.Tensor, side: torch.Tensor, margin: float = 1.0, reduction: str = "mean") -> torch.Tensor:
    """`side` is -1 or 1. Nothing to pay once z is on its side by the margin."""
    return reduced((margin - side * z).clamp(min=0), reduction)


def multi_margin(z: torch.Tensor, classes: torch.Tensor, margin: float = 1.0, reduction: str = "mean") -> torch.Tensor:
    """The right class must lead each other one by the margin."""
    right = z.gather(1, classes[:, None])
    losses = (margin - right + z).clamp(min=0).scatter(1, classes[:, None], 0.0)
    return reduced(losses.sum(1) / z.shape[1], reduction)


def cosine_embedding(a: torch.Tensor, b: torch.Tensor, side: torch.Tensor, margin: float = 0.0,
                     reduction: str = "mean") -> torch.Tensor:  # fmt: skip
    """Vectors (N, D): those of a pair that belongs together (side 1) must point alike, the others (-1) apart."""
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return reduced(torch.where(side > 0, 1 - cosine, (cosine - margin).clamp(min=0)), reduction)


def triplet(anchor: torch.Tensor, same: torch.Tensor, other: torch.Tensor, margin: float = 1.0,
            reduction: str = "mean") -> torch.Tensor:  # fmt: skip
    """Vectors (N, D): what is the same must be nearer to the anchor than what is other, by the margin."""
    return reduced(((anchor - same).norm(dim=1) - (anchor - other).norm(dim=1) + margin).clamp(min=0), reduction)


# What follows from the formulas


def softmax_floor(class_count: int) -> float:
    """The lowest cross-entropy that C probabilities can reach where logits belong: log(1 + (C - 1)/e)."""
    return math.log(1 + (class_count - 1) / math.e)


def smoothing_gap(class_count: int, epsilon: float) -> float:
    """By how much the right logit leads the others at the optimum of label smoothing: the log of two targets' ratio."""
    return math.log((1 - epsilon + epsilon / class_count) / (epsilon / class_count))
