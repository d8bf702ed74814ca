"""Why do two runs of the same training differ, which of it can you prevent, and what does that cost?

A training is a computation: the same inputs give the same weights, to the last bit, and you will prove it with a hash.
Then you break it in every way that happens in real work, each alone: a seed, one random number more, a look at the
validation set, the order of a sum (repeatability/sums.py), a generator that others share, a part that a checkpoint
forgot (repeatability/streams.py), hash seeds and workers (repeatability/surroundings.py), additions that race on a GPU,
and the algorithms that do not (repeatability/determinism.py). At the end what the bits do not decide: one of them grows
until two runs have nothing in common, and seeds differ more than settings do (repeatability/luck.py).

    python src/reproducibility.py            about 20 seconds
    python src/reproducibility.py --quick    the same path with tiny sizes, a few seconds
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.letters.rows import Letters, load_letters
from pytorch_02_training_optimization.src.repeatability.bits import (
    Difference,
    difference,
    digest,
    switches_restored,
    weights_of,
)
from pytorch_02_training_optimization.src.repeatability.determinism import show_cost, show_races, show_refusals
from pytorch_02_training_optimization.src.repeatability.luck import show_divergence, show_seeds
from pytorch_02_training_optimization.src.repeatability.streams import show_resume, show_streams
from pytorch_02_training_optimization.src.repeatability.sums import show_sums, show_threads
from pytorch_02_training_optimization.src.repeatability.surroundings import show_hash_seeds, show_workers
from pytorch_02_training_optimization.src.repeatability.task import (
    BATCH_SIZE,
    accuracy,
    descend,
    gradients_of,
    make_model,
)
from shared.lesson import Lesson
from shared.units import percent

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# One training, with places at which something may happen

Gradients = tuple[torch.Tensor, ...]


def no_look(model: nn.Module, validation: Letters) -> None:
    pass


def look_by_slices(model: nn.Module, validation: Letters) -> None:
    with torch.no_grad():
        for x in validation.x.split(50):
            model(x)


def look_by_loader(model: nn.Module, validation: Letters, generator: torch.Generator | None = None) -> None:
    """Not shuffled, and yet it draws: every epoch of a DataLoader takes a seed for workers, even where it has none."""
    with torch.no_grad():
        for x, _ in DataLoader(TensorDataset(validation.x, validation.y), batch_size=50, generator=generator):
            model(x)


def look_by_loader_with_generator(model: nn.Module, validation: Letters) -> None:
    look_by_loader(model, validation, torch.Generator())


def look_inside_a_fork(model: nn.Module, validation: Letters) -> None:
    with torch.random.fork_rng(devices=[]):
        look_by_loader(model, validation)


def whole_batch(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Gradients:
    return gradients_of(model, x, y)


def half_batches(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Gradients:
    """The mean over a batch is the mean of the means over its halves: in mathematics."""
    halves = [gradients_of(model, *half) for half in zip(x.chunk(2), y.chunk(2), strict=True)]
    return tuple((a + b) / 2 for a, b in zip(*halves, strict=True))


@dataclass(frozen=True)
class Recipe:
    """All that may differ between two runs."""

    next_seed: bool = False
    one_draw_more: bool = False
    sort_batches: bool = False
    look: Callable[[nn.Module, Letters], None] = no_look
    gradients: Callable[[nn.Module, torch.Tensor, torch.Tensor], Gradients] = whole_batch


def train(recipe: Recipe, letters: Letters, validation: Letters, seed: int, epochs: int) -> nn.Module:
    torch.manual_seed(seed + recipe.next_seed)
    model = make_model(letters.x.device)
    if recipe.one_draw_more:
        torch.rand(1)
    for _ in range(epochs):
        for batch in torch.randperm(len(letters.y)).split(BATCH_SIZE):
            samples = (batch.sort().values if recipe.sort_batches else batch).to(letters.x.device)
            descend(model, recipe.gradients(model, letters.x[samples], letters.y[samples]))
        recipe.look(model, validation)
    return model


# The same bits


def with_one_bit_flipped(weights: torch.Tensor) -> torch.Tensor:
    """The last bit of the last weight."""
    flipped = weights.clone()
    flipped.view(torch.int32)[-1] ^= 1
    return flipped


def show_same_bits(lesson: Lesson, letters: Letters, test: Letters) -> None:
    epochs = lesson.pick(full=5, quick=2)
    lesson.section(
        "The same bits twice",
        "Equal accuracy is weak evidence: many different networks have it. Equal weights are strong, and a hash of their "
        f"bytes makes them one line to compare. A small network reads {len(letters.y):,} letters for {epochs} epochs, twice. "
        "When you can do this, every change that should change nothing (a refactoring, a faster kernel) has a test.",
    )
    models = [train(Recipe(), letters, test, lesson.options.seed, epochs) for _ in range(2)]
    first, second = (weights_of(model) for model in models)
    flipped = with_one_bit_flipped(first)
    lesson.table([{"run": name, "SHA-256 of the weights": digest(weights)[:40] + "…"} for name, weights in
                  (("first", first), ("second", second), ("first, one bit flipped", flipped))])  # fmt: skip
    lesson.check("two runs, the same bits", difference(first, second).bits == 0,
                 f"{first.numel():,} weights, {32 * first.numel():,} bits")  # fmt: skip
    found = difference(first, flipped)
    lesson.check("the hash notices a single bit", digest(first) != digest(flipped) and found.bits == 1,
                 f"1 bit of {32 * first.numel():,}, a difference of {found.largest:.0e}")  # fmt: skip
    with torch.no_grad():
        nn.utils.vector_to_parameters(flipped.to(letters.x.device), models[1].parameters())
    accuracies = [accuracy(model, test) for model in models]
    lesson.check("accuracy does not notice it", abs(accuracies[0] - accuracies[1]) < 0.02,
                 " and ".join(percent(value) for value in accuracies))  # fmt: skip
    lesson.shows(
        f"on this machine ({lesson.device.type}, torch {torch.__version__}, threads: {torch.get_num_threads()}) the "
        f"training is a function of its seed, and {digest(first)[:12]} is its value. Write the hash into the log of a run: "
        "it costs a line, and tells years later whether you have the same weights."
    )


CHANGES = {
    "nothing": Recipe(),
    "the seed, by 1": Recipe(next_seed=True),
    "torch.rand(1) after the model was made": Recipe(one_draw_more=True),
    "validation in slices, after each epoch": Recipe(look=look_by_slices),
    "validation by a DataLoader, not shuffled": Recipe(look=look_by_loader),
    "the same, with generator=": Recipe(look=look_by_loader_with_generator),
    "the same, inside fork_rng()": Recipe(look=look_inside_a_fork),
    "each batch sorted": Recipe(sort_batches=True),
    "each batch in two halves": Recipe(gradients=half_batches),
}


def show_changes(lesson: Lesson, letters: Letters, test: Letters) -> None:
    epochs = lesson.pick(full=5, quick=2)
    lesson.section(
        "One change at a time",
        "The same training again, each time with one change that does not look like one. Which of them alter the weights, "
        "and by how much? Guess before you read the table. Bits are counted among 32 of each weight; two unrelated numbers "
        "differ in about half of the 23 behind the point, the sign and some of the exponent.",
    )
    found: dict[str, Difference] = {}
    table = []
    reference = train(Recipe(), letters, test, lesson.options.seed, epochs)
    for name, recipe in lesson.progress(CHANGES.items(), "trainings", len(CHANGES)):
        model = train(recipe, letters, test, lesson.options.seed, epochs)
        found[name] = difference(weights_of(reference), weights_of(model))
        table.append({"changed": name, "same": "no" if found[name].bits else "yes",
                      "differ": percent(found[name].share),
                      "bits of 32": round(found[name].bits / found[name].numbers, 1),
                      "largest": f"{found[name].largest:.0e}", "test (%)": 100 * accuracy(model, test)})  # fmt: skip
    lesson.table(table)
    seed, draw, loader = (found[name] for name in list(CHANGES)[1:5] if "slices" not in name)
    lesson.check("another seed changes nearly every weight", seed.share > 0.95, percent(seed.share))
    lesson.check("one random number more is another order of the data", draw.share > 0.5,
                 f"{percent(draw.share)} of the weights, from the same start")  # fmt: skip
    quiet = [name for name in CHANGES if found[name].bits == 0]
    lesson.check("looking in slices draws nothing", "validation in slices, after each epoch" in quiet, "the same bits")
    lesson.check("a DataLoader draws, though it does not shuffle", loader.share > 0.5,
                 f"{percent(loader.share)} of the weights differ")  # fmt: skip
    lesson.check("with a generator of its own, or in a fork, it does not",
                 {"the same, with generator=", "the same, inside fork_rng()"} <= set(quiet), "the same bits")  # fmt: skip
    sums = [found[name] for name in ("each batch sorted", "each batch in two halves")]
    lesson.check("the order of a sum changes bits", all(change.bits > 0 for change in sums),
                 " and ".join(percent(change.share) for change in sums) + " of the weights")  # fmt: skip
    ratio = seed.relative / max(change.relative for change in sums)
    lesson.check("and moves the weights far less than a seed", ratio > 100, f"{ratio:,.0f} times less")
    lesson.shows(
        f"{len(quiet)} of {len(CHANGES)} runs kept all bits. There are two kinds of change. Some shift the random numbers, and "
        "then it is another run; others only round otherwise, and then it is the same run with other last bits. The size of "
        "the difference tells which one you have: here "
        f"{seed.relative:.0e} and {max(change.relative for change in sums):.0e} of the weights' length."
    )


def main(argv: list[str] | None = None) -> int:
    title = "Reproducibility: what decides the bits of a training, what breaks them, and what they are worth."
    with Lesson(__file__, argv, title=title) as lesson, switches_restored(lesson.device):
        letters = load_letters(lesson.pick(full=1600, quick=320), lesson.device)
        test = load_letters(lesson.pick(full=2000, quick=500), lesson.device, train=False)
        show_same_bits(lesson, letters, test)
        show_changes(lesson, letters, test)
        show_sums(lesson)
        show_threads(lesson)
        show_streams(lesson)
        show_resume(lesson, letters, test)
        show_hash_seeds(lesson)
        show_workers(lesson, letters)
        show_races(lesson)
        show_refusals(lesson)
        show_cost(lesson)
        show_divergence(lesson)
        show_seeds(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
