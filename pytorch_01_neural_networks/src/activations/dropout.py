"""Dropout: noise with a mean of nothing, what it does to variance, what it amounts to, and how it is left on."""

import math
from collections.abc import Callable
from typing import Any

from shared.datasets import load_images
from shared.lesson import Lesson
from shared.units import percent

import torch
import torch.nn.functional as F
from torch import nn


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014, §10): each number is dropped with probability `p`, the others are
    divided by 1 - p, so that nothing has to be done in eval mode.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        if self.p == 1:
            return x * 0.0
        kept = torch.rand_like(x) >= self.p
        return x * kept / (1 - self.p)


class DropoutThatIsNeverOff(nn.Module):
    """The mistake: F.dropout knows no mode. Without training=self.training it also drops in eval mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5)


def show_mean_and_variance(lesson: Lesson) -> None:
    lesson.section(
        "Dropout: the mean stays, the variance grows",
        "Dropout zeroes each number with probability p and divides the rest by 1 - p. The division keeps the mean, so "
        "that eval mode can do nothing at all. The variance is not kept: x² p / (1 - p) is added, and what comes after "
        "sees more spread in training than in use.",
    )
    n, features = lesson.pick(full=200_000, quick=20_000), 16
    x, weight = torch.randn(features, device=lesson.device), torch.randn(features, device=lesson.device)
    rows, errors = [], []
    for p in (0.1, 0.5, 0.8):
        dropped = Dropout(p)(x.expand(n, features))
        sums = dropped @ weight
        mean, variance = sums.mean().item(), sums.var().item()
        right_mean = (x @ weight).item()
        right_variance = ((x * weight).square().sum() * p / (1 - p)).item()
        fourth = ((sums - right_mean) ** 4).mean().item()
        spread = math.sqrt(right_variance / n), math.sqrt((fourth - right_variance**2) / n)
        errors += [abs(mean - right_mean) / spread[0], abs(variance - right_variance) / spread[1]]
        share = (dropped == 0).float().mean().item()
        errors.append(abs(share - p) / math.sqrt(p * (1 - p) / (n * features)))
        rows.append({"p": p, "dropped": percent(share), "mean of w·x": f"{mean:.3f}", "theory": f"{right_mean:.3f}",
                     "variance of w·x": f"{variance:.3f}", "its theory": f"{right_variance:.3f}"})  # fmt: skip
    lesson.table(rows)
    lesson.check("share, mean and variance follow the theory", max(errors) < 6,
                 f"{len(errors)} figures, worst {max(errors):.1f} standard errors, n = {n:,}")  # fmt: skip
    ours, library = Dropout(0.3).eval(), nn.Dropout(0.3).eval()
    lesson.check("in eval mode it does nothing", ours(x) is x and torch.equal(library(x), x), "the same tensor")
    y = x.clone().requires_grad_()
    out = nn.Dropout(0.4)(y)
    (gradient,) = torch.autograd.grad(out.sum(), y)
    expected = (out != 0) / (1 - 0.4)
    lesson.check("backward uses the very mask of forward", torch.allclose(gradient, expected),
                 f"gradients {sorted({round(g, 2) for g in gradient.tolist()})}")  # fmt: skip
    images = torch.ones(64, 32, 4, 4, device=lesson.device)
    whole = {name: (layer(images) == 0).flatten(2).all(dim=2).float().mean().item()
             for name, layer in {"Dropout": nn.Dropout(0.5), "Dropout2d": nn.Dropout2d(0.5)}.items()}  # fmt: skip
    lesson.check("Dropout2d drops whole channels, Dropout hardly ever",
                 whole["Dropout"] < 0.01 and abs(whole["Dropout2d"] - 0.5) < 5 * 0.5 / math.sqrt(64 * 32),
                 f"{percent(whole['Dropout2d'])} and {percent(whole['Dropout'])} of them are zero")  # fmt: skip
    before_norm = torch.randn(n, device=lesson.device)
    growth = nn.Dropout(0.5)(before_norm).var().item() / before_norm.var().item()
    lesson.check("dropout before BatchNorm doubles the variance it learns", abs(growth - 2) < 0.1,
                 f"{growth:.2f}x at p = 0.5, 1 / (1 - p) = 2")  # fmt: skip
    lesson.shows(
        f"at p = 0.8 the spread of one sum is {math.sqrt(float(rows[2]['its theory'])):.1f} around a mean of "
        f"{float(rows[2]['theory']):.1f}. Images want Dropout2d, since the neighbours of a dropped pixel say the same as it "
        f"did. And a BatchNorm behind dropout stores a variance {growth:.1f} times that of eval mode: put dropout after "
        "it (Li et al. 2018, arXiv 1801.05134)."
    )


def show_dropout_as_penalty(lesson: Lesson) -> None:
    lesson.section(
        "What dropout amounts to: a penalty on large weights",
        "For a linear model the noise can be averaged out on paper. The mean squared error under dropout is the error "
        "without it plus p / (1 - p) times the sum of w² x²: ridge regression, in which a feature pays by its size "
        "(Srivastava et al. 2014, §9.1; Wager et al. 2013). In a deep network the idea carries over, the formula does not.",
    )
    n, features, p = 50, 10, 0.5
    draws = lesson.pick(full=20_000, quick=4_000)
    x = torch.randn(n, features, dtype=torch.float64)
    w, y = torch.randn(features, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
    penalty = p / (1 - p) * (x.square() @ w.square()).sum()
    theory = ((x @ w - y).square().sum() + penalty).item()
    kept = torch.rand(draws, n, features) >= p
    losses = ((x * kept / (1 - p)) @ w - y).square().sum(dim=1)
    error = (losses.std() / math.sqrt(draws)).item()
    mean = losses.mean().item()
    lesson.items(
        {
            "without dropout": f"{theory - penalty.item():.2f}",
            "the penalty": f"{penalty:.2f}",
            "theory": f"{theory:.2f}",
            "measured": f"{mean:.2f} ± {error:.2f}, the mean of {draws:,} masks",
        }
    )
    lesson.check("the mean loss under dropout is loss plus penalty", abs(mean - theory) < 5 * error,
                 f"{abs(mean - theory) / error:.1f} standard errors apart")  # fmt: skip
    ridge = torch.linalg.solve(x.T @ x + p / (1 - p) * torch.diag(x.square().sum(dim=0)), x.T @ y).requires_grad_()
    objective = (x @ ridge - y).square().sum() + p / (1 - p) * (x.square() @ ridge.square()).sum()
    (slope,) = torch.autograd.grad(objective, ridge)
    plain = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    lesson.check("its best weights are those of ridge regression", slope.abs().max() < 1e-9,
                 f"slope there {slope.abs().max():.0e}")  # fmt: skip
    lesson.check("they are shorter than those of least squares", ridge.norm() < plain.norm(),
                 f"length {ridge.norm():.2f} instead of {plain.norm():.2f}")  # fmt: skip
    lesson.shows(
        f"of the loss of {theory:.0f} that training sees, {percent(penalty.item() / theory)} is the price of large weights. "
        "So dropout is a regulariser: with plenty of data, or with another penalty in place, less of it is better. And "
        "a training loss with dropout cannot be compared with a test loss without: it pays this price on top."
    )


# On data


class Network(nn.Module):
    """Three Linear layers with ReLU; `dropout` after each hidden one."""

    def __init__(self, features: int, width: int, dropout: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), dropout(),
            nn.Linear(width, width), nn.ReLU(), dropout(),
            nn.Linear(width, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(x)
        return logits


Split = tuple[torch.Tensor, torch.Tensor]


def load_split(lesson: Lesson, train: bool, count: int) -> Split:
    """Images at half their size as vectors (N, 768) of spread about 1, and labels (N,)."""
    data = load_images("glyphs", train=train, count=count)
    images = F.avg_pool2d(data.images.to(lesson.device).float(), 2)
    return (images.flatten(1) - 127.5) / 64, data.labels.to(lesson.device)


def train_steps(model: nn.Module, data: Split, steps: int, lr: float) -> None:
    """Plain SGD with batches of 100."""
    x, labels = data
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(x), (100,), device=x.device)
        F.cross_entropy(model(x[batch]), labels[batch]).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= lr * parameter.grad
                parameter.grad = None


@torch.no_grad()
def evaluate(model: nn.Module, data: Split) -> tuple[float, float]:
    """Loss and accuracy, in whatever mode the model is."""
    logits = model(data[0])
    return F.cross_entropy(logits, data[1]).item(), (logits.argmax(dim=1) == data[1]).float().mean().item()


@torch.no_grad()
def predict_without_eval(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The mistake: no_grad is not eval. A model straight from training drops units while it predicts."""
    logits: torch.Tensor = model(x)
    return logits.argmax(dim=1)


def show_forgotten_mode(lesson: Lesson) -> None:
    lesson.section(
        "The mode that was forgotten",
        "model.eval() switches dropout off; torch.no_grad() does not, and nothing warns. The two signs: the same input "
        "gives another answer each time, and accuracy in use is below that of validation. Here the same trained network "
        "answers in both modes, and with an F.dropout that knows no mode.",
    )
    width, steps = lesson.pick(full=256, quick=128), lesson.pick(full=400, quick=200)
    training = load_split(lesson, True, lesson.pick(full=2000, quick=1000))
    test = load_split(lesson, False, 500)
    model = Network(training[0].shape[1], width, lambda: nn.Dropout(0.5)).to(lesson.device)
    train_steps(model, training, steps, lr=0.1)
    changed = (predict_without_eval(model, test[0]) != predict_without_eval(model, test[0])).float().mean().item()
    in_training = [evaluate(model, test) for _ in range(8)]
    with torch.no_grad():
        averaged = torch.stack([model(test[0]).softmax(dim=1) for _ in range(32)]).mean(dim=0)
    model.eval()
    loss, accuracy = evaluate(model, test)
    never_off = Network(training[0].shape[1], width, DropoutThatIsNeverOff).to(lesson.device).eval()
    never_off.load_state_dict(model.state_dict())
    forgotten = [evaluate(never_off, test) for _ in range(8)]

    def row(name: str, results: list[tuple[float, float]]) -> dict[str, object]:
        losses, accuracies = zip(*results, strict=True)
        return {"predicting": name, "loss": f"{sum(losses) / len(losses):.2f}",
                "accuracy": percent(sum(accuracies) / len(accuracies)),
                "from … to": f"{percent(min(accuracies))} … {percent(max(accuracies))}"}  # fmt: skip

    averaged_accuracy = (averaged.argmax(dim=1) == test[1]).float().mean().item()
    averaged_loss = F.nll_loss(averaged.log(), test[1]).item()
    lesson.table(
        [
            row("model.eval()", [(loss, accuracy)]),
            row("in training mode", in_training),
            row("F.dropout(x, 0.5), model.eval()", forgotten),
            row("training mode, mean of 32 answers", [(averaged_loss, averaged_accuracy)]),
        ]
    )
    mean_loss, mean_accuracy = (sum(figures) / len(figures) for figures in zip(*in_training, strict=True))
    lesson.check("in training mode the same images get other answers", changed > 0.02,
                 f"{percent(changed)} of {len(test[0])} changed")  # fmt: skip
    lesson.check("eval mode is better than training mode", accuracy > mean_accuracy and loss < mean_loss,
                 f"{percent(accuracy)} against {percent(mean_accuracy)}")  # fmt: skip
    lesson.check("eval() does not reach F.dropout", len({result[0] for result in forgotten}) > 1,
                 f"8 losses from {min(forgotten)[0]:.3f} to {max(forgotten)[0]:.3f}")  # fmt: skip
    lesson.check("the mean over masks comes close to eval mode", abs(averaged_accuracy - accuracy) < 0.06,
                 f"{percent(averaged_accuracy)} and {percent(accuracy)}")  # fmt: skip
    lesson.shows(
        f"a forgotten eval() costs {100 * (accuracy - mean_accuracy):.1f} points of accuracy here and changes "
        f"{percent(changed)} of the answers from one call to the next. Use nn.Dropout, or F.dropout(x, p, self.training); call "
        "eval() before every evaluation and train() after it. eval mode is one pass for what 32 random ones average to."
    )


def show_dropout_as_regulariser(lesson: Lesson) -> None:
    lesson.section(
        "Dropout as a regulariser",
        "A network with far more weights than images can learn the images by heart. With dropout no unit can rely on "
        "another, so learning by heart becomes harder. Watch the loss on images that it has not seen: where it "
        "turns upwards, the network begins to remember instead of to learn.",
    )
    rates = (0.0, 0.3, 0.6)
    rounds, steps = lesson.pick(full=20, quick=10), 50
    training = load_split(lesson, True, lesson.pick(full=2000, quick=1000))
    test = load_split(lesson, False, lesson.pick(full=1000, quick=500))
    curves: dict[float, list[tuple[float, float, float, float]]] = {}
    for rate in lesson.progress(rates, "trainings"):
        model = Network(training[0].shape[1], 256, lambda rate=rate: nn.Dropout(rate)).to(lesson.device)
        curves[rate] = []
        for i in range(rounds):
            train_steps(model, training, steps, lr=0.1 * (1 - i / rounds))  # falling, so that the curves end calmly
            model.eval()
            curves[rate].append((*evaluate(model, training), *evaluate(model, test)))
    last = {rate: curve[-1] for rate, curve in curves.items()}
    lesson.table(
        [
            {
                "dropout": rate,
                "training loss": f"{loss:.2f}",
                "training accuracy": percent(accuracy),
                "test loss": f"{test_loss:.2f}",
                "lowest on the way": f"{min(point[2] for point in curves[rate]):.2f}",
                "test accuracy": percent(test_accuracy),
            }
            for rate, (loss, accuracy, test_loss, test_accuracy) in last.items()
        ]
    )
    weights = sum(parameter.numel() for parameter in model.parameters())
    lesson.check("without dropout it knows most images by heart", last[0.0][1] > 0.9,
                 f"{percent(last[0.0][1])} of {len(training[0]):,}, with {weights:,} weights")  # fmt: skip
    lowest = min(point[2] for point in curves[0.0])
    lesson.check("by then its test loss has turned upwards", last[0.0][2] > 1.02 * lowest,
                 f"{lowest:.2f}, later {last[0.0][2]:.2f}")  # fmt: skip
    gaps = [last[rate][2] - last[rate][0] for rate in rates]
    lesson.check("dropout narrows the gap between test and training loss", gaps[2] < 0.8 * gaps[0],
                 ", ".join(f"{gap:.2f}" for gap in gaps))  # fmt: skip
    lesson.check("and ends with a lower test loss", last[0.6][2] < last[0.0][2],
                 f"{last[0.6][2]:.2f} instead of {last[0.0][2]:.2f}")  # fmt: skip

    def draw(ax: Any) -> None:
        at = [steps * (i + 1) for i in range(rounds)]
        for (rate, curve), marker in zip(curves.items(), "os^", strict=True):
            (line,) = ax.plot(at, [point[2] for point in curve], label=f"test, dropout {rate:g}", marker=marker)
            ax.plot(at, [point[0] for point in curve], label=f"training, {rate:g}", marker=marker, color=line.get_color(),
                    linestyle=":", markerfacecolor="white")  # fmt: skip
        ax.set(title="Dropout holds the test loss down", xlabel="training step", ylabel="cross-entropy", ylim=(0, None))
        ax.legend(ncols=3, fontsize=9)

    lesson.figure("dropout", draw)
    gain = last[0.6][3] - last[0.0][3]
    chance = 2 * math.sqrt(2 * last[0.0][3] * (1 - last[0.0][3]) / len(test[0]))
    lesson.shows(
        f"dropout 0.6 lowers the test loss from {last[0.0][2]:.2f} to {last[0.6][2]:.2f}: the network is less sure where it "
        f"is wrong. The accuracy changes by {100 * gain:+.1f} points, and on {len(test[0]):,} images up to "
        f"{100 * chance:.0f} points are chance"
        + (", so it cannot be told apart. " if abs(gain) < chance else ". ")
        + f"It costs steps: the training loss is {last[0.6][0]:.2f} where it is {last[0.0][0]:.2f} without."
    )
