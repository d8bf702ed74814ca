"""What each cure is worth, on two tasks: one by one, by strength, and together."""

from dataclasses import replace
from functools import partial
from typing import Any

from pytorch_02_training_optimization.src.generalization.stack import (
    BATCH_SIZE,
    Bench,
    Gain,
    Run,
    cut_out,
    flip,
    paired_gain,
    shift,
    train,
    unpaired_error,
)
from pytorch_02_training_optimization.src.generalization.tasks import accuracy_error
from shared.lesson import Lesson
from shared.timing import compare, ratio
from shared.units import percent

import torch

LETTERS_ONLY = {"shifted by a pixel", "mirrored", "a square cut out"}


def list_cures(bench: Bench) -> dict[str, dict[str, Any]]:
    return {
        "smaller network": {"width": bench.plain.width // 4},
        "dropout 0.4": {"dropout": 0.4},
        "weight decay 0.2": {"decay": 0.2},
        "label smoothing 0.1": {"smoothing": 0.1},
        "mixup": {"mixes": True},
        "shifted by a pixel": {"augment": shift},
        "mirrored": {"augment": flip},
        "a square cut out": {"augment": cut_out},
        "averaged weights": {"averaging": 0.98},
        "four times the data": {"count": 4 * bench.plain.count},
    }


def lowest_loss(run: Run) -> torch.Tensor:
    """(S,): where in the curve each network's validation loss was lowest."""
    return torch.stack([point.validation.loss for point in run.curve]).argmin(dim=0)


def stopped_early(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and test accuracy (S,) where each network's validation loss was lowest."""
    best = lowest_loss(run)
    network = torch.arange(len(best))
    trained, tested = (
        torch.stack([getattr(point, part).accuracy for point in run.curve]) for part in ("train", "test")
    )
    return trained[best, network], tested[best, network]


def measure_cures(bench: Bench) -> dict[str, tuple[Gain, float]]:
    """For each cure its gain, and the gap between training and test accuracy in points."""
    plain = bench.run().end
    found = {"nothing": (Gain(0.0, 0.0), 100 * (plain.train.accuracy - plain.test.accuracy).mean().item())}
    trained, tested = stopped_early(bench.run())
    found["early stopping"] = paired_gain(tested, plain.test.accuracy), 100 * (trained - tested).mean().item()
    for name, cure in list_cures(bench).items():
        if bench.task.name != "letters" and name in LETTERS_ONLY:
            continue
        end = bench.run(**cure).end
        found[name] = bench.gain(**cure), 100 * (end.train.accuracy - end.test.accuracy).mean().item()
    return found


def step_costs(lesson: Lesson, bench: Bench) -> dict[str, float]:
    """How many times longer a training takes with each cure: a few steps of each, timed in turn, with little to measure."""
    few = bench.task.validation.split(10)[0]
    task, plain = replace(bench.task, validation=few, test=few), replace(bench.plain, count=BATCH_SIZE)
    steps = lesson.pick(full=10, quick=3)
    cures = {name: cure for name, cure in list_cures(bench).items() if name != "four times the data"}
    functions = {"nothing": partial(train, task, replace(plain, steps=steps), bench.seeds, 0)}
    for name, cure in cures.items():
        functions[name] = partial(train, task, replace(plain, steps=steps, **cure), bench.seeds, 0)
    timings = compare(functions, lesson.device, rounds=3, budget_s=lesson.pick(full=1.0, quick=0.05))
    costs = {name: ratio(timing, timings["nothing"]).median for name, timing in timings.items()}
    steps_taken = [bench.run().curve[place].step for place in lowest_loss(bench.run()).tolist()]
    return costs | {"early stopping": sum(steps_taken) / len(steps_taken) / plain.steps}


def show_cures(lesson: Lesson, letters: Bench, clouds: Bench) -> None:
    lesson.section(
        "What each cure is worth",
        f"Both networks overfit: each knows its {letters.plain.count} training samples by heart. But of the letters all "
        "labels are right and the shapes are hard to find; of the clouds 30 % of the labels are wrong and the centres are "
        f"easy to find. Each cure meets the same {letters.seeds} seeds, that is the same samples, start and batches, and is "
        "compared with no cure seed by seed. In points of test accuracy, the standard error in brackets; the gap is "
        "training minus test. The time is that of a step; for early stopping, the steps up to its lowest loss.",
    )
    found = {bench.task.name: measure_cures(bench) for bench in (letters, clouds)}
    costs = step_costs(lesson, letters)
    table = []
    for name, (gain, gap) in found["letters"].items():
        row: dict[str, object] = {"cure": name, "letters": "–" if name == "nothing" else str(gain), "gap": round(gap)}
        cloud = found["clouds"].get(name)
        row |= {"clouds": "–" if cloud is None or name == "nothing" else str(cloud[0]),
                "gap ": "–" if cloud is None else round(cloud[1]),
                "time": f"{costs[name]:.1f}x" if name in costs else "–"}  # fmt: skip
        table.append(row)
        for task in ("letters", "clouds"):
            if name in found[task] and name != "nothing":
                lesson.record("gain", found[task][name][0].points, "points", cure=name, task=task,
                              error=found[task][name][0].error)  # fmt: skip
    lesson.table(table)
    ends = {bench.task.name: bench.run().end for bench in (letters, clouds)}
    lesson.check("without a cure both know their samples by heart",
                 min(end.train.accuracy.mean().item() for end in ends.values()) > 0.95,
                 ", ".join(f"{name} {percent(end.train.accuracy.mean().item())} and {percent(end.test.accuracy.mean().item())}"
                           for name, end in ends.items()))  # fmt: skip
    more = [found[task]["four times the data"][0] for task in ("letters", "clouds")]
    lesson.check(
        "more data helps with both diseases", min(gain.points for gain in more) > 3, f"{more[0]} and {more[1]}"
    )
    early = [found[task]["early stopping"][0] for task in ("letters", "clouds")]
    lesson.check("early stopping is worth more on wrong labels", early[1].points > early[0].points,
                 f"letters {early[0]}, clouds {early[1]}")  # fmt: skip
    decay = found["clouds"]["weight decay 0.2"][0]
    lesson.check("weight decay unlearns wrong labels", decay.points > 3, f"clouds {decay}")
    moved = found["letters"]["shifted by a pixel"][0]
    lesson.check("moving the letters helps to read them", moved.points > 0, f"letters {moved}")
    treated, untreated = (clouds.run(**cure).end.test.accuracy for cure in ({"averaging": 0.98}, {}))
    count, accuracy = len(letters.task.test), ends["letters"].test.accuracy.mean().item()
    harmful = [name for name, (gain, _) in found["letters"].items() if gain.points < -3 * gain.error]
    helpful = [name for name, (gain, _) in found["clouds"].items() if gain.points > 3 * gain.error]
    turned = [name for name in harmful if name in helpful]
    lesson.shows(
        f"no cure is good in itself. {len(harmful)} of {len(found['letters']) - 1} cost accuracy on the letters by more "
        f"than three standard errors ({', '.join(harmful) or 'none'}), and of these {', '.join(turned) or 'none'} gain as "
        "clearly on the clouds. To forbid learning by heart helps where labels are wrong, and can hinder where every sample "
        f"is right and rare. Augmentation helps as far as it tells the truth: shifting {moved}, since letters in the test "
        f"are shifted, mirroring {found['letters']['mirrored'][0]}, since none of them is mirrored. The small errors come "
        f"from pairing: for averaged weights on the clouds {paired_gain(treated, untreated).error:.1f} points, "
        f"compared as two strangers {unpaired_error(treated, untreated):.1f}. A single accuracy has an error of "
        f"{100 * accuracy_error(accuracy, count):.1f} from its {count:,} test letters alone."
    )


STRENGTHS: dict[str, tuple[float, ...]] = {
    "dropout": (0.0, 0.2, 0.4, 0.6, 0.8),
    "decay": (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6),
}
QUICK_STRENGTHS: dict[str, tuple[float, ...]] = {"dropout": (0.0, 0.4, 0.8), "decay": (0.0, 0.2, 0.8)}


def show_strengths(lesson: Lesson, letters: Bench, clouds: Bench) -> None:
    lesson.section(
        "How strong",
        "A cure has a dose. Dropout and weight decay are swept on both tasks, with the same seeds at every dose. The best "
        "one is chosen by validation; the table shows the test.",
    )
    strengths = lesson.pick(full=STRENGTHS, quick=QUICK_STRENGTHS)
    gains: dict[tuple[str, str], dict[float, Gain]] = {}
    best: dict[tuple[str, str], float] = {}
    for cure, doses in strengths.items():
        for bench in (letters, clouds):
            runs = {dose: bench.run(**{cure: dose}) for dose in doses}
            key = cure, bench.task.name
            gains[key] = {dose: bench.gain(**{cure: dose}) for dose in doses}
            best[key] = max(doses, key=lambda dose: runs[dose].end.validation.accuracy.mean().item())
        lesson.table([{cure: f"{dose:g}", **{f"gain, {task} (points)": "–" if dose == 0 else str(gains[cure, task][dose])
                                             for task in ("letters", "clouds")}} for dose in doses])  # fmt: skip
    worst = gains["dropout", "letters"][0.8]
    lesson.check("dropout 0.8 leaves too little of the letters", worst.points < -3, str(worst))
    middle = [gains["dropout", task][0.4].points for task in ("letters", "clouds")]
    lesson.check("the same dose is worth more on wrong labels", middle[1] > middle[0],
                 f"dropout 0.4: letters {middle[0]:+.1f}, clouds {middle[1]:+.1f}")  # fmt: skip
    lesson.figure("strengths", lambda *axes: draw_strengths(axes, gains, strengths), columns=2)
    chosen = {cure: " and ".join(f"{best[cure, task]:g} for the {task}" for task in ("letters", "clouds"))
              for cure in strengths}  # fmt: skip
    lesson.shows(
        f"validation chooses dropout {chosen['dropout']}, and weight decay {chosen['decay']}. A default from a paper is "
        "a dose for the paper's disease. Sweep in factors of two, and look on both sides of the best dose before you "
        "believe in it."
    )


def draw_strengths(axes: Any, gains: dict[tuple[str, str], dict[float, Gain]], strengths: Any) -> None:
    for axis, cure in zip(axes, strengths, strict=True):
        for task in ("letters", "clouds"):
            found = gains[cure, task]
            axis.errorbar(range(len(found)), [gain.points for gain in found.values()],
                          yerr=[gain.error for gain in found.values()], capsize=3, label=task)  # fmt: skip
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(strengths[cure])), [f"{dose:g}" for dose in strengths[cure]])
        names = {"dropout": "share of hidden units dropped", "decay": "weight decay"}
        axis.set(xlabel=names[cure], ylabel="gain in test accuracy (points)", title=cure.capitalize())
        axis.legend(fontsize=9)


def show_together(lesson: Lesson, letters: Bench, clouds: Bench) -> None:
    lesson.section(
        "Cures together",
        "Two cures of one disease do the same work twice; two of different diseases may add up. Each line is a pair, with "
        "what its two parts gain alone and what they gain together.",
    )
    pairs: list[tuple[Bench, dict[str, Any], dict[str, Any], str]] = [
        (clouds, {"dropout": 0.4}, {"decay": 0.2}, "dropout 0.4, decay 0.2"),
        (clouds, {"decay": 0.2}, {"count": 4 * clouds.plain.count}, "decay 0.2, four times the data"),
        (letters, {"augment": shift}, {"decay": 0.05}, "shifted, decay 0.05"),
        (letters, {"augment": shift}, {"count": 4 * letters.plain.count}, "shifted, four times the data"),
    ]
    table, sums = [], {}
    for bench, first, second, name in pairs:
        alone, together = [bench.gain(**cure) for cure in (first, second)], bench.gain(**first, **second)
        sums[bench.task.name, name] = alone[0].points + alone[1].points, together
        table.append({"task": bench.task.name, "pair": name, "alone": f"{alone[0].points:+.1f} and {alone[1].points:+.1f}",
                      "sum": f"{alone[0].points + alone[1].points:+.1f}", "together": str(together)})  # fmt: skip
        lesson.record("gain", together.points, "points", cure=name, task=bench.task.name, error=together.error)
    lesson.table(table)
    total, both = sums["clouds", "dropout 0.4, decay 0.2"]
    lesson.check("two cures of one disease gain no more than their sum", both.points < total + 3 * both.error,
                 f"{both} together, {total:+.1f} as a sum")  # fmt: skip
    assert clouds.task.limit is not None
    reached = max(clouds.run(**first, **second).end.test.accuracy.mean().item()
                  for bench, first, second, _ in pairs if bench is clouds)  # fmt: skip
    lesson.check("nothing passes the best possible rule", reached < clouds.task.limit + 0.01,
                 f"clouds: {percent(reached)} of {percent(clouds.task.limit)}")  # fmt: skip
    lesson.shows(
        f"of the clouds {percent(clouds.run().end.test.accuracy.mean().item())} were read without a cure and "
        f"{percent(reached)} with the best pair, where {percent(clouds.task.limit)} is possible. Every cure slows learning "
        "by heart, and too many at once slow all learning: after adding one, choose the doses of the others again."
    )
