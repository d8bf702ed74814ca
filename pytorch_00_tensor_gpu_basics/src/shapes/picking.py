"""Indexing: which numbers an index picks, what it does to the axes, and when the result is a copy."""

import itertools
import random
import warnings
from collections.abc import Callable
from types import EllipsisType

from pytorch_00_tensor_gpu_basics.src.shapes.looking import draw_picked, draw_result, new_bytes, shares_memory
from shared.drawing import beside, grid
from shared.lesson import Lesson
from shared.snippets import complaint, evaluate

import torch


def show_picking(lesson: Lesson) -> None:
    show_axes(lesson)
    show_surprises(lesson)
    show_masks(lesson)
    show_where(lesson)
    show_lists(lesson)


# Integers, slices, None and ...

Entry = int | slice | EllipsisType | None

INDICES = {
    "x[1]": "an integer removes its axis",
    "x[1:2]": "a slice keeps it, even with one element left",
    "x[:, ::2]": "start:stop:step; what is missing means all",
    "x[..., -1]": "... stands for as many : as are missing",
    "x[:, None]": "None makes a new axis of length 1",
    "x[[2, 0]]": "a list keeps its axis, in the order of the list",
    "x[x > 5]": "a mask makes one axis of all that it covers",
}


def shape_after(shape: tuple[int, ...], index: tuple[Entry, ...]) -> tuple[int, ...]:
    """The shape of x[index] for an x of `shape`, entry by entry; at most one entry is an ellipsis."""
    unmentioned = len(shape) - sum(isinstance(entry, int | slice) for entry in index)
    axes, result = iter(shape), []
    for entry in index:
        if isinstance(entry, int):
            next(axes)
        elif isinstance(entry, slice):
            result.append(len(range(*entry.indices(next(axes)))))
        elif entry is None:
            result.append(1)
        else:
            result += itertools.islice(axes, unmentioned)
    return (*result, *axes)


def random_entry(length: int, generator: random.Random) -> Entry:
    """An integer or a slice for an axis of `length`; the slice may begin or end beyond it."""
    start, stop = (generator.choice([None, generator.randint(-length - 2, length + 2)]) for _ in range(2))
    return generator.choice([generator.randrange(-length, length), slice(start, stop, generator.randint(1, 3))])


def random_index(shape: tuple[int, ...], generator: random.Random) -> tuple[Entry, ...]:
    """Integers and slices for the first axes of `shape`, or for the first and the last around an ellipsis, and Nones."""
    first = generator.randint(0, len(shape))
    last = generator.randint(first, len(shape))
    front, back = ([random_entry(length, generator) for length in part] for part in (shape[:first], shape[last:]))
    entries = generator.choice([front, [*front, ..., *back]])
    for _ in range(generator.randint(0, 2)):
        entries.insert(generator.randint(0, len(entries)), None)
    return tuple(entries)


def show_axes(lesson: Lesson) -> None:
    lesson.section(
        "What an index does to the axes",
        "The brackets of x[...] hold one entry for each axis, and each kind of entry does one thing to its axis. Go "
        "through them from left to right, and you know the shape before you run. In the drawings the numbers that are "
        "picked stand in brackets.",
    )
    x = torch.arange(12, device=lesson.device).view(3, 4)
    for left, right in (("x[1]", "x[:, 1]"), ("x[1:, ::2]", "x[..., -1]")):
        lesson.drawing(beside(draw_picked(left, x), draw_picked(right, x), gap="   "))
    made = {text: evaluate(text, x=x) for text in INDICES}
    shared = [text for text in INDICES if shares_memory(made[text], x)]
    lesson.table([{"index": text, "(3, 4) becomes": str(tuple(made[text].shape)),
                   "memory": "view" if text in shared else "copy", "rule": rule}
                  for text, rule in INDICES.items()])  # fmt: skip
    generator = random.Random(lesson.options.seed)
    count, right_shapes = lesson.pick(full=1000, quick=200), 0
    for _ in range(count):
        shape = tuple(generator.randint(1, 5) for _ in range(generator.randint(1, 4)))
        index = random_index(shape, generator)
        right_shapes += torch.empty(shape)[index].shape == shape_after(shape, index)
    lesson.check("these rules foretell the shape of any such index", right_shapes == count,
                 f"{right_shapes:,} of {count:,} random ones")  # fmt: skip
    *basic, listed, masked = INDICES
    lesson.check("integers, slices, ... and None copy nothing", shared == basic,
                 f"{len(shared)} of {len(INDICES)} share the storage of x")  # fmt: skip
    lesson.check("lists and masks copy what they pick", new_bytes(made[listed], x) == made[listed].nbytes,
                 f"{new_bytes(made[listed], x)} and {new_bytes(made[masked], x)} new bytes")  # fmt: skip
    row, table = made["x[1]"], made["x[1:2]"]
    lesson.check("x[1] and x[1:2] hold the same numbers", row.tolist() == table[0].tolist(),
                 f"shapes {tuple(row.shape)} and {tuple(table.shape)}")  # fmt: skip
    lesson.shows(
        f"to give a model one sample, write x[1:2], a batch of {len(table)}. x[1] has lost that axis, and its first one "
        f"now counts {len(row)} columns. In functions that work on the last axes of anything, write ... for the rest."
    )


# Beyond the end, backwards, into a copy

REFUSED = ("x[3]", "x[0, 0, 0]", "x[[0, 7]]", "x[::-1]")


def write_into_a_copy(x: torch.Tensor, value: float) -> None:
    """The mistake: x[[1]] is a copy, so the number goes into a tensor that nobody keeps."""
    x[[1]][0, 2] = value


def write_with_one_index(x: torch.Tensor, value: float) -> None:
    """Right: all in one pair of brackets, which writes straight into x."""
    x[[1], 2] = value


def show_surprises(lesson: Lesson) -> None:
    lesson.section(
        "Beyond the end, backwards, and into a copy",
        "An integer beyond the end is an error; a slice beyond the end gets shorter without a word, down to nothing. "
        "Steps go forwards only. And brackets after brackets write into x only where the first ones made a view.",
    )
    x = torch.arange(12.0).view(3, 4)  # on the CPU: on a GPU x[[0, 7]] would end the program
    short, empty = x[2:100], x[3:]
    lesson.check("a slice beyond the end is shorter, silently", short.shape == (1, 4) and empty.shape == (0, 4),
                 f"x[2:100] has {len(short)} row, x[3:] has {len(empty)}")  # fmt: skip
    lesson.check("the mean of nothing is nan, its sum 0", empty.mean().isnan() and empty.sum() == 0,
                 f"{empty.mean():g} and {empty.sum():g}")  # fmt: skip
    answers = {text: complaint(lambda: evaluate(text, x=x)) for text in REFUSED}
    lesson.items(answers)
    lesson.check("an integer beyond the end is refused, alone or in a list",
                 all("out of bounds" in answers[text] for text in ("x[3]", "x[[0, 7]]")), f"x has {len(x)} rows")  # fmt: skip
    flipped = x.flip(0)
    lesson.check("x[::-1] is refused; x.flip(0) copies", "step" in answers["x[::-1]"] and not shares_memory(flipped, x),
                 f"{new_bytes(flipped, x)} new bytes")  # fmt: skip
    x[1][2] = 50
    lesson.check("x[1][2] = 50 arrives, for x[1] is a view", x[1, 2] == 50, f"x[1, 2] is {x[1, 2]:g}")
    write_into_a_copy(x, 60)
    lost = x[1, 2].item()
    write_with_one_index(x, 70)
    lesson.check("x[[1]][0, 2] = 60 is lost, x[[1], 2] = 70 arrives", lost == 50 and x[1, 2] == 70,
                 f"still {lost:g}, then {x[1, 2]:g}")  # fmt: skip
    lesson.shows(
        f"x[2:100] asks for 98 rows, gives {len(short)}, and says nothing; look at the length where it matters. On a GPU "
        "an index list is read long after the call: a wrong number in it ends the program with a device-side assert, "
        "reported at a later line. Run the same batch on the CPU to read which number it was."
    )


# Masks

WRONG_MASKS = {  # what is written, and its cure
    "x[x[0] > 4]": "x[:, x[0] > 4]",
    "x[(x > 2) and (x < 8)]": "x[(x > 2) & (x < 8)]",
    "x[x > 2 & x < 8]": "x[(x > 2) & (x < 8)]",
}


def pick_by_loop(x: torch.Tensor, mask: torch.Tensor) -> list[float]:
    """What x[mask] means for a matrix: go through it as you read a page, and keep what the mask marks."""
    rows, columns = x.shape
    return [x[i, j].item() for i in range(rows) for j in range(columns) if mask[i, j]]


def show_masks(lesson: Lesson) -> None:
    lesson.section(
        "Masks",
        "A comparison gives a tensor of True and False (drawn as T and a dot), and that tensor is an index: it picks "
        "where it is True. The result has one axis, since what is left fits into no table any more. Padding, wrong "
        "labels, broken pixels and outliers are all picked this way.",
    )
    x = torch.tensor([[3, 8, 1, 9], [7, 2, 8, 0], [5, 9, 4, 6]], device=lesson.device)
    mask = x > 6
    lesson.drawing(beside(grid(x, "x", marked=mask), draw_result("x > 6", x=x), gap="   "))
    lesson.drawing(draw_result("x[x > 6]", x=x))
    picked = x[mask]
    lesson.check("the numbers come in reading order", picked.tolist() == pick_by_loop(x, mask), f"{picked.tolist()}")
    lesson.check("True counts as 1: the sum counts, the mean is a share",
                 mask.sum() == len(picked) and mask.float().mean() == len(picked) / x.numel(),
                 f"{mask.sum()} of {mask.numel()}, {mask.float().mean():.3f}")  # fmt: skip
    rows = x[x[:, 0] > 4]
    lesson.check("a mask with one entry for each row picks rows", torch.equal(rows, x[1:]),
                 f"x[x[:, 0] > 4] has {len(rows)} of {len(x)}")  # fmt: skip
    picked[:] = -1
    before = (x < 0).sum().item()
    x[mask] = -1
    lesson.check("x[mask] is a copy, but x[mask] = -1 writes into x", before == 0 and (x < 0).sum() == mask.sum(),
                 f"{before}, then {(x < 0).sum()} numbers below 0")  # fmt: skip
    lesson.text("Three that everybody writes once:")
    answers = {mistake: complaint(lambda: evaluate(mistake, x=x)) for mistake in WRONG_MASKS}
    quiet = [cure for cure in WRONG_MASKS.values() if complaint(lambda: evaluate(cure, x=x)) == ""]
    for mistake, cure in WRONG_MASKS.items():
        lesson.items({"you write": mistake, "PyTorch says": answers[mistake], "the cure": cure})
    lesson.check("each is refused, and each cure runs", all(answers.values()) and len(quiet) == len(WRONG_MASKS),
                 f"{sum(map(bool, answers.values()))} refusals, {len(quiet)} cures")  # fmt: skip
    lesson.shows(
        "a mask stands in the place of the axes that it covers, and must have their lengths. Python's `and` wants one "
        "yes or no from each side; &, | and ~ work on every element. They bind more tightly than > and <, so each "
        "comparison needs its parentheses."
    )


# where and masked_fill

MASKED = (
    "x[mask]",
    "torch.nonzero(mask)",
    "torch.where(mask, x, 0)",
    "x.masked_fill(mask, 0)",
    "(x * mask).sum() / mask.sum()",
)


def zero_by_multiplying(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The mistake: 0 times nan is nan, and so is 0 times inf, so the worst numbers are not removed."""
    return x * keep


def zero_by_choosing(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Right: where does not calculate with what it leaves out."""
    return torch.where(keep, x, 0)


def waits_for_the_gpu(function: Callable[[], object]) -> bool:
    """Whether `function` makes the CPU wait for the GPU; CUDA only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that this mode does not know every wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        return "synchronizing" in complaint(function)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def show_where(lesson: Lesson) -> None:
    lesson.section(
        "Replacing instead of picking: where",
        "x[mask] cannot make room for its result before the mask has been counted. A GPU must send that count to the "
        "CPU, and the program stands still until it is there. torch.where and masked_fill keep the shape and need no "
        "count. The table has the shapes that come out for two tensors of one shape with different numbers.",
    )
    x = torch.tensor([[3.0, 8, 1, 9], [7, 2, 8, 0], [5, 9, 4, 6]], device=lesson.device)
    shapes = {text: [tuple(evaluate(text, x=each, mask=each > 6).shape) for each in (x, 9 - x)] for text in MASKED}
    lesson.table([{"with mask = x > 6": text, "of x": str(ours), "of 9 - x": str(others)}
                  for text, (ours, others) in shapes.items()])  # fmt: skip
    counting = [text for text, (ours, others) in shapes.items() if ours != others]
    lesson.check("how many are picked depends on the numbers", counting == list(MASKED[:2]), ", ".join(counting))
    mask = x > 6
    if lesson.device.type == "cuda":
        waiting = [text for text in MASKED if waits_for_the_gpu(lambda: evaluate(text, x=x, mask=mask))]
        lesson.check("the same expressions wait for the GPU", waiting == counting, ", ".join(waiting))
    else:
        lesson.skip("torch.cuda.set_sync_debug_mode catches the wait in the act.", "a CUDA GPU")
    filled = x.masked_fill(~mask, 0)
    lesson.check(
        "masked_fill is where with a constant", filled.equal(torch.where(mask, x, 0)), "x.masked_fill(~mask, 0)"
    )
    mean = (x * mask).sum() / mask.sum()
    lesson.check(
        "a mean over the mask needs no picking",
        torch.allclose(mean, x[mask].mean()),
        f"{mean:g} and {x[mask].mean():g}",
    )
    lesson.text("A mask can also keep broken numbers out, if it chooses; multiplying by it does not:")
    broken = torch.tensor([[1.0, float("nan")], [float("inf"), 4.0]], device=lesson.device)
    keep = broken.isfinite()
    multiplied, chosen = zero_by_multiplying(broken, keep), zero_by_choosing(broken, keep)
    drawn = {"x": broken, "x * keep": multiplied, "where": chosen}
    lesson.drawing(beside(*(grid(numbers, name) for name, numbers in drawn.items()), gap="   "))
    lesson.check("0 x nan and 0 x inf are nan", multiplied[~keep].isnan().all(), f"the sum is {multiplied.sum():g}")
    lesson.check("where leaves them out", chosen.sum() == 5, f"the sum is {chosen.sum():g}")
    lesson.shows(
        f"{len(counting)} of these {len(shapes)} must see the numbers before they know their shape. Pick by a mask to look "
        "at data. Inside a training step, where the GPU should not wait, keep the shape: where, masked_fill, or a sum "
        "divided by the count."
    )


# Lists of indices

PAIRS, RECTANGLE = "x[[0, 2], [1, 3]]", "x[[[0], [2]], [1, 3]]"

IMAGES = {  # axes (image, channel, row, column) = (6, 3, 4, 5)
    "images[:, :, [0, 1], [2, 3]]": "two lists side by side: their pairs stay there",
    "images[:, [0, 1], :, [2, 3]]": "a slice between them: the pairs come first",
    "images[:, 0, :, [2, 3]]": "an integer is applied before, and is no list",
    "images[:, [0, 1]][..., [2, 3]]": "one list at a time: each stays in its place",
}


def show_lists(lesson: Lesson) -> None:
    lesson.section(
        "Two lists make pairs, not a rectangle",
        "Two lists of indices are read in step: the first of one goes with the first of the other. For all combinations "
        "the first list has to stand upright, as a column; then the two are broadcast, as the sides of a + are.",
    )
    x = torch.arange(12, device=lesson.device).view(3, 4)
    for text in (PAIRS, RECTANGLE):
        lesson.drawing(draw_picked(text, x))
    rows, columns = [0, 2], [1, 3]
    pairs, rectangle = evaluate(PAIRS, x=x), evaluate(RECTANGLE, x=x)
    lesson.check("two lists of two pick two numbers", pairs.tolist() == [x[0, 1], x[2, 3]],
                 f"{pairs.tolist()}: x[0, 1] and x[2, 3]")  # fmt: skip
    combinations = [x[i, j].item() for i, j in itertools.product(rows, columns)]
    lesson.check("a column and a row pick all combinations", rectangle.flatten().tolist() == combinations,
                 f"{rectangle.tolist()}")  # fmt: skip
    upright = torch.tensor(rows, device=lesson.device)[:, None]
    lesson.check("[:, None] makes the column; so do two picks",
                 torch.equal(x[upright, columns], rectangle) and torch.equal(x[rows][:, columns], rectangle),
                 "x[rows[:, None], columns], x[rows][:, columns]")  # fmt: skip
    strided = x[::2, 1::2]
    lesson.check("a regular rectangle is a slice: a view",
                 torch.equal(strided, rectangle) and shares_memory(strided, x), "x[::2, 1::2]")  # fmt: skip
    refusal = complaint(lambda: x[[0, 2], [1, 2, 3]])
    lesson.check("lists of 2 and 3 do not pair up", "broadcast" in refusal, "x[[0, 2], [1, 2, 3]]")
    lesson.items({"PyTorch says": refusal})
    lesson.text("In a batch of images of the shape (image, channel, row, column) = (6, 3, 4, 5):")
    images = torch.arange(6 * 3 * 4 * 5, device=lesson.device).view(6, 3, 4, 5)
    made = {text: evaluate(text, images=images) for text in IMAGES}
    lesson.table([{"index": text, "shape": str(tuple(made[text].shape)), "rule": rule}
                  for text, rule in IMAGES.items()])  # fmt: skip
    side_by_side, apart, after_integer, one_by_one = made.values()
    lesson.check("a slice between two lists moves their axis to the front",
                 side_by_side.shape == (6, 3, 2) and apart.shape == (2, 6, 4),
                 f"{tuple(apart.shape)}, not (6, 2, 4)")  # fmt: skip
    by_hand = torch.stack([images[:, 0, :, 2], images[:, 1, :, 3]], dim=1)
    lesson.check("movedim(0, 1) puts it back", torch.equal(apart.movedim(0, 1), by_hand), f"{tuple(by_hand.shape)}")
    numpys = images.cpu().numpy()[:, 0, :, [2, 3]]
    lesson.check("NumPy counts an integer as a list, PyTorch does not",
                 after_integer.shape == (6, 4, 2) and numpys.shape == (2, 6, 4),
                 f"{tuple(after_integer.shape)}, in NumPy {numpys.shape}")  # fmt: skip
    lesson.shows(
        f"{PAIRS} has {pairs.numel()} numbers where the rectangle has {rectangle.numel()}. Where two lists meet, write "
        "the shape that you expect into the next line as an assert, or pick one axis at a time, as in the last row: "
        f"{tuple(one_by_one.shape)}."
    )
