"""A model that knows every image by its first number: it notes modes, weights, and the slope that comes back to its scores.

Of the mean cross-entropy of n rows that slope is (softmax(scores) - one_hot(label)) / n, so it tells which loss was taken, and
with which labels. float64, so that a step can be compared to its last digits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shared.practice import expect
from shared.traps import expect_number, shown
from shared.units import significant

import torch
import torch.nn.functional as F
from torch import nn

INPUTS, CLASSES, BATCH_SIZE = 5, 4, 10
Data = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Call:
    rows: list[float]  # the first number of each image
    scores: torch.Tensor
    is_training: bool
    has_graph: bool
    weights: torch.Tensor
    slopes: list[torch.Tensor] = field(default_factory=list)


class Spy(nn.Module):
    """A linear layer; its calls are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUTS, CLASSES).double()
        self.calls: list[Call] = []

    def weights(self) -> torch.Tensor:
        return torch.cat([self.layer.weight.detach(), self.layer.bias.detach()[:, None]], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layer(x)
        call = Call(x[:, 0].tolist(), scores.detach().clone(), self.training, scores.requires_grad, self.weights())
        self.calls.append(call)
        if scores.requires_grad:
            scores.register_hook(lambda slope: call.slopes.append(slope.clone()))
        return scores


def draw(first: int, count: int) -> Data:
    """Images of which the first numbers are all different, and labels that depend on them."""
    images = torch.randn(count, INPUTS, dtype=torch.float64)
    images[:, 0] = torch.arange(first, first + count) / 64
    return images, (images[:, 1:] * torch.tensor([3.0, 2.0, 1.0, 0.5])).sum(1).mul(0.4).round().long() % CLASSES


def check(answer: Any, seed: int) -> None:
    torch.manual_seed(seed)
    for count, epochs, mode in ((25, 3, True), (20, 2, False), (7, 4, True), (61, 2, True)):
        expect_trained(answer, draw(0, count), draw(1000, 30), epochs, 0.4, mode)


def expect_trained(answer: Any, data: Data, test: Data, epochs: int, lr: float, mode: bool) -> None:
    count = len(data[0])
    call = f"train with {count} images, {epochs} epochs and lr {lr}"
    model = Spy().train(mode)
    kept = [x.clone() for x in (*data, *test)]
    history = answer.train(model, *data, *test, epochs, lr)
    is_history = isinstance(history, list | tuple) and len(history) == epochs
    expect(is_history, f"{call} returned {shown(history)}; return a list of {epochs} accuracies")
    for x, before in zip((*data, *test), kept, strict=True):
        expect(torch.equal(x, before), f"{call} changed the images or labels of its caller")
    place = {row: i for i, row in enumerate(data[0][:, 0].tolist())}
    steps = [seen for seen in model.calls if set(seen.rows) <= place.keys()]
    tests = [seen for seen in model.calls if not set(seen.rows) & place.keys()]
    batches = -(-count // BATCH_SIZE)
    sizes = [len(seen.rows) for seen in steps]
    right_sizes = [min(BATCH_SIZE, count - start) for start in range(0, count, BATCH_SIZE)]
    expect(len(steps) + len(tests) == len(model.calls) and sizes == right_sizes * epochs,
           f"{call} showed batches of {sizes[:9]} images; in each epoch {right_sizes} are wanted")  # fmt: skip
    for number, seen in enumerate(steps):
        where = f"{call}, epoch {number // batches + 1}, batch {number % batches + 1}"
        expect(seen.is_training, f"{where}: the model was in eval mode in this step")
        expect_slope(seen, [int(data[1][place[row]]) for row in seen.rows], [place[row] for row in seen.rows], where)
    expect_order([[row for seen in steps[first : first + batches] for row in seen.rows]
                  for first in range(0, len(steps), batches)], place, call)  # fmt: skip
    expect_steps(steps, batches, model.weights(), data, place, lr, call)
    for seen in tests:
        expect(not seen.is_training, f"{call}: the model was tested in train mode")
        expect(not seen.has_graph, f"{call}: a graph was recorded in the test, and nobody will go back through it")
    ends = [seen.weights for seen in steps[batches::batches]] + [model.weights()]
    for epoch, (value, weights) in enumerate(zip(history, ends, strict=True), start=1):
        expect_number(value, f"{call}: as accuracy of epoch {epoch} it", "a float")
        scores = test[0] @ weights[:, :-1].T + weights[:, -1]
        right = (scores.argmax(1) == test[1]).double().mean().item()
        expect(abs(value - right) < 1e-6, f"{call}: epoch {epoch} has {significant(value)} for its accuracy; with the weights at "
               f"its end it is {significant(right)}")  # fmt: skip


def expect_slope(seen: Call, labels: list[int], numbers: list[int], where: str) -> None:
    expect(len(seen.slopes) == 1, f"{where}: backward() came to the scores {len(seen.slopes)} times; once is wanted")
    count, shares = len(seen.rows), seen.scores.softmax(1)
    found = shares - count * seen.slopes[0]  # the labels as rows of one 1, if the loss is right
    is_one_hot = torch.allclose(found, F.one_hot(found.argmax(1), CLASSES).double(), atol=1e-6)
    wanted = (shares - F.one_hot(torch.tensor(labels), CLASSES)) / count
    length = (seen.slopes[0].norm() / wanted.norm()).item()
    expect(is_one_hot, f"{where}: the slope that came back to the scores is not (softmax - one_hot) / {count} for any "
           f"labels (its length is {significant(length, 2)} times that), so the loss is another one")  # fmt: skip
    used = found.argmax(1).tolist()
    strangers = [i for i, (label, own) in enumerate(zip(used, labels, strict=True)) if label != own]
    if strangers:
        i = strangers[0]
        expect(False, f"{where}: image {numbers[i]} was shown with label {used[i]}, and its own is {labels[i]}; so with "
               f"{len(strangers)} of the {len(labels)} in this batch")  # fmt: skip


def expect_order(epochs: list[list[float]], place: dict[float, int], call: str) -> None:
    for number, rows in enumerate(epochs, start=1):
        missing = len(place) - len(set(rows))
        expect(not missing, f"{call}: in epoch {number}, {missing} of the {len(place)} images were not shown")
    in_file = sorted(place, key=place.__getitem__)
    same = any(rows == in_file for rows in epochs) or any(rows == epochs[0] for rows in epochs[1:])
    expect(not same or len(place) < 10, f"{call}: the order of the images is not random, or the same in two epochs")


def expect_steps(steps: list[Call], batches: int, last: torch.Tensor, data: Data, place: dict[float, int], lr: float,
                 call: str) -> None:  # fmt: skip
    after = [seen.weights for seen in steps[1:]] + [last]
    for number, (seen, weights) in enumerate(zip(steps, after, strict=True)):
        epoch = number // batches
        rows = [place[row] for row in seen.rows]
        x = torch.cat([data[0][rows], torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
        gradient = (seen.scores.softmax(1) - F.one_hot(data[1][rows], CLASSES)).T @ x / len(rows)
        moved = seen.weights - weights
        rate = ((moved * gradient).sum() / gradient.square().sum()).item()
        where = f"{call}, epoch {epoch + 1}, batch {number % batches + 1}"
        straight = torch.allclose(moved, rate * gradient, atol=1e-9)
        expect(straight, f"{where}: the step was not along the gradient of this batch; what else was in .grad?")
        wanted = lr * 0.5**epoch
        is_wanted = abs(rate - wanted) < 1e-6
        expect(is_wanted, f"{where}: the step was made with a rate of {significant(rate)}, and {wanted:g} is wanted")


def trained(
    *, labels: str = "own", loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy, modes: str = "both",
    halves: str = "epochs", clears: str = "steps"
) -> dict[str, object]:  # fmt: skip
    """The way of the solution with some of the mistakes."""

    def train(
        model: Any, images: Any, labels_: Any, test_images: Any, test_labels: Any, epochs: int, lr: float
    ) -> list[float]:
        history = []
        for epoch in range(epochs):
            if modes == "both" or (modes == "once" and epoch == 0):
                model.train()
            order = torch.randperm(len(images))
            if clears == "epochs":
                model.zero_grad()
            of_labels = torch.randperm(len(images)) if labels == "apart" else order
            images = images[order] if labels == "moving" else images
            for start in range(0, len(images), BATCH_SIZE):
                inside = slice(start, start + BATCH_SIZE)
                x = images[inside] if labels == "moving" else images[order[inside]]
                value = loss(model(x), labels_[of_labels[inside]])
                if clears == "steps":
                    model.zero_grad()
                value.backward()
                with torch.no_grad():
                    for weight in model.parameters():
                        weight -= lr * weight.grad
                lr *= 0.5 if halves == "steps" else 1
            lr *= 0.5 if halves == "epochs" else 1
            if modes != "train":
                model.eval()
            with torch.no_grad():
                history.append((model(test_images).argmax(1) == test_labels).float().mean().item())
        return history

    return {"train": train}


def cross_entropy_of_softmax(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(scores.softmax(1), y)


WRONG = {
    "takes the softmax twice": (trained(loss=cross_entropy_of_softmax), "so the loss is another one"),
    "shuffles what is shuffled": (trained(labels="moving"), "epoch 2, batch 1: image"),
    "shuffles images and labels apart": (trained(labels="apart"), "epoch 1, batch 1: image"),
    "goes on in eval mode": (trained(modes="once"), "epoch 2, batch 1: the model was in eval mode"),
    "tests in train mode": (trained(modes="train"), "the model was tested in train mode"),
    "halves the rate after each batch": (
        trained(halves="steps"),
        "epoch 1, batch 2: the step was made with a rate of 0.2",
    ),
    "never halves the rate": (trained(halves="never"), "epoch 2, batch 1: the step was made with a rate of 0.4"),
    "adds gradients up over an epoch": (trained(clears="epochs"), "what else was in .grad?"),
}
