"""The value of data: a learning curve, a power law through it, and what a cure is worth in letters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.generalization.stack import Bench, shift
from shared.lesson import Lesson
from shared.units import percent

import torch


@dataclass(frozen=True)
class PowerLaw:
    """error = factor x count ** -exponent"""

    factor: float
    exponent: float

    def error(self, count: float) -> float:
        return self.factor * math.pow(count, -self.exponent)

    def count(self, error: float) -> float:
        """How many samples that error needs."""
        return math.pow(self.factor / error, 1 / self.exponent)


def fit_power_law(counts: Sequence[float], errors: Sequence[float]) -> PowerLaw:
    """The straight line of least squares through log(error) over log(count). Raises ValueError for fewer than two counts."""
    if len(set(counts)) < 2 or min(errors) <= 0:
        raise ValueError("a line needs two different counts, and a logarithm errors above 0")
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (counts, errors))
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    return PowerLaw((y.mean() - slope * x.mean()).exp().item(), -slope.item())


def worth_in_samples(counts: Sequence[int], accuracies: Sequence[float], accuracy: float) -> float:
    """How many samples reach `accuracy`, between the measured counts on a line over log(count); nan outside of them."""
    for (low, worse), (high, better) in zip(
        zip(counts, accuracies, strict=True), zip(counts[1:], accuracies[1:], strict=True), strict=False
    ):
        if worse <= accuracy <= better and better > worse:
            return math.exp(math.log(low) + (accuracy - worse) / (better - worse) * math.log(high / low))
    return math.nan


def show_amount(lesson: Lesson, bench: Bench) -> None:
    lesson.section(
        "What more data is worth",
        "The same network with more and more letters, always the same number of steps. On double logarithmic axes many "
        "learning curves are straight for a while: error = factor x count^-exponent (Hestness et al. 2017). The law is "
        "fitted to all sizes but the largest, which it then has to foretell.",
    )
    plain = bench.plain.count
    counts = [plain // 4, plain // 2, plain, 2 * plain, 4 * plain, 8 * plain]
    runs = {count: bench.run(count=count) for count in lesson.progress(counts, "amounts", len(counts))}
    errors = {count: 1 - run.end.test.accuracy.mean().item() for count, run in runs.items()}
    law = fit_power_law(counts[:-1], [errors[count] for count in counts[:-1]])
    table = []
    for count, run in runs.items():
        spread = 100 * (run.end.test.accuracy.std() / math.sqrt(bench.seeds)).item()
        table.append({"letters": f"{count:,}", "training (%)": 100 * run.end.train.accuracy.mean().item(),
                      "test (%)": f"{100 * (1 - errors[count]):.1f} ({spread:.1f})",
                      "error (%)": 100 * errors[count], "the law (%)": 100 * law.error(count)})  # fmt: skip
        lesson.record("test error", 100 * errors[count], "%", letters=count)
    lesson.table(table)
    lesson.check("four times the letters, always a lower error",
                 all(errors[4 * count] < errors[count] for count in counts[:-2]),
                 " → ".join(percent(error) for error in errors.values()))  # fmt: skip
    lesson.check("the exponent is positive and far below 1", 0 < law.exponent < 0.8, f"{law.exponent:.2f}")
    last, foretold = errors[counts[-1]], law.error(counts[-1])
    treated = bench.run(augment=shift).end.test.accuracy.mean().item()
    worth = worth_in_samples(counts, [1 - error for error in errors.values()], treated)
    lesson.figure("amount_of_data", lambda axis: draw_amount(axis, errors, law, 1 - treated, plain))
    what = f"as much as {worth - plain:,.0f} more letters" if worth > plain else "no more letters"
    lesson.shows(
        f"a doubling takes {percent(1 - 2**-law.exponent)} of the error away, so half the error would need "
        f"{2 ** (1 / law.exponent):,.0f} times the letters. Foretold {percent(foretold)} for {counts[-1]:,} letters, "
        f"measured {percent(last)}: the law was too {'hopeful' if last > foretold else 'gloomy'}, "
        "which is why you extend it by one doubling and not by five. On this curve every cure has a price in letters: "
        f"shifting by a pixel gives {plain} of them the accuracy of {worth:,.0f}, {what}."
        if math.isfinite(worth)
        else f"a doubling takes {percent(1 - 2**-law.exponent)} of the error away. Foretold {percent(foretold)} for "
        f"{counts[-1]:,} letters, measured {percent(last)}. Extend such a law by one doubling and not by five."
    )


def draw_amount(axis: Any, errors: dict[int, float], law: PowerLaw, shifted: float, plain: int) -> None:
    axis.plot(list(errors), [100 * error for error in errors.values()], linestyle="", label="measured")
    axis.plot(list(errors), [100 * law.error(count) for count in errors], marker="",
              label=f"error = {law.factor:.2g} x count^-{law.exponent:.2f}, all but the last")  # fmt: skip
    axis.plot([plain], [100 * shifted], linestyle="", marker="^", label="shifted by a pixel")
    axis.set(xscale="log", yscale="log", xlabel="training letters", ylabel="test error (%)",
             title="The value of data")  # fmt: skip
    axis.set_xticks(list(errors), [f"{count:,}" for count in errors])
    ticks = [30, 40, 50, 60, 70, 80, 90]
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.legend(fontsize=9)
