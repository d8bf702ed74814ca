"""One training in exchangeable parts: whatever is slow in it can be replaced without touching the rest."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from shared.datasets import load_images

import torch
from torch import nn
from torch.profiler import record_function

# B: images in a batch, N: images of a split. A batch is x (B, 16, 16) and y (B,).
Batch = tuple[torch.Tensor, torch.Tensor]
CLASSES, SIDE = 10, 16
PHASES = ("data", "forward", "loss", "backward", "optimizer", "metrics", "replay", "validation")
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Split:
    images: torch.Tensor  # (N, 3, 32, 32) uint8
    labels: torch.Tensor  # (N,) int64


@dataclass(frozen=True)
class Task:
    """What is trained. Both splits hold a whole number of batches."""

    train: Split
    test: Split
    batch_size: int
    width: int
    device: torch.device

    @property
    def steps(self) -> int:
        return len(self.train.labels) // self.batch_size


def make_task(train_count: int, test_count: int, batch_size: int, width: int, device: torch.device) -> Task:
    def load(train: bool, count: int) -> Split:
        data = load_images("glyphs", train=train, count=count)
        return Split(data.images, data.labels)

    return Task(load(True, train_count), load(False, test_count), batch_size, width, device)


def shortened(task: Task, steps: int, test_batches: int, batch_size: int | None = None) -> Task:
    """The same task with an epoch of so many batches: enough to look at."""
    size = batch_size or task.batch_size

    def first(split: Split, batches: int) -> Split:
        return Split(split.images[: batches * size], split.labels[: batches * size])

    return Task(first(task.train, steps), first(task.test, test_batches), size, task.width, task.device)


def make_model(task: Task) -> nn.Sequential:
    width = task.width
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(SIDE * SIDE, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, CLASSES),
    ).to(task.device)


class Source(Protocol):
    """Makes batches of a split. With a generator: in random order, each image shifted; without: in order, as it is."""

    def __init__(self, split: Split, batch_size: int, device: torch.device) -> None: ...

    def batches(self, generator: torch.Generator | None) -> Iterator[Batch]: ...


class Meter(Protocol):
    """Keeps account of loss and accuracy over the batches of an epoch."""

    def __init__(self, device: torch.device) -> None: ...

    def add(self, logits: torch.Tensor, y: torch.Tensor, loss: torch.Tensor) -> None: ...

    def read(self, steps: int, images: int) -> tuple[float, float]:
        """Mean loss and share of right answers."""


@dataclass(frozen=True)
class Recipe:
    """One way to do each part of the work; two recipes differ in how, never in what is computed."""

    source: type[Source]
    forward: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    meter: type[Meter]
    validate: Callable[[nn.Module, Iterator[Batch]], torch.Tensor | int]
    captures: bool = False  # a CUDA graph of the step; only on CUDA


@dataclass(frozen=True)
class EpochResult:
    loss: float
    train_accuracy: float
    test_accuracy: float


Label = Callable[[str], AbstractContextManager[object]]


def labelled(batches: Iterator[Batch]) -> Iterator[Batch]:
    """`batches`, with the label "data" on the making of each."""
    while True:
        with record_function("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


class Training:
    """A model on its way: the same seed gives every recipe the same weights, the same order and the same shifts."""

    def __init__(self, recipe: Recipe, task: Task, seed: int) -> None:
        self.recipe, self.task = recipe, task
        torch.manual_seed(seed)
        self.model = make_model(task)
        self.optimizer = recipe.make_optimizer(self.model)
        self.generator = torch.Generator().manual_seed(seed)
        self.train_source = recipe.source(task.train, task.batch_size, task.device)
        self.test_source = recipe.source(task.test, task.batch_size, task.device)
        self.meter = recipe.meter(task.device)
        self.step = CapturedStep(self) if recipe.captures else self.compute

    def warm_up(self) -> None:
        """Epochs, until what is done only once is done: the optimizer's state is made, the step captured."""
        for _ in range(math.ceil((WARM_UP_STEPS + 1) / self.task.steps)):
            self.epoch()

    def epoch(self) -> EpochResult:
        """One pass over the training images and one over the test images."""
        for x, y in labelled(self.train_source.batches(self.generator)):
            self.step(x, y)
        with record_function("validation"):
            correct = self.recipe.validate(self.model, labelled(self.test_source.batches(None)))
        loss, accuracy = self.meter.read(self.task.steps, len(self.task.train.labels))
        return EpochResult(loss, accuracy, int(correct) / len(self.task.test.labels))

    def compute(self, x: torch.Tensor, y: torch.Tensor, label: Label = record_function) -> None:
        """One step of training."""
        with label("forward"):
            logits = self.recipe.forward(self.model, x)
        with label("loss"):
            loss = self.recipe.loss(logits, y)
        with label("backward"):
            loss.backward()
        with label("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        with label("metrics"):
            self.meter.add(logits, y, loss)


class CapturedStep:
    """A training's step as a CUDA graph: all its kernels, started by one call.

    The first steps run as usual (they make the optimizer's state and load the kernels), on a stream of their own, as
    https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture asks. A graph reads and writes the same
    memory in every replay, so each batch is copied to where the captured one lay.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.steps = 0
        self.x = self.y = torch.empty(0)

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.steps += 1
        if self.steps <= WARM_UP_STEPS:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.training.compute(x, y)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if self.graph is None:
            self.graph, self.x, self.y = torch.cuda.CUDAGraph(), x.clone(), y.clone()
            with torch.cuda.graph(self.graph):  # records and computes nothing
                self.training.compute(self.x, self.y, label=nullcontext)
        with record_function("replay"):
            self.x.copy_(x)
            self.y.copy_(y)
            self.graph.replay()
