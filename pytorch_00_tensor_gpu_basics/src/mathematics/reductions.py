"""Which axis a reduction removes, what it assumes, how exact a long sum is, and a softmax that does not overflow."""

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any

from shared.drawing import beside, grid
from shared.lesson import Lesson
from shared.snippets import complaint, evaluate
from shared.units import significant

import numpy as np
import torch

FLOAT32_STEP = torch.finfo(torch.float32).eps


def show_reductions(lesson: Lesson) -> None:
    show_axes(lesson)
    show_keepdim(lesson)
    show_largest(lesson)
    show_assumptions(lesson)
    show_long_sums(lesson)
    show_softmax(lesson)


# Which axis disappears

SHAPES_OUT = (
    "y.sum()",
    "y.sum(dim=0)",
    "y.sum(dim=-1)",
    "y.mean(dim=(0, 2))",
    "y.sum(dim=1, keepdim=True)",
    "y.cumsum(dim=1)",
)


def sum_of_slices(x: torch.Tensor, dim: int) -> torch.Tensor:
    """x.sum(dim) in other words: cut `x` into slices along `dim`, and add them up."""
    return reduce(torch.add, x.unbind(dim))


def show_axes(lesson: Lesson) -> None:
    lesson.section(
        "The axis that you name is the one that disappears",
        "A reduction makes many numbers one. Named an axis, it walks along that axis and nothing else: dim=0 of a "
        "matrix runs down the columns, so what is left is one number for each column. Read dim=0 as 'the sum over "
        "axis 0', and not as 'the sum of row 0'.",
    )
    x, y = torch.arange(1.0, 7).view(2, 3), torch.arange(1.0, 13).view(2, 2, 3)
    lesson.drawing(
        beside(
            grid(x, "x"), "→", grid(x.sum(0), "x.sum(dim=0)"), "   ", grid(x.sum(1)[:, None], "x.sum(dim=1), upright")
        )
    )
    lesson.drawing(grid(y, "y"))
    lesson.drawing(beside(*(grid(y.sum(dim), f"y.sum(dim={dim})") for dim in range(3)), gap="      "))
    lesson.table([{"call": call, "shape": str(tuple(evaluate(call, y=y).shape))} for call in SHAPES_OUT])
    z = torch.randint(-9, 10, (2, 3, 4, 5), device=lesson.device)
    right = [torch.equal(z.sum(dim), sum_of_slices(z, dim)) for dim in range(-4, 4)]
    lesson.check("sum(dim) adds the slices along dim", all(right), f"{len(right)} axes of a {tuple(z.shape)} tensor")
    left = [tuple(z.sum(dim).shape) == (*z.shape[:dim], *z.shape[dim + 1 :]) for dim in range(4)]
    lesson.check("the other axes keep their order", all(left), f"without axis 1: {tuple(z.sum(1).shape)}")
    total = y.cumsum(1)
    lesson.check("cumsum keeps the axis; its last entry is the sum", total.shape == y.shape
                 and torch.equal(total[:, -1], y.sum(1)), f"[{', '.join(f'{v:g}' for v in x.cumsum(1)[1].tolist())}] "
                 f"from [{', '.join(f'{v:g}' for v in x[1].tolist())}]")  # fmt: skip
    lesson.shows(
        f"of the shape {tuple(y.shape)}, y.sum(dim=1) leaves {tuple(y.sum(1).shape)}: cross the number at that place "
        "out, and you know the shape before you run it. Negative axes count from the end, so dim=-1 is right for any "
        "number of batch axes."
    )


# Back to the shape it came from


def rows_to_shares_without_keepdim(x: torch.Tensor) -> torch.Tensor:
    """The mistake: the sums of the rows stand side by side, so each column is divided by the sum of some row."""
    return x / x.sum(dim=1)


def rows_to_shares(x: torch.Tensor) -> torch.Tensor:
    """Right: with the axis kept at length 1, each sum stands beside its row. Each row of the result sums to 1."""
    return x / x.sum(dim=1, keepdim=True)


def show_keepdim(lesson: Lesson) -> None:
    lesson.section(
        "keepdim: so that the result fits back",
        "Often the result is needed beside what it came from: each row divided by its own sum, each feature less its "
        "mean. keepdim=True leaves the axis in place, with length 1. What happens without it depends on the shape, "
        "and a square one is the worst.",
    )
    wide, square = torch.tensor([[1.0, 1, 2], [2, 3, 5]]), torch.tensor([[1.0, 1, 2], [2, 3, 5], [1, 8, 1]])
    wrong = rows_to_shares_without_keepdim(square)
    lesson.drawing(
        beside(
            grid(square, "x"),
            "/",
            grid(square.sum(1, keepdim=True), "its row sums"),
            "=",
            grid(rows_to_shares(square), "right: rows sum to 1"),
        )
    )
    lesson.drawing(beside(grid(wrong, "without keepdim"), "rows sum to " + in_short(wrong.sum(1))))
    refusal = complaint(lambda: rows_to_shares_without_keepdim(wide))
    lesson.check("a (2, 3) matrix over its (2,) row sums is refused", "must match" in refusal, "RuntimeError")
    lesson.items({"PyTorch says": refusal})
    lesson.check("a (3, 3) matrix is not: each number gets a wrong sum", not torch.allclose(wrong.sum(1), torch.ones(3)),
                 f"rows sum to {in_short(wrong.sum(1))}")  # fmt: skip
    x = torch.rand(64, 64, device=lesson.device) + 0.1
    off = (rows_to_shares(x).sum(1) - 1).abs().max().item()
    lesson.check("with keepdim every row sums to 1", off < 1e-5, f"worst of {len(x)} rows is off by {off:.1e}")
    lesson.shows(
        "the refused shape is the lucky one. Where rows and columns are as many, nobody complains and the numbers look "
        f"plausible ({in_short(wrong[0])} for the first row). Write keepdim=True whenever the result of a reduction "
        "meets its source again."
    )


def in_short(x: torch.Tensor) -> str:
    """A vector as [1, 0.25, 3], three significant digits."""
    return f"[{', '.join(f'{value:.3g}' for value in x.tolist())}]"


# The largest, and where it is


def gradient_of(reduction: str, values: list[float]) -> list[float]:
    """What each of `values` gets of the gradient of a reduction, written as an expression in x."""
    x = torch.tensor(values, requires_grad=True)
    evaluate(reduction, x=x).backward()
    assert x.grad is not None
    return list(x.grad.tolist())


def show_largest(lesson: Lesson) -> None:
    lesson.section(
        "The largest, and where it is",
        "max exists three times, because there are three questions: how large, where, and both. A classifier's answer "
        "is an argmax over the axis of classes; forget the axis, and you get one number for the whole batch.",
    )
    scores = torch.tensor([[1.0, 7, 3], [9, 2, 4]])
    lesson.drawing(
        beside(
            grid(scores, "scores", scores == scores.amax(1, keepdim=True)),
            "   ",
            grid(scores.amax(1)[:, None], "amax(dim=1)"),
            grid(scores.argmax(1)[:, None], "argmax(dim=1)"),
        )
    )
    both = scores.max(dim=1)
    lesson.check("max(dim=1) gives values and indices", both.values.tolist() == [7, 9] and both.indices.tolist() == [1, 0],
                 f"values {in_short(both.values)}, indices {both.indices.tolist()}")  # fmt: skip
    lesson.check("amax gives values only, over as many axes as named", scores.amax((0, 1)) == 9,
                 f"amax(dim=(0, 1)) is {scores.amax((0, 1)):g}")  # fmt: skip
    flat = scores.argmax()
    row, column = divmod(int(flat), scores.shape[1])  # torch.unravel_index does it for any number of axes
    lesson.check("argmax without dim counts through the flat tensor", scores.flatten()[flat] == scores.max(),
                 f"{flat.item()}, which is row {row}, column {column}")  # fmt: skip
    seen = scores.gather(1, scores.argmax(1, keepdim=True))
    lesson.check("gather at the argmax gives the amax", torch.equal(seen, scores.amax(1, keepdim=True)),
                 in_short(seen[:, 0]))  # fmt: skip
    shared, picked = gradient_of("x.amax(0)", [5.0, 5, 1]), gradient_of("x.max(0).values", [5.0, 5, 1])
    lesson.check("of equals, amax shares the gradient, max(dim) picks one", shared == [0.5, 0.5, 0]
                 and sorted(picked) == [0, 0, 1], f"{shared} and {picked}")  # fmt: skip
    lesson.shows(
        f"for two rows the answer is {scores.argmax(1).tolist()}, one class each; without the axis it is {flat.item()}, "
        f"which is no class at all: they are numbered 0 to {scores.shape[1] - 1}. Take amax where you need no indices: it "
        "stores none."
    )


# What a reduction assumes

EMPTY = ("e.sum()", "e.prod()", "e.mean()", "e.all()", "e.any()", "e.max()", "e.argmax()")


def what_it_gives(expression: str, **names: object) -> str:
    """The value of an expression as text, or the first words of the error."""
    answer: Any = None

    def run() -> None:
        nonlocal answer
        answer = evaluate(expression, **names)

    refusal = complaint(run)
    return refusal if answer is None else str(answer.item())


def show_assumptions(lesson: Lesson) -> None:
    lesson.section(
        "What a reduction assumes",
        "Four surprises: std divides by n - 1 unless told otherwise, the mean of integers is refused, one nan is "
        "enough, and nothing at all has a sum but no maximum. The last one comes up with a mask that selects nothing.",
    )
    x = torch.randn(4, 16, device=lesson.device)
    norm = torch.nn.functional.layer_norm(x, (16,), eps=0.0)
    ours = {correction: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=correction)
            for correction in (0, 1)}  # fmt: skip
    errors = {correction: (mine - norm).abs().max().item() for correction, mine in ours.items()}
    small = torch.tensor([2.0, 4, 6])
    lesson.check("std divides by n - 1, with correction=0 by n", math.isclose(small.std().item(), 2)
                 and math.isclose(small.std(correction=0).item(), math.sqrt(8 / 3), rel_tol=1e-6),
                 f"of 2, 4, 6: {small.std():g} and {small.std(correction=0):.4f}")  # fmt: skip
    lesson.check("LayerNorm divides by n", errors[0] < 1e-4 < errors[1],
                 f"off by {errors[0]:.1e} with 0, {errors[1]:.2f} with 1")  # fmt: skip
    whole = torch.tensor([1, 2])
    refusal = complaint(whole.mean)
    lesson.check(
        "the mean of integers is refused", "floating point" in refusal, f"[1, 2].float() has {whole.float().mean():g}"
    )
    lesson.items({"PyTorch says": refusal})
    pixels = torch.full((100,), 200, dtype=torch.uint8)
    lesson.check("integers are summed in int64, so no pixel wraps around", pixels.sum() == 20_000
                 and pixels.sum().dtype == torch.int64, f"100 times 200: {pixels.sum()}")  # fmt: skip
    mask = small > 3
    lesson.check("the sum of a mask counts, its mean is a share", mask.sum() == 2 and mask.float().mean() > 0.66,
                 f"{mask.sum()} of 3, {mask.float().mean():.2f}")  # fmt: skip
    holes = torch.tensor([1.0, math.nan, 3.0])
    lesson.check("one nan makes the sum nan; nansum steps over it", holes.sum().isnan() and holes.nansum() == 4,
                 f"{holes.sum()} and {holes.nansum():g}; the maximum is {holes.max()}")  # fmt: skip
    lesson.text("Of no numbers at all, e = torch.empty(0):")
    gives = {call: what_it_gives(call, e=torch.empty(0)) for call in EMPTY}
    lesson.items(gives)
    lesson.check("nothing has a sum and a product, but no maximum", (gives["e.sum()"], gives["e.prod()"]) == ("0.0", "1.0")
                 and "Error" in gives["e.max()"], "0, 1, refused")  # fmt: skip
    lesson.check("the mean of nothing is nan, without a word", gives["e.mean()"] == "nan", "0 / 0")
    lesson.shows(
        f"each of these is a rule and none is an error of yours, yet with {len(x[0])} features a forgotten "
        f"correction=0 scales a hand-made LayerNorm by {math.sqrt(15 / 16):.3f}, and a loss over an empty mask is nan: "
        "divide its sum by the count, clamped to at least 1."
    )


# Long sums


def add_one_after_another(values: torch.Tensor) -> float:
    """The naive sum: one running total in float32. NumPy's accumulate does that without a loop in Python."""
    return float(np.add.accumulate(values.cpu().numpy())[-1])


def add_in_pairs(values: torch.Tensor) -> float:
    """Halve and add until one is left: each number takes part in log2(n) additions in place of up to n."""
    while len(values) > 1:
        if len(values) % 2:
            values = torch.cat([values, values.new_zeros(1)])
        values = values[0::2] + values[1::2]
    return values.item()


def typical_errors(count: int, draws: int, device: torch.device) -> dict[str, float]:
    """Of three ways to add `count` random numbers in float32: the relative error, root mean square over `draws`."""
    squares = {"one after another": 0.0, "in pairs": 0.0, "x.sum()": 0.0}
    for _ in range(draws):
        values = torch.rand(count, device=device)
        exact = values.cpu().double().sum().item()  # MPS has no float64
        totals = add_one_after_another(values), add_in_pairs(values), values.sum().item()
        for way, total in zip(squares, totals, strict=True):
            squares[way] += ((total - exact) / exact) ** 2
    return {way: math.sqrt(square / draws) for way, square in squares.items()}


def show_long_sums(lesson: Lesson) -> None:
    lesson.section(
        "A long sum: the order decides the digits",
        "Each addition rounds to 24 bits. Added one after another, small numbers meet a total that grows, and lose "
        "their last digits to it, n times over. Added in pairs, then the pairs in pairs, each number is rounded only "
        "log2(n) times, beside totals of its own size. PyTorch's sum works in that spirit, in blocks.",
    )
    sizes = [2**power for power in lesson.pick(full=[6, 10, 14, 18, 22], quick=[6, 10, 14, 18])]
    draws = 10
    errors = {n: typical_errors(n, draws, lesson.device) for n in lesson.progress(sizes, "sums")}
    lesson.text(f"Relative errors, typical of {draws} draws:")
    lesson.table(
        [{"numbers": n, **{way: f"{value:.1e}" for way, value in of_size.items()}} for n, of_size in errors.items()]
    )
    last = errors[sizes[-1]]
    worst_pair, worst_torch = (max(of_size[way] for of_size in errors.values()) for way in ("in pairs", "x.sum()"))
    bound = math.log2(sizes[-1]) * FLOAT32_STEP
    lesson.check("in pairs: within log2(n) steps of float32", worst_pair < bound, f"{worst_pair:.1e} < {bound:.1e}")
    lesson.check("x.sum() is as good", worst_torch < bound, f"worst {worst_torch:.1e}")
    lesson.check("one after another, the error grows with the length", last["one after another"]
                 > 5 * max(last["x.sum()"], errors[sizes[0]]["one after another"]),
                 f"{errors[sizes[0]]['one after another']:.1e} to {last['one after another']:.1e}")  # fmt: skip
    lesson.figure("long_sums", lambda axis: draw_errors(axis, errors))
    digits = -math.log10(last["one after another"])
    lesson.shows(
        f"after {sizes[-1]:,} numbers the naive total is right to {digits:.0f} digits, x.sum() to about 7, at no cost. "
        "A running loss or metric over an epoch is such a naive total: keep it in float64, or average blocks. It is "
        "also why the same sum differs in its last digit between devices: the order differs."
    )


def draw_errors(axis: Any, errors: Mapping[int, Mapping[str, float]]) -> None:
    sizes = list(errors)
    for way in errors[sizes[0]]:
        axis.plot(sizes, [max(errors[n][way], 1e-9) for n in sizes], label=way)  # a logarithmic axis has no 0
    axis.axhline(FLOAT32_STEP / 2, color="black", linewidth=1, linestyle="-", label="half a step: one rounding")
    axis.set(
        yscale="log", xlabel="numbers added", ylabel="relative error", title="Adding one after another loses digits"
    )
    axis.set_xscale("log", base=2)
    axis.legend()


# Softmax


def softmax_that_overflows(x: torch.Tensor) -> torch.Tensor:
    """The mistake: the formula as it stands in books. exp is inf from 89 on, and inf / inf is nan."""
    return x.exp() / x.exp().sum(-1, keepdim=True)


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Right: the same number, since exp(-m) cancels, with no exponent above 0. Over the last axis."""
    shifted = (x - x.amax(-1, keepdim=True)).exp()
    return shifted / shifted.sum(-1, keepdim=True)


def logsumexp_that_overflows(x: torch.Tensor) -> torch.Tensor:
    """The mistake: exp overflows long before its logarithm would."""
    return x.exp().sum(-1).log()


def logsumexp(x: torch.Tensor) -> torch.Tensor:
    """Right: log(sum(exp(x))) = m + log(sum(exp(x - m))), with m the largest. Over the last axis."""
    largest = x.amax(-1, keepdim=True)
    return largest.squeeze(-1) + (x - largest).exp().sum(-1).log()


def show_softmax(lesson: Lesson) -> None:
    limit = math.log(torch.finfo(torch.float32).max)
    lesson.section(
        "Softmax: take the largest away first",
        "Softmax turns scores into shares: exp of each, over the sum of them all. float32 ends at "
        f"{torch.finfo(torch.float32).max:.1e}, so exp ends at {limit:.1f}, and a score of 89 is nothing unusual. "
        "Taking the largest score away from all of them changes no share and keeps every exponent at or below 0.",
    )
    rows = torch.tensor([[86.0, 87, 88], [87, 88, 89], [997, 998, 999], [-999, -998, -997]], device=lesson.device)
    naive, ours = softmax_that_overflows(rows), softmax(rows)
    lesson.table(
        [
            {
                "scores": in_short(row),
                "exp of the largest": significant(exp) if math.isfinite(exp := row.max().exp().item()) else str(exp),
                "as in books": in_short(wrong),
                "shifted": in_short(right),
            }
            for row, wrong, right in zip(rows, naive, ours, strict=True)
        ]
    )
    fails = naive.isnan().any(-1).tolist()
    lesson.check("the formula of the books breaks at 89, and far below 0", fails == [False, True, True, True],
                 "inf / inf and 0 / 0 are both nan")  # fmt: skip
    lesson.check("the same gaps, the same shares, at any height", torch.allclose(ours, ours[:1].expand_as(ours), rtol=1e-5),
                 in_short(ours[0]))  # fmt: skip
    x = 200 * torch.randn(64, 100, device=lesson.device)
    close = [torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6) for mine, theirs in
             ((softmax(x), x.softmax(-1)), (logsumexp(x), x.logsumexp(-1)))]  # fmt: skip
    lesson.check("ours equal PyTorch's softmax and logsumexp", all(close), f"scores up to {x.abs().max():.0f}")
    lost = logsumexp_that_overflows(x).isfinite().sum().item()
    lesson.check(
        "a plain log(sum(exp)) overflows on most of these", lost < len(x) / 2, f"{lost} of {len(x)} rows finite"
    )
    gap = torch.tensor([0.0, 200.0], device=lesson.device)
    lesson.check("log of softmax is -inf where log_softmax is -200", softmax(gap).log()[0] == -math.inf
                 and gap.log_softmax(0)[0] == -200, "exp(-200) is 0 in float32")  # fmt: skip
    half = math.log(torch.finfo(torch.float16).max)
    lesson.shows(
        f"{sum(fails)} of {len(fails)} rows are nan by the book. In float16 exp ends at {half:.1f} already. Call "
        "x.softmax(-1), x.logsumexp(-1) and, for a loss, cross_entropy on the scores themselves, which does both steps "
        "in one: never log(softmax(x))."
    )
