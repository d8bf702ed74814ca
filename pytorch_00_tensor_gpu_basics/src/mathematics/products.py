"""Matrix products: six names and what each takes, matmul's rules written out, and many small products at once."""

import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_00_tensor_gpu_basics.src.benchmarks.card import raised_to
from pytorch_00_tensor_gpu_basics.src.mathematics.broadcasting import Shape, broadcast_shape
from pytorch_00_tensor_gpu_basics.src.mathematics.observed import flops_seen, observe
from shared.drawing import beside, grid
from shared.hardware import matmul_peak
from shared.lesson import Lesson
from shared.snippets import complaint, evaluate
from shared.timing import compare, ratio
from shared.units import percent, seconds_text

import torch


def show_products(lesson: Lesson) -> None:
    show_names(lesson)
    show_matmul_rules(lesson)
    show_product_mistakes(lesson)
    show_small_products(lesson)


# Names


def matmul_by_loops(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, int]:
    """torch.matmul from its definition: the product, and the additions and multiplications that it took.

    A vector counts as a row on the left and as a column on the right, and loses that axis again in the result. The
    last two axes are multiplied; all axes before them are a batch and broadcast. Raises ValueError.
    """
    rows = a if a.ndim > 1 else a[None, :]
    columns = b if b.ndim > 1 else b[:, None]
    (*batch_a, m, k), (*batch_b, k_of_b, n) = rows.shape, columns.shape
    if k != k_of_b:
        raise ValueError(f"the rows of a have {k} numbers, the columns of b {k_of_b}")
    batch = broadcast_shape(batch_a, batch_b)
    rows, columns = rows.expand(*batch, m, k), columns.expand(*batch, k, n)
    result, operations = torch.zeros(*batch, m, n, dtype=a.dtype), 0
    for index in itertools.product(*map(range, batch)):
        for i, j, inner in itertools.product(range(m), range(n), range(k)):
            result[(*index, i, j)] += rows[(*index, i, inner)] * columns[(*index, inner, j)]
            operations += 2
    result = result.squeeze(-2) if a.ndim == 1 else result
    return (result.squeeze(-1) if b.ndim == 1 else result), operations


def small_integers(*shape: int) -> torch.Tensor:
    """Random whole numbers in float32, on the CPU: their products and sums are exact, so results can be equal."""
    return torch.randint(-4, 5, shape).float()


NAMES = {  # the call, the two factors of the loop that is its oracle, and what it takes
    "torch.dot(v, w)": ("v", "w", "two vectors of one length"),
    "torch.mv(A, v)": ("A", "v", "a matrix and a vector"),
    "torch.mm(A, B)": ("A", "B", "two matrices, no broadcasting"),
    "torch.bmm(S, T)": ("S", "T", "two stacks, as many matrices in each"),
    "S @ T": ("S", "T", "anything, by the rules of the next section"),
    "torch.matmul(S, B)": ("S", "B", "the same as @"),
    "F.linear(S, W)": ("S", "W.T", "W as (out, in): the product with its transpose"),
}


def show_names(lesson: Lesson) -> None:
    lesson.section(
        "Matrix products: one rule, six names",
        "Nearly all of the time in a neural network goes into matrix products. A number of the result is a row of the "
        "left times a column of the right, summed: the last axis of the left must be as long as the second to last of "
        "the right, and that axis disappears. Each number takes k multiplications and k additions, so m x n of them "
        "take 2mkn operations.",
    )
    left, right = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, 0], [2, 1], [0, 3]])
    row, column, cell = (torch.zeros(shape, dtype=torch.bool) for shape in ((2, 3), (3, 2), (2, 2)))
    row[1], column[:, 1], cell[1, 1] = True, True, True
    lesson.drawing(
        beside(grid(left, "A", row), "@", grid(right, "B", column), "=", grid(left @ right, "A @ B", cell),
               "   4x0 + 5x1 + 6x3 = 23")
    )  # fmt: skip
    names: dict[str, Any] = {"v": small_integers(4), "w": small_integers(4), "A": small_integers(3, 4),
                             "B": small_integers(4, 5), "S": small_integers(2, 3, 4), "T": small_integers(2, 4, 5),
                             "W": small_integers(5, 4), "F": torch.nn.functional}  # fmt: skip
    rows, equal, counted, seen = [], [], [], []
    for call, (left_name, right_name, takes) in NAMES.items():
        result = evaluate(call, **names)
        factors = [evaluate(name, **names) for name in (left_name, right_name)]
        by_loops, operations = matmul_by_loops(*factors)
        equal.append(torch.equal(result, by_loops))
        counted.append(operations == 2 * result.numel() * factors[0].shape[-1])
        seen.append(flops_seen(observe(lambda: evaluate(call, **names))) == operations)
        shapes = " ".join(
            str(tuple(evaluate(name, **names).shape)) for name in (left_name, right_name.removesuffix(".T"))
        )
        rows.append({"call": call, "shapes": shapes, "gives": str(tuple(result.shape)), "operations": operations,
                     "takes": takes})  # fmt: skip
    lesson.table(rows)
    lesson.check("all equal our loops, number for number", all(equal), f"{sum(equal)} of {len(equal)}")
    lesson.check("the loops count 2mkn, times the batch", all(counted), "a multiplication and an addition each")
    lesson.check("PyTorch does as many", all(seen), "by the shapes of the calls that it made")
    a, b = names["A"], small_integers(3, 4)
    lesson.check("* is not @: number by number, no sum", tuple((a * b).shape) == (3, 4)
                 and "cannot be multiplied" in complaint(lambda: a @ b),
                 "(3, 4) * (3, 4) runs, with @ it does not")  # fmt: skip
    folded = [operation.name for operation in observe(lambda: names["S"] @ names["B"])]
    lesson.check("a batch times one matrix is one tall product", "mm.default" in folded and "bmm.default" not in folded,
                 "(2, 3, 4) @ (4, 5) runs as (6, 4) @ (4, 5)")  # fmt: skip
    big = 2 * 4096**3
    lesson.shows(
        f"@ and F.linear cover nearly everything; the strict names are for where a wrong shape should be an error. "
        f"The cost is worth knowing by heart: two 4096 x 4096 matrices take {big / 1e9:.0f} billion operations, and "
        "doubling every side takes eight times as many."
    )


# The rules of matmul

CASES = (
    ((4,), (4,), "dot product, a scalar"),
    ((3, 4), (4,), "each row with the vector"),
    ((4,), (4, 5), "the vector with each column"),
    ((3, 4), (4, 5), "a matrix product"),
    ((2, 3, 4), (4,), "a batch of matrices with one vector"),
    ((2, 3, 4), (4, 5), "a batch with one matrix: every linear layer"),
    ((2, 1, 3, 4), (6, 4, 5), "the batch axes (2, 1) and (6,) broadcast"),
)


def random_factors(generator: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of 1 to 4 axes which fit more often than not."""
    shapes = []
    k = generator.randint(1, 3)
    for inner in (-1, -2):
        shape = [generator.choice([1, 1, 2, 3]) for _ in range(generator.randint(1, 4))]
        shape[max(inner, -len(shape))] = k if generator.random() < 0.9 else k + 1
        shapes.append(tuple(shape))
    return shapes[0], shapes[1]


def agree_about_product(a: Shape, b: Shape) -> tuple[bool, bool]:
    """Whether our loops and PyTorch give the same for two shapes, and whether that is a refusal."""
    x, y = small_integers(*a), small_integers(*b)
    try:
        ours = matmul_by_loops(x, y)[0]
    except ValueError:
        return complaint(lambda: x @ y).startswith("RuntimeError"), True
    return torch.equal(ours, x @ y), False


def show_matmul_rules(lesson: Lesson) -> None:
    lesson.section(
        "matmul, from vectors to batches of batches",
        "@ takes any number of axes from one on. Only the last two are multiplied. All before them are a batch, and "
        "batches broadcast by the rule that you know. A vector is taken for a row on the left and for a column on the "
        "right, whichever fits, and that borrowed axis is taken away again.",
    )
    rows = [{"a": str(a), "b": str(b), "a @ b": str(tuple((small_integers(*a) @ small_integers(*b)).shape)), "is": what}
            for a, b, what in CASES]  # fmt: skip
    lesson.table(rows)
    shapes = [tuple(matmul_by_loops(small_integers(*a), small_integers(*b))[0].shape) for a, b, _ in CASES]
    lesson.check("our loops foretell every shape", [str(shape) for shape in shapes] == [row["a @ b"] for row in rows],
                 f"{len(rows)} cases")  # fmt: skip
    generator = random.Random(lesson.options.seed)
    answers = [agree_about_product(*random_factors(generator)) for _ in range(lesson.pick(full=200, quick=60))]
    same, refused = (sum(column) for column in zip(*answers, strict=True))
    lesson.check("loops and @ agree on random shapes, refusals too", same == len(answers) and 0 < refused < same,
                 f"{same} cases, {refused} of them refused")  # fmt: skip
    batch, vectors = small_integers(2, 3, 4), small_integers(2, 4)
    refusal = complaint(lambda: batch @ vectors)
    one_each = (batch @ vectors[:, :, None])[:, :, 0]
    lesson.check("a vector for each matrix needs an axis of its own", refusal != "" and torch.equal(
                 one_each, torch.stack([m @ v for m, v in zip(batch, vectors, strict=True)])),
                 "(2, 3, 4) @ (2, 4, 1), then [:, :, 0]")  # fmt: skip
    symmetric = small_integers(2, 3, 3)
    lesson.check("mT transposes the last two axes of a batch", torch.equal(symmetric.mT, symmetric.transpose(-1, -2)),
                 "x.T is for matrices only")  # fmt: skip
    lesson.shows(
        "(2, 4) on the right of a batch is read as one matrix, not as two vectors: PyTorch cannot know what you mean, "
        "and with other lengths it would not even refuse. Where vectors come in batches, give them an axis, or write "
        "the letters down with einsum, further below."
    )


# Mistakes


def show_product_mistakes(lesson: Lesson) -> None:
    lesson.section(
        "What a product says when it does not fit",
        "These messages name shapes, and not the line's meaning. In each, find the two numbers that had to be equal: "
        "the last of the first shape and the first of the second, or the axes in front of them.",
    )
    ones = torch.ones
    linear = torch.nn.Linear(3, 2)
    mistakes: Mapping[str, tuple[Callable[[], object], str]] = {
        "(2, 3) @ (2, 3)": (lambda: ones(2, 3) @ ones(2, 3), "2x3 and 2x3"),
        "Linear(3, 2) of (5, 4)": (lambda: linear(ones(5, 4)), "5x4 and 3x2"),
        "bmm (2, 3, 4) (2, 3, 4)": (lambda: torch.bmm(ones(2, 3, 4), ones(2, 3, 4)), "[2, 4]"),
        "(2, 3, 4) @ (3, 4, 3)": (lambda: ones(2, 3, 4) @ ones(3, 4, 3), "dimension 0"),
        "mm of a stack": (lambda: torch.mm(ones(2, 3, 4), ones(2, 4, 3)), "matrix"),
        "float32 @ float64": (lambda: ones(2, 3) @ ones(3, 2, dtype=torch.float64), "dtype"),
        "vector @ number": (lambda: ones(3) @ torch.tensor(2.0), "1D"),
    }
    answers = {name: complaint(function) for name, (function, _) in mistakes.items()}
    lesson.items({name: answer.partition(": ")[2] for name, answer in answers.items()})
    named = [clue in answers[name] for name, (_, clue) in mistakes.items()]
    lesson.check("every one is refused, with the numbers that clash", all(named), f"{sum(named)} of {len(named)}")
    lesson.check("a product does not promote: both types must be equal", answers["float32 @ float64"] != ""
                 and (ones(3) + ones(3, dtype=torch.float64)).dtype == torch.float64, "+ would give float64")  # fmt: skip
    x, square = small_integers(5, 3), torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    lesson.check("a square matrix hides a forgotten transpose", (x @ square).shape == (x @ square.T).shape
                 and not torch.equal(x @ square, x @ square.T), "x @ W and x @ W.T both run, and differ")  # fmt: skip
    lesson.shows(
        "Linear(3, 2) stores its weight as (2, 3) and reports the transpose, 3x2: it wanted 3 features and got "
        "4. Test your shapes with lengths that are all different, such as 2, 3, 5, 7: then nothing fits by accident."
    )


# Many small products


def multiply_one_by_one(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The mistake: a loop over the batch, and with it the price of a call for each small product."""
    return torch.stack([x @ y for x, y in zip(a, b, strict=True)])


def show_small_products(lesson: Lesson) -> None:
    lesson.section(
        "Many small products: one call for all",
        "The heads of an attention layer, the poses of a robot, one small system per pixel: often there are many small "
        "matrices. In a loop each product pays for a call; bmm (or @ with a batch axis) pays once, and can give "
        "different matrices to different cores.",
    )
    batch = lesson.pick(full=4096, cpu=512, quick=128)
    sizes = lesson.pick(full=[4, 16, 64, 256], cpu=[4, 16, 64, 128], quick=[4, 16, 64])
    peak, timings, rows = matmul_peak(lesson.device, torch.float32), {}, []
    for n in lesson.progress(sizes, "small products"):
        a, b = (torch.randn(batch, n, n, device=lesson.device) for _ in range(2))
        ways = {"loop": lambda: multiply_one_by_one(a, b), "bmm": lambda: torch.bmm(a, b)}
        timings[n] = compare(ways, lesson.device, rounds=5, budget_s=lesson.pick(full=1.0, cpu=0.5, quick=0.15))
        rate = 2 * batch * n**3 / timings[n]["bmm"].median_s
        peak = raised_to(peak, rate, "bmm of this table")
    for n in sizes:
        rates = {way: 2 * batch * n**3 / timing.median_s for way, timing in timings[n].items()}
        for way, rate in rates.items():
            lesson.record("small products", rate / 1e9, "GFLOP/s", timings[n][way], peak, way=way, n=n, batch=batch)
        rows.append({"n": n, "loop": seconds_text(timings[n]["loop"].median_s),
                     "bmm": seconds_text(timings[n]["bmm"].median_s),
                     "gain": f"{ratio(timings[n]['loop'], timings[n]['bmm']).median:.1f}x",
                     "GFLOP/s of bmm": rates["bmm"] / 1e9, "share of the limit": percent(
                         rates["bmm"] / peak.value if peak else None)})  # fmt: skip
    lesson.text(f"{batch:,} products of n x n matrices in float32:")
    lesson.table(rows)
    a, b = (small_integers(batch, 4, 4).to(lesson.device) for _ in range(2))
    lesson.check("both give the same", torch.equal(multiply_one_by_one(a, b), a @ b), f"{batch:,} products, exactly")
    calls = {way: sum(operation.flops > 0 for operation in observe(function)) for way, function in
             {"loop": lambda: multiply_one_by_one(a, b), "bmm": lambda: a @ b}.items()}  # fmt: skip
    lesson.check("the loop calls once for each, bmm once for all", calls == {"loop": batch, "bmm": 1},
                 f"{calls['loop']:,} and {calls['bmm']} products sent to the device")  # fmt: skip
    calm = timings[sizes[0]]["loop"].best_s / timings[sizes[0]]["bmm"].best_s  # while nobody disturbed them
    lesson.check("for the smallest, one call is at least twice as fast", calm > 2, f"{calm:.1f}x, the best of each")
    each_s = timings[sizes[0]]["loop"].median_s / batch
    lesson.shows(
        f"a product of two {sizes[0]} x {sizes[0]} matrices is {2 * sizes[0] ** 3} operations, and in the loop it takes "
        f"{seconds_text(each_s)}, nearly all of it Python and the call. With larger matrices the gain falls to "
        f"{rows[-1]['gain']}, because the work itself becomes the larger part. A loop over a batch axis is worth a "
        "second look wherever you meet one."
    )
