"""Nearest neighbours among learned vectors: a table, two tests against chance, and a picture."""

from collections.abc import Sequence
from typing import Any

from pytorch_01_neural_networks.src.embedding.corpus import WINDOW, Corpus, kind_of
from pytorch_01_neural_networks.src.embedding.skip_gram import Vectors
from shared.lesson import Lesson
from shared.units import percent

import torch
import torch.nn.functional as F

SHOWN = (
    "True",
    "int",
    "read",
    "min",
    "encode",
    "append",
    "==",
    "if",
    "except",
    "ValueError",
    "first",
    "x",
    "start",
    "+",
)
COMPARISONS = ("==", "!=", "<", ">", "<=", ">=")
PARTNERS = (  # chosen before any training; those in the vocabulary count
    ("True", "False"), ("and", "or"), ("if", "elif"), ("<", ">"), ("==", "!="), ("+", "-"), ("int", "float"), ("min", "max"),
    ("list", "tuple"), ("x", "y"), ("start", "end"), ("key", "value"), ("read", "write"), ("encode", "decode"),
    ("startswith", "endswith"), ("getattr", "setattr"), ("lower", "upper"), ("TypeError", "ValueError"), ("stdin", "stdout"),
    ("year", "month"), ("width", "height"), ("first", "last"), ("left", "right"), ("append", "extend"),
)  # fmt: skip
PER_TOKEN = 5


def similarities(vectors: torch.Tensor) -> torch.Tensor:
    """The cosine of every row with every other, (V, C) -> (V, V); -1 with itself, so that no row is its own neighbour."""
    unit = F.normalize(vectors, dim=1)
    return (unit @ unit.T).fill_diagonal_(-1)


def nearest(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """The numbers of the `count` most similar rows, best first: (V, C) -> (V, count)."""
    return similarities(vectors).topk(count, dim=1).indices


def rank_of(similarity: torch.Tensor, token: int, partner: int) -> int:
    """1 for the nearest neighbour."""
    return 1 + int((similarity[token] > similarity[token, partner]).sum())


def context_overlap(text: torch.Tensor, size: int) -> torch.Tensor:
    """How much the contexts of two tokens have in common, 0 to 1, for all pairs, (V, V).

    The sum over contexts of √(p q), where p and q are the shares of that context for the two (Bhattacharyya 1943).
    """
    counts = torch.zeros(size * size)
    for distance in range(1, WINDOW + 1):
        left, right = text[:-distance], text[distance:]
        for center, context in ((left, right), (right, left)):
            counts += torch.bincount(center * size + context, minlength=size * size)
    shares = counts.view(size, size)
    root = (shares / shares.sum(dim=1, keepdim=True).clamp(min=1)).sqrt()
    return root @ root.T


def show_neighbours(lesson: Lesson, corpus: Corpus, vectors: Vectors) -> None:
    lesson.section(
        "Nearest neighbours",
        "What did the vectors learn? The neighbours of a token are the rows with the largest cosine, one matrix "
        "product for all of them. Nobody told the model what a keyword or an exception is; a neighbour is what can "
        "stand in the same place.",
    )
    learned = vectors.centers.cpu()
    number_of = {token: number for number, token in enumerate(corpus.vocabulary)}
    size = len(corpus.vocabulary)
    closest = nearest(learned, PER_TOKEN)

    def names(numbers: torch.Tensor) -> str:
        return "   ".join(corpus.vocabulary[number] for number in numbers.tolist())

    lesson.table([{"token": token, "nearest first": names(closest[number_of[token]])}
                  for token in SHOWN if token in number_of])  # fmt: skip
    similarity = similarities(learned)
    pairs = [pair for pair in PARTNERS if all(token in number_of for token in pair)]
    ranks = sorted(rank_of(similarity, number_of[a], number_of[b]) for a, b in pairs)
    median = ranks[len(ranks) // 2]
    lesson.check(f"partners find each other among {size} tokens", median <= size / 20,
                 f"{len(pairs)} pairs, median rank {median}; by chance {size // 2}")  # fmt: skip
    comparisons = [number_of[sign] for sign in COMPARISONS if sign in number_of]
    signs = sum(corpus.vocabulary[number] in COMPARISONS for number in closest[comparisons].flatten().tolist())
    share, base = signs / closest[comparisons].numel(), (len(comparisons) - 1) / (size - 1)
    lesson.check("comparisons have comparisons for neighbours", share > 5 * base,
                 f"{percent(share)} of {PER_TOKEN} nearest, {percent(base)} by chance")  # fmt: skip
    overlap = context_overlap(corpus.held_out, size)
    frequent = torch.arange(100)  # the others occur too rarely in the text held out
    near = overlap[frequent, closest[frequent, 0]].mean().item()
    by_chance = overlap[frequent[:, None], torch.randint(size, (len(frequent), 20))].mean().item()
    lesson.check("neighbours share contexts, in the text held out too", near > 1.2 * by_chance,
                 f"overlap {near:.2f}, of random pairs {by_chance:.2f}")  # fmt: skip
    lesson.figure("token_map", lambda axis: draw_map(axis, corpus.vocabulary, learned))
    lesson.shows(
        f"half of the {len(pairs)} pairs that were written down before training lie within rank {median} of {size}, "
        "from nothing but what stands beside what. The vectors know place, not meaning: opposites such as min and max "
        f"are neighbours. The first two directions of the picture token_map.png hold {percent(explained(learned))} of "
        f"the variance of {learned.shape[1]}, so look at distances there with care."
    )


def principal_directions(vectors: torch.Tensor, count: int = 2) -> torch.Tensor:
    """Each row's coordinates along the directions of largest variance, (V, C) -> (V, count): PCA by an SVD."""
    centred = vectors - vectors.mean(dim=0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    return u[:, :count] * s[:count]


def explained(vectors: torch.Tensor, count: int = 2) -> float:
    """The share of the variance along these directions."""
    centred = vectors - vectors.mean(dim=0)
    return (principal_directions(vectors, count).square().sum() / centred.square().sum()).item()


def without_overlap(
    places: Sequence[tuple[float, float]], labels: Sequence[str], letter: float, line: float
) -> list[int]:
    """The numbers of labels that can be written centred at `places`, first come first served, none over another.

    `letter` and `line` are the width and height of a character in units of the places.
    """
    taken: list[tuple[float, float, float]] = []
    chosen = []
    for number, ((x, y), label) in enumerate(zip(places, labels, strict=True)):
        half = letter * (len(label) + 1) / 2
        if all(
            abs(x - other_x) > half + other_half or abs(y - other_y) > line for other_x, other_y, other_half in taken
        ):
            taken.append((x, y, half))
            chosen.append(number)
    return chosen


STYLES = {  # told apart without colour too
    "keyword": {"color": "#0b5fa5", "weight": "bold"},
    "sign": {"color": "#c2410c", "weight": "bold"},
    "builtin": {"color": "#15803d", "style": "italic"},
    "name": {"color": "#404040"},
}


def labels_first(vocabulary: Sequence[str]) -> list[int]:
    """The numbers of all tokens in the order in which they are given a place on the map."""
    partners = {token for pair in PARTNERS for token in pair}
    order = sorted((token not in partners, kind_of(token) == "name", n) for n, token in enumerate(vocabulary))
    return [number for _, _, number in order]


def draw_map(axis: Any, vocabulary: Sequence[str], vectors: torch.Tensor) -> None:
    places = principal_directions(F.normalize(vectors, dim=1))
    low, high = places.min(dim=0).values, places.max(dim=0).values
    points = [(x, y) for x, y in ((places - low) / (high - low)).tolist()]  # both axes from 0 to 1
    first = labels_first(vocabulary)
    written = without_overlap([points[n] for n in first], [vocabulary[n] for n in first], letter=0.0125, line=0.034)
    labelled = {first[position] for position in written}
    for number, token in enumerate(vocabulary):
        style = STYLES[kind_of(token)]
        if number in labelled:
            axis.text(*points[number], token, fontsize=8, ha="center", va="center", family="DejaVu Sans Mono", **style,
                      bbox={"color": "white", "pad": 0.4, "alpha": 0.8})  # fmt: skip
        else:
            axis.plot(*points[number], marker=".", markersize=3, alpha=0.3, color=style["color"], zorder=0)
    for kind, style in STYLES.items():
        axis.plot([], [], marker="o", linestyle="", color=style["color"], label=kind)
    axis.set(xlim=(-0.05, 1.05), ylim=(-0.04, 1.13), xticks=[], yticks=[], xlabel="first principal direction",
             ylabel="second", title="Tokens of Python's source, by what stands beside them")  # fmt: skip
    axis.grid(visible=False)
    axis.legend(fontsize=9, ncols=4, loc="upper center")
