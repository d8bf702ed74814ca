"""How large a network should be, and what the largest one can learn by heart."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pytorch_02_training_optimization.src.generalization.stack import Bench, Run
from pytorch_02_training_optimization.src.generalization.tasks import CLASSES, Task, labels_by_lot
from shared.lesson import Lesson
from shared.units import percent

import torch


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    """Of values (S,), in per cent."""
    return 100 * values.mean().item(), 100 * (values.std() / len(values) ** 0.5).item()


def show_capacity(lesson: Lesson, bench: Bench) -> None:
    lesson.section(
        "How large should the network be?",
        "The textbook draws a U: too small cannot learn, too large learns by heart. Here are the clouds, whose training "
        "labels are wrong in 30 of 100, and one hidden layer of growing width, trained to the end. Test and validation "
        "labels are right. In brackets: the standard error over the seeds.",
    )
    widths = lesson.pick(full=[1, 2, 4, 8, 16, 32, 64, 128, 256], quick=[1, 4, 16, 64])
    steps = lesson.pick(full=400, quick=100)
    runs = {width: bench.run(width=width, steps=steps) for width in lesson.progress(widths, "widths", len(widths))}
    table = []
    for width, run in runs.items():
        mean, error = mean_and_error(run.end.test.accuracy)
        parameters = sum(parameter[0].numel() for parameter in run.parameters)
        lesson.record("test accuracy", mean, "%", width=width, parameters=parameters)
        table.append({"width": width, "parameters": parameters,
                      "training (%)": 100 * run.end.train.accuracy.mean().item(),
                      "test (%)": f"{mean:.1f} ({error:.1f})", "test loss": run.end.test.loss.mean().item()})  # fmt: skip
    lesson.table(table)
    first, last = runs[widths[0]], runs[widths[-1]]
    lesson.check("a single hidden unit fails on both: it underfits", first.end.train.accuracy.mean() < 0.4,
                 f"training {percent(first.end.train.accuracy.mean().item())}, test "
                 f"{percent(first.end.test.accuracy.mean().item())}")  # fmt: skip
    lesson.check("the widest knows the wrong labels as well", last.end.train.accuracy.mean() > 0.95,
                 f"training {percent(last.end.train.accuracy.mean().item())}, of which 30 % were wrong")  # fmt: skip
    assert bench.task.limit is not None
    reached, limit = last.end.test.accuracy.mean().item(), bench.task.limit
    lesson.check("and pays for it on the test", reached < limit - 0.1,
                 f"{percent(reached)}; the best rule reaches {percent(limit)}")  # fmt: skip
    lesson.figure("capacity", lambda *axes: draw_capacity(axes, runs, limit), columns=2)
    known = {width: run.end.train.accuracy.mean().item() for width, run in runs.items()}
    lesson.shows(what_the_widths_say({width: run.end.test.loss for width, run in runs.items()}, known))


def what_the_widths_say(losses: dict[int, torch.Tensor], known: dict[int, float]) -> str:
    """From test losses (S,) and the share of training labels known, by width: is there a U, and a second descent?

    Differences count from three standard errors on, seed by seed.
    """
    widths, means = list(losses), [loss.mean().item() for loss in losses.values()]
    peak = max(range(1, len(widths) - 1), key=lambda i: means[i] - min(means[:i]) - min(means[i + 1 :]))
    first = min(range(peak), key=lambda i: means[i])
    later = min(range(peak + 1, len(widths)), key=lambda i: means[i])

    def is_above(high: int, low: int) -> bool:
        difference = losses[widths[high]] - losses[widths[low]]
        return bool(difference.mean() > 3 * difference.std() / len(difference) ** 0.5)

    low, top, end = (f"{means[i]:.2f} at width {widths[i]}" for i in (first, peak, later))
    text = {
        (
            True,
            True,
        ): f"the test loss first draws the textbook's U: {low}, {top}, where "
        f"{percent(known[widths[peak]])} of the training labels are known by heart. And then it turns: {end}. This is called "
        "double descent (Belkin et al. 2019). Their account of it: of the many wide networks that fit all labels, training "
        "finds a smooth one. ",
        (True, False): f"the test loss draws the textbook's U: {low}, then {top}, and no clear second descent here. ",
        (False, True): f"the test loss falls with the width here, down to {end}; no U. ",
        (False, False): "the test loss has no clear U and no second descent here, within three standard errors. ",
    }[is_above(peak, first), is_above(peak, later)]
    return text + "Choose the width by validation, and do not expect a smaller network to cure overfitting."


def draw_capacity(axes: Sequence[Any], runs: dict[int, Run], limit: float) -> None:
    widths = list(runs)
    for part, label in (("train", "training"), ("test", "test")):
        points = [mean_and_error(getattr(run.end, part).accuracy) for run in runs.values()]
        means, bars = zip(*points, strict=True)
        axes[0].errorbar(widths, means, yerr=bars, capsize=3, label=label)
    losses = [run.end.test.loss for run in runs.values()]
    errors = [(loss.std() / len(loss) ** 0.5).item() for loss in losses]
    axes[1].errorbar(widths, [loss.mean().item() for loss in losses], yerr=errors, capsize=3, label="test")
    axes[0].axhline(100 * limit, color="black", linewidth=0.8)
    axes[0].text(widths[0], 100 * limit + 1, "best possible on the test", fontsize=9)
    axes[0].set(ylabel="accuracy (%)", ylim=(0, 105), title="Clouds with 30 % wrong labels")
    axes[1].set(ylabel="test loss (nats)", title="The loss (bars: standard error)")
    axes[0].legend(loc="lower right")
    for axis in axes:
        axis.set(xscale="log", xlabel="hidden units")
        axis.set_xticks(widths, [str(width) for width in widths])
        axis.minorticks_off()


def show_memorised(lesson: Lesson, bench: Bench) -> None:
    lesson.section(
        "Labels by lot, learned by heart",
        "How much can a network store that has no rule in it? Zhang et al. (2017) gave a network random labels. Here are "
        "the letters: with their own labels, with a part of them wrong, and with labels that have nothing to do with the "
        "picture. Network, steps and learning rate stay the same.",
    )
    steps = lesson.pick(full=240, quick=120)
    shares = {"their own": 0.0, "30 % wrong": 0.3, "by lot": 1 - 1 / CLASSES}
    table: list[dict[str, object]] = []
    runs: dict[str, Run] = {}
    for name, share in shares.items():
        task: Task = labels_by_lot(bench.task, share, lesson.options.seed) if share else bench.task
        other = Bench(task, replace(bench.plain, steps=steps), bench.seeds, bench.seed)
        runs[name] = other.run()
        memorised = first_step_above(runs[name], 0.9)
        table.append({"labels": name, "training (%)": 100 * runs[name].end.train.accuracy.mean().item(),
                      "steps to 90 %": memorised, "test (%)": 100 * runs[name].end.test.accuracy.mean().item()})  # fmt: skip
        lesson.record("training accuracy", 100 * runs[name].end.train.accuracy.mean().item(), "%", labels=name)
    lesson.table(table)
    lot = runs["by lot"].end
    lesson.check("random labels are learned by heart", lot.train.accuracy.mean() > 0.98,
                 f"{percent(lot.train.accuracy.mean().item())} of {bench.plain.count}, no picture tells them")  # fmt: skip
    error = max(lot.test.accuracy.std().item() / bench.seeds**0.5, (0.09 / len(bench.task.test)) ** 0.5)
    lesson.check("and the test says that nothing was learned", abs(lot.test.accuracy.mean() - 0.1) < 0.03 + 5 * error,
                 f"{percent(lot.test.accuracy.mean().item())}, guessing 10 %")  # fmt: skip
    own, wrong = (runs[name].end.test.accuracy for name in ("their own", "30 % wrong"))
    lesson.check("the right labels leave more for the test", own.mean() > lot.test.accuracy.mean() + 0.05,
                 f"{percent(own.mean().item())}, with 30 % wrong {percent(wrong.mean().item())}")  # fmt: skip
    lesson.shows(
        f"all three end with a training accuracy of {percent(lot.train.accuracy.mean().item())} or so, and read "
        f"{percent(own.mean().item())}, {percent(wrong.mean().item())} and "
        f"{percent(lot.test.accuracy.mean().item())} of the test. Training accuracy says how much a network can hold, "
        f"never what it has understood. The time tells a little: 90 % took {table[0]['steps to 90 %']} steps with a rule "
        f"to find and {table[2]['steps to 90 %']} without."
    )


def first_step_above(run: Run, accuracy: float) -> int | str:
    reached: Sequence[int] = [point.step for point in run.curve if point.train.accuracy.mean() >= accuracy]
    return reached[0] if reached else "never"
