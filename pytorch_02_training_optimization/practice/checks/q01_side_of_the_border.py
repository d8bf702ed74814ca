"""The same names are split in two pretended processes, with patients missing, in other orders and with other pictures.

A process of Python salts hash(): two salts stand for two processes, and no real one has to be started.
"""

import builtins
import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

from shared.practice import expect
from shared.traps import shown

PATIENTS = 3000
Split = tuple[list[int], list[int]]


def names_of(seed: int, patients: Sequence[int], pictures: int = 3) -> list[str]:
    generator = random.Random(seed)
    names = [
        f"patient{number:05d}/{recording}/{picture:04d}.png"
        for number in patients
        for recording, picture in {(generator.randrange(3), generator.randrange(999)) for _ in range(pictures)}
    ]
    generator.shuffle(names)
    return names


def in_a_process(answer: Any, names: list[str], share: float, salt: int = 0) -> Split:
    """What split() says in a process whose hash() is salted so; both lists are checked for their form."""
    plain, call = builtins.hash, f"split({shown(names) if len(names) < 4 else f'{len(names)} names'}, {share})"
    state = random.getstate()
    with patch.object(builtins, "hash", lambda x: plain((salt, x))):
        random.seed(salt)
        found = answer.split(list(names), share)
    random.setstate(state)
    is_pair = isinstance(found, tuple) and len(found) == 2 and all(isinstance(rows, list) for rows in found)
    expect(is_pair, f"{call} returned {shown(found)}; return two lists of rows, (training, validation)")
    whole = all(isinstance(row, int) for rows in found for row in rows)
    expect(whole, f"{call}: a row is a whole number, the place of a name in names")
    times = sorted(row for rows in found for row in rows)
    expect(
        times == list(range(len(names))),
        f"{call}: the two lists hold {len(times)} rows, {len(set(times))} of them different, for {len(names)} names; each "
        "row is in one list, once",
    )
    rising = all(list(rows) == sorted(rows) for rows in found)
    expect(rising, f"{call}: the rows of a list are not in rising order")
    return found


def patient(name: str) -> str:
    return name.split("/")[0]


def held(names: list[str], found: Split) -> set[str]:
    """The patients of whom some image is for validation."""
    return {patient(names[row]) for row in found[1]}


def check(answer: Any, seed: int) -> None:
    expect_patients_whole(answer, ["ann/1/a.png", "bob/1/a.png", "ann/2/a.png"], 0.5)
    names = names_of(seed, range(PATIENTS))
    for share in (0.5, 0.1):
        expect_patients_whole(answer, names, share)
    first, second = (held(names, in_a_process(answer, names, 0.1, salt)) for salt in (0, 1))
    expect(
        first == second,
        f"split({len(names)} names, 0.1) in two processes: {len(first)} patients are for validation in the first and "
        f"{len(second - first)} others in the second; what is different between two processes?",
    )
    expect_unmoved(answer, names, first, random.Random(seed))
    expect_later_pictures(answer, names, first)
    expect_about(answer, names)
    for share, side in ((0.0, 0), (1.0, 1)):
        found = in_a_process(answer, names, share)
        expect(len(found[side]) == len(names), f"split({len(names)} names, {share}) puts {len(found[1])} images into "
               f"validation; it should be {len(names) * side}")  # fmt: skip


def expect_patients_whole(answer: Any, names: list[str], share: float) -> None:
    found = in_a_process(answer, names, share)
    both = held(names, found) & {patient(names[row]) for row in found[0]}
    expect(
        not both,
        f"split({shown(names) if len(names) < 4 else f'{len(names)} names'}, {share}) has images on both sides of "
        f"the border of {len(both)} of its patients, such as {min(both, default='')}",
    )


def expect_unmoved(answer: Any, names: list[str], held_before: set[str], generator: random.Random) -> None:
    """With fewer patients, with more, and in another order."""
    known = {patient(name) for name in names}
    fewer = [name for name in names if int(patient(name)[-5:]) % 3]
    shuffled = generator.sample(names, len(names))
    more = names_of(0, range(PATIENTS, PATIENTS + 500)) + names
    for others, what in ((fewer, "a third of the patients have left"), (shuffled, "the names came in another order"),
                         (more, "500 patients have arrived")):  # fmt: skip
        now = held(others, in_a_process(answer, others, 0.1)) & known
        moved = now ^ (held_before & {patient(name) for name in others})
        expect(not moved, f"when {what}, {len(moved)} of the old patients changed sides; those who move from training to "
               "validation are known to the model")  # fmt: skip


def expect_later_pictures(answer: Any, names: list[str], held_before: set[str]) -> None:
    later = [f"{patient(name)}/9/later.png" for name in names]
    moved = held(later, in_a_process(answer, later, 0.1)) ^ held_before
    expect(
        not moved, f"new pictures of the same patients: {len(moved)} of the patients are on the other side with them"
    )


def expect_about(answer: Any, names: list[str]) -> None:
    for share in (0.1, 0.5, 0.02):
        found = len(held(names, in_a_process(answer, names, share)))
        allowed = 6 * (share * (1 - share) * PATIENTS) ** 0.5  # six standard deviations of an independent choice
        expect(
            abs(found - share * PATIENTS) <= allowed,
            f"split({len(names)} names, {share}) holds {found} of {PATIENTS} patients back; about "
            f"{share * PATIENTS:.0f} were asked for",
        )


def digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def by(number: Callable[[str], float]) -> dict[str, object]:
    """A split by a number from 0 to 1 of each name."""

    def split(names: Sequence[str], share: float) -> Split:
        held = [number(name) < share for name in names]
        return [row for row, is_held in enumerate(held) if not is_held], [
            row for row, is_held in enumerate(held) if is_held
        ]

    return {"split": split}


def by_list(order: Callable[[list[str]], list[str]]) -> dict[str, object]:
    """A split by the first of a list of patients."""

    def split(names: Sequence[str], share: float) -> Split:
        patients = order(sorted({patient(name) for name in names}))
        held = set(patients[: round(share * len(patients))])
        return ([row for row, name in enumerate(names) if patient(name) not in held],
                [row for row, name in enumerate(names) if patient(name) in held])  # fmt: skip

    return {"split": split}


def shuffled_by(generator: random.Random) -> Callable[[list[str]], list[str]]:
    return lambda patients: generator.sample(patients, len(patients))


WRONG = {
    "by picture, salted": (by(lambda name: hash(name) % 1000 / 1000), "on both sides of the border"),
    "by picture": (by(lambda name: digest(name) / 2**64), "on both sides of the border"),
    "by recording": (by(lambda name: digest(name.rpartition("/")[0]) / 2**64), "on both sides of the border"),
    "by patient, salted": (by(lambda name: hash(patient(name)) % 1000 / 1000), "in two processes"),
    "a shuffled list of patients": (by_list(lambda patients: shuffled_by(random.Random(0))(patients)), "have left"),
    "patients in the order of their names": (by_list(lambda patients: patients), "changed sides"),
    "the lengths of their names": (by(lambda name: len(patient(name)) % 10 / 10), "patients back"),
}
