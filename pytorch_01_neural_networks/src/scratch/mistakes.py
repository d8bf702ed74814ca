"""Mistakes in a training loop that raise no error, what finds them, and two that PyTorch does refuse."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pytorch_01_neural_networks.src.scratch.data import make_spirals
from pytorch_01_neural_networks.src.scratch.network import (
    RELU,
    Activation,
    Batch,
    Parameters,
    accuracy,
    cross_entropy,
    forward,
    initial_parameters,
    loss_and_gradients,
    train_by_hand,
)
from pytorch_01_neural_networks.src.scratch.three_builds import Build, Step
from pytorch_01_neural_networks.src.scratch.wording import share_text
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import percent, significant

import torch
from torch.nn import functional as F


def update_on_the_way_back(start: Parameters, batches: Iterable[Batch], lr: float, f: Activation) -> Iterator[Step]:
    """The mistake: w2 is updated as soon as its gradient is known, and delta1 then goes through the new w2."""
    w1, b1, w2, b2 = start
    for x, y in batches:
        z1 = x @ w1.T + b1
        h = f.value(z1)
        z2 = h @ w2.T + b2
        delta2 = (z2.softmax(1) - F.one_hot(y, z2.shape[1])) / len(x)
        w2, b2 = w2 - lr * (delta2.T @ h), b2 - lr * delta2.sum(0)
        delta1 = (delta2 @ w2) * f.slope(z1)
        w1, b1 = w1 - lr * (delta1.T @ x), b1 - lr * delta1.sum(0)
        yield cross_entropy(z2, y), Parameters(w1, b1, w2, b2)


def climb_instead_of_descending(
    start: Parameters, batches: Iterable[Batch], lr: float, f: Activation
) -> Iterator[Step]:
    """The mistake: y - p where p - y belongs, or + where - belongs."""
    return train_by_hand(start, batches, -lr, f)


def forget_the_batch_size(start: Parameters, batches: Iterable[Batch], lr: float, f: Activation) -> Iterator[Step]:
    """The mistake: delta2 is not divided by B, so each step is B times as long."""
    net = start
    for x, y in batches:
        loss, gradients = loss_and_gradients(net, x, y, f)
        net = Parameters(*(old - lr * len(x) * gradient for old, gradient in zip(net, gradients, strict=True)))
        yield loss, net


def forget_to_zero(start: Parameters, batches: Iterable[Batch], lr: float, f: Activation) -> Iterator[Step]:
    """The mistake: .grad is never cleared, so backward() adds to the gradients of all steps before."""
    net = Parameters(*(tensor.clone().requires_grad_() for tensor in start))
    for x, y in batches:
        loss = cross_entropy(forward(net, x, f), y)
        loss.backward()
        with torch.no_grad():
            for tensor in net:
                tensor -= lr * tensor.grad
        yield loss.detach(), Parameters(*(tensor.detach().clone() for tensor in net))


def start_all_alike(start: Parameters) -> Parameters:
    """The mistake: every hidden unit begins as a copy of the first, so none ever has a reason to become another."""
    hidden = len(start.w1)
    return Parameters(
        start.w1[:1].repeat(hidden, 1), start.b1[:1].repeat(hidden), start.w2[:, :1].repeat(1, hidden), start.b2
    )


def start_at_zero(start: Parameters) -> Parameters:
    """The mistake: with w2 = 0 no delta comes back, and with h = 0 no gradient reaches w2."""
    return Parameters(*(torch.zeros_like(tensor) for tensor in start))


def update_off_by(build: Build, start: Parameters, x: torch.Tensor, y: torch.Tensor, lr: float, f: Activation) -> float:
    """How far the second step of `build` is from a step along autograd's gradient, relative to that step.

    The second, because in the first there is nothing left over from a step before.
    """
    (_, before), (_, after) = build(start, [(x, y)] * 2, lr, f)
    right = Parameters(*(tensor.detach().requires_grad_() for tensor in before))
    gradients = torch.autograd.grad(cross_entropy(forward(right, x, f), y), list(right))
    moved = [(old - new) / lr for old, new in zip(before, after, strict=True)]
    scale = max(gradient.abs().max().item() for gradient in gradients)
    return max((a - b).abs().max().item() for a, b in zip(moved, gradients, strict=True)) / max(scale, 1e-12)


def units_that_differ(net: Parameters) -> int:
    """How many hidden units are left when those with the same weights, to 6 digits, count once."""
    return len(torch.cat([net.w1, net.b1[:, None], net.w2.T], dim=1).round(decimals=6).unique(dim=0))


def loss_text(loss: float) -> str:
    """Four decimals while there is something to compare; a loss that has exploded by its power of ten."""
    return f"{loss + 0.0:.4f}" if loss < 1e4 else f"{loss:.0e}"  # + 0.0 makes -0.0 a 0.0


@dataclass(frozen=True)
class Outcome:
    off_by: float
    loss: float
    accuracy: float
    units: int


def outcome(build: Build, start: Parameters, data: Batch, test: Batch, lr: float, steps: int) -> Outcome:
    """What becomes of `steps` steps on all of the data, with ReLU."""
    loss, net = torch.tensor(0.0), start
    for loss, net in build(start, [data] * steps, lr, RELU):  # noqa: B007 - the last step counts
        pass
    off_by = update_off_by(build, start, *data, lr, RELU)
    return Outcome(off_by, loss.item(), accuracy(forward(net, test[0], RELU), test[1]), units_that_differ(net))


LR, LARGER_LR = 0.2, 1.0


def show_mistakes(lesson: Lesson) -> None:
    lesson.section(
        "Six mistakes that raise no error",
        "Each of these is a line or less, and PyTorch says nothing. The spirals again, with 64 hidden units, in float64 on "
        "the CPU. The second column asks the question that you should ask: is the step that was made the one that "
        "autograd's gradient asks for? It compares the second step of the training, by its largest entry.",
    )
    generator = torch.Generator().manual_seed(lesson.options.seed)
    data, test = ((x.double(), y) for x, y in (make_spirals(400, generator), make_spirals(2000, generator)))
    start = initial_parameters(2, 64, 2, generator).to(torch.float64)
    steps = lesson.pick(full=1000, quick=200)
    cases: Mapping[str, tuple[Build, Parameters]] = {
        "nothing wrong": (train_by_hand, start),
        "update_on_the_way_back": (update_on_the_way_back, start),
        "forget_to_zero": (forget_to_zero, start),
        "forget_the_batch_size": (forget_the_batch_size, start),
        "climb_instead_of_descending": (climb_instead_of_descending, start),
        "start_all_alike": (train_by_hand, start_all_alike(start)),
        "start_at_zero": (train_by_hand, start_at_zero(start)),
    }
    runs = {(name, LR): case for name, case in cases.items()}
    runs |= {(name, LARGER_LR): cases[name] for name in ("nothing wrong", "update_on_the_way_back")}
    found = {
        (name, lr): outcome(build, first, data, test, lr, steps)
        for (name, lr), (build, first) in lesson.progress(runs.items(), "mistakes")
    }
    lesson.table(
        [
            {"mistake": name, "lr": f"{lr:g}", "step off by": "0" if end.off_by < 1e-9 else f"{significant(end.off_by, 2)}x",
             f"loss after {steps}": loss_text(end.loss),
             "test accuracy": share_text(end.accuracy), "units": end.units}
            for (name, lr), end in found.items()
        ]
    )  # fmt: skip
    lesson.text(
        "The last column counts hidden units that differ from one another. forget_to_zero adds up the gradients of all "
        "steps, which is momentum without friction: here it may even come further, elsewhere it swings and never settles."
    )
    right, early = found["nothing wrong", LR], found["update_on_the_way_back", LR]
    lesson.check("update_on_the_way_back trains as well as the right code", abs(early.loss / right.loss - 1) < 0.05,
                 f"loss {early.loss:.4f} and {right.loss:.4f}")  # fmt: skip
    faster, exploded = found["nothing wrong", LARGER_LR], found["update_on_the_way_back", LARGER_LR]
    lesson.check("until somebody makes the learning rate 5 times as large",
                 faster.loss < right.loss and not exploded.loss < 10,
                 f"loss {faster.loss:.2g} when right, {exploded.loss:.0e} when not")  # fmt: skip
    wrong_steps = [name for name, (build, _) in cases.items() if build is not train_by_hand]
    smallest = min(found[name, LR].off_by for name in wrong_steps)
    lesson.check("a comparison with autograd finds it in the first steps", smallest > 1e-3 and right.off_by < 1e-9,
                 f"all {len(wrong_steps)}: off by {percent(smallest)} or more")  # fmt: skip
    alike, zero = found["start_all_alike", LR], found["start_at_zero", LR]
    lesson.check("units that start alike stay alike", alike.units < 5 and right.units == 64,
                 f"{alike.units} different of 64; test accuracy {share_text(alike.accuracy)}")  # fmt: skip
    lesson.check("a network of zeros never moves", abs(zero.loss - math.log(2)) < 1e-9 and zero.units == 1,
                 f"loss {zero.loss:.4f} = log(2) after {steps} steps")  # fmt: skip
    passing = [name for name in wrong_steps if found[name, LR].accuracy > 0.75]
    show_batch_sizes(lesson, start, data)
    lesson.shows(
        f"of {len(wrong_steps)} wrong steps, {len(passing)} still trained ({', '.join(passing) or 'none'}), so a falling "
        "loss proves little. The comparison with autograd finds every wrong step and neither of the two wrong starts: "
        "their gradients are right. Against those, look whether the hidden units differ."
    )


def show_batch_sizes(lesson: Lesson, start: Parameters, data: Batch) -> None:
    x, y = data
    lesson.text(
        "Why the division by B? With the mean, the gradient has about the same length for any batch size, and the learning "
        "rate keeps its meaning. With the sum it grows with B:"
    )
    lengths = {}
    for count in (50, 100, 200, 400):
        gradients = loss_and_gradients(start, x[:count], y[:count], RELU)[1]
        length = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
        lengths[count] = length, count * length
    lesson.table(
        [{"B": count, "length of the gradient, mean": mean, "sum": total} for count, (mean, total) in lengths.items()]
    )
    grows = lengths[400][1] / lengths[50][1]
    lesson.check("8 times the samples: the sum grows with them", 3 < grows < 20,
                 f"{grows:.1f} times as long; the mean {lengths[400][0] / lengths[50][0]:.2f} times")  # fmt: skip


# What PyTorch refuses


def update_while_recording(p: torch.Tensor, lr: float) -> None:
    """The mistake: the update itself would be recorded, and would overwrite a leaf that the graph stands on."""
    p -= lr * p.grad  # type: ignore[operator]


def update_by_rebinding(p: torch.Tensor, x: torch.Tensor, lr: float) -> torch.Tensor:
    """The mistake: `p = p - ...` makes a new tensor, a result and no leaf, whose .grad nobody fills."""
    for _ in range(2):
        (p * x).sum().backward()
        p = p - lr * p.grad  # type: ignore[operator]
    return p


def update_under_no_grad(p: torch.Tensor, x: torch.Tensor, lr: float) -> torch.Tensor:
    """Right: in place, unrecorded, and cleared."""
    for _ in range(2):
        (p * x).sum().backward()
        with torch.no_grad():
            p -= lr * p.grad  # type: ignore[operator]
        p.grad = None
    return p


def show_refusals(lesson: Lesson) -> None:
    lesson.section(
        "Two updates that PyTorch refuses",
        "With autograd, the update is the one line that must not be recorded. Here are the two usual ways to get it "
        "wrong, and what you will read; both messages speak of something else than the cure.",
    )
    x = torch.tensor([1.0, 2.0], device=lesson.device)
    p = torch.ones(2, device=lesson.device, requires_grad=True)
    (p * x).sum().backward()
    recorded = complaint(lambda: update_while_recording(p, 0.1))
    rebound = complaint(lambda: update_by_rebinding(torch.ones_like(x).requires_grad_(), x, 0.1))
    lesson.items({"you write": "p -= lr * p.grad", "it says": recorded,
                  "it means": "autograd would have to record the change of a weight.",
                  "the cure": "with torch.no_grad(): p -= lr * p.grad"})  # fmt: skip
    lesson.items({"you write": "p = p - lr * p.grad, twice", "it says": rebound,
                  "it means": "p is now the result of a subtraction, and results keep no .grad.",
                  "the cure": "the same: change the weight in place, under no_grad"})  # fmt: skip
    lesson.check("an update that would be recorded is refused", "leaf" in recorded, "RuntimeError in the first step")
    lesson.check("a weight that was replaced has no .grad", "NoneType" in rebound, "TypeError in the second step")
    updated = update_under_no_grad(torch.ones_like(x).requires_grad_(), x, 0.1)
    moved = (1 - updated.detach()).tolist()
    lesson.check("under no_grad both steps arrive", torch.allclose(1 - updated, 2 * 0.1 * x) and updated.is_leaf,
                 f"moved by {', '.join(f'{value:.1f}' for value in moved)}, 0.1 x 2 steps x gradient")  # fmt: skip
    lesson.shows(
        f"the two wrong lines end in a {recorded.partition(':')[0]} and a {rebound.partition(':')[0]}. An optimizer's "
        "step() is in place and unrecorded for the same reason, and zero_grad() is the line that you must not forget."
    )
