"""A chapter of experiment_tracking: eight runs that differ in two settings, compared from their folders alone."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src.tracking.event_files import read_board
from pytorch_02_training_optimization.src.tracking.journal import METRICS, Journal, Line, read_journal
from pytorch_02_training_optimization.src.tracking.records import (
    RECORD,
    differences,
    flatten,
    record_of,
    write_record,
)
from pytorch_02_training_optimization.src.tracking.task import Config, Task, train, weights_digest
from pytorch_02_training_optimization.src.tracking.trackers import Board, Everyone
from shared.lesson import Lesson

import torch

RATES, WIDTHS = (0.001, 0.01, 0.03, 0.3), (16, 64)
LOSS, ACCURACY = "validation/loss", "validation/accuracy"


@dataclass(frozen=True)
class Run:
    """What a folder tells of a run."""

    name: str
    record: dict[str, Any]
    lines: list[Line]

    def curve(self, tag: str) -> list[tuple[int, float]]:
        return [(int(line["step"]), line[tag]) for line in self.lines if tag in line]

    @property
    def best(self) -> tuple[int, float]:
        """Step and value of the lowest validation loss; NaN is never the lowest."""
        return min(self.curve(LOSS), key=lambda point: (math.isnan(point[1]), point[1]))


def run_name(config: Config) -> str:
    """Short enough for a legend, with the settings that vary in this study."""
    return f"lr{config.lr:g}_width{config.width}"


def run_once(parent: Path, config: Config, task: Task, code: Mapping[str, Any]) -> str:
    """Trains in a folder of its own, record first; the digest of the weights."""
    folder = parent / run_name(config)
    folder.mkdir()
    write_record(folder, record_of(config, task, code), code["patch"])
    tracker = Everyone(Journal(folder / METRICS), Board(folder, config))
    model = train(config, task, tracker)
    tracker.close()
    return weights_digest(model)


def read_runs(parent: Path) -> list[Run]:
    """All runs below a folder, the best first."""
    runs = [
        Run(path.parent.name, json.loads(path.read_text(encoding="utf-8")), read_journal(path.parent / METRICS))
        for path in parent.glob(f"*/{RECORD}")
    ]
    return sorted(runs, key=lambda run: (math.isnan(run.best[1]), run.best[1]))


class Lowest:
    """A tracker that keeps the lowest value of one tag."""

    def __init__(self, tag: str) -> None:
        self.tag, self.value = tag, math.inf

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.value = min(self.value, values.get(self.tag, math.inf))  # a NaN is not below anything

    def close(self) -> None:
        pass


def lowest_losses(config: Config, task: Task, seeds: Sequence[int]) -> torch.Tensor:
    """(seeds,): what the table is sorted by, for other starts and batches."""
    found = []
    for seed in seeds:
        lowest = Lowest(LOSS)
        train(replace(config, seed=seed), task, lowest)
        found.append(lowest.value)
    return torch.tensor(found, dtype=torch.float64)


def show_comparison(lesson: Lesson, parent: Path, task: Task, code: Mapping[str, Any]) -> tuple[Path, str]:
    """The folder of the best run and the digest of its weights."""
    lesson.section(
        "Eight runs, one table",
        f"{len(RATES)} learning rates x {len(WIDTHS)} widths, each run in a folder with its record, its journal and its "
        "events. The table below is made from the folders, as you would make it a week later; the best run is the one with "
        "the lowest validation loss at any time.",
    )
    steps = lesson.pick(full=600, cpu=400, quick=100)
    seed = lesson.options.seed
    configs = [Config(lr=lr, width=width, steps=steps, validate_every=steps // 20, seed=seed)
               for width in WIDTHS for lr in RATES]  # fmt: skip
    digests = {run_name(config): run_once(parent, config, task, code)
               for config in lesson.progress(configs, "runs", len(configs))}  # fmt: skip
    runs = read_runs(parent)
    for run in runs:
        lesson.record("lowest validation loss", run.best[1], "nats", run=run.name)
    lesson.table(
        [
            {"run": run.name, "lr": f"{run.record['config']['lr']:g}", "width": run.record["config"]["width"],
             "lowest loss": run.best[1], "at step": run.best[0], "last loss": run.curve(LOSS)[-1][1],
             "accuracy then (%)": 100 * dict(run.curve(ACCURACY))[run.best[0]]}
            for run in runs
        ],
        best=0,
    )  # fmt: skip
    best, second = runs[0], runs[1]
    lesson.check(
        "every run is there, in its own folder", {run.name for run in runs} == set(digests), f"{len(runs)} records"
    )
    varied = {key for run in runs for key in differences(best.record, run.record)}
    lesson.check("their records differ in the two settings alone", varied == {"config.lr", "config.width"},
                 f"{len(varied)} of {len(flatten(best.record))} entries")  # fmt: skip
    events = read_board(parent / best.name).Scalars(LOSS)
    apart = max(abs(event.value - value) for event, (_, value) in zip(events, best.curve(LOSS), strict=True))
    lesson.check("TensorBoard has the best run's curve", apart < 1e-6, f"{len(events)} points, {apart:.0e} apart")
    worst = runs[-1]
    lesson.check("the choice of settings mattered", worst.best[1] - best.best[1] > 0.1,
                 f"lowest loss {best.best[1]:.2f} against {worst.best[1]:.2f}")  # fmt: skip
    lesson.figure("runs", lambda *axes: draw_runs(axes, runs), columns=2)
    lesson.figure("coordinates", lambda axis: draw_coordinates(axis, runs))
    most_accurate = max(runs, key=lambda run: run.curve(ACCURACY)[-1][1]).name
    show_seeds(lesson, best, second, "the same" if most_accurate == best.name else most_accurate, task)
    return parent / best.name, digests[best.name]


def show_seeds(lesson: Lesson, best: Run, second: Run, by_accuracy: str, task: Task) -> None:
    """Is the first really better than the second? Other seeds say how much of a difference is luck."""
    changed = differences(best.record, second.record)
    lesson.text("The best and the second best, and each again with other seeds:")
    lesson.items(
        {f"{key.partition('.')[2]}": f"{a:g} in the best, {b:g} in the second" for key, (a, b) in changed.items()}
    )
    first, other = Config(**best.record["config"]), Config(**second.record["config"])
    expected = {f"config.{name}" for name, value in asdict(first).items() if value != asdict(other)[name]}
    lesson.check("the difference names what differs", set(changed) == expected, ", ".join(sorted(expected)))
    count = lesson.pick(full=6, quick=3)
    seeds = [(first.seed + 1 + index) % 2**32 for index in range(count)]
    a, b = (lowest_losses(config, task, seeds) for config in (first, other))
    gap, error = (b - a).mean().item(), (b - a).std().item() / math.sqrt(count)
    lesson.table([{"run": run.name, f"lowest loss, mean of {count} seeds": x.mean().item(),
                   "from": x.min().item(), "to": x.max().item()} for run, x in ((best, a), (second, b))])  # fmt: skip
    lesson.check(
        "the seed alone moves the result", len(set(a.tolist())) > 1, f"by {a.max() - a.min():.3f} over {count} seeds"
    )
    if abs(gap) < 3 * error:  # there are few seeds
        verdict = "which leaves their order open"
    else:
        verdict = "so their order looks real" if gap > 0 else "so one run of each had misled you"
    table_gap = second.best[1] - best.best[1]
    lesson.shows(
        f"{best.name} won by {table_gap:.3f}. Over {count} other seeds its lead on {second.name} is {gap:.3f} with a "
        f"standard error of {error:.3f}, {verdict}. By accuracy after the last step the winner is {by_accuracy}: choose "
        "the metric before you look. And the first of eight was lucky too, so measure it once more, on a test set."
    )


def draw_runs(axes: Sequence[Any], runs: Sequence[Run]) -> None:
    for axis, width in zip(axes, WIDTHS, strict=True):
        for lr in RATES:
            (run,) = [run for run in runs if (run.record["config"]["lr"], run.record["config"]["width"]) == (lr, width)]
            steps, values = zip(*run.curve(ACCURACY), strict=True)
            is_best = run is runs[0]
            axis.plot(steps, [100 * value for value in values], label=f"lr {lr:g}" + (" (best)" if is_best else ""),
                      linewidth=2.5 if is_best else 1.2)  # fmt: skip
        axis.set(
            title=f"width {width}",
            xlabel="step",
            ylim=(0, 100 * max(a for r in runs for _, a in r.curve(ACCURACY)) + 5),
        )
        axis.legend(fontsize=8)
    axes[0].set(ylabel="validation accuracy (%)")


def draw_coordinates(axis: Any, runs: Sequence[Run]) -> None:
    """One line for each run through three scales, each from its lowest to its highest value."""
    scales = {
        "lr (log)": [math.log10(run.record["config"]["lr"]) for run in runs],
        "width (log)": [math.log2(run.record["config"]["width"]) for run in runs],
        "lowest validation loss": [run.best[1] for run in runs],
    }
    heights = {name: [(value - min(values)) / (max(values) - min(values)) for value in values]
               for name, values in scales.items()}  # fmt: skip
    above = -math.inf  # labels of runs that lie close together move up, in order
    for index, run in enumerate(runs):
        is_best = index == 0
        axis.plot(range(3), [column[index] for column in heights.values()], color="black" if is_best else "#8a8a8a",
                  linewidth=3 if is_best else 1.2, linestyle="-", marker="o", zorder=3 if is_best else 2)  # fmt: skip
        above = max(heights["lowest validation loss"][index], above + 0.04)
        axis.annotate(f"{run.best[1]:.2f}  {run.name}{' (best)' if is_best else ''}", (2, above), (8, 0),
                      textcoords="offset points", fontsize=9, va="center")  # fmt: skip
    for position, labels in (
        (0, {f"{lr:g}": math.log10(lr) for lr in RATES}),
        (1, {str(w): math.log2(w) for w in WIDTHS}),
    ):
        low, high = min(labels.values()), max(labels.values())
        for label, value in labels.items():
            axis.annotate(label, (position, (value - low) / (high - low)), (-8, 0), textcoords="offset points",
                          fontsize=9, ha="right", va="center", zorder=4,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    axis.set(xticks=range(3), xticklabels=list(scales), xlim=(-0.3, 2.7), yticks=[], title="Each run as one line")
