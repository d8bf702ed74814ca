"""EmbeddingBag: look rows up and add them, without a tensor of all the rows in between."""

from pytorch_01_neural_networks.src.embedding.sparse import device_with_sparse_tensors
from shared.agreement import agreement
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.timing import compare
from shared.traps import largest_made
from shared.units import bytes_text, seconds_text

import torch
import torch.nn.functional as F


def bags_by_hand(tokens: torch.Tensor, table: torch.Tensor, offsets: torch.Tensor, mode: str,
                 weights: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
    """What EmbeddingBag computes, in the obvious way: (N,), (V, C), (B,) -> (B, C).

    Bag b holds tokens[offsets[b] : offsets[b + 1]]; an empty one gives zeros.
    """
    ends = [*offsets[1:].tolist(), len(tokens)]
    rows = []
    for start, end in zip(offsets.tolist(), ends, strict=True):
        vectors = F.embedding(tokens[start:end], table)
        if weights is not None:
            vectors = vectors * weights[start:end, None]
        if start == end:
            rows.append(table.new_zeros(table.shape[1]))
        elif mode == "max":
            rows.append(vectors.max(dim=0).values)
        else:
            rows.append(vectors.sum(dim=0) if mode == "sum" else vectors.mean(dim=0))
    return torch.stack(rows)


def lookup_then_sum(tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """(B, T) -> (B, C) by way of (B, T, C)."""
    return F.embedding(tokens, table).sum(dim=1)


def bag_sum(tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The same without the tensor in the middle."""
    return F.embedding_bag(tokens, table, mode="sum")


def show_bags(lesson: Lesson) -> None:
    device = device_with_sparse_tensors(lesson.device)
    lesson.section(
        "EmbeddingBag: look up and add in one",
        "A text as the mean of its words, a user as the sum of what he bought: sets of different sizes, each reduced "
        "to one vector. EmbeddingBag takes all sets in one long list, with the offset at which each begins, and never "
        "makes the tensor of all looked-up rows.",
    )
    vocabulary, width = 50, 8
    tokens = torch.randint(vocabulary, (30,), device=device)
    offsets = torch.tensor([0, 7, 7, 12, 29], device=device)  # the second bag is empty, the last holds one token
    table, weights = torch.randn(vocabulary, width, device=device), torch.rand(30, device=device)
    lesson.items({"tokens": "30, in one list", "offsets": offsets.tolist(), "bags": "of 7, 0, 5, 17 and 1 tokens"})
    for mode in ("sum", "mean", "max"):
        found = agreement(
            lambda table: F.embedding_bag(tokens, table, offsets, mode=mode),
            lambda table: bags_by_hand(tokens, table, offsets, mode),
            table,
        )
        lesson.check(f"{mode} is Embedding and then {mode}", found.within(1e-5), found)
    found = agreement(
        lambda table, weights: F.embedding_bag(tokens, table, offsets, mode="sum", per_sample_weights=weights),
        lambda table, weights: bags_by_hand(tokens, table, offsets, "sum", weights),
        table,
        weights,
    )
    lesson.check("per_sample_weights: a weighted sum, with their gradient", found.within(1e-5), found)
    answer = complaint(lambda: F.embedding_bag(tokens, table, offsets, mode="mean", per_sample_weights=weights))
    lesson.check("weights are for sums only", "only supported for mode='sum'" in answer, "mean and max refuse them")
    empty = [F.embedding_bag(tokens, table, offsets, mode=mode)[1] for mode in ("sum", "mean", "max")]
    lesson.check("an empty bag is zeros in every mode", not any(bag.any() for bag in empty), "no NaN from 0 / 0")
    bags, length, wide = lesson.pick(full=512, quick=64), lesson.pick(full=200, quick=50), 64
    big_table = torch.randn(10_000, wide, device=device)
    big_tokens = torch.randint(len(big_table), (bags, length), device=device)
    made = {
        "Embedding, then sum": largest_made(lookup_then_sum, big_tokens, big_table),
        "EmbeddingBag": largest_made(bag_sum, big_tokens, big_table),
    }
    timings = compare(
        {
            "Embedding, then sum": lambda: lookup_then_sum(big_tokens, big_table),
            "EmbeddingBag": lambda: bag_sum(big_tokens, big_table),
        },
        device, budget_s=lesson.pick(full=0.6, quick=0.1),
    )  # fmt: skip
    for name, timing in timings.items():
        lesson.record("sum of bags", timing.median_s * 1e3, "ms", timing, way=name, bags=bags, length=length)
    lesson.table(
        [{"way": name, "largest tensor made": bytes_text(4 * count), "time": seconds_text(timings[name].median_s)}
         for name, count in made.items()]
    )  # fmt: skip
    lesson.check("the tensor in the middle is bags x length x width", made["Embedding, then sum"] == bags * length * wide,
                 f"{made['Embedding, then sum']:,} numbers")  # fmt: skip
    largest = max(bags * wide, bags * length)
    lesson.check("EmbeddingBag makes none of that size", made["EmbeddingBag"] <= largest,
                 f"{made['EmbeddingBag']:,}: the result, or a row number for each token")  # fmt: skip
    lesson.shows(
        f"for {bags} bags of {length} the largest tensor shrinks from {bytes_text(4 * made['Embedding, then sum'])} to "
        f"{bytes_text(4 * made['EmbeddingBag'])}. Recommender models live in this layer, with tables of a hundred "
        "million rows and bags of every size; an empty bag is zeros and not NaN."
    )
