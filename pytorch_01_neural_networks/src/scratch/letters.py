"""The same network on drawn letters, against chance and against a linear classifier that gets every advantage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_01_neural_networks.src.scratch.data import read_letters, shuffled
from pytorch_01_neural_networks.src.scratch.network import (
    RELU,
    Batch,
    Layer,
    accuracy,
    initial_layers,
    train_layers_by_hand,
)
from pytorch_01_neural_networks.src.scratch.wording import gap_text, share_text
from shared.glyphs import CLASS_NAMES
from shared.lesson import Lesson
from shared.units import percent

import torch

HIDDEN, SIDE = 128, 16
BATCH = 50
LR = 0.1
LINEAR_LRS = (0.2, 0.05, 0.01)


@dataclass(frozen=True)
class Trained:
    layers: list[Layer]
    losses: list[float]

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        *first, (weight, bias) = self.layers
        for w, b in first:
            x = RELU.value(x @ w.T + b)
        return x @ weight.T + bias


def train(sizes: Sequence[int], data: Batch, lr: float, epochs: int, seed: int) -> Trained:
    """Plain gradient descent with the gradients by hand."""
    generator = torch.Generator().manual_seed(seed)
    layers = [(w.to(data[0].device), b.to(data[0].device)) for w, b in initial_layers(sizes, generator)]
    losses: list[torch.Tensor] = []
    batches = shuffled(data, BATCH, epochs, generator)
    for loss, layers in train_layers_by_hand(layers, batches, lr, RELU):  # noqa: B007, B020 - the last ones are kept
        losses.append(loss)
    return Trained(layers, torch.stack(losses).tolist())


def right_about_both(model: Trained, x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of images that are recognised as they are and as their negative, black for white."""
    return ((model.logits(x).argmax(1) == y) & (model.logits(-x).argmax(1) == y)).float().mean().item()


def show_letters(lesson: Lesson) -> None:
    lesson.section(
        "Ten letters",
        "Drawn letters, A to U, turned, sheared, dark on light and light on dark, as 16 x 16 grey pixels of mean 0 and "
        "variance 1. The same functions, with 256 inputs, 128 hidden units and 10 classes. Beside it, chance and a linear "
        "classifier: no hidden layer, the same batches, and of three learning rates the one that does best on the test "
        "images, which is more than a baseline may ask for.",
    )
    train_count = lesson.pick(full=19_200, cpu=9600, quick=800)
    data, test = (
        (x.to(lesson.device), y.to(lesson.device))
        for x, y in (read_letters(True, train_count), read_letters(False, lesson.pick(full=2000, quick=500)))
    )
    epochs, seed = lesson.pick(full=12, quick=24), lesson.options.seed
    x, y = test
    candidates = {lr: train((256, 10), data, lr, epochs, seed) for lr in lesson.progress(LINEAR_LRS, "linear")}
    linear_lr = max(candidates, key=lambda lr: accuracy(candidates[lr].logits(x), y))
    linear = candidates[linear_lr]
    two_layers = train((256, HIDDEN, 10), data, LR, epochs, seed)
    models = {"linear": linear, "two layers": two_layers}
    rows: list[dict[str, object]] = [
        {"classifier": "chance", "parameters": 0, "training images": "10 %", "test images": "10 %",
         "image and its negative": "1 %"}
    ]  # fmt: skip
    tested, both = {}, {}
    for name, model in models.items():
        tested[name], both[name] = accuracy(model.logits(x), y), right_about_both(model, x, y)
        lesson.record("test accuracy", tested[name], "", data="letters", model=name, images=train_count)
        rows.append(
            {"classifier": name, "parameters": sum(w.numel() + b.numel() for w, b in model.layers),
             "training images": share_text(accuracy(model.logits(data[0]), data[1])), "test images": share_text(tested[name]),
             "image and its negative": share_text(both[name])}
        )  # fmt: skip
    lesson.table(rows)
    error = 0.5 / math.sqrt(len(y))  # the standard error of a share, at most
    lesson.check("the linear classifier beats chance", tested["linear"] > 0.1 + 5 * error,
                 f"{share_text(tested['linear'])}, on {len(y):,} images that it never saw")  # fmt: skip
    margin = lesson.pick(full=0.15, quick=0.02)
    lesson.check("two layers beat the linear classifier", tested["two layers"] > tested["linear"] + margin,
                 f"{share_text(tested['two layers'])}, with all gradients by hand")  # fmt: skip
    lesson.text(
        "Why does the line fail? Turn an image into its negative, black for white: x becomes -x, a letter stays that "
        "letter, and the linear classifier's scores w x turn around. If it says T to one, T is the last that it would "
        "say to the other. The last column counts who is right about both."
    )
    _, bias = linear.layers[0]
    off = (linear.logits(x) + linear.logits(-x) - 2 * bias).abs().max().item() / linear.logits(x).abs().max().item()
    lesson.check(
        "linear scores of image and negative add up to 2 b", off < 1e-4, f"to {gap_text(off)} of the largest score"
    )
    lesson.check(
        "so it is hardly ever right about both", both["linear"] < 0.02, f"{share_text(both['linear'])} of the images"
    )
    lesson.check("two layers are, far more often", both["two layers"] > both["linear"] + 0.03,
                 share_text(both['two layers']))  # fmt: skip
    lesson.figure("letter_weights", lambda *axes: draw_weights(axes, models), columns=2)
    lesson.figure("letter_losses", lambda axis: draw_letter_losses(axis, models))
    templates, strongest = models["linear"].layers[0][0], strongest_units(two_layers, 25)
    lesson.text(
        "The picture letter_weights.png shows each row of the first weights as an image. Where a unit looks for strokes and "
        f"edges, its weights resemble their neighbours: their correlation is {neighbour_correlation(templates):.2f} in the "
        f"linear templates and {neighbour_correlation(strongest):.2f} in the hidden units that are used most."
    )
    lesson.text(
        "And what do more images bring? The same two trainings on a part of them, each until its steps are as many:"
    )
    gaps = show_more_images(lesson, data, test, epochs, linear_lr, models)
    fewest, most = min(gaps), max(gaps)
    lesson.check("more images narrow the gap between own and new ones", gaps[most] < gaps[fewest],
                 f"{100 * gaps[fewest]:.0f} points become {100 * gaps[most]:.0f}")  # fmt: skip
    lesson.shows(
        f"the hidden layer turns {percent(tested['linear'])} into {percent(tested['two layers'])} of new images. How much of "
        "what it does on its training images is learned by heart shows in the gap to new ones: "
        f"{100 * gaps[fewest]:.0f} points with {fewest:,} images and {100 * gaps[most]:.0f} with {most:,}. A network that is "
        "right about everything it was trained on asks for more data, not for more steps."
    )


def show_more_images(
    lesson: Lesson, data: Batch, test: Batch, epochs: int, linear_lr: float, models: dict[str, Trained]
) -> dict[int, float]:
    """The table by number of training images; returns the two-layer network's gap from training to test accuracy."""
    x, y = data
    table, gaps = [], {}
    for part in (16, 4, 1):
        count = len(x) // part
        few = x[:count], y[:count]
        trained = models
        if part > 1:
            trained = {
                "linear": train((256, 10), few, linear_lr, epochs * part, lesson.options.seed),
                "two layers": train((256, HIDDEN, 10), few, LR, epochs * part, lesson.options.seed),
            }
        reached = {name: accuracy(model.logits(test[0]), test[1]) for name, model in trained.items()}
        on_own = accuracy(trained["two layers"].logits(few[0]), few[1])
        gaps[count] = on_own - reached["two layers"]
        table.append(
            {"training images": count, **{f"{name}, test images": share_text(v) for name, v in reached.items()},
             "two layers, own images": share_text(on_own)}
        )  # fmt: skip
    lesson.table(table)
    return gaps


def strongest_units(model: Trained, count: int) -> torch.Tensor:
    """The first weights (count, 256) of the hidden units with the longest outgoing weights."""
    (first, _), (last, _) = model.layers
    return first[last.norm(dim=0).argsort(descending=True)[:count]]


def neighbour_correlation(weights: torch.Tensor) -> float:
    """The correlation of each weight (count, 256) with the one to its right and below, over all of them."""
    pictures = weights.view(-1, SIDE, SIDE)
    pictures = pictures - pictures.mean(dim=(1, 2), keepdim=True)
    products = (pictures[:, :, 1:] * pictures[:, :, :-1]).mean() + (pictures[:, 1:] * pictures[:, :-1]).mean()
    return (products / 2 / pictures.square().mean()).item()


def mosaic(weights: torch.Tensor, columns: int) -> torch.Tensor:
    """Rows of weights (count, 256) as pictures side by side, each scaled to its own largest weight, with a gap."""
    pictures = (weights / weights.abs().amax(1, keepdim=True)).view(-1, SIDE, SIDE)
    rows = -(-len(pictures) // columns)
    out = torch.full((rows * (SIDE + 1), columns * (SIDE + 1)), torch.nan)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        out[row * (SIDE + 1) : row * (SIDE + 1) + SIDE, column * (SIDE + 1) : column * (SIDE + 1) + SIDE] = picture
    return out[:-1, :-1]


def draw_weights(axes: Sequence[Any], models: dict[str, Trained]) -> None:
    templates, strongest = models["linear"].layers[0][0].cpu(), strongest_units(models["two layers"], 25).cpu()
    titles = "Linear: one template for each letter", "Two layers: the 25 most used hidden units"
    for axis, weights, title in zip(axes, (templates, strongest), titles, strict=True):
        axis.imshow(mosaic(weights, 5).numpy(), cmap="gray", vmin=-1, vmax=1)
        axis.set(title=title, xticks=[], yticks=[])
        axis.grid(False)
    for i, name in enumerate(CLASS_NAMES[10]):
        row, column = divmod(i, 5)
        axes[0].annotate(name, (column * (SIDE + 1), row * (SIDE + 1)), (3, -12), textcoords="offset points", fontsize=11,
                         weight="bold", backgroundcolor="white")  # fmt: skip


def draw_letter_losses(axis: Any, models: dict[str, Trained]) -> None:
    for name, model in models.items():
        window = max(1, len(model.losses) // 60)
        means = torch.tensor(model.losses).unfold(0, window, window).mean(1).tolist()
        axis.plot([window * (i + 1) for i in range(len(means))], means, label=name, marker="")
    axis.axhline(math.log(10), color="black", linewidth=1, linestyle=":", marker="", label="a guess: log(10)")
    axis.set(
        xlabel="step",
        ylabel="training loss, cross-entropy",
        title="Ten letters: the linear classifier is soon as good as it gets",
        ylim=(0, None),
    )
    axis.legend()
