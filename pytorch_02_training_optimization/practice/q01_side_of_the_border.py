"""A split by hash, so that nobody has to store it, and a validation accuracy of 99 % that no hospital ever sees.

The images come from patients, a few hundred each, and more arrive every week. The split shall need no file: the name alone
says on which side of the border an image lies. It says so while the process runs. Then the training is resumed.
"""

from collections.abc import Sequence


def split(names: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    """The rows for training and the rows for validation, each in rising order; each row is in one of the two.

    names: of each image, "patient/recording/picture.png", in any order
    share: of the patients that go to validation, about, from 0 (nobody) to 1 (everybody)

    All images of a patient lie on one side, also those that arrive later. The side follows from the patient and the share
    alone: not from the other names, not from their order, not from the process that asks.

    Example: split(["ann/1/a.png", "bob/1/a.png", "ann/2/a.png"], 0.5) may be ([0, 2], [1]), and never ([0, 1], [2]).
    """
    training: list[int] = []
    validation: list[int] = []
    for row, name in enumerate(names):
        # TODO: print these numbers, end Python, start it again, and print them once more.
        number = hash(name) % 1000
        (validation if number < 1000 * share else training).append(row)
    return training, validation
