"""Why does a network that knows its training set by heart fail the test, and what is each cure worth?

First a diagnosis from two curves. Then two tasks with opposite diseases, letters that are hard to read and clouds of
points with wrong labels, and on both every cure with its error bar: smaller networks, early stopping, dropout, weight
decay, label smoothing, mixup, augmentation, averaged weights, more data; their doses, their sums, their price. At the
end how sure a network is, what choosing does to the number by which you chose, and three mistakes that hide for weeks.
Eight seeds train as one stack of matrices, which is why all this takes half a minute.

    python src/regularization.py            about 30 seconds
    python src/regularization.py --quick    the same path with tiny sizes, a few seconds
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.generalization.amount import show_amount
from pytorch_02_training_optimization.src.generalization.capacity import show_capacity, show_memorised
from pytorch_02_training_optimization.src.generalization.confidence import show_confidence
from pytorch_02_training_optimization.src.generalization.cures import show_cures, show_strengths, show_together
from pytorch_02_training_optimization.src.generalization.diagnosis import show_diagnosis
from pytorch_02_training_optimization.src.generalization.selection import show_climbing, show_winners_curse
from pytorch_02_training_optimization.src.generalization.stack import (
    MOMENTUM,
    Bench,
    Recipe,
    draw_batches,
    draw_subsets,
    logits_of,
    shift,
    soft_loss,
    start_weights,
    train,
)
from pytorch_02_training_optimization.src.generalization.stopping import show_patience, show_stopping
from pytorch_02_training_optimization.src.generalization.tasks import Samples, Sizes, Task, draw_clouds, load_letters
from shared.dispatch import Watcher
from shared.lesson import Lesson
from shared.timing import compare, ratio
from shared.units import percent, seconds_text

import torch
import torch.nn.functional as F
from torch import nn

# One stack for all seeds


class OperationCount(Watcher):
    """How many operations torch was asked for inside a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def saw(self, operation: Any, args: Any, kwargs: Any, result: Any) -> None:
        self.count += 1


def train_alone(task: Task, recipe: Recipe, seeds: int, seed: int) -> nn.Sequential:
    """The first network of the stack in the usual way, with nn.Linear and one gradient descent of its own: the oracle."""
    own = draw_subsets(seeds, recipe.count, len(task.pool), seed)[0].to(task.pool.x.device)
    starts = start_weights(seeds, task.pool.x.shape[1], recipe.width, torch.Generator().manual_seed(seed + 2))
    weight, bias, out_weight, out_bias = (start[0].to(own.device) for start in starts)
    model = nn.Sequential(nn.Linear(*weight.shape), nn.ReLU(), nn.Linear(*out_weight.shape)).to(own.device)
    with torch.no_grad():
        for parameter, start in zip(model.parameters(), (weight.T, bias[0], out_weight.T, out_bias[0]), strict=True):
            parameter.copy_(start)
    velocities = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for batch in draw_batches(seeds, recipe.steps, recipe.count, seed)[:, 0].to(own.device):
        model.zero_grad()
        F.cross_entropy(model(task.pool.x[own[batch]]), task.pool.y[own[batch]]).backward()
        with torch.no_grad():
            for parameter, velocity in zip(model.parameters(), velocities, strict=True):
                assert parameter.grad is not None
                parameter.sub_(recipe.lr * velocity.mul_(MOMENTUM).add_(parameter.grad))
    return model


def one_step(task: Task, recipe: Recipe, seeds: int) -> float:
    """Forward and backward of a stack of `seeds` networks on one batch each; returns the sum of their losses."""
    starts = start_weights(seeds, task.pool.x.shape[1], recipe.width, torch.Generator().manual_seed(0))
    parameters = [start.to(task.pool.x.device).requires_grad_() for start in starts]
    batch = draw_batches(seeds, 1, recipe.count, 0)[0].to(task.pool.x.device)
    loss = soft_loss(logits_of(parameters, task.pool.x[batch]), F.one_hot(task.pool.y[batch], 10).float())
    torch.autograd.grad(loss, parameters)
    return loss.item()


def show_stack(lesson: Lesson, task: Task, plain: Recipe) -> None:
    lesson.section(
        "Eight seeds in one stack",
        "One training is an anecdote: another seed gives another accuracy, and most cures are worth less than that "
        "difference. So everything here is trained with several seeds. A stack makes it cheap: weights of shape (seed, in, "
        "out), torch.baddbmm for all networks at once, and the sum of their losses, of which each network's gradient sees "
        "only its own.",
    )
    recipe = Recipe(steps=20, count=plain.count, width=plain.width)
    run = train(task, recipe, 3, lesson.options.seed)
    alone = train_alone(task, recipe, 3, lesson.options.seed)
    own = [run.parameters[0][0].T, run.parameters[1][0, 0], run.parameters[2][0].T, run.parameters[3][0, 0]]
    off = max((a - b).abs().max().item() for a, b in zip(own, alone.parameters(), strict=True))
    counts, functions = {}, {}
    for seeds in ("1", "2", "4", "8"):
        functions[seeds] = partial(one_step, task, plain, int(seeds))
        with OperationCount() as counted:
            functions[seeds]()
        counts[seeds] = counted.count
    timings = compare(functions, lesson.device, rounds=5, budget_s=lesson.pick(full=0.5, quick=0.05))
    table = []
    for seeds, timing in timings.items():
        table.append({"seeds": seeds, "operations": counts[seeds], "one step": seconds_text(timing.median_s),
                      "for each seed": seconds_text(timing.median_s / int(seeds)),
                      "against one seed": f"{ratio(timing, timings['1']).median:.1f}x"})  # fmt: skip
        lesson.record("step", 1e3 * timing.median_s, "ms", timing, seeds=int(seeds))
    lesson.table(table)
    lesson.check("a network of the stack is the network alone", off < 1e-4, f"weights after 20 steps to {off:.0e}")
    lesson.check("eight seeds take no operation more than one", counts["8"] == counts["1"], f"{counts['1']} operations")
    factor = ratio(timings["8"], timings["1"]).median
    lesson.shows(
        f"eight seeds take {factor:.1f} times as long as one here. "
        + (
            "On a GPU that has room left they are almost free. "
            if factor > 4
            else "Most of a step was waiting for Python. "
        )
        + "With eight seeds comes a standard error, and without one there is nothing to compare."
    )


# Three mistakes


def predict_with_dropout_on(parameters: list[torch.Tensor], x: torch.Tensor, share: float,
                            generator: torch.Generator) -> torch.Tensor:  # fmt: skip
    """The mistake: model.eval() was forgotten, so a new lot is drawn for each prediction. x (N, D) → answers (S, N)."""
    with torch.no_grad():
        return logits_of(parameters, x.expand(len(parameters[0]), -1, -1), share, generator).argmax(dim=-1)


def predict(parameters: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Right: nothing is dropped in use."""
    with torch.no_grad():
        return logits_of(parameters, x.expand(len(parameters[0]), -1, -1)).argmax(dim=-1)


def show_dropout_left_on(lesson: Lesson, clouds: Bench) -> None:
    lesson.section(
        "Dropout left on",
        "Forget model.eval() and nothing breaks: shapes are right, the answers are plausible, and each is drawn by lot. Only "
        "two questions find it: is the answer the same when you ask again, and what does it cost?",
    )
    generator = torch.Generator().manual_seed(lesson.options.seed)
    test, rows = clouds.task.test, []
    changed, lost = {}, {}
    for share in lesson.pick(full=(0.2, 0.4, 0.6), quick=(0.4,)):
        parameters = clouds.run(dropout=share).parameters
        first, again = (predict_with_dropout_on(parameters, test.x, share, generator) for _ in range(2))
        right = predict(parameters, test.x)
        changed[share] = (first != again).float().mean().item()
        accuracies = [(answers == test.y).float().mean().item() for answers in (right, first)]
        lost[share] = accuracies[0] - accuracies[1]
        rows.append({"dropout": f"{share:g}", "eval (%)": 100 * accuracies[0], "left on (%)": 100 * accuracies[1],
                     "asked twice, other answer (%)": 100 * changed[share]})  # fmt: skip
        lesson.record("answers that change", 100 * changed[share], "%", dropout=share)
    lesson.table(rows)
    lesson.check(
        "left on, the same question has other answers", changed[0.4] > 0.02, f"{percent(changed[0.4])} of them"
    )
    parameters = clouds.run(dropout=0.4).parameters
    lesson.check("in eval, asked twice is answered twice alike",
                 torch.equal(predict(parameters, test.x), predict(parameters, test.x)), f"{len(test):,} samples")  # fmt: skip
    lesson.check("and it costs accuracy", lost[0.4] > 0, f"{100 * lost[0.4]:.1f} points at dropout 0.4")
    lesson.shows(
        f"{percent(changed[0.4])} of the answers change from one call to the next, and the accuracy falls by "
        f"{100 * lost[0.4]:.1f} points, no more than a worse model would lose. Put model.eval() beside torch.no_grad() in one "
        "function that validates, and model.train() back at its end; a test that asks twice finds the rest."
    )


def validate_on_augmented(parameters: list[torch.Tensor], samples: Samples, generator: torch.Generator) -> torch.Tensor:
    """The mistake: one set of transforms for training and validation. Accuracy (S,)."""
    x = shift(samples.x.expand(len(parameters[0]), -1, -1), generator)
    with torch.no_grad():
        return (logits_of(parameters, x).argmax(dim=-1) == samples.y).float().mean(dim=1).cpu()


def show_augmented_validation(lesson: Lesson, letters: Bench) -> None:
    lesson.section(
        "Augmented validation",
        "A random shift in the training set is a cure. In the validation set it is another exam than the one that counts, "
        "with other questions each time. It happens when one Dataset with one transform is split in two.",
    )
    validation, generator = letters.task.validation, torch.Generator().manual_seed(lesson.options.seed)
    rows, clean, seen = [], {}, {}
    for name, cure in {"nothing": {}, "shifted by a pixel": {"augment": shift}}.items():
        run = letters.run(**cure)
        clean[name] = 100 * run.end.validation.accuracy
        augmented = torch.stack([100 * validate_on_augmented(run.parameters, validation, generator) for _ in range(8)])
        seen[name] = augmented.mean(dim=0)
        spread = augmented.std(dim=0).mean().item()
        rows.append({"trained with": name, "validation as it is (%)": clean[name].mean().item(),
                     "shifted as well (%)": seen[name].mean().item(), "from time to time (points)": spread})  # fmt: skip
        lesson.record("augmented validation", seen[name].mean().item(), "%", cure=name)
    lesson.table(rows)
    lesson.check(
        "asked again, it says something else", spread > 0, f"a spread of {spread:.1f} points from time to time"
    )
    missing = (clean["nothing"] - seen["nothing"]).mean().item()
    lesson.check("the plain network seems worse than it is", missing > 1, f"by {missing:.1f} points")
    right, wrong = ((part["shifted by a pixel"] - part["nothing"]).mean().item() for part in (clean, seen))
    lesson.shows(
        f"{missing:.1f} points are missing that the plain network has. By this exam the shift in training is worth "
        f"{wrong:+.1f} points, by the honest one {right:+.1f}: a comparison by the wrong exam is about that exam. Make two "
        "Datasets over one list of indices, with the transform in one of them. Then training accuracy may lie below "
        "validation, because the training set is the harder exam. That is no mistake."
    )


def decay_everything(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """The mistake: one group, so biases and the gains of norms decay as well."""
    return [{"params": list(model.parameters()), "weight_decay": decay}]


def decay_matrices(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Right: parameter groups for an optimizer; only what has two axes or more decays."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    rest = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def descend(groups: list[dict[str, Any]], loss_of: Any, steps: int, lr: float) -> None:
    """Gradient descent with decoupled decay, on parameter groups."""
    for _ in range(steps):
        parameters = [parameter for group in groups for parameter in group["params"]]
        gradients = iter(torch.autograd.grad(loss_of(), parameters))
        with torch.no_grad():
            for group in groups:
                for parameter in group["params"]:
                    parameter.mul_(1 - lr * group["weight_decay"]).sub_(lr * next(gradients))


def show_decay_groups(lesson: Lesson) -> None:
    lesson.section(
        "Weight decay is for matrices",
        "Decay pulls towards 0, and for a matrix that means a simpler function. A bias is where your numbers lie, and 0 is no "
        "better place than any other: here prices of about 100, a Linear layer, and a decay of 0.1 for everything or for the "
        "matrix only.",
    )
    decay, prices = 0.1, 100.0
    generator = torch.Generator().manual_seed(lesson.options.seed)
    x = torch.randn(400, 3, generator=generator)
    x = (x - x.mean(dim=0)).to(lesson.device)
    y = prices + x @ torch.tensor([[3.0], [-2.0], [1.0]], device=lesson.device)
    table, biases = [], {}
    for make in (decay_everything, decay_matrices):
        model = nn.Linear(3, 1).to(lesson.device)
        descend(make(model, decay), lambda model=model: F.mse_loss(model(x), y), 200, 0.1)
        biases[make] = model.bias.item()
        with torch.no_grad():
            error = F.mse_loss(model(x), y).sqrt().item()
        table.append({"groups": make.__name__, "bias": biases[make], "typical error": error,
                      "largest weight": model.weight.abs().max().item()})  # fmt: skip
        lesson.record("bias", biases[make], "price", groups=make.__name__)
    lesson.table(table)
    foretold = prices / (1 + decay / 2)
    lesson.check("a decayed bias stops short, as computed", abs(biases[decay_everything] - foretold) < 0.01,
                 f"{biases[decay_everything]:.2f}; 100 / (1 + 0.1 / 2) = {foretold:.2f}")  # fmt: skip
    lesson.check(
        "left alone it finds the mean", abs(biases[decay_matrices] - prices) < 0.01, f"{biases[decay_matrices]:.2f}"
    )
    block = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4)).to(lesson.device)
    z = torch.randn(32, 8, generator=generator).to(lesson.device)
    before = block[1](block[0](z))
    with torch.no_grad():
        for parameter in block[0].parameters():
            parameter.mul_(0.5)
    off = (block[1](block[0](z)) - before).abs().max().item()
    lesson.check("in front of a norm, half the weights is the same function", off < 0.05, f"outputs to {off:.0e}")
    sizes = [sum(parameter.numel() for parameter in group["params"]) for group in decay_matrices(block, decay)]
    held = [id(parameter) for group in decay_matrices(block, decay) for parameter in group["params"]]
    lesson.check("the two groups hold every parameter once", sorted(held) == sorted(map(id, block.parameters())),
                 f"{sizes[0]} numbers decay, {sizes[1]} do not")  # fmt: skip
    lesson.shows(
        f"decay on everything makes all predictions {prices - biases[decay_everything]:.1f} too low, and no curve shows it as "
        "overfitting. In front of a norm decay does not make a function simpler at all; it keeps the weights small, so that "
        "each step turns them further (van Laarhoven 2017): there it is a learning rate. The trainings above decay their "
        "matrices only; so does nearly every published recipe, by `ndim >= 2`. An "
        "optimizer of torch decays all that it is given, if you do not divide it."
    )


def main(argv: Sequence[str] | None = None) -> int:
    title = "Over- and underfitting: a diagnosis from curves, and what every cure is worth, with error bars."
    with Lesson(__file__, argv, title=title) as lesson:
        seed, device = lesson.options.seed, lesson.device
        plain = lesson.pick(full=Recipe(steps=240, count=500, width=64), quick=Recipe(steps=80, count=200, width=32))
        seeds = lesson.pick(full=8, quick=4)
        sizes = lesson.pick(full=Sizes(4000, 1000, 2000), quick=Sizes(1600, 300, 600))
        clouds = Bench(draw_clouds(sizes, seed, device), plain, seeds, seed)
        letters = Bench(load_letters(sizes, device), plain, seeds, seed)
        show_diagnosis(lesson, clouds.task)
        show_stack(lesson, letters.task, plain)
        show_capacity(lesson, clouds)
        show_memorised(lesson, letters)
        show_cures(lesson, letters, clouds)
        show_strengths(lesson, letters, clouds)
        show_together(lesson, letters, clouds)
        show_amount(lesson, letters)
        show_patience(lesson)
        show_stopping(lesson, letters, clouds)
        show_confidence(lesson, letters)
        show_winners_curse(lesson, letters, clouds)
        show_climbing(lesson, letters)
        show_dropout_left_on(lesson, clouds)
        show_augmented_validation(lesson, letters)
        show_decay_groups(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
