"""The tour, second part: what becomes of the shapes when tensors are rearranged, broadcast and multiplied."""

import math
import random
from collections.abc import Callable, Sequence

from pytorch_00_tensor_gpu_basics.src.calculator import shapes
from pytorch_00_tensor_gpu_basics.src.calculator.einsums import read_einsum
from pytorch_00_tensor_gpu_basics.src.calculator.evaluate import VIEWS
from pytorch_00_tensor_gpu_basics.src.calculator.explain import explain
from pytorch_00_tensor_gpu_basics.src.calculator.indexing import Part, index_shape
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake
from pytorch_00_tensor_gpu_basics.src.calculator.session import Session
from pytorch_00_tensor_gpu_basics.src.calculator.tour_reading import refuses, show_line, tensor_of
from pytorch_00_tensor_gpu_basics.src.calculator.values import Node
from shared.lesson import Lesson
from shared.snippets import complaint

import torch

Shape = tuple[int, ...]


def allowed(rule: Callable[[], object]) -> object:
    """What a shape rule answers; None where it refuses."""
    try:
        return rule()
    except Mistake:
        return None


def made(function: Callable[[], torch.Tensor]) -> Shape | None:
    """The shape of what PyTorch makes; None where it refuses."""
    try:
        return tuple(function().shape)
    except (RuntimeError, IndexError, ValueError):
        return None


# Shapes


def reshape_agrees(choose: random.Random) -> bool:
    shape = tuple(choose.choice((0, 1, 2, 3, 4, 6)) for _ in range(choose.randint(0, 3)))
    target = tuple(choose.choice((-1, -1, 0, 1, 2, 3, 4, 6, 12)) for _ in range(choose.randint(0, 3)))
    return allowed(lambda: shapes.reshape(shape, target)) == made(lambda: torch.zeros(shape).reshape(target))


def index_agrees(choose: random.Random) -> bool:
    shape = tuple(choose.choice((0, 1, 2, 3, 5)) for _ in range(choose.randint(0, 3)))
    known: tuple[Part, ...] = (
        0,
        1,
        -1,
        4,
        None,
        slice(None),
        slice(1, None),
        slice(None, -1),
        slice(-9, 9, 2),
        slice(3, 1),
    )
    parts = [choose.choice(known) for _ in range(choose.randint(1, 3))]
    if choose.random() < 0.4:
        parts.insert(choose.randint(0, len(parts)), ...)
    found = allowed(lambda: index_shape(shape, parts, [(0, 1)] * len(parts)).shape)
    return found == made(lambda: torch.zeros(shape)[tuple(parts)])


def reduction_agrees(choose: random.Random) -> bool:
    shape = tuple(choose.choice((0, 1, 2, 3)) for _ in range(choose.randint(0, 4)))
    dims = tuple(choose.choice((0, 1, 2, -1, -2)) for _ in range(choose.randint(1, 2)))
    keepdim = choose.random() < 0.5
    found = allowed(lambda: shapes.reduce(shape, shapes.axis_indices(dims, len(shape)), keepdim))
    return found == made(lambda: torch.zeros(shape).sum(dims, keepdim))


def joining_agrees(choose: random.Random) -> bool:
    first = tuple(choose.choice((1, 2, 3)) for _ in range(choose.randint(0, 3)))
    other = choose.choice((first, first[::-1], (0,), (*first, 2)))
    dim = choose.choice((0, 0, 1, -1, 2))
    tensors = torch.zeros(first), torch.zeros(other)
    return (allowed(lambda: shapes.cat((first, other), dim)) == made(lambda: torch.cat(tensors, dim))
            and allowed(lambda: shapes.stack((first, other), dim)) == made(lambda: torch.stack(tensors, dim)))  # fmt: skip


def count_agreeing(lesson: Lesson, rule: Callable[[random.Random], bool]) -> tuple[int, int]:
    """How often a rule and PyTorch agree on random shapes, refusals included, and of how many."""
    choose = random.Random(lesson.options.seed)
    times = lesson.pick(full=2_000, quick=300)
    return sum(rule(choose) for _ in range(times)), times


def check_rule(lesson: Lesson, claim: str, rule: Callable[[random.Random], bool]) -> None:
    right, times = count_agreeing(lesson, rule)
    lesson.check(claim, right == times, f"{right:,} of {times:,}, errors included")


REARRANGING = (
    "x.T", "x[1:]", "x[:, None]", "x.reshape(6)", "x.T.reshape(6)", "x.flatten()", "x.T.flatten()", "x.unsqueeze(0)",
    "x.T.view(3, 2)", "x[:, :2].reshape(4)", "x[[0, 1]]", "x[x > -1]", "x.transpose(0, 1)", "x[0].expand(2, 3)",
)  # fmt: skip


def says_truly_whether_copied(line: str) -> bool:
    """Writes into x behind the calculator's back: a view shows it, a copy does not, and the answer must have said which."""
    session = Session()
    x = tensor_of(session, "x = arange(6).reshape(2, 3)")
    answer = session.run(line)
    assert isinstance(answer.value, Node)
    before = answer.value.tensor.clone()
    x += 100
    changed = not torch.equal(before, answer.value.tensor)
    said = [step.plan.says for step in answer.steps if step.kind in VIEWS]
    return changed == all("view" in words for words in said)


def show_shapes(lesson: Lesson) -> None:
    lesson.section(
        "The shape before the numbers",
        "Each step's shape is worked out from the shapes that go in, before anything is computed. That is how you "
        "should read code yourself: most bugs in a model are a shape that somebody did not expect. Reshaping, "
        "turning and slicing write a new header for the same memory, a view; where no header fits, the numbers are "
        "copied.",
    )
    session = Session(lesson.options.seed)
    for line in ("x = arange(6).reshape(2, -1)", "x.T.reshape(6)", "x.sum(dim=0)"):
        show_line(lesson, session, line)
    check_rule(lesson, "the rule of reshape is PyTorch's", reshape_agrees)
    check_rule(lesson, "so is the rule of indices and slices", index_agrees)
    check_rule(lesson, "so is the rule of sums over axes", reduction_agrees)
    check_rule(lesson, "so are the rules of cat and stack", joining_agrees)
    truly = [line for line in REARRANGING if says_truly_whether_copied(line)]
    lesson.check(
        "view or copy is said truly: a write to x tells",
        truly == list(REARRANGING),
        f"{len(truly)} of {len(REARRANGING)} lines",
    )
    turned, flat = tensor_of(session, "x.T.reshape(6)"), tensor_of(session, "x.reshape(6)")
    lesson.check("reshape after .T reads the columns first", turned.tolist() == [0, 3, 1, 4, 2, 5], turned.tolist())
    lesson.shows(
        f"reshape never reorders: it reads row by row, so x.T.reshape(6) is {turned.tolist()} and x.reshape(6) is "
        f"{flat.tolist()}. To swap axes, say .T, transpose or permute; a reshape to the same sizes runs, and mixes "
        "up the data."
    )


# Broadcasting


def broadcast_agrees(choose: random.Random) -> bool:
    both = [tuple(choose.choice((1, 1, 2, 3)) for _ in range(choose.randint(0, 4))) for _ in range(2)]
    return allowed(lambda: shapes.broadcast(*both)) == made(lambda: torch.zeros(both[0]) + torch.zeros(both[1]))


def mean_square_of_all_pairs(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mistake: a column of predictions against a row of targets compares each with each."""
    return ((prediction - target) ** 2).mean()


def mean_square(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Right: the same shape on both sides, and a refusal where it is not."""
    if prediction.shape != target.shape:
        raise ValueError(f"{tuple(prediction.shape)} against {tuple(target.shape)}")
    return ((prediction - target) ** 2).mean()


def show_broadcasting(lesson: Lesson) -> None:
    lesson.section(
        "Broadcasting, and its trap",
        "Two shapes are aligned at the right. Where one has a 1, or nothing, it is read again and again until it "
        "fits the other. This saves loops and memory. It also lets a column meet a row where two columns were "
        "meant; no error comes, the loss is a number, and the model learns nothing.",
    )
    session = Session(lesson.options.seed)
    session.run("column = arange(3).unsqueeze(1) * 10")
    show_line(lesson, session, "column + arange(4)")
    check_rule(lesson, "the rule of broadcasting is PyTorch's", broadcast_agrees)
    n = 1_000
    prediction, target = (
        tensor_of(session, f"prediction = randn({n}, 1)"),
        tensor_of(session, "target = prediction.squeeze(1)"),
    )
    lesson.text(
        f"A model that is always right: {n:,} predictions as a column, as layers give them, and the same numbers as targets."
    )
    lesson.drawing("\n".join(explain(session.run("prediction - target"), lesson.terminal.width - 4)))
    wrong, right = mean_square_of_all_pairs(prediction, target), mean_square(prediction.squeeze(1), target)
    spread = 2 * prediction.var(unbiased=False).item()
    lesson.check(
        "a perfect model gets a loss far from 0",
        wrong > 1 and right == 0,
        f"{wrong.item():.3f} in place of {right.item():g}",
    )
    lesson.check(
        "it is twice the variance of the targets",
        abs(wrong.item() - spread) < 1e-3 * spread,
        f"2 x variance = {spread:.3f}",
    )
    notes = session.run("prediction - target").steps[-1].notes
    lesson.check(
        "the calculator warns of N x 1 against N", any(f"{n * n:,}" in note for note in notes), f"{n * n:,} numbers"
    )
    remedy = notes[0].rpartition("write ")[2]
    mended = tensor_of(session, f"prediction - {remedy}")
    lesson.check(
        "what it advises gives N differences", tuple(mended.shape) == (n, 1) and not mended.any(), f"- {remedy}"
    )
    refused = complaint(lambda: mean_square(prediction, target))
    lesson.check("one line in the loss finds it for good", "ValueError" in refused, refused)
    lesson.shows(
        f"{n:,} predictions against {n:,} targets made {n * n:,} differences, and a loss of {wrong.item():.2f} for "
        "a model without error. Compare the shapes in your loss function, or squeeze the column away before you "
        "subtract."
    )


# Products


def matmul_agrees(choose: random.Random) -> bool:
    both = [tuple(choose.choice((1, 2, 3)) for _ in range(choose.randint(0, 4))) for _ in range(2)]
    return allowed(lambda: shapes.matmul(*both)) == made(lambda: torch.zeros(both[0]) @ torch.zeros(both[1]))


def einsum_agrees(choose: random.Random) -> bool:
    inputs = ["".join(choose.choice("ijk") for _ in range(choose.randint(0, 3))) for _ in range(choose.randint(1, 3))]
    arrow = "->" + "".join(choose.sample("ijkl", k=choose.randint(0, 2))) if choose.random() < 0.8 else ""
    lengths = {letter: choose.choice((1, 2, 3)) for letter in "ijk"}
    operand_shapes = [tuple(lengths[letter] if choose.random() < 0.95 else 2 for letter in text) for text in inputs]
    pattern = ",".join(inputs) + arrow
    found = allowed(lambda: read_einsum(pattern, operand_shapes).shape)
    return found == made(lambda: torch.einsum(pattern, *map(torch.zeros, operand_shapes)))


def largest_in_between(pattern: str, operand_shapes: Sequence[Shape]) -> int:
    """Elements of the largest tensor that an einsum makes on its way, its result included."""
    return max(math.prod(step.shape) for step in read_einsum(pattern, operand_shapes).contractions)


def show_products(lesson: Lesson) -> None:
    lesson.section(
        "Products: the axes that vanish",
        "A matrix product pairs the last axis of the left with the second to last of the right. Both must be "
        "equally long, and both are gone in the result. einsum writes the same with a letter for each axis: "
        "letters in both tensors are paired, and a letter that is missing right of the arrow is summed over.",
    )
    session = Session(lesson.options.seed)
    session.run("a = arange(6).reshape(2, 3)")
    for line in ("a @ a.T", 'einsum("ij,kj->ik", a, a)'):
        show_line(lesson, session, line)
    check_rule(lesson, "the rule of @ is PyTorch's", matmul_agrees)
    check_rule(lesson, "the rule of einsum is PyTorch's", einsum_agrees)
    product, written = tensor_of(session, "a @ a.T"), tensor_of(session, 'einsum("ij,kj->ik", a, a)')
    lesson.check("both ways of writing it give the same", torch.equal(product, written), product.tolist())
    mistake = refuses(session, "a @ a")
    tries = mistake.tries if mistake else []
    lesson.check("a @ a is refused, with two products that exist", len(tries) == 2, " and ".join(tries))
    chain = [(2, 100), (100, 100), (100, 3)], [(100, 3), (3, 100), (100, 2)]
    sizes = [largest_in_between("ij,jk,kl->il", operands) for operands in chain]
    lesson.check(
        "what lies in between is known beforehand too",
        sizes == [200, 10_000],
        f"{sizes[0]:,} and {sizes[1]:,} elements",
    )
    lesson.shows(
        f"the same chain of three products passes through {sizes[0]:,} elements or through {sizes[1]:,}, by the "
        "shapes alone. When a product is refused, name each axis aloud: (sample, feature) @ (feature, unit) pairs "
        "what belongs together."
    )
