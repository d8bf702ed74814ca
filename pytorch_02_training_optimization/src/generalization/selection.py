"""What choosing does to the number by which you chose: the winner's curse, and a test set that was looked at."""

import math

from pytorch_02_training_optimization.src.generalization.stack import Bench, score
from pytorch_02_training_optimization.src.generalization.tasks import CLASSES, accuracy_error
from shared.lesson import Lesson
from shared.units import percent

import torch


def expected_best(candidates: int, accuracy: float, count: int) -> float:
    """The mean of the highest of `candidates` accuracies, each measured on its own `count` samples, all truly the same.

    Exact: the mean of a maximum is the sum over k of P(maximum >= k), and P(maximum < k) = P(one < k) ** candidates.
    """
    right = torch.arange(count + 1, dtype=torch.float64)
    ways = math.lgamma(count + 1) - torch.lgamma(right + 1) - torch.lgamma(count - right + 1)
    chance = (ways + right * math.log(accuracy) + (count - right) * math.log1p(-accuracy)).exp()
    below = chance.cumsum(0)[:-1].clamp(max=1)  # P(one < k) for k = 1 … count
    return float((1 - below**candidates).sum() / count)


def simulate_best(
    candidates: int, accuracy: float, count: int, trials: int, generator: torch.Generator
) -> torch.Tensor:
    """(trials,): the highest accuracy that was seen in each trial."""
    counts = torch.full((trials, candidates), float(count))
    return torch.binomial(counts, torch.full_like(counts, accuracy), generator=generator).amax(dim=1) / count


def show_winners_curse(lesson: Lesson, letters: Bench, clouds: Bench) -> None:
    lesson.section(
        "The winner's curse",
        "You try many settings and report the validation accuracy of the best. It is the best partly because it is good and "
        "partly because it was lucky, and luck does not come along to the test. Here all candidates are equally good, 40 % "
        "right; the table says what the best of them seems to be.",
    )
    trials, generator = lesson.pick(full=2000, quick=500), torch.Generator().manual_seed(lesson.options.seed)
    table, worst = [], 0.0
    for candidates in (1, 10, 100):
        row: dict[str, object] = {"candidates": candidates}
        for count in (100, 1000, 10_000):
            seen = simulate_best(candidates, 0.4, count, trials, generator)
            exact = expected_best(candidates, 0.4, count)
            worst = max(worst, abs(seen.mean().item() - exact) / (seen.std().item() / math.sqrt(trials)))
            row[f"validated on {count:,} (%)"] = f"{100 * exact:.1f}"
            lesson.record("best seen", 100 * exact, "%", candidates=candidates, count=count)
        table.append(row)
    lesson.table(table)
    curse = expected_best(100, 0.4, 100) - 0.4
    lesson.check(
        "the formula is what a simulation finds", worst < 5, f"within {worst:.1f} standard errors, {trials:,} trials"
    )
    small, large = (expected_best(100, 0.4, count) - 0.4 for count in (100, 10_000))
    lesson.check("a hundred times the samples, a tenth of the curse", 8 < small / large < 12,
                 f"{100 * small:.1f} and {100 * large:.2f} points")  # fmt: skip
    lesson.text(
        "And in earnest: every training of this lesson so far is a candidate. The best is chosen by the first 100 samples "
        "of the validation set; the test says what it is worth."
    )
    rows = []
    for bench in (letters, clouds):
        seen, kept, tested = choose_among(bench, 100)
        rows.append({"task": bench.task.name, "candidates": seen.numel(), "seen (%)": 100 * kept,
                     "on the test (%)": 100 * tested, "lost": f"{100 * (kept - tested):+.1f} points"})  # fmt: skip
        lesson.record("winner's curse", 100 * (kept - tested), "points", task=bench.task.name)
    lesson.table(rows)
    lesson.shows(
        f"the best of 100 equal candidates seems {100 * curse:.0f} points better than it is on 100 samples. It shrinks with "
        "the root of the number of samples and grows slowly with the number of tries. So validation chooses, and a number "
        "to report comes from samples that chose nothing. In earnest the candidates resemble each other and are not equal, "
        f"so the loss is smaller or larger by luck: {rows[0]['lost']} and {rows[1]['lost']} here."
    )


def choose_among(bench: Bench, count: int) -> tuple[torch.Tensor, float, float]:
    """All accuracies on the first `count` of the validation set, the highest of them, and what that one has on the test."""
    part = bench.task.validation
    seen, tested = [], []
    for run in bench.runs.values():
        seen.append(score(run.parameters, part.x[:count], part.y[:count]).accuracy)
        tested.append(run.end.test.accuracy)
    accuracies, tests = torch.cat(seen), torch.cat(tested)
    winner = int(accuracies.argmax())
    return accuracies, accuracies[winner].item(), tests[winner].item()


def tune_on_the_test_set(labels: torch.Tensor, looked_at: int, tries: int, generator: torch.Generator) -> torch.Tensor:
    """The mistake: sheets of answers drawn by lot, of which those that score well on the test are put to the vote.

    Only the score on the first `looked_at` labels is used, as a leaderboard would tell it. Returns one answer for each
    label. No picture is looked at, so nothing can be learned.
    """
    sheets = torch.randint(CLASSES, (tries, len(labels)), generator=generator)
    scores = (sheets[:, :looked_at] == labels[:looked_at]).float().mean(dim=1)
    votes = torch.zeros(len(labels), CLASSES)
    for sheet in sheets[scores > scores.median()]:
        votes[torch.arange(len(labels)), sheet] += 1
    return votes.argmax(dim=1)


def show_climbing(lesson: Lesson, letters: Bench) -> None:
    lesson.section(
        "A test set that is looked at",
        "How much can be won by looking at the test score again and again? Here is an answerer that sees no picture at all. "
        "It hands in sheets of random answers, hears one number for each, and lets the better half vote.",
    )
    labels = letters.task.test.y.cpu()
    count = len(labels) // 2
    generator = torch.Generator().manual_seed(lesson.options.seed)
    rows, gained = [], {}
    for tries in (10, 100, 1000):
        right = (tune_on_the_test_set(labels, count, tries, generator) == labels).float()
        seen, fresh = right[:count].mean().item(), right[count:].mean().item()
        gained[tries] = seen, fresh
        rows.append({"tries": tries, "on the test that it saw (%)": 100 * seen, "on fresh letters (%)": 100 * fresh})
        lesson.record("accuracy on the test", 100 * seen, "%", tries=tries)
    lesson.table(rows)
    seen, fresh = gained[1000]
    error = accuracy_error(0.1, count)
    lesson.check("a thousand looks lift chance on the test", seen > 0.1 + 5 * error,
                 f"{percent(seen)} of {count:,}; guessing 10 %, error {100 * error:.1f}")  # fmt: skip
    lesson.check("on fresh letters it is still chance", abs(fresh - 0.1) < 5 * error, percent(fresh))
    lesson.shows(
        f"{percent(seen)} by looking alone (Blum and Hardt 2015 do it to leaderboards). Your hundred small decisions by the "
        "test score do the same more politely. Open the test set once, when nothing is left to be decided; who must look "
        "often needs a larger one, or a fresh one."
    )
