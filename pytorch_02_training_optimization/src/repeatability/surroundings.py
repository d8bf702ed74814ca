"""What no seed of PyTorch reaches: the hash seed of Python, and the processes of a DataLoader."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.letters.rows import Letters
from pytorch_02_training_optimization.src.repeatability.bits import difference, digest, weights_of
from pytorch_02_training_optimization.src.repeatability.task import descend, gradients_of, make_model
from shared.lesson import Lesson

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

# Hash seeds

NAMES = ("aeroplane", "bird", "boat", "car", "cat", "deer", "dog", "frog", "horse", "lorry")
CHILD = """
import hashlib, json, sys
names = json.loads(sys.argv[1])
print(json.dumps({
    "list(set(names))": list(set(names)),
    "sorted(set(names))": sorted(set(names)),
    "list(dict.fromkeys(names))": list(dict.fromkeys(names)),
    "hash(name) % 10": [hash(name) % 10 for name in names],
    "sha256 of name % 10": [hashlib.sha256(name.encode()).digest()[0] % 10 for name in names],
}))
"""


def in_a_child(hash_seed: str | None) -> dict[str, list[Any]]:
    """What a new Python makes of NAMES. None: with no PYTHONHASHSEED, as nearly every program starts."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    if hash_seed is not None:
        environment["PYTHONHASHSEED"] = hash_seed
    command = [sys.executable, "-S", "-c", CHILD, json.dumps(NAMES)]  # -S: without site-packages it starts in no time
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    answer: dict[str, list[Any]] = json.loads(done.stdout)
    return answer


def show_hash_seeds(lesson: Lesson) -> None:
    lesson.section(
        "Sets, names and hash seeds",
        "Python salts the hash of text anew in each process, so the order of a set is another one in every run, whatever "
        "torch.manual_seed says. The usual place for it: class names collected in a set and numbered as they come. Ten "
        "names in four new processes, two of them with PYTHONHASHSEED=0:",
    )
    children = {"started as usual": in_a_child(None), "again": in_a_child(None),
                "PYTHONHASHSEED=0": in_a_child("0"), "PYTHONHASHSEED=0, again": in_a_child("0")}  # fmt: skip
    table = []
    for name, made in children.items():
        table.append({"process": name, "list(set(names)) begins with": ", ".join(made["list(set(names))"][:4]),
                      "hash(name) % 10": " ".join(map(str, made["hash(name) % 10"]))})  # fmt: skip
    lesson.table(table)
    usual, again, fixed, fixed_again = children.values()
    in_place = sum(a == b for a, b in zip(usual["list(set(names))"], again["list(set(names))"], strict=True))
    lesson.check("a set of names has another order in each process", in_place < len(NAMES),
                 f"{in_place} of {len(NAMES)} names in the same place")  # fmt: skip
    lesson.check("PYTHONHASHSEED, set before Python starts, fixes it", fixed == fixed_again, "two processes, one order")
    steady = [name for name in usual if all(made[name] == usual[name] for made in children.values())]
    lesson.check("sorted, dict and SHA-256 need no such help",
                 {"sorted(set(names))", "list(dict.fromkeys(names))", "sha256 of name % 10"} <= set(steady),
                 f"{len(steady)} of {len(usual)} ways alike in all four")  # fmt: skip
    lesson.check("a dict keeps the order of insertion", usual["list(dict.fromkeys(names))"] == list(NAMES),
                 "part of the language since Python 3.7")  # fmt: skip
    lesson.shows(
        f"a model trained in the first process and loaded in the second would call {len(NAMES) - in_place} of {len(NAMES)} "
        "classes by a wrong name, with the same weights to the bit. Write sorted(set(...)), and sort what os.listdir and "
        "glob return, too. hash() of text is no seed and no way to split data; use hashlib."
    )


# Workers

START = "fork" if sys.platform == "linux" else "spawn"
STRENGTH = 0.3


@dataclass
class Noisy(Dataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """Letters, each with noise of a random strength added: x (256,), y, and the random number that decided."""

    letters: Letters  # on the CPU
    seed: int
    way: str
    epoch: int = 0

    def __post_init__(self) -> None:
        self.own = np.random.default_rng(self.seed)  # the mistake: each worker gets a copy, in the same state

    def __len__(self) -> int:
        return len(self.letters.y)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.way == GLOBAL:
            drawn = torch.rand(())
        elif self.way == OWN:
            drawn = torch.tensor(self.own.random(), dtype=torch.float32)
        else:
            drawn = torch.tensor(np.random.default_rng([self.seed, self.epoch, index]).random(), dtype=torch.float32)
        return self.letters.x[index] * (1 + STRENGTH * drawn), self.letters.y[index], drawn


GLOBAL, OWN, INDEX = "torch.rand(())", "default_rng(seed) in the set", "default_rng([seed, epoch, i])"


@contextmanager
def without_worker_warnings() -> Iterator[None]:
    """Of more workers than cores, and, from Python 3.12, of a fork beside threads that no worker uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes", UserWarning)
        warnings.filterwarnings("ignore", "This process .*is multi-threaded", DeprecationWarning)
        yield


@dataclass(frozen=True)
class Trained:
    weights: torch.Tensor
    drawn: list[float]  # the random number of each sample, epoch after epoch


def train_by_loader(letters: Letters, way: str, workers: int, seed: int, epochs: int, device: torch.device) -> Trained:
    """A training whose samples are augmented by `workers` processes, or by this one where there are none."""
    torch.manual_seed(seed)
    model = make_model(device)
    dataset, drawn = Noisy(letters, seed, way), []
    with without_worker_warnings():
        options: dict[str, Any] = {"multiprocessing_context": START} if workers else {}
        loader = DataLoader(
            dataset, batch_size=8, num_workers=workers, **options
        )  # not shuffled: only the noise counts
        for epoch in range(epochs):
            dataset.epoch = epoch  # the workers of an epoch are made after this
            for x, y, numbers in loader:
                descend(model, gradients_of(model, x.to(device), y.to(device)))
                drawn += numbers.tolist()
    return Trained(weights_of(model), drawn)


def show_workers(lesson: Lesson, letters: Letters) -> None:
    count, epochs = lesson.pick(full=96, quick=32), 2
    lesson.section(
        "The number of workers",
        "A worker is a process with a generator of its own, so a random augmentation depends on who computes it. The same "
        f"training, {count} letters brightened at random, {epochs} epochs, unshuffled, with 0, 1 and 2 workers, and with 2 "
        "again. Three ways to draw; data_pipelines shows why they do what they do, here is what becomes of the weights.",
    )
    few = Letters(letters.x[:count].cpu(), letters.y[:count].cpu())
    counts = (0, 1, 2, 2)
    table, runs = [], {}
    for way in (GLOBAL, OWN, INDEX):
        runs[way] = [train_by_loader(few, way, n, lesson.options.seed, epochs, lesson.device) for n in counts]
        table.append({"drawn by": way} | {f"{n} worker{'s' * (n != 1)}{' again' * (i == 3)}": digest(run.weights)[:6]
                      for i, (n, run) in enumerate(zip(counts, runs[way], strict=True))}
                     | {f"of {count * epochs}": len(set(runs[way][2].drawn))})  # fmt: skip
    lesson.table(table)
    lesson.text(
        "Each column has the first digits of the hash; the last counts the different random numbers that 2 workers drew."
    )

    def alike(way: str, first: int, second: int) -> bool:
        return difference(runs[way][first].weights, runs[way][second].weights).different == 0

    lesson.check("the same number of workers: the same bits", all(alike(way, 2, 3) for way in runs), "all three ways")
    lesson.check("torch.rand in a worker: another number, other bits", not alike(GLOBAL, 0, 1) and not alike(GLOBAL, 1, 2),
                 "0, 1 and 2 workers differ")  # fmt: skip
    twins = len(set(runs[OWN][2].drawn))
    lesson.check("a generator that is copied draws twins, epoch after epoch", twins == count // 2,
                 f"{twins} numbers for {count * epochs} samples")  # fmt: skip
    lesson.check("seeded by its index, a sample is the same for all",
                 alike(INDEX, 0, 1) and alike(INDEX, 1, 2) and len(set(runs[INDEX][2].drawn)) > 0.9 * count * epochs,
                 "0, 1 and 2 workers: one hash")  # fmt: skip
    lesson.shows(
        "num_workers looks like a matter of speed and is a hyperparameter for whoever draws in a worker. Draw from "
        "(seed, epoch, index), and a run moves to a machine with other cores, bit for bit."
    )
