"""Random generators: one for all, one for each purpose; and what a paused training has to remember."""

import hashlib
import io
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_02_training_optimization.src.letters.rows import PIXELS, Letters
from pytorch_02_training_optimization.src.repeatability.bits import Difference, difference, digest, weights_of
from pytorch_02_training_optimization.src.repeatability.task import (
    BATCH_SIZE,
    accuracy,
    descend,
    gradients_of,
    make_model,
)
from shared.generators import restore_rng_state, rng_state
from shared.lesson import Lesson
from shared.units import percent

import torch
from torch import nn

# Purposes

Draws = dict[str, torch.Tensor]


def stream_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose of a run. By a hash, so that two runs share no stream; 63 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1


def stream(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(seed, purpose))


def seed_plus_number(seed: int, number: int) -> torch.Generator:
    """The mistake: purpose 1 of run 0 and purpose 0 of run 1 get the same seed, and draw the same numbers."""
    return torch.Generator().manual_seed(seed + number)


def draws(pick: Callable[[str], torch.Generator], *, hidden: int = 32, augment: bool = True, epochs: int = 1) -> Draws:
    """What a small run draws, purpose by purpose, in the order in which a script comes to them."""
    drawn = {"first layer": torch.randn(hidden, PIXELS, generator=pick("init")),
             "last layer": torch.randn(10, 32, generator=pick("init of the last layer"))}  # fmt: skip
    order, noise = pick("order"), pick("augmentation")
    for epoch in range(epochs):
        drawn[f"order {epoch}"] = torch.randperm(100, generator=order)
        if augment:
            drawn[f"augmentation {epoch}"] = torch.rand(100, generator=noise)
    drawn["dropout"] = torch.rand(100, generator=pick("dropout"))
    return drawn


def from_one_generator(seed: int, **changes: Any) -> Draws:
    """The usual way: a single seed, and everybody takes the next numbers."""
    generator = torch.Generator().manual_seed(seed)
    return draws(lambda purpose: generator, **changes)


def from_streams(seed: int, **changes: Any) -> Draws:
    return draws(lambda purpose: stream(seed, purpose), **changes)


CHANGES: dict[str, dict[str, Any]] = {
    "hidden layer of 48, not 32": {"hidden": 48},
    "no augmentation": {"augment": False},
    "one epoch more": {"epochs": 2},
}


def kept(before: Draws, after: Draws) -> list[str]:
    """The purposes that both have and for which both drew the same numbers."""
    return [name for name in before if name in after and torch.equal(before[name], after[name])]


def initialised_apart(seed: int, device: torch.device) -> nn.Sequential:
    """nn.Linear draws from the global generator and takes no other; fork_rng lends it one and puts the old one back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, "init"))
        return make_model(device)


def show_streams(lesson: Lesson) -> None:
    lesson.section(
        "A generator for each purpose",
        "With one seed for everything, whoever draws more shifts all who draw later. Then you try a wider layer, and "
        "compare it with a run that also saw other batches. With a generator for each purpose a change stays where it was "
        "made. Which draws stayed as they were?",
    )
    seed = lesson.options.seed
    table, stayed = [], {}
    for name, change in CHANGES.items():
        for way, draw in (("one generator", from_one_generator), ("one for each purpose", from_streams)):
            before, after = draw(seed), draw(seed, **change)
            stayed[name, way] = kept(before, after)
            lost = [purpose for purpose in before if purpose in after and purpose not in stayed[name, way]]
            table.append({"change": name, "drawn from": way, "stayed": len(stayed[name, way]),
                          "others": ", ".join(lost) or "none"})  # fmt: skip
    lesson.table(table)
    wider = "hidden layer of 48, not 32"
    lesson.check("one generator: a wider layer shifts all that follows", not stayed[wider, "one generator"],
                 f"{len(stayed[wider, 'one generator'])} of {len(from_one_generator(seed))} draws stayed")  # fmt: skip
    most = len(from_streams(seed))
    lesson.check("streams: only the layer itself", stayed[wider, "one for each purpose"] == list(from_streams(seed))[1:],
                 f"{len(stayed[wider, 'one for each purpose'])} of {most} stayed")  # fmt: skip
    lesson.check("streams: without augmentation all the rest stays",
                 len(stayed["no augmentation", "one for each purpose"]) == most - 1, "order and dropout included")  # fmt: skip
    same = torch.equal(torch.rand(9, generator=seed_plus_number(0, 1)), torch.rand(9, generator=seed_plus_number(1, 0)))
    apart = stream_seed(0, "order") != stream_seed(1, "init")
    lesson.check("seed + 1 is the seed of somebody else", same and apart,
                 "order of run 0 = init of run 1; a hash keeps them apart")  # fmt: skip
    generator_state = torch.get_rng_state()
    first, second = (weights_of(initialised_apart(seed, lesson.device)) for _ in range(2))
    untouched = torch.equal(generator_state, torch.get_rng_state())
    lesson.check("fork_rng: drawn inside, unchanged outside", untouched and torch.equal(first, second),
                 "a model, initialised twice")  # fmt: skip
    lesson.shows(
        f"after one wider layer {len(stayed[wider, 'one generator'])} draws stayed with one generator and "
        f"{len(stayed[wider, 'one for each purpose'])} with streams. Give randperm, DataLoader and your augmentation a "
        "generator= of their own. What takes none, as layers and dropout do, goes inside fork_rng()."
    )


# A paused run

MOMENTUM, DROPOUT = 0.9, 0.2


class Run:
    """A training that can be paused between any two steps, also in the middle of an epoch."""

    def __init__(self, seed: int, letters: Letters, steps: int) -> None:
        device = letters.x.device
        torch.manual_seed(seed)
        self.letters, self.steps = letters, steps
        self.model = make_model(device, DROPOUT)  # dropout draws from the device's global generator
        self.momentum = [torch.zeros_like(parameter) for parameter in self.model.parameters()]
        self.order_generator = stream(seed, "order")
        self.order = torch.empty(0, dtype=torch.int64)  # what is left of the epoch
        self.step = 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            if not len(self.order):
                self.order = torch.randperm(len(self.letters.y), generator=self.order_generator)
            batch, self.order = self.order[:BATCH_SIZE].to(self.letters.x.device), self.order[BATCH_SIZE:]
            gradients = gradients_of(self.model, self.letters.x[batch], self.letters.y[batch])
            for moving, gradient in zip(self.momentum, gradients, strict=True):
                moving.mul_(MOMENTUM).add_(gradient)
            descend(self.model, self.momentum, lr=0.05 * (1 - self.step / self.steps))  # the schedule: linearly to 0
            self.step += 1

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "momentum": self.momentum,
            "order": self.order,
            "order_generator": self.order_generator.get_state(),
            "step": self.step,
            "rng": rng_state(self.letters.x.device),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` has, and leaves the rest as it is in a new run."""
        if "model" in state:
            self.model.load_state_dict(state["model"])
        self.momentum = [moving.clone() for moving in state.get("momentum", self.momentum)]  # changed in place
        self.order = state.get("order", self.order)
        if "order_generator" in state:
            self.order_generator.set_state(state["order_generator"])
        self.step = state.get("step", self.step)
        if "rng" in state:
            restore_rng_state(state["rng"])


PARTS = {
    "momentum": "the optimizer's momentum",
    "order": "the rest of this epoch",
    "order_generator": "the generator of the order",
    "step": "the step, which the schedule reads",
    "rng": "the global generators: dropout",
}


OTHER = "(another seed, for comparison)"


def resumed(seed: int, letters: Letters, state: Mapping[str, Any], forgotten: str = "") -> Run:
    """A new run that goes on from `state`, without the part that was forgotten, to the end."""
    run = Run(seed, letters, steps=state["total"])
    run.load({name: part for name, part in state.items() if name != forgotten})
    run.train(state["total"] - state["at"])
    return run


def show_resume(lesson: Lesson, letters: Letters, test: Letters) -> None:
    total = lesson.pick(full=120, quick=30)
    at = total // 2 + 3  # in the middle of an epoch
    lesson.section(
        "Paused, and gone on",
        f"train.py resumes to the bit. Here is what each part of its checkpoint is for: a run of {total} steps is paused "
        f"after {at}, in the middle of an epoch, written with torch.save, and goes on six times, whole and "
        "then each time without one part. No error says so.",
    )
    seed = lesson.options.seed
    undisturbed = Run(seed, letters, total)
    undisturbed.train(total)
    paused = Run(seed, letters, total)
    paused.train(at)
    file = io.BytesIO()
    torch.save(paused.state() | {"total": total, "at": at}, file)
    torch.rand(7)  # the process does something else in between
    file.seek(0)
    state = torch.load(file, weights_only=True)
    right = weights_of(undisturbed.model)
    found: dict[str, Difference] = {}
    table = []
    runs = {part: resumed(seed, letters, state, part) for part in ("", *PARTS)}
    runs[OTHER] = Run(seed + 1, letters, total)
    runs[OTHER].train(total)
    reached = {}
    for part, run in runs.items():
        found[part] = difference(right, weights_of(run.model))
        run.model.eval()
        reached[part] = 100 * accuracy(run.model, test)
        what = PARTS.get(part, OTHER if part else "nothing")
        table.append({"forgotten": what, "same bits": "no" if found[part].different else "yes",
                      "weights that differ": percent(found[part].share),
                      "distance": f"{found[part].relative:.1e}", "test (%)": reached[part]})  # fmt: skip
    lesson.table(table)
    lesson.check("with all of its state a run goes on to the same bits", found[""].different == 0,
                 f"SHA-256 {digest(right)[:12]}…, paused or not")  # fmt: skip
    for part, what in PARTS.items():
        lesson.check(
            f"not without {what}", found[part].different > 0, f"{percent(found[part].share)} of the weights differ"
        )
    worst = max(PARTS, key=lambda part: abs(reached[part] - reached[""]))
    lesson.shows(
        "every part was needed, and no part was missed by an error. The accident that moved the test accuracy most is to "
        f"forget {PARTS[worst]}: {reached[worst] - reached['']:+.1f} points, where another seed moves it by "
        f"{reached[OTHER] - reached['']:+.1f}. A curve does not tell them apart; this table does: go on, resume, compare hashes."
    )
