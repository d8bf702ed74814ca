"""The side is now a function of the patient, and of nothing that changes.

Neighbouring frames of one patient look alike, so a network that has seen some of them knows the others: a split by picture
measures memory. The unit of a split is whatever the model will meet anew in use: a patient, a camera, a customer, a day.
hash() of a string is salted differently in each Python process, against attacks on dictionaries. A resumed training would
so train on most of the images that it validates on, and its validation would get better at that very moment. A digest of
hashlib is the same in each process, version and machine; a shuffled list of patients would be too, until a patient arrives.
"""

import hashlib
from collections.abc import Sequence


def split(names: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    training: list[int] = []
    validation: list[int] = []
    for row, name in enumerate(names):
        patient = name.split("/")[0]
        number = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big")
        (validation if number < share * 2.0**64 else training).append(row)
    return training, validation
