"""Which number each loss chooses where one number must do for all samples, and how that number stands noise."""

import math
from collections.abc import Callable

from pytorch_01_neural_networks.src.losses.formulas import (
    binary_cross_entropy_with_logits,
    focal,
    gaussian_nll,
    huber,
    mae,
    mse,
    pinball,
    poisson_nll,
)
from shared.lesson import Lesson
from shared.units import percent, significant

import torch

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # predictions and targets to one loss for each

HALVINGS = 60
DELTA = 10.0  # minutes, where Huber turns from a parabola into a line


def best_constant(loss: Loss, y: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """For each row of y (R, n) the one prediction c with the lowest summed loss, between `low` and `high`.

    All losses here are convex or have one valley, so the slope in c changes its sign once: halve the interval there.
    """
    lower, upper = torch.full((len(y), 1), low, dtype=y.dtype), torch.full((len(y), 1), high, dtype=y.dtype)
    for _ in range(HALVINGS):
        c = ((lower + upper) / 2).requires_grad_()
        (slope,) = torch.autograd.grad(loss(c.expand_as(y), y).sum(), c)
        middle = c.detach()
        lower, upper = torch.where(slope < 0, middle, lower), torch.where(slope < 0, upper, middle)
    return ((lower + upper) / 2).squeeze(1)


def choose(loss: Loss, y: torch.Tensor, low: float, high: float) -> float:
    """The best constant for the samples y (n)."""
    return best_constant(loss, y[None], low, high).item()


def log_odds(share: float) -> float:
    return math.log(share / (1 - share))


def show_constants(lesson: Lesson) -> None:
    lesson.section(
        "The number that a loss is content with",
        "Leave a model one number for all samples and look which one each loss chooses: that is what it asks of a real "
        "model too, for each input. Here 4,001 delivery times in minutes with a long tail of late ones, and as many "
        "parcels of which about 1 in 10 is damaged. The best number is found by halving an interval on the sign of the "
        "slope, never from the statistic beside it.",
    )
    n = 4001
    minutes = 20 * torch.randn(n, dtype=torch.float64).exp()
    damaged = (torch.rand(n) < 0.1).double()
    top = minutes.max().item()
    mean, median = minutes.mean().item(), minutes.median().item()
    late, frequency = minutes.quantile(0.9).item(), damaged.mean().item()
    orders = (minutes / 10).round()
    found = {
        "mse": choose(lambda x, y: mse(x, y, "none"), minutes, 0, top),
        "mae": choose(lambda x, y: mae(x, y, "none"), minutes, 0, top),
        "huber": choose(lambda x, y: huber(x, y, DELTA, "none"), minutes, 0, top),
        "pinball": choose(lambda x, y: pinball(x, y, 0.9, "none"), minutes, 0, top),
        "variance": choose(
            lambda variance, y: gaussian_nll(torch.full_like(y, mean), y, variance, "none"), minutes, 1e-3, top**2
        ),
        "poisson": math.exp(choose(lambda x, y: poisson_nll(x, y, "none"), orders, -20, 20)),
        "bce": choose(lambda z, y: binary_cross_entropy_with_logits(z, y, 1.0, "none"), damaged, -20, 20),
        "pos_weight": choose(lambda z, y: binary_cross_entropy_with_logits(z, y, 5.0, "none"), damaged, -20, 20),
        "focal": choose(lambda z, y: focal(z, y, 2.0, None, "none"), damaged, -20, 20),
    }
    odds, variance, rate = log_odds(frequency), minutes.var(correction=0).item(), orders.mean().item()
    focal_share = 1 / (1 + math.exp(-found["focal"]))
    rows = (
        ("MSE", found["mse"], "mean", mean, "normal, of one size"),
        ("MAE", found["mae"], "median", median, "Laplace: longer tails"),
        (f"Huber, delta {DELTA:g}", found["huber"], "between the two", None, "normal, Laplace beyond delta"),
        ("pinball, level 0.9", found["pinball"], "90 % quantile", late, "none: a promise"),
        ("Gaussian NLL, variance", found["variance"], "variance", variance, "normal, size unknown"),
        ("Poisson NLL, as rate", found["poisson"], "mean of counts", rate, "independent events"),
        ("BCE with logits", found["bce"], "log-odds", odds, "tosses of one coin"),
        ("the same, pos_weight 5", found["pos_weight"], "log-odds + log 5", odds + math.log(5), "a yes counts five times"),
        ("focal, gamma 2, as share", focal_share, "nearer to 1/2", None, "none: no likelihood"),
    )  # fmt: skip
    lesson.table(
        [{"loss": loss, "its number": significant(value), "statistic": name,
          "computed": "–" if right is None else significant(right), "noise it assumes": noise}
         for loss, value, name, right, noise in rows]
    )  # fmt: skip
    for loss, name, right in (("mse", "MSE chooses the mean", mean), ("mae", "MAE the median", median)):
        lesson.check(name, math.isclose(found[loss], right, rel_tol=1e-9), f"{found[loss]:.4f} and {right:.4f} minutes")
    lesson.check("Huber stays between median and mean", median < found["huber"] < mean,
                 f"{median:.1f} < {found['huber']:.1f} < {mean:.1f}")  # fmt: skip
    earlier = int((minutes <= found["pinball"]).sum())
    lesson.check("pinball at level 0.9 is above 90 % of the samples", abs(earlier - 0.9 * n) < 2,
                 f"{earlier:,} of {n:,}")  # fmt: skip
    lesson.check("Gaussian NLL chooses the variance, Poisson NLL the mean",
                 math.isclose(found["variance"], variance, rel_tol=1e-6)
                 and math.isclose(found["poisson"], rate, rel_tol=1e-9),
                 f"{found['variance']:.1f} and {found['poisson']:.3f}")  # fmt: skip
    lesson.check("BCE chooses the frequency, as log-odds", math.isclose(found["bce"], odds, rel_tol=1e-9),
                 f"{found['bce']:.4f}: {percent(frequency)} damaged")  # fmt: skip
    shift = found["pos_weight"] - found["bce"]
    lesson.check("pos_weight adds its logarithm to the logit", math.isclose(shift, math.log(5), rel_tol=1e-9),
                 f"{shift:.4f} and log 5 = {math.log(5):.4f}")  # fmt: skip
    lesson.check("focal's number is no frequency: it is nearer to 1/2", frequency < focal_share < 0.5,
                 f"{percent(focal_share)} where {percent(frequency)} are damaged")  # fmt: skip
    x = torch.randn(50, dtype=torch.float64)
    y = torch.randn(50, dtype=torch.float64)
    apart = (gaussian_nll(x, y, torch.ones_like(x)) - mse(x, y) / 2).abs().item()
    lesson.check("MSE / 2 is the Gaussian NLL of variance 1", apart < 1e-12, "so MSE believes in normal errors")
    wrong = minutes.clone()
    wrong[0] = 1e6
    moved = {
        name: choose(loss, wrong, 0, 1e6) - found[name]
        for name, loss in (
            ("mse", lambda x, y: mse(x, y, "none")),
            ("huber", lambda x, y: huber(x, y, DELTA, "none")),
            ("mae", lambda x, y: mae(x, y, "none")),
        )
    }
    lesson.check("one mistyped time of 10^6 moves MSE's number only", moved["mse"] > 200 > 1 > abs(moved["huber"]),
                 f"by {moved['mse']:.0f}, Huber's by {abs(moved['huber']):.3f}, MAE's by {abs(moved['mae']):.3f}")  # fmt: skip
    lesson.shows(
        f"for the same deliveries MSE says {found['mse']:.0f} minutes, MAE {found['mae']:.0f} and pinball "
        f"{found['pinball']:.0f}. None is wrong, they answer different questions: what it costs on average, what is usual, "
        "what can be promised. Choose the loss by the question, not by the lowest number."
    )


NOISES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {  # of normal and of uniform numbers
    "normal": lambda normal, uniform: normal,
    "Laplace": lambda normal, uniform: (uniform - 0.5).sign() * -torch.log1p(-2 * (uniform - 0.5).abs()),
    "normal, 1 in 10 ten times as wide": lambda normal, uniform: normal * torch.where(uniform < 0.1, 10.0, 1.0),
}
ESTIMATORS: dict[str, Loss] = {
    "MSE": lambda x, y: mse(x, y, "none"),
    "Huber": lambda x, y: huber(x, y, 1.345, "none"),  # delta in units of the noise; 95 % as good as the mean on normal
    "MAE": lambda x, y: mae(x, y, "none"),
}


def show_noise(lesson: Lesson) -> None:
    repeats, n = lesson.pick(full=(2000, 101), quick=(500, 101))
    lesson.section(
        "Which loss for which noise",
        f"The true value is 0 and is measured {n} times with an error; each loss then gives its best number. Repeated "
        f"{repeats:,} times, the numbers scatter around 0. The loss whose number scatters least makes most of the same "
        "data: that is the practical meaning of 'it assumes this noise'.",
    )
    normal, uniform = torch.randn(repeats, n, dtype=torch.float64), torch.rand(repeats, n, dtype=torch.float64)
    scatter, table = {}, []
    for noise, draw in NOISES.items():
        y = draw(normal, uniform)
        ends = y.min().item(), y.max().item()
        of_noise = {
            name: best_constant(loss, y, *ends).square().mean().sqrt().item() for name, loss in ESTIMATORS.items()
        }
        scatter[noise] = of_noise
        table.append({"noise": noise, **of_noise, "least": min(of_noise, key=of_noise.__getitem__)})
    lesson.table(table)
    of_normal, of_laplace, of_outliers = scatter.values()
    lesson.check("normal errors: MSE beats MAE", of_normal["MAE"] > 1.08 * of_normal["MSE"],
                 f"MAE scatters {of_normal['MAE'] / of_normal['MSE']:.2f}x; sqrt(pi/2) = 1.25 for many")  # fmt: skip
    lesson.check("Laplace errors: MAE beats MSE", of_laplace["MSE"] > 1.08 * of_laplace["MAE"],
                 f"MSE scatters {of_laplace['MSE'] / of_laplace['MAE']:.2f}x; sqrt(2) = 1.41 for many")  # fmt: skip
    lesson.check("outliers: MSE loses most", of_outliers["MSE"] > 1.5 * max(of_outliers["MAE"], of_outliers["Huber"]),
                 f"{of_outliers['MSE'] / of_outliers['Huber']:.2f}x the scatter of Huber's")  # fmt: skip
    lesson.check("Huber is never the worst of the three",
                 all(each["Huber"] < max(each["MSE"], each["MAE"]) for each in scatter.values()),
                 f"on normal errors it costs {percent(of_normal['Huber'] / of_normal['MSE'] - 1)}")  # fmt: skip
    price = of_outliers["MSE"] ** 2 / of_outliers["Huber"] ** 2
    lesson.shows(
        "scatter falls as the square root of the number of samples, so its square counts data. With one outlier in ten, "
        f"MSE needs about {price:.0f} times the samples for what Huber gets. Look at a histogram of your errors before you "
        "choose; when in doubt, Huber is the cheap insurance."
    )
