"""How two shapes meet: the rule step by step, what it costs, what it is good for, and the bug that nobody reports."""

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pytorch_00_tensor_gpu_basics.src.mathematics.observed import new_bytes, observe
from shared.drawing import beside, grid
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.timing import compare, ratio
from shared.units import bytes_text, percent, seconds_text, significant

import torch

Shape = Sequence[int]


def show_broadcasting(lesson: Lesson) -> None:
    show_rule(lesson)
    show_refusals(lesson)
    show_cost(lesson)
    show_distances(lesson)
    show_silent_bug(lesson)


# The rule


def broadcast_shape(*shapes: Shape) -> tuple[int, ...]:
    """The shape that tensors of `shapes` have together. Raises ValueError where an axis disagrees.

    Shapes are compared from the right; a missing axis counts as 1, and a 1 is stretched to whatever the others have.
    """
    longest = max(map(len, shapes), default=0)
    padded = [(1,) * (longest - len(shape)) + tuple(shape) for shape in shapes]
    result = []
    for axis, lengths in enumerate(zip(*padded, strict=True)):
        wanted = set(lengths) - {1}
        if len(wanted) > 1:
            raise ValueError(f"axis {axis - longest} disagrees: {' and '.join(map(str, lengths))}")
        result.append(wanted.pop() if wanted else 1)
    return tuple(result)


def draw_steps(a: Shape, b: Shape) -> str:
    """The three steps for two shapes that fit, one column for each axis; what is stretched stands in brackets."""
    result = broadcast_shape(a, b)

    def aligned(shape: Shape, in_front: str = "") -> list[str]:
        return [in_front] * (len(result) - len(shape)) + [f"{length} " for length in shape]

    def with_stretched(shape: Shape) -> list[str]:
        before, after = aligned(shape, "1 "), aligned(result)
        return [new if old == new else f"({new.strip()})" for old, new in zip(before, after, strict=True)]

    rows = [
        ("", "axis", aligned(range(-len(result), 0))),
        ("1 write them right-aligned", "a", aligned(a)),
        ("", "b", aligned(b)),
        ("2 fill up with ones in front", "a", aligned(a, "1 ")),
        ("", "b", aligned(b, "1 ")),
        ("3 stretch each 1 that must", "a", with_stretched(a)),
        ("", "b", with_stretched(b)),
        ("", "result", aligned(result)),
    ]
    return "\n".join(
        f"{step:<30}{name:<8}{''.join(f'{cell:>5}' for cell in cells)}".rstrip() for step, name, cells in rows
    )


def stretched(x: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` as it takes part in an operation of `shape`, and which of its numbers are there only by stretching."""
    copies = torch.zeros(tuple(shape), dtype=torch.bool)
    padded = (1,) * (len(shape) - x.ndim) + tuple(x.shape)
    for axis, (old, new) in enumerate(zip(padded, shape, strict=True)):
        if old != new:
            copies.narrow(axis, 1, new - 1).fill_(True)
    return x.expand(*shape), copies


def draw_stretched(name: str, x: torch.Tensor, shape: Shape) -> str:
    full, copies = stretched(x, shape)
    return grid(full, name, copies)


def random_shapes(generator: random.Random) -> list[tuple[int, ...]]:
    """Two or three shapes of up to four axes with lengths 0 to 3; about a third of them do not fit."""
    count = generator.choice([2, 2, 3])
    return [
        tuple(generator.choice([0, 1, 1, 1, 2, 2, 3]) for _ in range(generator.randint(0, 4))) for _ in range(count)
    ]


def agree_about(shapes: Sequence[Shape]) -> tuple[bool, bool]:
    """Whether ours and PyTorch's give the same answer for `shapes`, and whether that answer is a refusal."""
    try:
        ours = broadcast_shape(*shapes)
    except ValueError:
        ours = None
    try:
        theirs = tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        theirs = None
    return ours == theirs, theirs is None


def show_rule(lesson: Lesson) -> None:
    lesson.section(
        "Broadcasting: how two shapes meet",
        "A bias is added to every row of a batch, a mean is taken from every pixel: shapes that differ meet all the "
        "time. One rule decides, in three steps, whether they fit and what comes out. It compares from the right, "
        "because batch axes are on the left.",
    )
    lesson.text("a has the shape (2, 1, 3), b has (4, 1):")
    lesson.drawing(draw_steps((2, 1, 3), (4, 1)))
    lesson.text(
        "The same with numbers: a column (3, 1) and a row (4,). Numbers in brackets are there only by stretching. Each "
        "number of the column meets each number of the row."
    )
    column, row = torch.tensor([[10], [20], [30]]), torch.tensor([1, 2, 3, 4])
    lesson.drawing(beside(grid(column, "column"), "+", grid(row, "row")))
    together = broadcast_shape(column.shape, row.shape)
    drawn = draw_stretched("column", column, together), draw_stretched("row", row, together)
    lesson.drawing(beside(drawn[0], "+", drawn[1], "=", grid(column + row)))
    explicit = torch.tensor([[c + r for r in row.tolist()] for c in column[:, 0].tolist()])
    lesson.check("column + row is every number with every other", torch.equal(column + row, explicit),
                 f"{tuple(column.shape)} and {tuple(row.shape)} give {tuple(explicit.shape)}")  # fmt: skip
    generator = random.Random(lesson.options.seed)
    answers = [agree_about(random_shapes(generator)) for _ in range(lesson.pick(full=2000, quick=1000))]
    same, refused = (sum(column) for column in zip(*answers, strict=True))
    lesson.check("our function equals torch.broadcast_shapes", same == len(answers) and 0 < refused < same,
                 f"{same:,} random cases, {refused:,} of them refused")  # fmt: skip
    lesson.shows(
        "a length of 1 is the only one that stretches: (2, 3) never meets (4, 3), though 4 is twice 2. To say where an "
        "axis is to be stretched, put the 1 there yourself: row[:, None] makes a column, x[:, None, :] a new axis "
        "between two."
    )


# What is refused

REFUSED = (((4, 3), (4,)), ((2, 4, 3), (2, 1, 2)), ((5, 2), (3, 5, 3)))


def explain(a: Shape, b: Shape) -> str:
    """Why two shapes do not fit, in our words; "" where they do."""
    try:
        broadcast_shape(a, b)
    except ValueError as error:
        return str(error)
    return ""


def show_refusals(lesson: Lesson) -> None:
    lesson.section(
        "The message when they do not fit",
        "PyTorch's message names two lengths and an axis. The axis is that of the result, counted from the left; "
        "'non-singleton' says that neither length is 1. To read it, write both shapes right-aligned and look at that "
        "column.",
    )
    rows, told = [], []
    for a, b in REFUSED:
        message = complaint(lambda: torch.ones(a) + torch.ones(b))
        axis = int(message.rsplit(" ", 1)[1])
        ours = explain(a, b)
        told.append(ours.startswith(f"axis {axis - max(len(a), len(b))} "))
        rows.append({"a": str(a), "b": str(b), "PyTorch's axis": axis, "we say": ours})
    lesson.items({"PyTorch says": complaint(lambda: torch.ones(REFUSED[0][0]) + torch.ones(REFUSED[0][1]))})
    lesson.table(rows)
    lesson.check("both name the same axis, once from each end", all(told), f"{sum(told)} of {len(told)}")
    x, weights = torch.arange(12.0).view(4, 3), torch.tensor([1.0, 0, 2, 1])
    weighted = x * weights[:, None]
    lesson.check("one weight for each row: weights[:, None]", torch.equal(weighted[2], 2 * x[2])
                 and torch.equal(weighted[1], 0 * x[1]), f"(4, 3) x {tuple(weights[:, None].shape)}")  # fmt: skip
    lesson.shows(
        f"{REFUSED[0][0]} and {REFUSED[0][1]} look as if they fitted, 4 rows and 4 weights. From the right, 3 meets 4. "
        "The cure is a new axis, weights[:, None], and never a transpose until it runs: with a square matrix the wrong "
        "cure runs as well."
    )


# What it costs


def show_cost(lesson: Lesson) -> None:
    lesson.section(
        "Stretching copies nothing",
        "A stretched axis has stride 0: the next element along it is the same place again. So the inputs of a "
        "broadcast operation stay as small as they are, and only its result has the full shape. repeat, in contrast, "
        "really writes the copies.",
    )
    n = lesson.pick(full=4096, cpu=2048, quick=512)
    column, row = (torch.randn(shape, device=lesson.device) for shape in ((n, 1), (n,)))
    x = torch.randn(n, n, device=lesson.device)
    ways = {
        "column.expand(n, n)": lambda: column.expand(n, n),
        "column.repeat(1, n)": lambda: column.repeat(1, n),
        "column + row": lambda: column + row,
        "column.repeat(1, n) + row.repeat(n, 1)": lambda: column.repeat(1, n) + row.repeat(n, 1),
    }
    asked = {way: new_bytes(observe(function)) for way, function in ways.items()}
    timings = compare(ways, lesson.device, budget_s=lesson.pick(full=0.6, quick=0.1))
    for way, timing in timings.items():
        lesson.record("stretching", timing.median_s * 1e3, "ms", timing, way=way, n=n)
    lesson.table(
        [
            {"call": way, "new memory": bytes_text(count), "time": seconds_text(timings[way].median_s)}
            for way, count in asked.items()
        ]
    )
    lesson.check(
        "an expanded axis has stride 0", column.expand(n, n).stride(1) == 0, f"stride {column.expand(n, n).stride()}"
    )
    lesson.check("expand asks for no memory", asked["column.expand(n, n)"] == 0
                 and column.expand(n, n).data_ptr() == column.data_ptr(), "the same storage")  # fmt: skip
    added, copied = asked["column + row"], asked["column.repeat(1, n) + row.repeat(n, 1)"]
    lesson.check("column + row asks for its result and nothing else", added == 4 * n * n, f"{added:,} bytes, n = {n:,}")
    lesson.check("with repeat it is at least three times that", copied >= 3 * added, f"{copied:,} bytes")
    normed = (x - x.mean(0)) / x.std(0)
    lesson.check("two broadcasts bring each column to mean 0 and std 1", normed.mean(0).abs().max() < 1e-3
                 and (normed.std(0) - 1).abs().max() < 1e-3, "(x - x.mean(0)) / x.std(0)")  # fmt: skip
    lesson.shows(
        f"{bytes_text(column.nbytes)} and {bytes_text(row.nbytes)} go in, {bytes_text(added)} come out, and nothing "
        "else is stored. Never repeat a tensor to make shapes fit. But mind the result: broadcasting makes large "
        "things out of small ones in one short line."
    )


# Pairwise distances


def distances_by_broadcasting(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(N, D) and (M, D) to (N, M), through an intermediate of (N, M, D): exact, and D times too large."""
    return (a[:, None, :] - b[None, :, :]).square().sum(-1).sqrt()


def distances_by_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The same by |a - b|² = |a|² + |b|² - 2ab: one matrix product, but it takes large numbers from each other."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return squares.clamp(min=0).sqrt()  # rounding leaves small negative squares, whose root is nan


def exact_cdist(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """PyTorch's own function, told to subtract before it squares; by default it does so only up to 25 points."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def show_distances(lesson: Lesson) -> None:
    n, features = lesson.pick(full=(1024, 64), cpu=(384, 64), quick=(128, 32))
    lesson.section(
        "A broadcast that explodes: all distances",
        f"The distance of each of {n:,} points to each other, {features} features each: one short line, "
        "a[:, None] - b, and an intermediate with one number for each pair and feature. It can be a matrix product "
        "instead, in a small part of the memory. What that costs in digits shows when the points lie far from zero.",
    )
    near = torch.randn(n, features, device=lesson.device)
    clouds = {"around 0": near, "around 1000": near + 1000}
    exact = {
        name: distances_by_broadcasting(cloud.cpu().double(), cloud.cpu().double()) for name, cloud in clouds.items()
    }
    ways: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "broadcasting": distances_by_broadcasting,
        "product": distances_by_product,
        "torch.cdist": torch.cdist,
        "torch.cdist, exact": exact_cdist,
        "product, centred": lambda a, b: distances_by_product(a - a.mean(0), b - a.mean(0)),
    }
    timings = compare({way: partial(distances, near, near) for way, distances in ways.items()}, lesson.device,
                      budget_s=lesson.pick(full=1.2, quick=0.2))  # fmt: skip
    rows, largest, errors = [], {}, {}
    for way, distances in ways.items():
        largest[way] = max(operation.written_bytes for operation in observe(lambda: distances(near, near)))
        errors[way] = {name: (distances(cloud, cloud).cpu().double() - exact[name]).abs().max().item()
                       for name, cloud in clouds.items()}  # fmt: skip
        lesson.record("distances", timings[way].median_s * 1e3, "ms", timings[way], way=way, n=n, features=features)
        rows.append({"way": way, "largest tensor": bytes_text(largest[way]), "time": seconds_text(timings[way].median_s),
                     **{f"error {name}": f"{error:.1e}" for name, error in errors[way].items()}})  # fmt: skip
    lesson.table(rows)
    pairs, gain = 4 * n * n, ratio(timings["broadcasting"], timings["product"])
    lesson.check("broadcasting holds pairs x features numbers at once", largest["broadcasting"] == features * pairs,
                 f"{largest['broadcasting']:,} bytes")  # fmt: skip
    lesson.check("the product holds pairs", largest["product"] == pairs, f"{pairs:,} bytes, {features} times less")
    far = {way: of_way["around 1000"] for way, of_way in errors.items()}
    lesson.check("far from zero the product loses its digits", far["product"] > 100 * far["broadcasting"],
                 f"off by {far['product']:.1e} and {far['broadcasting']:.1e}")  # fmt: skip
    lesson.check("so does torch.cdist, unless told otherwise", far["torch.cdist"] > 100 * far["torch.cdist, exact"],
                 f"off by {far['torch.cdist']:.1e} and {far['torch.cdist, exact']:.1e}")  # fmt: skip
    lesson.check("centring first brings them back", far["product, centred"] < far["product"] / 10
                 and (exact["around 0"] - exact["around 1000"]).abs().max() < 1e-2, f"{far['product, centred']:.1e}")  # fmt: skip
    itself = torch.cdist(clouds["around 1000"], clouds["around 1000"]).diagonal().max().item()
    lesson.shows(
        f"at {n:,} points the intermediate is {bytes_text(largest['broadcasting'])}; at 100,000 it would be "
        f"{bytes_text(4.0 * 100_000**2 * features)}. The product needs none, in {percent(1 / gain.median)} of the time here. "
        "torch.cdist is such a product beyond 25 points, and around 1000 it puts a point up to "
        f"{significant(itself)} away from itself. Take the mean away first, or ask for "
        "compute_mode='donot_use_mm_for_euclid_dist'."
    )


# The silent bug


def loss_without_a_look_at_the_shapes(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mistake: (N, 1) minus (N,) is (N, N). Every prediction is held against every target."""
    return (predictions - targets).square().mean()


def loss_with_a_guard(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Right: a loss compares pairs, so the shapes must be equal. Raises ValueError."""
    if predictions.shape != targets.shape:
        raise ValueError(f"predictions {tuple(predictions.shape)}, targets {tuple(targets.shape)}: they must be equal")
    return (predictions - targets).square().mean()


def what_the_bug_computes(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean of (p - t)² over all pairs: var(p) + var(t) + (mean p - mean t)². Pairs do not appear in it."""
    means = predictions.mean() - targets.mean()
    return predictions.var(correction=0) + targets.var(correction=0) + means.square()


def fit_line(x: torch.Tensor, targets: torch.Tensor, steps: int) -> tuple[float, float, float]:
    """Slope, intercept and last loss of gradient descent on predictions of shape (N, 1), whatever `targets` has."""
    weight = torch.zeros(1, 1, device=x.device, requires_grad=True)
    bias = torch.zeros(1, device=x.device, requires_grad=True)
    for _ in range(steps):
        loss = loss_without_a_look_at_the_shapes(x @ weight + bias, targets)
        gradients = torch.autograd.grad(loss, (weight, bias))
        with torch.no_grad():
            for parameter, gradient in zip((weight, bias), gradients, strict=True):
                parameter -= 0.3 * gradient
    return weight.item(), bias.item(), loss.item()


def show_silent_bug(lesson: Lesson) -> None:
    lesson.section(
        "The silent bug: (N, 1) minus (N,)",
        "A model with one output gives the shape (N, 1), a column of a table has (N,). Their difference is a legal "
        "broadcast with N x N numbers, its mean is one number, and training runs. There is no error and no nan; the "
        "loss even falls. Nothing but the shape says that it is wrong.",
    )
    tiny = torch.tensor([[1.0], [2], [4]])
    lesson.drawing(
        beside(
            grid(tiny, "predictions"), "-", grid(tiny[:, 0], "targets"), "=",
            grid(tiny - tiny[:, 0], "all pairs; only (i, i) was meant", torch.eye(3, dtype=torch.bool)),
        )
    )  # fmt: skip
    wrong, right = loss_without_a_look_at_the_shapes(tiny, tiny[:, 0]), loss_with_a_guard(tiny, tiny)
    lesson.check("perfect predictions, and yet a loss", right == 0 and wrong > 0, f"{wrong:.4f} in place of {right:g}")
    n = 200
    x = 2 * torch.rand(n, 1, device=lesson.device) - 1
    y = 2 * x[:, 0] + 3 + 0.3 * torch.randn(n, device=lesson.device)
    predictions = torch.randn(n, 1, device=lesson.device)
    loss, formula = (function(predictions, y).item() for function in
                     (loss_without_a_look_at_the_shapes, what_the_bug_computes))  # fmt: skip
    lesson.check("it is var(p) + var(t) + (mean p - mean t)²", math.isclose(loss, formula, rel_tol=1e-4),
                 f"{loss:.5f} and {formula:.5f}")  # fmt: skip
    lesson.text(
        "In that formula no prediction meets its own target. Whatever the input says, the best that a model can do is "
        "to answer with the mean of all targets: var(p) is 0 then. Here is a line fitted both ways:"
    )
    steps = lesson.pick(full=200, quick=100)
    fits = {"targets (N, 1)": fit_line(x, y[:, None], steps), "targets (N,)": fit_line(x, y, steps)}
    lesson.table(
        [
            {"fitted to": name, "slope": f"{abs(slope):.3f}", "intercept": intercept, "last loss": last}
            for name, (slope, intercept, last) in fits.items()
        ]
    )
    (slope, _, good), (flat, level, bad) = fits.values()
    lesson.check("fitted to pairs, the slope is found", abs(slope - 2) < 0.2, f"{slope:.3f}; the data were made with 2")
    lesson.check("with the bug the slope goes to 0", abs(flat) < 0.01, f"{abs(flat):.5f}")
    lesson.check("and the intercept to the mean of the targets", abs(level - y.mean().item()) < 0.01,
                 f"{level:.4f} and {y.mean().item():.4f}")  # fmt: skip
    spread = y.var(correction=0).item()
    lesson.check("its loss stops at the variance of the targets", math.isclose(bad, spread, rel_tol=0.01),
                 f"{bad:.4f} and {spread:.4f}; right is {good:.4f}")  # fmt: skip
    lesson.figure("silent_broadcast", lambda axis: draw_fits(axis, x[:, 0].tolist(), y.tolist(), fits))
    warning = complaint(lambda: torch.nn.functional.mse_loss(predictions, y))
    lesson.check("F.mse_loss warns, and computes it all the same", "broadcasting" in warning, warning.partition(":")[0])
    refusal = complaint(lambda: loss_with_a_guard(predictions, y))
    lesson.check("a guard of one line refuses", refusal.startswith("ValueError"), "pred.shape == target.shape")
    lesson.items({"F.mse_loss says": warning, "the guard says": refusal})
    classes = torch.randint(0, 10, (n,), device=lesson.device)
    perfect = classes[:, None]
    accuracy = (perfect == classes).float().mean().item()
    shares = classes.bincount(minlength=10) / n
    lesson.check("accuracy has the same bug: a perfect classifier at chance", math.isclose(
                 accuracy, shares.square().sum().item(), rel_tol=1e-4) and accuracy < 0.2, f"{accuracy:.3f} of 1")  # fmt: skip
    lesson.shows(
        f"the broken fit answers {level:.2f} to everything. Its loss fell too, and stopped at {bad:.2f}, the variance of "
        "the targets: when a regression settles there, look at the shapes first. Assert that they are equal in every "
        "loss and metric that you write; squeeze(1) or [:, None] makes them so."
    )


def draw_fits(axis: Any, x: list[float], y: list[float], fits: dict[str, tuple[float, float, float]]) -> None:
    axis.plot(x, y, ".", color="0.6", markersize=5, linestyle="none")
    ends = [-1.0, 1.0]
    for name, (slope, intercept, _) in fits.items():
        axis.plot(ends, [intercept + slope * end for end in ends], marker="", linewidth=2.5,
                  label=f"fitted to {name}: slope {abs(slope):.2f}")  # fmt: skip
    axis.set(
        xlabel="x",
        ylabel="y",
        title="One missing axis in the targets, and the model learns their mean",
    )
    axis.legend()
