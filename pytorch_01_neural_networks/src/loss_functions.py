"""What does a loss ask of a model, how is each one computed, and how does a wrong one show?

Every loss is written from its formula in a few lines (losses/formulas.py) and held against PyTorch's, in value and
gradient. Then what each chooses when it may choose one number, the logits at which losses of probabilities break, what
one softmax too many costs a training, what a mean divides by, class weights and a rare class, label smoothing, and the
shapes, dtypes and forms that each loss wants, with the complaints about wrong ones and the mistakes without any.

    python src/loss_functions.py            about 20 seconds
    python src/loss_functions.py --quick    the same path with tiny sizes, a few seconds
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_01_neural_networks.src.losses import formulas
from pytorch_01_neural_networks.src.losses.constants import show_constants, show_noise
from pytorch_01_neural_networks.src.losses.imbalance import show_rare_class
from pytorch_01_neural_networks.src.losses.reductions import show_class_weights, show_reductions
from pytorch_01_neural_networks.src.losses.smoothing import show_label_smoothing
from pytorch_01_neural_networks.src.losses.softmax_first import show_softmax_first
from pytorch_01_neural_networks.src.losses.stability import (
    show_breaking_points,
    show_cross_entropy,
    show_temperature,
)
from pytorch_01_neural_networks.src.losses.targets import (
    show_complaints,
    show_kinds_of_scores,
    show_preparing,
    show_silent_mistakes,
)
from shared.agreement import Agreement, agreement, deviation
from shared.lesson import Lesson
from shared.snippets import evaluate

import torch
import torch.nn.functional as F

CPU = torch.device("cpu")
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}

Function = Callable[..., torch.Tensor]


# Each loss beside the library's: N samples, C classes, D numbers for each embedding


def focal_in_probabilities(z: torch.Tensor, y: torch.Tensor, reduction: str) -> torch.Tensor:
    """Focal loss as the paper has it, for the comparison; as a loss it would break where BCE of a sigmoid does."""
    right = torch.sigmoid(torch.where(y > 0, z, -z))
    return formulas.reduced(-((1 - right) ** 2) * right.log(), reduction)


def pairs(
    dtype: torch.dtype, device: torch.device
) -> dict[str, tuple[str, Function, Function, tuple[torch.Tensor, ...]]]:
    """Name in F to (formula, own function, library's function, their inputs), of random sizes and a random reduction."""
    n, c = (int(torch.randint(2, 30, ())) for _ in range(2))
    d = int(torch.randint(16, 30, ()))  # PyTorch adds 1e-12 to squared lengths, and vectors of few numbers may be short
    how = ("mean", "sum", "none")[int(torch.randint(3, ()))]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64).to(device, dtype)

    x, y, z = normal(n, c), normal(n, c), 3 * normal(n, c)
    classes, share = torch.randint(c, (n,), device=device), torch.sigmoid(normal(n, c))
    some_ignored = classes.masked_fill(torch.arange(n, device=device) % 3 == 1, -100)
    weight, doubt = normal(c).exp(), normal(n, c).exp()
    q, log_p = normal(n, c).softmax(1), z.log_softmax(1)
    side, counts, yes = torch.sign(normal(n)), (3 * share).round(), share.round()
    a, b, other = normal(n, d), normal(n, d), normal(n, d)

    def both(name: str, own: Function, **options: Any) -> tuple[Function, Function]:
        return partial(own, reduction=how, **options), partial(getattr(F, name), reduction=how, **options)

    of_kl = "batchmean" if how == "mean" else how  # kl_div warns of its "mean", for a reason seen below
    smooth = partial(formulas.smoothed_cross_entropy, epsilon=0.1, reduction=how)
    return {
        "mse_loss": ("(x - y)²", *both("mse_loss", formulas.mse), (x, y)),
        "l1_loss": ("|x - y|", *both("l1_loss", formulas.mae), (x, y)),
        "huber_loss": ("e²/2 below delta, then delta (|e| - delta/2)", *both("huber_loss", formulas.huber, delta=0.7), (x, y)),
        "smooth_l1_loss": ("Huber(beta) / beta", *both("smooth_l1_loss", formulas.smooth_l1, beta=0.7), (x, y)),
        "gaussian_nll_loss": ("(log v + (x - y)²/v) / 2",
            *both("gaussian_nll_loss", formulas.gaussian_nll), (x, y, doubt)),
        "poisson_nll_loss": ("exp(z) - y z", *both("poisson_nll_loss", formulas.poisson_nll), (x, counts)),
        "nll_loss": ("-log p[right]", *both("nll_loss", formulas.nll), (log_p, classes)),
        "cross_entropy": ("log(sum of exp(z)) - z[right]", *both("cross_entropy", formulas.cross_entropy), (z, classes)),
        "  with weight, some ignored": ("w[right] times that; 0 if ignored",
            *both("cross_entropy", formulas.cross_entropy, weight=weight), (z, some_ignored)),
        "  of probabilities": ("-sum of q log p",
            *both("cross_entropy", formulas.cross_entropy_with_probabilities), (z, q)),
        "  with label smoothing": ("q = (1 - eps) one-hot + eps/C",
            smooth, partial(F.cross_entropy, label_smoothing=0.1, reduction=how), (z, classes)),
        "kl_div": ("q (log q - log p)", partial(formulas.kl_divergence, reduction=of_kl),
            partial(F.kl_div, reduction=of_kl), (log_p, q)),
        "  of a target in logs": ("the same",
            partial(formulas.kl_divergence, log_target=True, reduction=of_kl),
            partial(F.kl_div, log_target=True, reduction=of_kl), (log_p, q.log())),
        "binary_cross_entropy": ("-y log p - (1 - y) log(1 - p)",
            *both("binary_cross_entropy", formulas.binary_cross_entropy), (share, q)),
        "  with_logits, pos_weight w": ("w y softplus(-z) + (1 - y) softplus(z)",
            *both("binary_cross_entropy_with_logits", formulas.binary_cross_entropy_with_logits, pos_weight=weight), (z, q)),
        "margin_ranking_loss(z, 0)": ("hinge: max(0, 1 - s z)", partial(formulas.hinge, reduction=how),
            lambda z, s: F.margin_ranking_loss(z, torch.zeros_like(z), s, margin=1, reduction=how), (z[:, 0], side)),
        "multi_margin_loss": ("sum of max(0, 1 - z[right] + z) / C",
            *both("multi_margin_loss", formulas.multi_margin), (z, classes)),
        "cosine_embedding_loss": ("1 - cos, or max(0, cos - m)",
            *both("cosine_embedding_loss", formulas.cosine_embedding, margin=0.1), (a, b, side)),
        "triplet_margin_loss": ("max(0, |a - b| - |a - c| + 1)", partial(formulas.triplet, reduction=how),
            partial(F.triplet_margin_loss, reduction=how, eps=0), (a, b, other)),
        "not in F: focal, gamma 2": ("-(1 - p[right])² log p[right]", lambda z: formulas.focal(z, yes, 2.0, None, how),
            lambda z: focal_in_probabilities(z, yes, how), (z,)),
        "not in F: pinball, level 1/2": ("l (y - x), or (1 - l)(x - y)",
            partial(formulas.pinball, level=0.5, reduction=how), lambda x, y: F.l1_loss(x, y, reduction=how) / 2, (x, y)),
    }  # fmt: skip


def in_short(found: Agreement) -> str:
    """The larger deviation of the two."""
    worst = max(found.value, found.gradient)
    return f"{worst:.0e}" if worst else "0"


def show_formulas(lesson: Lesson) -> None:
    lesson.section(
        "Every loss from its formula",
        "A loss turns what the model says and what is true into one number, 0 or small when they agree, and with a slope "
        "nearly everywhere, since that slope is all that training sees. Each is a few lines of its own in losses/formulas.py. "
        "The table has the largest deviation from PyTorch's in value or gradient: float64 on the CPU, float32 on this "
        "device, with random sizes and a random reduction. e = x - y, z are logits, p probabilities, q target "
        "probabilities, s is -1 or 1.",
    )
    found: dict[torch.dtype, dict[str, Agreement]] = {}
    for dtype, device in ((torch.float64, CPU), (torch.float32, lesson.device)):
        beside = pairs(dtype, device)
        found[dtype] = {name: agreement(own, library, *inputs) for name, (_, own, library, inputs) in beside.items()}
    double, single = found.values()
    lesson.table(
        [{"in torch.nn.functional": name, "float64": in_short(double[name]), "float32": in_short(single[name]),
          "loss of one sample": formula}
         for name, (formula, *_) in beside.items()]
    )  # fmt: skip
    for dtype, of_dtype in found.items():
        tolerance = TOLERANCES[dtype]
        equal = [name for name, each in of_dtype.items() if each.within(tolerance)]
        worst = max(max(each.value, each.gradient) for each in of_dtype.values())
        name = str(dtype).removeprefix("torch.")
        lesson.check(f"value and gradient are PyTorch's to {tolerance:.0e} in {name}", len(equal) == len(of_dtype),
                     f"{len(equal)} of {len(of_dtype)} losses; worst {worst:.0e}")  # fmt: skip
    lesson.shows(
        f"{len(double)} losses and hardly one needs more than three lines. They fall into few families: distances of "
        "numbers, minus the logarithm of a probability (everything with nll, entropy or kl in its name), and margins that "
        "ask for enough and then stop."
    )


# Gradients

Slope = Callable[[torch.Tensor], torch.Tensor]


def slopes(n: int, c: int) -> dict[str, tuple[str, str, Slope, Slope, torch.Tensor]]:
    """Loss to (gradient, in words, summed loss, gradient as computed, where), in float64 on the CPU."""
    x, y, z = (torch.randn(n, c, dtype=torch.float64) for _ in range(3))
    classes, side = torch.randint(c, (n,)), torch.sign(torch.randn(n, c, dtype=torch.float64))
    one_hot, q, doubt = F.one_hot(classes, c).double(), y.softmax(1), y.exp()
    smoothed = formulas.smoothed_targets(classes, c, 0.1, torch.float64)
    yes, counts = (y > 0).double(), (3 * y.abs()).round()
    total: dict[str, Any] = {"reduction": "sum"}
    return {
        "MSE": ("2 (x - y)", "twice the error: the largest pulls most",
            lambda x: F.mse_loss(x, y, **total), lambda x: 2 * (x - y), x),
        "MAE": ("sign(x - y)", "each error pulls alike, also the last one",
            lambda x: F.l1_loss(x, y, **total), lambda x: torch.sign(x - y), x),
        "Huber": ("clamp(x - y, -delta, delta)", "the error, cut off at delta",
            lambda x: F.huber_loss(x, y, **total), lambda x: (x - y).clamp(-1, 1), x),
        "Gaussian NLL": ("(x - y) / v", "the error, divided by the doubt",
            lambda x: F.gaussian_nll_loss(x, y, doubt, **total), lambda x: (x - y) / doubt, x),
        "Poisson NLL": ("exp(z) - y", "expected minus counted",
            lambda z: F.poisson_nll_loss(z, counts, **total), lambda z: z.exp() - counts, z),
        "cross-entropy": ("softmax(z) - one-hot", "probability minus 0 or 1",
            lambda z: F.cross_entropy(z, classes, **total), lambda z: z.softmax(1) - one_hot, z),
        "label smoothing": ("softmax(z) - smoothed", "may change its sign: too sure",
            lambda z: F.cross_entropy(z, classes, label_smoothing=0.1, **total), lambda z: z.softmax(1) - smoothed, z),
        "temperature T": ("(softmax(z/T) - one-hot) / T", "hotter is gentler",
            lambda z: F.cross_entropy(z / 3, classes, **total), lambda z: ((z / 3).softmax(1) - one_hot) / 3, z),
        "BCE with logits": ("sigmoid(z) - y", "probability minus 0 or 1",
            lambda z: F.binary_cross_entropy_with_logits(z, yes, **total), lambda z: z.sigmoid() - yes, z),
        "NLL, in log p": ("-1 at the right class", "the others learn through log_softmax alone",
            lambda z: F.nll_loss(z, classes, **total), lambda z: -one_hot, z),
        "KL, in log p": ("-q", "each class by its target",
            lambda z: F.kl_div(z, q, **total), lambda z: -q, z),
        "hinge": ("-s, until s z > 1", "full, then nothing",
            lambda z: F.margin_ranking_loss(z, torch.zeros_like(z), side, margin=1, **total),
            lambda z: -side * (side * z < 1), z),
        "MSE of sigmoid(z)": ("2 (p - y) p (1 - p)", "next to nothing where sure and wrong",
            lambda z: F.mse_loss(z.sigmoid(), yes, **total),
            lambda z: 2 * (z.sigmoid() - yes) * z.sigmoid() * (1 - z.sigmoid()), z),
    }  # fmt: skip


def gradient_of(function: Slope, x: torch.Tensor) -> torch.Tensor:
    """The slope of the summed `function` at `x`."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(x).sum(), x)
    return gradient


def mse_of_probability(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mistake: squared error behind a sigmoid, whose slope p (1 - p) is 0 where the model is sure."""
    return F.mse_loss(z.sigmoid(), y, reduction="none")


def show_gradients(lesson: Lesson) -> None:
    lesson.section(
        "The gradient in words",
        "What a model feels of its loss is the gradient alone, so learn to read it. For each loss the gradient of one "
        "sample's loss in what the model gives, written down by hand and compared with what autograd finds.",
    )
    n, c = (int(torch.randint(2, 20, ())) for _ in range(2))
    by_hand = slopes(n, c)
    off = {name: deviation(hand(x), gradient_of(loss, x)) for name, (_, _, loss, hand, x) in by_hand.items()}
    lesson.table([{"loss": name, "gradient": gradient, "in words": words}
                  for name, (gradient, words, *_) in by_hand.items()])  # fmt: skip
    lesson.check("every gradient written by hand is autograd's", max(off.values()) < 1e-10,
                 f"{len(off)} losses, {n} x {c} numbers, to {max(off.values()):.0e}")  # fmt: skip
    _, _, loss, _, z = by_hand["cross-entropy"]
    sums = gradient_of(loss, z).sum(1).abs().max().item()
    lesson.check("cross-entropy's gradient sums to 0 in each sample", sums < 1e-12,
                 "what one class gains the others lose")  # fmt: skip
    wrong, one = torch.tensor([-10.0], device=lesson.device), torch.ones(1, device=lesson.device)
    silent = gradient_of(lambda z: mse_of_probability(z, one), wrong).item()
    loud = gradient_of(lambda z: F.binary_cross_entropy_with_logits(z, one), wrong).item()
    lesson.check("a yes at logit -10: BCE pulls fully, MSE of p does not", loud < -0.99 and -0.001 < silent < 0,
                 f"{loud:.4f} and {silent:.5f}")  # fmt: skip
    zero = torch.zeros(1, device=lesson.device)
    smooth, kinked = (gradient_of(each, zero).item() for each in (formulas.softplus, formulas.softplus_with_a_kink))
    points = torch.linspace(-5, 5, 101, device=lesson.device)
    alike = deviation(formulas.softplus_with_a_kink(points), formulas.softplus(points))
    lesson.check("a formula may be right in value, wrong in slope", alike < 1e-6 and (smooth, kinked) == (0.5, 0),
                 f"max(0, z) + log(1 + exp(-|z|)) at 0: {kinked:g}, not {smooth:g}")  # fmt: skip
    lesson.figure("losses_and_slopes", draw_losses, rows=2, columns=2)
    alike_names = [name for name, (gradient, *_) in by_hand.items() if gradient.endswith(("- y", "- one-hot"))]
    lesson.shows(
        f"{', '.join(alike_names[:-1])} and {alike_names[-1]} have one gradient: what the model says minus what is true "
        "(and MSE has twice that). It is large as long as the model is wrong, and that is why these pairs of last layer and "
        "loss belong together. The kink is a real trap: a linear model that starts at 0 has all its logits there, and with "
        "that formula it never moves. Picture losses_and_slopes.png."
    )


def draw_losses(error_loss: Any, logit_loss: Any, error_slope: Any, logit_slope: Any) -> None:
    e, z = torch.linspace(-3, 3, 241, dtype=torch.float64), torch.linspace(-6, 4, 241, dtype=torch.float64)
    nothing, yes = torch.zeros_like(e), torch.ones_like(z)
    of_error: dict[str, Slope] = {
        "MSE / 2": lambda x: formulas.mse(x, nothing, "none") / 2,
        "MAE": lambda x: formulas.mae(x, nothing, "none"),
        "Huber, δ = 1": lambda x: formulas.huber(x, nothing, 1.0, "none"),
    }
    of_logit: dict[str, Slope] = {
        "cross-entropy": lambda z: formulas.binary_cross_entropy_with_logits(z, yes, 1.0, "none"),
        "focal, γ = 2": lambda z: formulas.focal(z, yes, 2.0, None, "none"),
        "hinge": lambda z: formulas.hinge(z, yes, 1.0, "none"),
        "MSE of sigmoid": lambda z: mse_of_probability(z, yes),
    }
    panels = ((error_loss, error_slope, e, of_error), (logit_loss, logit_slope, z, of_logit))
    for loss_axis, slope_axis, x, losses in panels:
        for name, loss in losses.items():
            loss_axis.plot(x, loss(x), label=name, marker="", linewidth=2)
            slope_axis.plot(x, gradient_of(loss, x), label=name, marker="", linewidth=2)
        loss_axis.legend()
    error_loss.set(title="Loss of an error", ylabel="loss")
    error_slope.set(title="Its slope: how hard it pulls", xlabel="error, prediction - target", ylabel="slope")
    logit_loss.set(title="Loss of a yes", ylim=(-0.2, 6.2))
    logit_slope.set(title="Its slope: MSE gives up where wrong", xlabel="logit; right is to the right")


# At the end

RECIPES = (  # what is wanted, what the model gives, the target, the loss; all but pinball are in torch.nn.functional
    ("one of C classes", "logits (N, C)", "int64 (N)", "cross_entropy(z, c)"),
    ("class of each place", "logits (N, C, T)", "int64 (N, T)", "cross_entropy(z_of_places, c_of_places)"),
    ("yes or no", "logits (N, 1)", "0 or 1 (N, 1)", "binary_cross_entropy_with_logits(x, b)"),
    ("any number of C tags", "logits (N, C)", "0 or 1 (N, C)", "binary_cross_entropy_with_logits(z, t)"),
    ("to match a teacher", "log p (N, C)", "p (N, C)", "kl_div(log_p, q, reduction='batchmean')"),
    ("an average", "(N, 1)", "(N, 1)", "mse_loss(x, y)"),
    ("a number, outliers", "(N, 1)", "(N, 1)", "huber_loss(x, y)"),
    ("what is usual", "(N, 1)", "(N, 1)", "l1_loss(x, y)"),
    ("a promise, 9 of 10", "(N, 1)", "(N, 1)", "pinball(x, y, 0.9)"),
    ("a number, its doubt", "2 x (N, 1)", "(N, 1)", "gaussian_nll_loss(x, y, variance)"),
    ("a count", "log rate (N, 1)", "(N, 1)", "poisson_nll_loss(x, k)"),
    ("a lead, then stop", "scores (N, C)", "int64 (N)", "multi_margin_loss(z, c)"),
    ("alike near, rest far", "vectors (N, D)", "2 x (N, D)", "triplet_margin_loss(z, same, other)"),
)


def show_choice(lesson: Lesson) -> None:
    lesson.section(
        "Which loss when",
        "Begin with what you want to know and what your errors look like; the loss follows, and with it the last layer, "
        "the shape and the dtype of the target (float32 where nothing stands). Each call is run as it stands; all but pinball "
        "are in torch.nn.functional.",
    )
    n, c, t = 6, 4, 5
    device = lesson.device
    z = torch.randn(n, c, device=device, requires_grad=True)
    x = torch.randn(n, 1, device=device, requires_grad=True)
    z_of_places = torch.randn(n, c, t, device=device, requires_grad=True)
    learning = [z, x, z_of_places]
    names = {
        **vars(F), "pinball": formulas.pinball, "z": z, "x": x, "z_of_places": z_of_places, "log_p": z.log_softmax(1),
        "c": torch.randint(c, (n,), device=device), "c_of_places": torch.randint(c, (n, t), device=device),
        "b": torch.ones(n, 1, device=device), "t": torch.eye(n, c, device=device), "k": torch.full((n, 1), 3.0, device=device),
        "q": torch.randn(n, c, device=device).softmax(1), "y": torch.randn(n, 1, device=device), "variance": x.exp(),
        "same": z.detach() + 1, "other": z.detach() - 1,
    }  # fmt: skip
    lesson.table([dict(zip(("you want", "the model gives", "target", "loss"), row, strict=True)) for row in RECIPES])
    works = []
    for *_, code in RECIPES:
        loss = evaluate(code, **names)
        gradients = torch.autograd.grad(loss, learning, allow_unused=True, retain_graph=True)
        works.append(
            loss.ndim == 0 and math.isfinite(loss.item()) and any(g is not None and g.any() for g in gradients)
        )
    lesson.check("each line gives one finite number and a gradient", all(works), f"{sum(works)} of {len(works)}")
    of_logits = [code for *_, code in RECIPES if "cross_entropy" in code]
    lesson.check("no softmax and no sigmoid stands before a loss of logits",
                 not any("softmax" in code or "sigmoid" in code for code in of_logits), f"{len(of_logits)} lines")  # fmt: skip
    lesson.shows(
        f"{len(RECIPES)} wishes, and for classes it is nearly always cross_entropy on logits. Smoothing, weights and focal "
        "loss are answers to a problem that you have measured: begin without them. And the loss is not the goal: report "
        "what matters (accuracy, recall, minutes), and let the loss do the pulling."
    )


def main(argv: list[str] | None = None) -> int:
    title = "Loss functions: from their formulas, when to use which, and how each one goes wrong."
    with Lesson(__file__, argv, title=title) as lesson:
        show_formulas(lesson)
        show_gradients(lesson)
        show_constants(lesson)
        show_noise(lesson)
        show_cross_entropy(lesson)
        show_temperature(lesson)
        show_breaking_points(lesson)
        show_softmax_first(lesson)
        show_label_smoothing(lesson)
        show_reductions(lesson)
        show_class_weights(lesson)
        show_rare_class(lesson)
        show_preparing(lesson)
        show_complaints(lesson)
        show_silent_mistakes(lesson)
        show_kinds_of_scores(lesson)
        show_choice(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
