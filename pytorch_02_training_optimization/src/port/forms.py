"""The same training as a bare loop, by `train` and by Lightning, and what each of them costs beside the network."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_02_training_optimization.src.train import Run, Training, lr_share, train
from pytorch_02_training_optimization.src.training.data import Batches, Data, Pair
from pytorch_02_training_optimization.src.training.settings import Settings
from pytorch_02_training_optimization.src.training.team import Team
from shared.device import synchronize

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader


@dataclass
class Outcome:
    """What a training leaves: its weights, the loss of each step where it was written down, and its time."""

    weights: dict[str, torch.Tensor]
    losses: list[float] = field(default_factory=list)
    loop_s: float = 0.0  # from the first step to the last, without validation and checkpoints


Form = Callable[[Training, Data], Outcome]


def bare_loop(training: Training, batches: Iterator[list[Pair]]) -> None:
    model, optimizer, dtype = training.bare, training.optimizers[0], training.dtype
    for step, [(images, labels)] in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_share(step, training.steps, 0.1, 0.0)
        x = (images.float() - training.mean) / training.deviation
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(x)
        F.cross_entropy(logits.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def begin(settings: Settings, data: Data, seed: int, device: torch.device) -> Training:
    """The same first weights and an optimizer for them, whoever trains."""
    steps = settings.epochs * (len(data.train[1]) // settings.batch_size)
    return Training(settings, data, seed, Team(), device, steps)


def first_images(data: Data, steps: int, settings: Settings) -> Data:
    """As much of `data` as one epoch of so many steps needs."""
    count = steps * settings.batch_size
    images, labels = data.train
    rows = torch.arange(count, device=images.device) % len(labels)  # the same images again where there are too few
    return replace(data, train=(images[rows], labels[rows]))


def all_batches(training: Training, data: Data) -> Iterator[list[Pair]]:
    for epoch in range(training.settings.epochs):
        yield from Batches(data.train, training.settings.batch_size, training.seed, epoch).starting_at(0, 0)


def by_bare_loop(training: Training, data: Data) -> Outcome:
    start_s = now_s(training.device)
    bare_loop(training, all_batches(training, data))
    return Outcome(weights_of(training), loop_s=now_s(training.device) - start_s)


class Silent:
    """Stands where train() has a lesson to speak through, and says nothing."""

    def __init__(self) -> None:
        self.terminal = self

    def paragraph(self, *texts: str) -> None:
        pass

    def progress(self, items: Any, label: str) -> Iterator[Any]:
        return iter(items)


def by_train(training: Training, data: Data) -> Outcome:
    """With all that `train` does at a step: schedule, a look at the loss, logs, signals; epochs are saved as always."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), training.team)
        run.checkpoints.mkdir()
        with run.open_log(0):
            start_s = now_s(training.device)
            train(Silent(), training, data, run)  # type: ignore[arg-type]  # all that it uses of a lesson
            loop_s = now_s(training.device) - start_s - run.seconds["validation"] - run.seconds["checkpoints"]
        from pytorch_02_training_optimization.src.training.log import read_metrics

        losses = [line["loss"] for line in read_metrics(run.folder) if line["kind"] == "train"]
    return Outcome(weights_of(training), losses, loop_s)


def by_lightning(training: Training, data: Data, **options: Any) -> Outcome:
    """A Trainer as it comes, with TensorBoard and checkpoints; `options` go to it."""
    from pytorch_02_training_optimization.src.port.in_lightning import Classifier, Stopwatch, make_trainer, quiet

    module, watch = Classifier(training), Stopwatch()
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = make_trainer(training, folder, callbacks=[watch], **options)
        trainer.fit(module, loader_of(training, data))
    return Outcome(weights_of(training), [x.item() for x in module.losses], watch.loop_s)


def by_lightning_barebones(training: Training, data: Data) -> Outcome:
    return by_lightning(training, data, barebones=True)


def loader_of(training: Training, data: Data) -> DataLoader[list[Pair]]:
    """Batches that are made already: the loader hands them on, one at a time."""
    return DataLoader(Batches(data.train, training.settings.batch_size, training.seed, 0), batch_size=None)


FORMS: dict[str, Form] = {
    "the bare loop": by_bare_loop,
    "train": by_train,
    "Lightning, barebones": by_lightning_barebones,
    "Lightning, as it comes": by_lightning,
}


def weights_of(training: Training) -> dict[str, torch.Tensor]:
    return {name: x.detach().cpu().clone() for name, x in training.bare.state_dict().items()}


def now_s(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """Calls of Python functions in this thread, in the one number of the list."""
    calls = [0]

    def count(frame: FrameType, event: str, argument: object) -> None:
        calls[0] += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def calls_per_step(form: Form, settings: Settings, data: Data, device: torch.device) -> float:
    """Python functions called in a step: of a training of 20 steps, what it has more than one of 10."""
    counts = []
    for steps in (10, 20):
        part = first_images(data, steps, settings)
        training = begin(settings, part, 0, device)
        with counted_calls() as calls:
            form(training, part)
        counts.append(calls[0])
    return (counts[1] - counts[0]) / 10
