"""Chapters of experiment_tracking: what a call of each kind costs in time and bytes, and the call that hides a wait."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src.letters.rows import PIXELS
from pytorch_02_training_optimization.src.tracking.event_files import event_file, new_board, read_board, scalar_bytes
from pytorch_02_training_optimization.src.tracking.journal import Journal
from pytorch_02_training_optimization.src.tracking.task import Config, build, descend
from shared.dispatch import Watcher, name_of
from shared.lesson import Lesson
from shared.timing import compare, measure
from shared.units import bytes_text, percent, seconds_text, significant

import torch
import torch.nn.functional as F

CPU = torch.device("cpu")
EVERY = 50  # steps


def added_bytes(path: Path, log: Callable[[], object], flush: Callable[[], object], calls: int = 4) -> float:
    """By how much one call lets the file grow."""
    flush()
    before = path.stat().st_size
    for _ in range(calls):
        log()
    flush()
    return (path.stat().st_size - before) / calls


class Small:
    """A training whose steps are short, so that what is logged shows."""

    def __init__(self, width: int, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = build(Config(width=width, seed=seed), device)
        self.x = torch.randn(64, PIXELS, generator=generator).to(device)
        self.y = torch.randint(10, (64,), generator=generator).to(device)
        self.velocities = [torch.zeros_like(parameter) for parameter in self.model.parameters()]

    def step(self) -> torch.Tensor:
        """The loss of one step, still on the device."""
        loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        descend(self.model, self.velocities, 0.001, 0.9)
        return loss.detach()


def show_costs(lesson: Lesson) -> None:
    lesson.section(
        "What logging costs",
        "Numbers are cheap until they are logged at every step. Each call is timed here and its bytes are counted, beside "
        "one step of a small training on this machine (256 pixels, two layers of 256, batches of 64). The writer puts "
        "records into a queue for a thread of its own, but making them is work of yours.",
    )
    training = Small(256, lesson.options.seed, lesson.device)
    small, large = torch.randn(1000), torch.randn(lesson.pick(full=1_000_000, cpu=300_000, quick=100_000))
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    budget_s = lesson.pick(full=0.2, quick=0.03)
    with tempfile.TemporaryDirectory() as name:
        board, journal = new_board(Path(name)), Journal(Path(name) / "metrics.jsonl")
        file = event_file(Path(name))
        calls: dict[str, Callable[[], object]] = {
            "Journal.log, one number": lambda: journal.log(1000, {"train/loss": 0.1234567}),
            "add_scalar": lambda: board.add_scalar("train/loss", 0.1234567, 1000),
            "add_histogram, 1,000 numbers": lambda: board.add_histogram("weight", small, 1000),
            f"add_histogram, {len(large):,}": lambda: board.add_histogram("weight", large, 1000),
            "add_image, 32 x 32": lambda: board.add_image("image", image, 1000),
        }
        step_s = measure(training.step, lesson.device, budget_s=budget_s).median_s
        table, spent, size = [], {}, {}
        for call, log in calls.items():
            path = journal.path if "Journal" in call else file
            size[call] = added_bytes(path, log, board.flush)
            timing = measure(log, CPU, budget_s=budget_s)
            spent[call] = lesson.record("logging", timing.median_s * 1e6, "µs", timing, call=call)
            lesson.record("logged", size[call], "B", call=call)
            table.append({"call": call, "bytes": round(size[call]), "time": seconds_text(timing.median_s),
                          "steps of training": timing.median_s / step_s})  # fmt: skip
        timings = compare({"scalar": calls["add_scalar"], "histogram": list(calls.values())[3]}, CPU, rounds=5,
                          budget_s=2 * budget_s)  # fmt: skip
        board.close()
        journal.close()
    lesson.table(table)
    lesson.text(f"One step without any logging: {seconds_text(step_s)}.")
    scalar, (first, second) = size["add_scalar"], [value for call, value in size.items() if "histogram" in call]
    lesson.check(
        "a scalar has the bytes that its parts say", scalar == scalar_bytes("train/loss", 1000), f"{scalar:.0f}"
    )
    lesson.check(
        "a histogram has those of over 100 scalars", first > 100 * scalar, f"{first / scalar:.0f} times {scalar:.0f}"
    )
    lesson.check("however many numbers went into it", second < 1.5 * first,
                 f"{len(large) / 1000:.0f} times the numbers, {second / first:.2f} times the bytes")  # fmt: skip
    slower = timings["histogram"].median_s / timings["scalar"].median_s
    lesson.check("but its time grows with them", slower > 3, f"{slower:.0f} times an add_scalar")
    layers = 6 * 2  # weights and gradients
    lesson.shows(
        f"histograms of weights and gradients of six tensors at each of 10,000 steps: {bytes_text(10_000 * layers * second)} "
        f"per run. Every {EVERY} steps it is {bytes_text(200 * layers * second)}, and nobody can look at more. Here a scalar "
        f"at every step costs {percent(spent['add_scalar'] * 1e-6 / step_s)} of a step."
    )


# The wait


class Waits(Watcher):
    """Counts how often Python asked for the value of a tensor, and so had to wait until it was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def saw(self, operation: Any, args: Any, kwargs: Any, result: Any) -> None:
        self.count += name_of(operation).startswith("_local_scalar_dense")


def log_each_item(step: Callable[[], torch.Tensor], steps: int) -> list[float]:
    """The mistake: .item() in each step empties the queue of work that Python has filled for the device."""
    return [step().item() for _ in range(steps)]


def log_interval_means(step: Callable[[], torch.Tensor], steps: int) -> list[float]:
    """The losses stay on the device, and their mean is asked for once in EVERY steps."""
    means, recent = [], []
    for number in range(1, steps + 1):
        recent.append(step())
        if number % EVERY == 0 or number == steps:
            means.append(torch.stack(recent).mean().item())
            recent.clear()
    return means


def log_nothing(step: Callable[[], torch.Tensor], steps: int) -> None:
    for _ in range(steps):
        step()


def show_waits(lesson: Lesson) -> None:
    lesson.section(
        "A number that makes the device wait",
        "A GPU runs behind Python: a step returns a loss that is not computed yet. Asking for its value, by .item(), float(), "
        "print or an f-string, makes Python wait for it, and the device then waits for Python. A logger asks on your behalf: "
        "add_scalar(tag, loss) hides the same wait.",
    )
    steps = lesson.pick(full=200, quick=50)
    training = Small(64, lesson.options.seed, lesson.device)
    ways: dict[str, Callable[[], object]] = {
        "nothing": lambda: log_nothing(training.step, steps),
        ".item() at every step": lambda: log_each_item(training.step, steps),
        f"the mean of {EVERY}, once": lambda: log_interval_means(training.step, steps),
    }
    timings = compare(ways, lesson.device, rounds=5, budget_s=lesson.pick(full=2.0, quick=0.1))
    table, counts = [], {}
    for way, work in ways.items():
        with Waits() as seen:
            work()
        counts[way] = seen.count
        lesson.record("step", timings[way].median_s / steps * 1e6, "µs", timings[way], logged=way)
        table.append({"logged": way, f"waits in {steps} steps": seen.count,
                      "time of a step": seconds_text(timings[way].median_s / steps)})  # fmt: skip
    lesson.table(table)
    each, once = (list(counts.values())[index] for index in (1, 2))
    lesson.check("each .item() is a wait", each == steps, f"{each} in {steps} steps")
    lesson.check("the mean of an interval is one", once == steps // EVERY, f"{once} in {steps} steps")
    with tempfile.TemporaryDirectory() as name:
        board = new_board(Path(name))
        loss = torch.tensor(1.0, device=lesson.device)
        board.add_scalar("train/loss", loss, 0)
        loss.fill_(2.0)  # had the writer kept the tensor for later, it would write this
        board.close()
        (event,) = read_board(Path(name)).Scalars("train/loss")
    lesson.check(
        "add_scalar asks for the value before it returns", event.value == 1.0, "changed afterwards, logged before"
    )
    x = torch.randn(EVERY, generator=torch.Generator().manual_seed(lesson.options.seed)).abs()
    means = [torch.tensor(log_interval_means(iter(x).__next__, EVERY)).item(), x.mean().item()]
    lesson.check("and nothing is lost that a curve would show", abs(means[0] - means[1]) < 1e-6,
                 f"the mean of {EVERY} losses: {significant(means[0])}")  # fmt: skip
    lesson.check("a loss that is kept keeps its graph, detach() does not", keeps_its_graph(lesson.options.seed) == (True, False),
                 "losses.append(loss.detach())")  # fmt: skip
    cost = timings[".item() at every step"].median_s / timings["nothing"].median_s - 1
    where = "Small models lose most: their device is never far behind."
    if lesson.device.type == "cpu":
        where = "A CPU computes at once, so that it has nothing to wait for; on a GPU this table looks otherwise."
    lesson.shows(
        f"on this {lesson.device.type}, a wait in every step made it {percent(abs(cost))} {'longer' if cost > 0 else 'shorter'}. "
        f"{where} The mean of {EVERY} losses is also the better number: less noise than one batch, and no spike is skipped."
    )


def keeps_its_graph(seed: int) -> tuple[bool, bool]:
    """Whether a loss holds on to the graph that made it, and with it to activations; the same of loss.detach()."""
    model = build(Config(seed=seed), CPU)
    loss = model(torch.zeros(1, PIXELS)).sum()
    return loss.grad_fn is not None, loss.detach().grad_fn is not None
