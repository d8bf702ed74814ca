"""From many losses to one number: what the mean divides by, with ignored positions, class weights and micro-batches."""

import math
from collections.abc import Sequence

from pytorch_01_neural_networks.src.losses.formulas import cross_entropy, kl_divergence
from shared.agreement import deviation
from shared.drawing import grid
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import percent

import torch
import torch.nn.functional as F

IGNORED = -100  # PyTorch's default ignore_index
VOCABULARY = 7


def make_sequences(lengths: Sequence[int], features: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (B, T, features) and the next token at each place (B, T), with IGNORED after the end of each sequence."""
    x = torch.randn(len(lengths), max(lengths), features, dtype=torch.float64)
    tokens = torch.randint(VOCABULARY, x.shape[:2])
    places = torch.arange(max(lengths))
    return x, tokens.masked_fill(places >= torch.tensor(lengths)[:, None], IGNORED)


def gradient_of_batch(w: torch.Tensor, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Of the mean over all tokens that count, with everything in one batch; w (VOCABULARY, features)."""
    w = w.detach().requires_grad_()
    F.cross_entropy((x @ w.T).flatten(0, 1), tokens.flatten()).backward()
    assert w.grad is not None
    return w.grad


def gradient_by_mean_of_means(w: torch.Tensor, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The mistake: one sequence at a time, and the mean of their means. A token of a short sequence counts for more."""
    w = w.detach().requires_grad_()
    for part_x, part_tokens in zip(x, tokens, strict=True):
        (F.cross_entropy(part_x @ w.T, part_tokens) / len(x)).backward()
    assert w.grad is not None
    return w.grad


def gradient_by_sum_over_count(w: torch.Tensor, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Right: one sequence at a time, sums divided by the number of tokens that count in the whole batch."""
    w, count = w.detach().requires_grad_(), (tokens != IGNORED).sum()
    for part_x, part_tokens in zip(x, tokens, strict=True):
        (F.cross_entropy(part_x @ w.T, part_tokens, reduction="sum") / count).backward()
    assert w.grad is not None
    return w.grad


def mean_over_kept(z: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The cure for a batch in which nothing counts: its loss is 0 and not 0 / 0."""
    return F.cross_entropy(z, classes, reduction="sum") / (classes != IGNORED).sum().clamp(min=1)


def show_reductions(lesson: Lesson) -> None:
    lesson.section(
        "What the mean divides by",
        "A loss has one value for each sample, and reduction says how they become one number. 'mean' keeps the gradient "
        "at one size whatever the batch; 'sum' grows with the batch, and the learning rate has to shrink with it; 'none' "
        "leaves them to you. The question behind most mistakes: a mean over what?",
    )
    n = int(torch.randint(5, 30, ()))
    z, y = torch.randn(n, VOCABULARY, device=lesson.device), torch.randint(VOCABULARY, (n,), device=lesson.device)
    each, total, mean = (F.cross_entropy(z, y, reduction=how) for how in ("none", "sum", "mean"))
    q = torch.rand(n, VOCABULARY, device=lesson.device).softmax(1)
    log_p = z.log_softmax(1)
    per_row, per_number = F.kl_div(log_p, q, reduction="batchmean"), kl_divergence(log_p, q, reduction="mean")
    images, pixels = torch.randn(2, n, 3, 4, 4, device=lesson.device)
    mse_ratio = F.mse_loss(images, pixels, reduction="sum") / F.mse_loss(images, pixels)
    lesson.table(
        [
            {"loss": "cross_entropy, none", "gives": f"{tuple(each.shape)}", "divides by": "nothing"},
            {"loss": "cross_entropy, sum", "gives": f"{total.item():.4f}", "divides by": "nothing"},
            {"loss": "cross_entropy, mean", "gives": f"{mean.item():.4f}", "divides by": f"{n} samples"},
            {"loss": "kl_div, batchmean", "gives": f"{per_row.item():.4f}", "divides by": f"{n} samples"},
            {"loss": "kl_div, mean", "gives": f"{per_number.item():.4f}",
             "divides by": f"{n * VOCABULARY} numbers: not the KL of anything"},
            {"loss": f"mse_loss of {tuple(images.shape)}", "gives": f"{F.mse_loss(images, pixels).item():.4f}",
             "divides by": f"{mse_ratio.item():.0f} numbers: not images"},
        ]
    )  # fmt: skip
    lesson.check("none has one loss for each sample, sum and mean follow",
                 each.shape == (n,) and deviation(each.sum(), total) < 1e-6 and deviation(total / n, mean) < 1e-6,
                 f"{total.item():.4f} / {n} = {mean.item():.4f}")  # fmt: skip
    lesson.check("kl_div's mean is batchmean divided by C", abs(per_row / per_number - VOCABULARY) < 1e-3,
                 f"{(per_row / per_number).item():.4f} times smaller")  # fmt: skip
    warned = complaint(lambda: F.kl_div(log_p, q))
    lesson.check("kl_div warns of its own default", "batchmean" in warned, 'pass reduction="batchmean"')
    lesson.check("MSE's mean is over every number, not over images", abs(mse_ratio.item() - images.numel()) < 0.5,
                 f"{images.numel()} = {' x '.join(map(str, images.shape))}")  # fmt: skip
    show_ignored(lesson)
    lesson.shows(
        f"each mean has its own divisor: samples, tokens that count, or all numbers. When you change batch size, padding or "
        f"a loss, ask what it divides by now; a learning rate that was right for {n} samples and 'mean' is {n} times too "
        "large for 'sum'."
    )


def show_ignored(lesson: Lesson) -> None:
    lesson.text(
        "Sequences in one batch are padded to one length. The padding gets the label -100, which cross_entropy leaves out "
        "of sum and count. Four sequences of very different length, the next token of each place:"
    )
    lengths, features = (8, 2, 5, 1), 6
    x, tokens = make_sequences(lengths, features)
    w = torch.randn(VOCABULARY, features, dtype=torch.float64)
    lesson.drawing(grid(tokens, "labels", tokens != IGNORED))
    flat, labels = (x @ w.T).flatten(0, 1), tokens.flatten()
    whole = F.cross_entropy(flat, labels)
    kept = labels != IGNORED
    lesson.check("ignored places: as if they were not there", deviation(F.cross_entropy(flat[kept], labels[kept]), whole) < 1e-12,
                 f"mean over {int(kept.sum())} of {len(labels)} places")  # fmt: skip
    lesson.check("the own formula agrees", deviation(cross_entropy(flat, labels), whole) < 1e-12, f"{whole:.4f}")
    right = gradient_of_batch(w, x, tokens)
    errors = {
        "mean of the means": gradient_by_mean_of_means(w, x, tokens),
        "sums / all tokens that count": gradient_by_sum_over_count(w, x, tokens),
    }
    off = {way: ((gradient - right).norm() / right.norm()).item() for way, gradient in errors.items()}
    wrong, exact = off.values()
    count = sum(lengths)
    shares = [f"{1 / (len(lengths) * length):.3f}" for length in lengths]
    lesson.text(
        "If the sequences go through one after another (micro-batches, or one for each GPU), the mean of their means "
        f"weighs a token by the length of its sequence: {', '.join(shares)} for a token of each, where in one batch every "
        f"token has 1/{count} = {1 / count:.3f}. The gradient:"
    )
    lesson.table(
        [
            {"one sequence at a time": way, "gradient off by": percent(error) if error > 1e-6 else "rounding only"}
            for way, error in off.items()
        ]
    )
    lesson.check("the mean of means is another gradient", wrong > 0.01,
                 f"off by {percent(wrong)}")  # fmt: skip
    lesson.check("sums over the count of the whole batch are exact", exact < 1e-12,
                 f"to {exact:.0e}")  # fmt: skip
    nothing = torch.full((4,), IGNORED, device=lesson.device)
    z = torch.randn(4, VOCABULARY, device=lesson.device, requires_grad=True)
    lost, cured = F.cross_entropy(z, nothing), mean_over_kept(z, nothing)
    (gradient,) = torch.autograd.grad(lost, z)
    (cured_gradient,) = torch.autograd.grad(cured, z)
    lesson.check("a batch in which nothing counts: 0 / 0 = NaN", math.isnan(lost.item()),
                 f"and its gradient: {'NaN too' if gradient.isnan().any() else 'zeros'}")  # fmt: skip
    lesson.check("sum / max(count, 1) gives 0 and no gradient", cured == 0 and not cured_gradient.any(), f"{cured:g}")
    y = torch.randint(VOCABULARY, (4,), device=lesson.device)
    lesson.check("and is the plain mean everywhere else",
                 deviation(mean_over_kept(z, y), F.cross_entropy(z, y)) < 1e-6, "for a batch where all count")  # fmt: skip


def mean_after_weighting(z: torch.Tensor, classes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What one expects of class weights, and not what cross_entropy does: weigh each loss, divide by N."""
    return (F.cross_entropy(z, classes, reduction="none") * weight[classes]).mean()


def show_class_weights(lesson: Lesson) -> None:
    lesson.section(
        "Class weights, and the mean that divides by them",
        "weight= makes some classes dearer. With reduction='mean' cross_entropy then divides by the weights of the "
        "samples in the batch, not by their number. That has consequences which surprise: here a batch of 3 cats, 2 dogs "
        "and 1 lynx (dear: weight 10).",
    )
    weight = torch.tensor([1.0, 2.0, 10.0], device=lesson.device)
    y = torch.tensor([0, 0, 0, 1, 1, 2], device=lesson.device)
    z = torch.randn(len(y), 3, device=lesson.device)
    each = F.cross_entropy(z, y, reduction="none")
    names = ("cat", "dog", "lynx")
    lesson.table(
        [{"class": names[c], "samples": int((y == c).sum()), "weight": f"{weight[c]:g}",
          "mean of its losses": f"{each[y == c].mean():.3f}",
          "share in the weighted mean": percent((weight[c] * (y == c).sum() / weight[y].sum()).item())}
         for c in range(3)]
    )  # fmt: skip
    library = F.cross_entropy(z, y, weight)
    by_weights = (weight[y] * each).sum() / weight[y].sum()
    lesson.check("the mean divides by the sum of the weights", deviation(library, by_weights) < 1e-6,
                 f"by {weight[y].sum():g}, not by {len(y)}: {library:.4f}")  # fmt: skip
    expected = mean_after_weighting(z, y, weight)
    factor = (expected / library).item()
    lesson.check("weighing each loss and dividing by N is larger", abs(factor - weight[y].mean().item()) < 1e-4,
                 f"{factor:.2f}x, the mean weight of this batch")  # fmt: skip
    lesson.check("ten times all weights change nothing", deviation(F.cross_entropy(z, y, 10 * weight), library) < 1e-6,
                 "only their ratios count")  # fmt: skip
    alone, plain = F.cross_entropy(z[-1:], y[-1:], weight), F.cross_entropy(z[-1:], y[-1:])
    lesson.check("in a batch of one the weight is gone", deviation(alone, plain) < 1e-6,
                 f"lynx alone: {alone:.4f} with and without")  # fmt: skip
    halves = [(z[:3], y[:3]), (z[3:], y[3:])]
    of_halves = torch.stack([F.cross_entropy(*half, weight) for half in halves]).mean()
    sums = sum(F.cross_entropy(*half, weight, reduction="sum") for half in halves) / weight[y].sum()
    sizes = " and ".join(f"{weight[half].sum():g}" for _, half in halves)
    lesson.check("equal micro-batches still need sums", deviation(sums, library) < 1e-6 < deviation(of_halves, library),
                 f"weights {sizes}: mean of means {of_halves:.4f}, not {library:.4f}")  # fmt: skip
    one_hot = F.one_hot(y, 3).to(z.dtype)
    as_probabilities = F.cross_entropy(z, one_hot, weight)
    lesson.check("targets as probabilities divide by N after all", deviation(as_probabilities, expected) < 1e-6,
                 f"the same labels, one-hot: {as_probabilities:.4f}")  # fmt: skip
    scores, yes = torch.randn(8, device=lesson.device), (torch.arange(8, device=lesson.device) % 4 == 0).float()
    dear = torch.tensor(3.0, device=lesson.device)
    binary = F.binary_cross_entropy_with_logits(scores, yes, pos_weight=dear)
    by_count = (F.binary_cross_entropy_with_logits(scores, yes, reduction="none") * (1 + 2 * yes)).mean()
    lesson.check("pos_weight divides by N too", deviation(binary, by_count) < 1e-6,
                 f"{binary:.4f}: a larger pos_weight is a larger gradient")  # fmt: skip
    lesson.shows(
        f"the same six samples with the same weights have a loss of {library:.3f} with class numbers and "
        f"{as_probabilities:.3f} as one-hot rows: {factor:.2f} times the learning rate. For micro-batches take "
        "reduction='sum' and divide once, by the weights of the whole batch."
    )
