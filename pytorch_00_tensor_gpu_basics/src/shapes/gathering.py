"""One number from each row, and many numbers to one place: gather, scatter, and sums over an index."""

from collections import Counter
from collections.abc import Callable

from shared.drawing import beside, grid
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.traps import operations

import torch
import torch.nn.functional as F


def show_gathering(lesson: Lesson) -> None:
    show_gather(lesson)
    show_classes(lesson)
    show_repeats(lesson)


# gather and scatter


def gather_by_loops(x: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """x.gather(dim, index) for matrices: each entry of `index` says which one to take along `dim`."""
    out = torch.empty(index.shape, dtype=x.dtype)
    for i in range(index.shape[0]):
        for j in range(index.shape[1]):
            out[i, j] = x[index[i, j], j] if dim == 0 else x[i, index[i, j]]
    return out


def scatter_by_loops(x: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """x.scatter(dim, index, source) for matrices: the same places, written instead of read."""
    out = x.clone()
    for i in range(index.shape[0]):
        for j in range(index.shape[1]):
            place = (index[i, j], j) if dim == 0 else (i, index[i, j])
            out[place] = source[i, j]
    return out


def agrees_with_loops(dim: int) -> bool:
    """Whether gather and scatter do on a random matrix what the two loops above do."""
    rows, columns = torch.randint(1, 6, (2,)).tolist()
    x = torch.randn(rows, columns)
    index = torch.rand(rows, columns).argsort(dim)  # names each place once, so that no two numbers are put into one
    empty = torch.zeros_like(x)
    return torch.equal(x.gather(dim, index), gather_by_loops(x, dim, index)) and torch.equal(
        empty.scatter(dim, index, x), scatter_by_loops(empty, dim, index, x)
    )


def show_gather(lesson: Lesson) -> None:
    lesson.section(
        "gather takes, scatter puts",
        "A list of indices picks whole rows. gather is finer: each number of the result says for itself from which row "
        "it comes, and stays in its column. With dim=0 the rule is out[i][j] = x[index[i][j]][j], and scatter is the "
        "way back. Below, the number in row i and column j of x is 10i + j.",
    )
    x = torch.tensor([[10 * i + j for j in range(3)] for i in range(3)], device=lesson.device)
    index = torch.tensor([[2, 0, 1], [0, 2, 2]], device=lesson.device)
    taken = torch.zeros_like(x, dtype=torch.bool).scatter(0, index, True)
    out = x.gather(0, index)
    put = torch.zeros_like(x).scatter(0, index, out)
    lesson.text("x.gather(0, index):")
    lesson.drawing(beside(grid(index, "index"), grid(x, "x", marked=taken), "→", grid(out, "out")))
    lesson.text("torch.zeros_like(x).scatter(0, index, out):")
    lesson.drawing(beside(grid(index, "index"), grid(out, "out"), "→", grid(put, "put back", marked=taken)))
    lesson.check("out[i][j] comes from row index[i][j] and column j",
                 torch.equal(out // 10, index) and (out % 10 == torch.arange(3, device=lesson.device)).all(),
                 f"{out[0].tolist()} from rows {index[0].tolist()}")  # fmt: skip
    lesson.check("scatter puts each number back where it was", torch.equal(put, torch.where(taken, x, 0)),
                 f"{taken.sum()} places written, {(~taken).sum()} left at 0")  # fmt: skip
    tries = [dim for _ in range(lesson.pick(full=50, quick=10)) for dim in (0, 1)]
    right = sum(map(agrees_with_loops, tries))
    lesson.check(
        "both equal two loops, along rows and columns", right == len(tries), f"{right} of {len(tries)} matrices"
    )
    keys = torch.rand(5, 3, device=lesson.device)
    values, order = keys.sort(dim=0)
    lesson.check("gather lets a second table follow a sort", torch.equal((2 * keys).gather(0, order), 2 * values),
                 "keys.sort() returns such an index")  # fmt: skip
    short = x.gather(0, index[:, :1])
    lesson.check("a narrower index gives a narrower result, silently", short.shape == (2, 1),
                 f"index {tuple(index[:, :1].shape)} on x {tuple(x.shape)}")  # fmt: skip
    lesson.shows(
        f"the result has the shape of the index, here {tuple(out.shape)}, whatever x is. dim names the one axis on which a "
        "number may move; on all others it stays where its index stands."
    )


# The score of the right class


def pick_every_label_for_every_row(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mistake: a slice and a list make a rectangle, so each row also gives its scores for the others' labels."""
    return scores[:, labels]


def pick_own_label(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Right: one number from each row. `scores` (B, classes), `labels` (B,); returns (B,)."""
    return scores.gather(1, labels[:, None]).squeeze(1)


def show_classes(lesson: Lesson) -> None:
    lesson.section(
        "The score of the right class",
        "This is where you meet gather. A classifier gives each sample a row of scores, the label says which one "
        "counts, and cross-entropy is the mean of minus the logarithms of those. The scores have two axes and the "
        "labels one, so the labels get a second: labels[:, None].",
    )
    scores = torch.tensor([[0.1, 0.2, 0.6, 0.1], [0.7, 0.1, 0.1, 0.1], [0.2, 0.3, 0.1, 0.4]], device=lesson.device)
    labels = torch.tensor([2, 0, 1], device=lesson.device)
    one_hot = torch.zeros_like(scores).scatter_(1, labels[:, None], 1)
    own = pick_own_label(scores, labels)
    drawn = grid(labels[:, None], "labels"), grid(scores, "scores", marked=one_hot == 1), "→", grid(own[:, None], "own")
    lesson.drawing(beside(*drawn, gap="   "))
    in_pairs = scores[torch.arange(len(labels), device=lesson.device), labels]
    lesson.check(
        "gather picks one number from each row", torch.equal(own, in_pairs), "as scores[arange(3), labels] does"
    )
    entropy = -own.log().mean()
    lesson.check("cross-entropy is the mean of minus their logarithms",
                 torch.allclose(entropy, F.cross_entropy(scores.log(), labels)), f"{entropy:.6f}")  # fmt: skip
    lesson.check("scatter_ writes the labels as one-hot rows", torch.equal(one_hot.long(), F.one_hot(labels, 4)),
                 f"row 0: {one_hot[0].int().tolist()}")  # fmt: skip
    table = pick_every_label_for_every_row(scores, labels)
    lesson.check("scores[:, labels] is a table; its diagonal is right",
                 table.shape == (3, 3) and torch.equal(table.diagonal(), own),
                 f"mean {table.mean():.3f}, should be {own.mean():.3f}")  # fmt: skip
    refusal = complaint(lambda: scores.gather(1, labels))
    lesson.check("without [:, None] gather refuses", "dimensions" in refusal, "labels have 1 axis, scores 2")
    lesson.items({"PyTorch says": refusal})
    narrow = F.one_hot(labels)
    lesson.check("one_hot without a count believes the largest label", narrow.shape == (3, 3),
                 f"{tuple(narrow.shape)}: no label 3 came along")  # fmt: skip
    lesson.shows(
        f"the wrong index gave a mean of {table.mean():.3f} in place of {own.mean():.3f}, a number like any other, without "
        f"an error. Look at the shape of what you average: {tuple(table.shape)} for {len(labels)} samples cannot be right."
    )


# The same place twice


def count_by_plus_equals(votes: torch.Tensor, classes: int) -> torch.Tensor:
    """The mistake: += reads all places, adds, and writes all back, so a second vote overwrites the first."""
    counts = torch.zeros(classes, device=votes.device)
    counts[votes] += 1
    return counts


def count_by_index_add(votes: torch.Tensor, classes: int) -> torch.Tensor:
    ones = torch.ones(len(votes), device=votes.device)
    return torch.zeros(classes, device=votes.device).index_add_(0, votes, ones)


def count_by_scatter_add(votes: torch.Tensor, classes: int) -> torch.Tensor:
    ones = torch.ones(len(votes), device=votes.device)
    return torch.zeros(classes, device=votes.device).scatter_add_(0, votes, ones)


def count_by_index_put(votes: torch.Tensor, classes: int) -> torch.Tensor:
    one = torch.ones((), device=votes.device)
    return torch.zeros(classes, device=votes.device).index_put_((votes,), one, accumulate=True)


def count_by_bincount(votes: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.bincount(votes, minlength=classes)


COUNTERS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "counts[votes] += 1": count_by_plus_equals,
    "index_add_(0, votes, ones)": count_by_index_add,
    "scatter_add_(0, votes, ones)": count_by_scatter_add,
    "index_put_((votes,), one, accumulate=True)": count_by_index_put,
    "bincount(votes, minlength=4)": count_by_bincount,
}


def show_repeats(lesson: Lesson) -> None:
    votes, classes = torch.tensor([2, 0, 2, 2, 1], device=lesson.device), 4
    lesson.section(
        "The same place twice",
        "Counting words, adding up the gradients of an embedding, filling a histogram: many numbers go to one place. "
        f"Here five votes for four classes, {votes.tolist()}. counts[votes] += 1 looks right.",
    )
    counts = {way: count(votes, classes).int().tolist() for way, count in COUNTERS.items()}
    lesson.table([{"way": way, "counts": str(result)} for way, result in counts.items()])
    truth = [Counter(votes.tolist())[place] for place in range(classes)]
    plus_equals, *others = counts.values()
    lesson.check("counts[votes] += 1 counts each place once", plus_equals == [1, 1, 1, 0], f"{truth} is right")
    _, *steps = (name.partition(".")[0] for name in operations(count_by_plus_equals, votes, classes))
    lesson.check("because it reads, adds and writes back", steps == ["index", "add_", "index_put_"], ", ".join(steps))
    lesson.check("the other four add", all(result == truth for result in others), "as Python's Counter does")
    many = torch.randint(classes, (lesson.pick(full=100_000, quick=1000),), device=lesson.device)
    kept, *all_of_them = [int(count(many, classes).sum()) for count in COUNTERS.values()]
    lesson.check("of many votes they lose none", all_of_them == [len(many)] * 4, f"{len(many):,}; += keeps {kept}")
    weight = torch.randn(classes, 3, device=lesson.device, requires_grad=True)
    upstream = torch.randn(len(votes), 3, device=lesson.device)
    (upstream * F.embedding(votes, weight)).sum().backward()
    summed = torch.zeros(classes, 3, device=lesson.device).index_add_(0, votes, upstream)
    lesson.check("the gradient of an embedding is an index_add_",
                 weight.grad is not None and torch.allclose(weight.grad, summed),
                 f"row 2 is a sum of {truth[2]} rows")  # fmt: skip
    lesson.shows(
        f"{len(many):,} votes came out as {kept}, since each place that was named at all is 1. Writing to a place twice is "
        "allowed, so nothing warns. On a GPU the additions come in any order, and sums of floats may differ in their "
        "last digits from run to run."
    )
