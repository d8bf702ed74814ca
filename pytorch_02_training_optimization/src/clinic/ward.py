"""The ward: eight sick trainings, examined, cured by what was found alone and trained again; then one that is ill twice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytorch_02_training_optimization.src.clinic.examination import NORMAL, Examination, Illness, examine
from pytorch_02_training_optimization.src.clinic.patients import PATIENTS, TWICE_ILL
from pytorch_02_training_optimization.src.clinic.training import CLASSES, LN_C, Data, Session, Training
from shared.lesson import Lesson
from shared.units import percent

import torch

LAST = 20  # steps over which a last loss is averaged
SOFTMAX_FLOOR = math.log(1 + (CLASSES - 1) / math.e)  # of the loss where scores are probabilities: at best a 1 and 0s

# The part of a training in which each illness sits.
PART = {
    Illness.INPUTS: "read",
    Illness.TRAINED_IN_EVAL: "step",
    Illness.TESTED_IN_TRAIN: "score",
    Illness.SOFTMAX: "build",
    Illness.START: "build",
    Illness.DEAD: "build",
    Illness.FROZEN: "build",
    Illness.CUT: "build",
    Illness.NO_GRADIENT: "build",
    Illness.VANISHING: "build",
    Illness.OTHER_WEIGHTS: "set_up",
    Illness.LR_HIGH: "lr",
    Illness.LR_LOW: "lr",
    Illness.OLD_GRADIENTS: "step",
    Illness.LABELS: "draw",
}


def cure(training: Training, examination: Examination) -> Training:
    """Puts a healthy part in the place of the one that the examination blames, and touches nothing else.

    A learning rate becomes the one that the examination found to work. Where it blames nothing, or cannot say what,
    the training stays as it is.
    """
    illness = examination.illness
    if illness is None or illness not in PART:
        return training
    part = PART[illness]
    if part == "lr":
        return replace(training, lr=examination.good_lr or training.lr)
    return replace(training, **{part: getattr(Training(), part)})


@dataclass(frozen=True)
class Course:
    """How a training went: its losses, (steps,), and the share of test images that it names rightly."""

    losses: torch.Tensor
    accuracy: float


def run(training: Training, data: Data, seed: int, steps: int) -> Course:
    session = Session(training, data, seed)
    return Course(session.train(steps), session.accuracy())


@dataclass(frozen=True)
class Sizes:
    steps: int  # of a training
    examined: int  # of each short one in an examination

    @classmethod
    def of(cls, lesson: Lesson) -> "Sizes":
        return lesson.pick(full=cls(600, 300), quick=cls(100, 50))


def seed_of(lesson: Lesson, bed: int) -> int:
    """Every patient has weights and batches of its own, and others after its cure."""
    seed: int = lesson.options.seed
    return (seed + 1000 * bed) % 2**32


def loss_text(losses: torch.Tensor) -> str:
    """Their mean, or the news that it is no number."""
    loss = losses.mean().item()
    if math.isnan(loss):
        return "NaN"
    return f"{loss:.2f}" if loss < 1000 else f"{loss:.0e}"


# Examined


def chart(examination: Examination) -> str:
    """One sign for each check: x for not normal, a dot for normal, a blank where it was left out."""
    return "  ".join("x" if finding.illness else "·" for finding in examination.findings).ljust(len(CHART))


CHART = "  ".join(map(str, range(1, len(NORMAL) + 1)))


def show_patients(lesson: Lesson, data: Data, healthy: Course) -> tuple[list[Course], list[Examination]]:
    sizes = Sizes.of(lesson)
    lesson.section(
        "Eight patients",
        f"Eight trainings, each with one mistake of a line or two, and none of them raises an error. Their logs, over "
        f"{sizes.steps} steps, look alike: a loss that does not fall, or no longer is a number. Guess before you read on. "
        f"A healthy training goes from {healthy.losses[0]:.2f} to {loss_text(healthy.losses[-LAST:])} and reads "
        f"{percent(healthy.accuracy)} of the test letters; chance is {percent(1 / CLASSES)}.",
    )
    sick, found = [], []
    for bed, patient in enumerate(lesson.progress(PATIENTS, "patients"), start=1):
        sick.append(run(patient.training, data, seed_of(lesson, bed), sizes.steps))
        found.append(examine(patient.training, data, seed_of(lesson, 100 + bed), sizes.examined))
    tenth = max(1, sizes.steps // 10)
    lesson.table(
        [
            {
                "patient": bed,
                "first loss": loss_text(course.losses[:1]),
                f"step {tenth}": loss_text(course.losses[tenth - 5 : tenth + 5]),
                f"step {sizes.steps}": loss_text(course.losses[-LAST:]),
                "test letters": percent(course.accuracy),
            }
            for bed, course in enumerate(sick, start=1)
        ]
    )
    lesson.text(
        "Now the examination. It is given a training and does not know whose: a column for each check of the table above, "
        "x where it is not normal. The first x from the left names the illness, those behind it are mostly its consequences. "
        "The tenth check is left out where something was found before it."
    )
    lesson.table(
        [
            {"patient": bed, CHART: chart(examination), "diagnosis": examination.illness or "healthy"}
            for bed, examination in enumerate(found, start=1)
        ]
    )
    lesson.text("The finding that decided, in each case:")
    lesson.items({f"{bed}  {e.cause.check}": e.cause.measured for bed, e in enumerate(found, start=1) if e.cause})
    right = [patient for patient, e in zip(PATIENTS, found, strict=True) if e.illness is patient.illness]
    lesson.check("each patient is called by its own illness", len(right) == len(PATIENTS),
                 f"{len(right)} of {len(PATIENTS)}; the examination knows {len(Illness)} names")  # fmt: skip
    one_batch = {patient.illness: e.findings[8].illness is None for patient, e in zip(PATIENTS, found, strict=True)}
    failed = [illness for illness, learned in one_batch.items() if not learned]
    lesson.check("seven do not learn one batch; wrong labels are learned", len(failed) == 7 and one_batch[Illness.LABELS],
                 f"check 9: {len(failed)} of {len(PATIENTS)}, whatever they have")  # fmt: skip
    lowest = sick[names().index(Illness.SOFTMAX)].losses.min().item()
    lesson.check("softmax twice: no loss below ln(1 + 9/e)", lowest > SOFTMAX_FLOOR - 1e-4,
                 f"{SOFTMAX_FLOOR:.3f}, and the lowest was {lowest:.3f}")  # fmt: skip
    far = [course.accuracy for patient, course in zip(PATIENTS, sick, strict=True)
           if patient.illness is not Illness.SOFTMAX]  # fmt: skip
    lesson.check("the other seven stay near chance", max(far) < 0.5 * healthy.accuracy + 0.02,
                 f"{percent(max(far))} at best, softmax {percent(sick[names().index(Illness.SOFTMAX)].accuracy)}")  # fmt: skip
    early = sum(next(i for i, finding in enumerate(e.findings) if finding.illness) < 8 for e in found if e.illness)
    lesson.shows(
        f"{early} of {len(PATIENTS)} were named by the first eight checks, which cost two training steps together; another "
        f"learning rate, the usual first reaction, is the cure of {names().count(Illness.LR_HIGH)}. Look before you tune: "
        "inputs, modes, scores, first loss, units, gradients, step, in this order."
    )
    return sick, found


def names() -> list[Illness]:
    return [patient.illness for patient in PATIENTS]


# Cured


def show_cures(
    lesson: Lesson, data: Data, healthy: Course, sick: Sequence[Course], found: Sequence[Examination]
) -> None:
    sizes = Sizes.of(lesson)
    lesson.section(
        "Eight cures",
        "A diagnosis is worth something if its cure works. A training here consists of six parts and a learning rate "
        "(clinic/training.py). The diagnosis names one of them, and only this part is exchanged for a healthy one; a "
        "learning rate for the one that learned its batch best. All other parts are healthy already, so after a wrong "
        "diagnosis nothing would have changed. Then the eight train again, from other weights and with other batches.",
    )
    cured = [cure(patient.training, e) for patient, e in zip(PATIENTS, found, strict=True)]
    courses = [
        run(training, data, seed_of(lesson, 200 + bed), sizes.steps)
        for bed, training in enumerate(lesson.progress(cured, "cured patients"), start=1)
    ]
    lesson.table(
        [
            {
                "patient": bed,
                "part": PART.get(e.illness, "none") if e.illness else "none",
                "as written": patient.written,
                "cured": patient.cured,
            }
            for bed, (patient, e) in enumerate(zip(PATIENTS, found, strict=True), start=1)
        ]
    )
    lesson.table(
        [
            {
                "patient": bed,
                "diagnosis": e.illness or "healthy",
                "test letters, ill": percent(before.accuracy),
                "cured": percent(after.accuracy),
                "last loss, cured": loss_text(after.losses[-LAST:]),
            }
            for bed, (e, before, after) in enumerate(zip(found, sick, courses, strict=True), start=1)
        ]
    )
    for patient, before, after in zip(PATIENTS, sick, courses, strict=True):
        lesson.record("test accuracy", before.accuracy, "", patient=patient.illness, state="ill")
        lesson.record("test accuracy", after.accuracy, "", patient=patient.illness, state="cured")
    worst = min(course.accuracy for course in courses)
    margin = lesson.pick(full=0.08, quick=0.15)
    lesson.check("each cured training reads as well as the healthy one", worst > healthy.accuracy - margin,
                 f"{percent(worst)} at worst, healthy {percent(healthy.accuracy)}")  # fmt: skip
    rate = cured[names().index(Illness.LR_HIGH)].lr
    lesson.check("the learning rate was found, not looked up", 0.003 < rate < 0.3,
                 f"{rate:g}, by trying tenths and hundredths on one batch")  # fmt: skip
    lesson.figure("learning_curves", lambda axis: draw_courses(axis, sick, courses))
    gained = [after.accuracy - before.accuracy for before, after in zip(sick, courses, strict=True)]
    lesson.shows(
        f"one part exchanged in each, and between {percent(min(gained))} and {percent(max(gained))} of the letters were "
        "gained. Nothing else was tuned. If you change three things at once and it works, you do not know why, and if it "
        "does not, you do not know more than before. Picture: learning_curves.png."
    )


def draw_courses(axis: Any, sick: Sequence[Course], cured: Sequence[Course]) -> None:
    """Eight small panels with the same axes; a loss beyond the upper edge, or no number, is drawn along it."""
    figure, top = axis.figure, 4.0
    axis.remove()
    panels = figure.subplots(2, 4, sharex=True, sharey=True)
    for panel, patient, ill, well in zip(panels.flat, PATIENTS, sick, cured, strict=True):
        for course, color, style, label in ((ill, "black", "-", "ill"), (well, "#0b5fa5", "--", "cured")):
            losses = course.losses.nan_to_num(nan=top, posinf=top).clamp(max=top)
            smooth = losses.unfold(0, 10, 1).mean(1)
            panel.plot(
                range(10, len(losses) + 1), smooth, color=color, linestyle=style, marker="", linewidth=1.6, label=label
            )
        panel.axhline(LN_C, color="grey", linestyle=":", linewidth=1, marker="")
        panel.set_title(patient.illness.replace(" of ", "\nof ").replace(" the ", "\nthe ").replace(" too ", "\ntoo "),
                        fontsize=9, fontweight="normal")  # fmt: skip
        panel.set_ylim(0, top + 0.1)
        panel.tick_params(labelsize=8)
    panels[0, 0].legend(fontsize=8, loc="lower left")
    panels[0, 0].annotate("ln C", (len(sick[0].losses), LN_C + 0.05), fontsize=8, ha="right", va="bottom")
    figure.supylabel("loss, mean of ten steps (upper edge: 4 or more, or NaN)", fontsize=9)
    for panel in panels[1]:
        panel.set_xlabel("step", fontsize=9)


# Ill twice


def show_twice_ill(lesson: Lesson, data: Data, healthy: Course) -> None:
    sizes = Sizes.of(lesson)
    lesson.section(
        "Two illnesses at once",
        "Real programs rarely have one mistake. An examination names the first in the order of causes, so cure that one and "
        "examine again, until nothing is found. This patient learns something and reads far fewer letters than it should: "
        "the kind of bug that is taken for a small model.",
    )
    training, visits = TWICE_ILL, []
    for visit in range(5):
        examination = examine(training, data, seed_of(lesson, 300 + visit), sizes.examined)
        course = run(training, data, seed_of(lesson, 400), sizes.steps)  # the same start at every visit
        visits.append((examination, course))
        if examination.illness is None:
            break
        training = cure(training, examination)
    lesson.table(
        [
            {
                "visit": visit,
                "test letters": percent(course.accuracy),
                CHART: chart(examination),
                "diagnosis": examination.illness or "healthy",
            }
            for visit, (examination, course) in enumerate(visits, start=1)
        ]
    )
    lesson.items({f"visit {visit}": examination.cause.measured if examination.cause else "all ten checks are normal"
                  for visit, (examination, _) in enumerate(visits, start=1)})  # fmt: skip
    diagnoses = [examination.illness for examination, _ in visits]
    lesson.check("first one illness, then the other, then none", diagnoses == [Illness.TESTED_IN_TRAIN, Illness.CUT, None],
                 ", then ".join(illness or "healthy" for illness in diagnoses))  # fmt: skip
    first, last = visits[0][1].accuracy, visits[-1][1].accuracy
    lesson.check("only with both gone does it read like the healthy one",
                 last > healthy.accuracy - lesson.pick(full=0.08, quick=0.15) and visits[1][1].accuracy < 0.7 * last,
                 ", ".join(percent(course.accuracy) for _, course in visits))  # fmt: skip
    lesson.shows(
        f"the first cure alone changed the result from {percent(first)} to {percent(visits[1][1].accuracy)}, which looks like "
        f"no cure at all, and was one. With the second it is {percent(last)}. Do not put a change back because it did "
        "not help: ask whether it was right."
    )
