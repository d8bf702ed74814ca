"""What an out-of-memory error keeps alive, and what a failed step leaves behind: two traps of every retry."""

import traceback
import weakref
from collections.abc import Callable

from pytorch_02_training_optimization.src.budget.network import Batch, Network, make_network, random_batch
from shared.agreement import deviation
from shared.lesson import Lesson
from shared.units import significant

import torch
import torch.nn.functional as F

Seen = list[weakref.ref[torch.Tensor]]


def fail(device: torch.device, seen: Seen) -> None:
    """A step that makes a tensor and then finds no room for the next one; `seen` looks on without holding."""
    activations = torch.ones(1000, device=device)
    seen.append(weakref.ref(activations))
    raise torch.OutOfMemoryError("Tried to allocate more than there is.")


def alive(seen: Seen) -> int:
    return sum(x() is not None for x in seen)


# Each returns how many tensors of failed steps are alive when the program goes on.


def retry_inside_except(device: torch.device) -> int:
    """The mistake: three attempts, each started while the error before it is still being handled."""
    seen: Seen = []

    def attempt(left: int) -> int:
        try:
            fail(device, seen)
        except torch.OutOfMemoryError:
            return attempt(left - 1) if left > 1 else alive(seen)
        return 0

    return attempt(3)


def retry_after_except(device: torch.device) -> int:
    """Right: the block is left first. Python forgets the error at its end, and with it the frames of the failed step."""
    seen: Seen = []
    batch_size = 8
    for _ in range(3):
        try:
            fail(device, seen)
        except torch.OutOfMemoryError:
            batch_size //= 2
    return alive(seen)


def keep_the_error(device: torch.device) -> int:
    """The mistake: an error that is kept for a report keeps its traceback, that its frames, those their tensors."""
    seen: Seen = []
    errors: list[BaseException] = []
    for _ in range(3):
        try:
            fail(device, seen)
        except torch.OutOfMemoryError as error:
            errors.append(error)
    return alive(seen)


def wrap_the_error(device: torch.device) -> int:
    """The mistake in disguise: an error of your own, raised from the first, holds it as its __cause__."""
    seen: Seen = []

    def step() -> None:
        try:
            fail(device, seen)
        except torch.OutOfMemoryError as error:
            raise RuntimeError("the step failed") from error

    errors: list[BaseException] = []
    for _ in range(3):
        try:
            step()
        except RuntimeError as error:
            errors.append(error.with_traceback(None))
    return alive(seen)


def keep_the_words(device: torch.device) -> int:
    """Right: what a report needs is text."""
    seen: Seen = []
    errors: list[str] = []
    for _ in range(3):
        try:
            fail(device, seen)
        except torch.OutOfMemoryError as error:
            errors.append("".join(traceback.format_exception_only(error)))
    return alive(seen)


def clear_the_frames(device: torch.device) -> int:
    """Right where the error itself must be kept: its frames stay, with nothing in them."""
    seen: Seen = []
    errors: list[BaseException] = []
    for _ in range(3):
        try:
            fail(device, seen)
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)
            errors.append(error)
    return alive(seen)


CATCHERS: dict[str, tuple[Callable[[torch.device], int], int]] = {
    "tries again inside `except`": (retry_inside_except, 3),
    "leaves the block, then tries again": (retry_after_except, 0),
    "keeps the error in a list": (keep_the_error, 3),
    "raises another from it, keeps that": (wrap_the_error, 3),
    "keeps its text": (keep_the_words, 0),
    "keeps it, but clears its frames": (clear_the_frames, 0),
}


# What a failed step leaves in .grad


def backward_that_fails(model: Network, batch: Batch) -> None:
    """A backward pass that runs out of memory half-way: at the weight in the middle of the network."""

    def refuse(parameter: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("Tried to allocate more than there is.")

    middle = model.blocks[len(model.blocks) // 2].get_parameter("up.weight")
    handle = middle.register_post_accumulate_grad_hook(refuse)
    x, y = batch
    try:
        F.cross_entropy(model(x), y).backward()
    except torch.OutOfMemoryError:
        pass
    finally:
        handle.remove()


def gradients_of(model: Network, batch: Batch) -> list[torch.Tensor]:
    x, y = batch
    F.cross_entropy(model(x), y).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def retry_on_top(model: Network, batch: Batch) -> list[torch.Tensor]:
    """The mistake: the retry adds its gradients to those that the failed attempt had finished."""
    backward_that_fails(model, batch)
    return gradients_of(model, batch)


def retry_from_zero(model: Network, batch: Batch) -> list[torch.Tensor]:
    backward_that_fails(model, batch)
    model.zero_grad()
    return gradients_of(model, batch)


def show_errors(lesson: Lesson) -> None:
    device = lesson.device
    lesson.section(
        "What the error keeps",
        "An out-of-memory error can be caught, and then the program must get its memory back. A weak reference looks at a "
        "tensor without holding it: here one on a tensor of each of three failed steps, when the program has caught the "
        "error in one of six ways and goes on.",
    )
    counts = {name: (catch(device), expected) for name, (catch, expected) in CATCHERS.items()}
    lesson.table([{"the program": name, "still alive": count, "memory": "lost" if count else "free"}
                  for name, (count, _) in counts.items()])  # fmt: skip
    lesson.check("inside `except` every failed step is still in memory", counts["tries again inside `except`"][0] == 3,
                 "3 of 3, and the next comes on top")  # fmt: skip
    lesson.check("outside it they are gone at once", counts["leaves the block, then tries again"][0] == 0,
                 "no gc.collect(), no empty_cache()")  # fmt: skip
    lesson.check("each way is as foreseen", all(count == expected for count, expected in counts.values()),
                 f"{sum(count == expected for count, expected in counts.values())} of {len(counts)} ways")  # fmt: skip
    lesson.text(
        "Memory is not all that a failed step leaves. Where backward fails half-way, the layers behind that place have "
        "their gradients already, and the retry adds to them. In silence: shapes fit, the loss is right."
    )
    model, batch = make_network(32, 4, device), random_batch(64, device)
    found = {}
    for name, run in {"right": gradients_of, "on top": retry_on_top, "from zero": retry_from_zero}.items():
        model.zero_grad()
        found[name] = [gradient.clone() for gradient in run(model, batch)]
    doubled = [(wrong - 2 * right).norm() <= 1e-4 * right.norm()
               for wrong, right in zip(found["on top"], found["right"], strict=True)]  # fmt: skip
    off = max(deviation(a, b) for a, b in zip(found["from zero"], found["right"], strict=True))
    lesson.check("a retry on top doubles what was there", 0 < sum(doubled) < len(doubled),
                 f"{sum(doubled)} of {len(doubled)} gradients are twice too large")  # fmt: skip
    lesson.check("zero_grad() before the retry makes it right", off < 1e-5, f"off by {significant(off, 1)}")
    lesson.shows(
        f"catch, leave the block, zero_grad(), then try again with less. Of {len(counts)} ways to catch, "
        f"{sum(count > 0 for count, _ in counts.values())} keep the memory that they complain about. A step that has failed "
        "may also have drawn random numbers and moved BatchNorm's averages; where a run must be repeatable, put those back "
        "as well."
    )
