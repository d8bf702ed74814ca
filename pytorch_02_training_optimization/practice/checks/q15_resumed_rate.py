"""The rates of a training that was stopped against those of the formula: the same total, a longer one, stopped twice."""

import math
from types import SimpleNamespace
from typing import Any

from shared.practice import expect
from shared.traps import shown
from shared.units import significant

PEAK = 0.4


class CosineSchedule:
    """As in the question's file."""

    def __init__(self, optimizer: Any, total: int) -> None:
        self.optimizer, self.total = optimizer, total
        self.peak = optimizer.param_groups[0]["lr"]
        self.steps_done = 0

    def step(self) -> None:
        self.steps_done += 1
        share = min(self.steps_done, self.total) / self.total
        self.optimizer.param_groups[0]["lr"] = self.peak * (1 + math.cos(math.pi * share)) / 2


def make_optimizer() -> Any:
    return SimpleNamespace(param_groups=[{"params": [], "lr": PEAK}])


def right_rate(step: int, total: int) -> float:
    return PEAK * (1 + math.cos(math.pi * min(step, total) / total)) / 2


def check(answer: Any, seed: int) -> None:
    expect_resumed(answer, [8], 20, 20, "stopped after 8 of 20 steps")
    expect_resumed(answer, [8], 20, 30, "stopped after 8 of 20 steps and resumed with a total of 30")
    expect_resumed(answer, [20], 20, 40, "finished with 20 steps and resumed with a total of 40")
    expect_resumed(answer, [5, 11], 20, 20, "stopped twice, after 5 and after 11 of 20 steps")
    expect_resumed(answer, [0], 6, 6, "stopped before its first step")
    expect_resumed(answer, [1 + seed, 4 + seed], 9, 13, "stopped twice and made longer")


def expect_resumed(answer: Any, stops: list[int], planned: int, total: int, story: str) -> None:
    optimizer = make_optimizer()
    schedule = getattr(answer, "CosineSchedule", CosineSchedule)(optimizer, planned)
    done = 0
    for stop in stops:
        for step in range(done, stop):
            expect_rate(optimizer, step, planned if done == 0 else total, done, story)
            schedule.step()
        done = stop
        before = optimizer.param_groups[0]["lr"]
        saved = answer.save(optimizer, schedule)
        expect(isinstance(saved, dict), f"save(…) returned {shown(saved)}; return a dict of numbers")
        plain = all(isinstance(value, int | float) for value in saved.values())
        expect(plain, "save(…) keeps something that is no number; what a checkpoint keeps has to survive a file")
        expect(optimizer.param_groups[0]["lr"] == before, "save(…) changed the rate of the optimizer")
        optimizer = make_optimizer()
        schedule = answer.resume(optimizer, dict(saved), total)
        is_schedule = callable(getattr(schedule, "step", None))
        expect(is_schedule, f"resume(…) returned {shown(schedule)}; return a schedule with step()")
    for step in range(done, total + 3):
        expect_rate(optimizer, step, total, done, story)
        schedule.step()


def expect_rate(optimizer: Any, step: int, total: int, resumed_at: int, story: str) -> None:
    found, right = optimizer.param_groups[0]["lr"], right_rate(step, total)
    expect(isinstance(found, float), f"{story}: the rate of step {step} is {shown(found)}; it has to be a float")
    when = "the first after the resume" if step == resumed_at else f"{step - resumed_at} steps after the last resume"
    expect(
        math.isclose(found, right, rel_tol=1e-9, abs_tol=1e-12),
        f"{story}: step {step}, {when}, is made with {significant(found, 4)} and should be with {significant(right, 4)}; "
        "which of peak, step and total is wrong?",
    )


def saves_the_rate(optimizer: Any, schedule: Any) -> dict[str, Any]:
    return {"lr": optimizer.param_groups[0]["lr"], "total": schedule.total}


def saves_all(optimizer: Any, schedule: Any) -> dict[str, Any]:
    rate = optimizer.param_groups[0]["lr"]
    return {"lr": rate, "total": schedule.total, "peak": schedule.peak, "steps_done": schedule.steps_done}


def begins_a_new_cosine(optimizer: Any, saved: dict[str, Any], total: int) -> Any:
    optimizer.param_groups[0]["lr"] = saved["lr"]
    return CosineSchedule(optimizer, total)


def counts_on_from_a_wrong_peak(optimizer: Any, saved: dict[str, Any], total: int) -> Any:
    optimizer.param_groups[0]["lr"] = saved["lr"]
    schedule = CosineSchedule(optimizer, total)
    schedule.steps_done = saved["steps_done"]
    return schedule


def forgets_the_next_step(optimizer: Any, saved: dict[str, Any], total: int) -> Any:
    schedule = CosineSchedule(optimizer, total)
    schedule.steps_done = saved["steps_done"]
    return schedule


def keeps_the_old_total(optimizer: Any, saved: dict[str, Any], total: int) -> Any:
    schedule = CosineSchedule(optimizer, saved["total"])
    for _ in range(saved["steps_done"]):
        schedule.step()
    return schedule


def brings_the_old_rate(optimizer: Any, saved: dict[str, Any], total: int) -> Any:
    schedule = forgets_the_next_step(optimizer, saved, total)
    optimizer.param_groups[0]["lr"] = saved["lr"]
    return schedule


WRONG = {
    "begins a new cosine": ({"save": saves_the_rate, "resume": begins_a_new_cosine}, "1 steps after the last resume"),
    "counts on from a wrong peak": (
        {"save": saves_all, "resume": counts_on_from_a_wrong_peak},
        "1 steps after the last resume",
    ),
    "forgets the very next step": (
        {"save": saves_all, "resume": forgets_the_next_step},
        "the first after the resume, is made with 0.4000",
    ),
    "keeps the old total": ({"save": saves_all, "resume": keeps_the_old_total}, "resumed with a total of 30"),
    "brings the rate of the old total": (
        {"save": saves_all, "resume": brings_the_old_rate},
        "resumed with a total of 30: step 8, the first after the resume",
    ),
}
