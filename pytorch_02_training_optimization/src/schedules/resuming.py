"""Chapters of lr_schedules: a training that goes on from a checkpoint, and parameters that come later."""

from collections.abc import Callable
from typing import Any

from pytorch_02_training_optimization.src.schedules.curves import cosine
from pytorch_02_training_optimization.src.schedules.stepping import Make, make_optimizer, rates_used
from shared.lesson import Lesson

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, LambdaLR, StepLR

PEAK, TOTAL, STOPPED = 0.1, 100, 50

Checkpoint = dict[str, Any]
Resume = Callable[[Make, Checkpoint], list[float]]


def train_until_stopped(make: Make) -> Checkpoint:
    optimizer = make_optimizer(PEAK)
    scheduler = make(optimizer)
    rates_used(optimizer, scheduler, STOPPED)
    return {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}


def resume(make: Make, saved: Checkpoint, steps: int = TOTAL - STOPPED) -> list[float]:
    """Right: both are made as at the start, then both are loaded. The rates of the steps that are left."""
    optimizer = make_optimizer(PEAK)
    scheduler = make(optimizer)
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    return rates_used(optimizer, scheduler, steps)


def resume_without_scheduler(make: Make, saved: Checkpoint) -> list[float]:
    """The mistake: the optimizer brings its rate along, and the schedule begins to count at 0."""
    optimizer = make_optimizer(PEAK)
    scheduler = make(optimizer)
    optimizer.load_state_dict(saved["optimizer"])
    return rates_used(optimizer, scheduler, TOTAL - STOPPED)


def resume_scheduler_last(make: Make, saved: Checkpoint) -> list[float]:
    """The mistake: made after the loading, a closed scheduler writes the rate of step 0, and every one counts from 0."""
    optimizer = make_optimizer(PEAK)
    optimizer.load_state_dict(saved["optimizer"])
    return rates_used(optimizer, make(optimizer), TOTAL - STOPPED)


RESUMED: dict[str, Make] = {
    "StepLR(30)": lambda o: StepLR(o, 30),
    "CosineAnnealingLR(100)": lambda o: CosineAnnealingLR(o, TOTAL),
    "LambdaLR(cosine)": lambda o: LambdaLR(o, lambda step: cosine(step, TOTAL)),
}
WAYS: dict[str, Resume] = {
    "both loaded": resume,
    "no scheduler state": resume_without_scheduler,
    "scheduler made last": resume_scheduler_last,
}


def show_resume(lesson: Lesson) -> None:
    lesson.section(
        "Resuming: the schedule has a state of its own",
        f"A training of {TOTAL} steps is stopped after {STOPPED} and goes on from a checkpoint. The optimizer's state holds "
        "the rate that was current; the scheduler's holds how many steps were made. With one of the two missing, the loss "
        "still falls, and the rate is another one than planned. Rates of three steps after the resume:",
    )
    table, rates, plan = [], {}, {}
    for name, make in RESUMED.items():
        saved = train_until_stopped(make)
        optimizer = make_optimizer(PEAK)
        plan[name] = rates_used(optimizer, make(optimizer), TOTAL)[STOPPED:]
        for way, go_on in WAYS.items():
            rates[name, way] = found = go_on(make, saved)
            table.append({"scheduler": name, "way": way, **{f"step {STOPPED + i}": found[i] for i in (0, 1, 35)},
                          f"step {TOTAL - 1}": found[-1]})  # fmt: skip
    lesson.table(table)
    lesson.check("both loaded: every rate as if never stopped", all(rates[name, "both loaded"] == plan[name] for name in plan),
                 f"{len(plan)} schedulers, {TOTAL - STOPPED} steps each, the same bits")  # fmt: skip
    lost = {name: rates[name, "no scheduler state"] for name in plan}
    lesson.check("without its state every scheduler goes wrong", all(lost[name] != plan[name] for name in plan),
                 "one drops late, one begins its half anew, one jumps")  # fmt: skip
    chained, jumped = lost["CosineAnnealingLR(100)"], lost["LambdaLR(cosine)"]
    lesson.check("chained: from the middle along the wrong half", chained[0] == plan["CosineAnnealingLR(100)"][0]
                 and chained[-1] > 0.2 * PEAK, f"ends at {chained[-1]:.4f} where 0 was planned")  # fmt: skip
    lesson.check(
        "closed: one right step, then back to the peak", jumped[1] > 0.99 * PEAK, f"{jumped[0]:.4f}, {jumped[1]:.4f}"
    )
    late = rates["CosineAnnealingLR(100)", "scheduler made last"]
    lesson.check("made after loading: it may look right and is not", late[-1] != plan["CosineAnnealingLR(100)"][-1],
                 f"begins at {late[0]:.4f}, ends at {late[-1]:.4f}")  # fmt: skip
    longer = resume(
        lambda o: CosineAnnealingLR(o, 2 * TOTAL), train_until_stopped(RESUMED["CosineAnnealingLR(100)"]), 150
    )
    optimizer = make_optimizer(PEAK)
    kept = CosineAnnealingLR(optimizer, 2 * TOTAL)
    kept.load_state_dict(train_until_stopped(RESUMED["CosineAnnealingLR(100)"])["scheduler"])
    lesson.check("T_max is part of the state: loading undoes a new one", kept.T_max == TOTAL,
                 f"made with {2 * TOTAL}, after load_state_dict {kept.T_max}")  # fmt: skip
    lesson.check("so the prolonged training goes up again", longer[-1] > 0.99 * PEAK,
                 f"{longer[50]:.4f} at step {TOTAL}, {longer[-1]:.4f} at step {2 * TOTAL - 1}")  # fmt: skip
    lesson.shows(
        f"without its state the chained cosine ends at {chained[-1]:.3f} and the closed one at {jumped[-1]:.3f}, where 0 was "
        "planned. Make optimizer and scheduler as at the start, load both, and compare the rate of the first step with your "
        "log. A LambdaLR keeps its count and not its function, so the function is whatever your code says today."
    )


# Parameters that come later

LATE: dict[str, Make] = {
    "StepLR(2)": lambda o: StepLR(o, 2),
    "CosineAnnealingLR(10)": lambda o: CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts(10)": lambda o: CosineAnnealingWarmRestarts(o, 10),
    "LambdaLR": lambda o: LambdaLR(o, lambda step: cosine(step, 10)),
}


def add_group_later(make: Make, steps: int) -> tuple[list[float], str]:
    """The mistake: at step 4 a second group comes, with the rate 0.1. Its rates until step `steps`, and any complaint."""
    optimizer = make_optimizer(PEAK)
    scheduler = make(optimizer)
    rates_used(optimizer, scheduler, 4)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": PEAK})
    rates = []
    for _ in range(4, steps):
        rates.append(float(optimizer.param_groups[1]["lr"]))
        optimizer.step()
        try:
            scheduler.step()
        except (ValueError, KeyError) as error:
            return rates, type(error).__name__
    return rates, ""


def groups_from_the_start(steps: int) -> list[list[float]]:
    """Right: both groups at once, and a function for each; the second waits at 0 until step 4."""
    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=PEAK)
    scheduler = LambdaLR(optimizer, [lambda step: cosine(step, 10), lambda step: cosine(step, 10) * (step >= 4)])
    rates = []
    for _ in range(steps):
        rates.append([float(rate) for rate in scheduler.get_last_lr()])
        optimizer.step()
        scheduler.step()
    return rates


def show_late_group(lesson: Lesson) -> None:
    lesson.section(
        "A parameter group that comes later",
        "Fine-tuning often begins with a new last layer and adds the rest with add_param_group when that one has settled. "
        "The scheduler was made before, and knows of one group only. Ten steps are planned; at step 4 a second group comes "
        "with the peak rate 0.1. What the scheduler does to it:",
    )
    found = {name: add_group_later(make, 14) for name, make in LATE.items()}
    lesson.table(
        [{"scheduler": name, "step 4": rates[0], **{f"step {s}": rates[s - 4] if len(rates) > s - 4 else "–" for s in (6, 10)},
          "ends with": f"{said} at step {4 + len(rates) - 1}" if said else "nothing"}
         for name, (rates, said) in found.items()]
    )  # fmt: skip
    lesson.check("closed forms are refused at the next step",
                 all(found[name][1] == "ValueError" and len(found[name][0]) == 1
                     for name in ("LambdaLR", "CosineAnnealingWarmRestarts(10)")), "ValueError")  # fmt: skip
    steps, waves = (found[name] for name in ("StepLR(2)", "CosineAnnealingLR(10)"))
    lesson.check("StepLR takes it in and decays it from its own rate", steps[1] == "" and steps[0][0] == PEAK,
                 f"{steps[0][0]:g} at step 4, {steps[0][2]:g} at step 6")  # fmt: skip
    lesson.check("the cosine takes it in, until it has passed T_max", waves[1] == "ValueError" and len(waves[0]) > 2,
                 f"{waves[1]} at step {4 + len(waves[0]) - 1}")  # fmt: skip
    right = groups_from_the_start(10)
    lesson.check("both groups from the start: each has its plan", [r[1] for r in right[:4]] == [0.0] * 4
                 and [r[0] for r in right[4:]] == [r[1] for r in right[4:]], "0 until step 4, then one curve")  # fmt: skip
    lesson.shows(
        f"the second group's rate at step 6 was {steps[0][2]:g} under one scheduler, {waves[0][2]:.4f} under another, and "
        "two refused to go on. Name all groups when you make the optimizer and give each its own function of the step; a "
        "group whose rate is 0, or whose weights have requires_grad=False, does not move."
    )
