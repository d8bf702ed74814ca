"""What is an embedding, what does its gradient touch, and what do the vectors know once they are trained?

An embedding is a table with one row for each token, and its forward pass copies rows. You will see that this is a product
with a one-hot matrix that nobody makes, why the gradient has a handful of rows that matter, what padding_idx, max_norm,
tied weights and sparse gradients do to the table, and at last train vectors from Python's own source until True finds
False.

    python src/embedding_layers.py            about 25 seconds
    python src/embedding_layers.py --quick    the same path with tiny sizes, a few seconds
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_01_neural_networks.src.embedding.bags import show_bags
from pytorch_01_neural_networks.src.embedding.neighbours import show_neighbours
from pytorch_01_neural_networks.src.embedding.skip_gram import show_held_out, show_training
from pytorch_01_neural_networks.src.embedding.sparse import show_optimizers, show_sparse
from pytorch_01_neural_networks.src.embedding.traps import show_max_norm, show_padding, show_tied
from shared.agreement import agreement
from shared.drawing import beside, grid
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.timing import compare, ratio
from shared.traps import largest_made
from shared.units import bytes_text, seconds_text, significant

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# The lookup


class OwnEmbedding(nn.Module):
    """nn.Embedding in two lines: the table is the only parameter, N(0, 1) at first, and calling it picks rows."""

    def __init__(self, vocabulary: int, width: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocabulary, width, device=device))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.weight[tokens]


def lookup_by_product(tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """One-hot rows times the table: (N,) and (V, C) -> (N, C) by way of (N, V)."""
    return F.one_hot(tokens, len(table)).to(table.dtype) @ table


def show_lookup(lesson: Lesson) -> None:
    lesson.section(
        "A lookup is a product with one-hot rows",
        "Networks compute with numbers, and a word is none. As a one-hot row it becomes one: zeros, and a 1 at its "
        "place in the vocabulary. The first layer of a network would multiply that row with its weights, and a product "
        "with a single 1 picks one row of them. So the layer is a table, and the product a copy.",
    )
    table = torch.tensor([[0.1, 0.2, 0.3], [1.1, 1.2, 1.3], [2.1, 2.2, 2.3], [3.1, 3.2, 3.3]], device=lesson.device)
    tokens = torch.tensor([2, 0, 2], device=lesson.device)
    hot = F.one_hot(tokens, 4)
    lesson.drawing(
        beside(
            grid(hot, "one-hot", hot == 1), "@", grid(table, "table"), "=", grid(lookup_by_product(tokens, table), "")
        )
    )
    tokens = torch.randint(500, (4, 7), device=lesson.device)
    found = agreement(
        lambda table: lookup_by_product(tokens, table), lambda table: F.embedding(tokens, table),
        torch.randn(500, 16, device=lesson.device),
    )  # fmt: skip
    lesson.check("product and lookup agree, and so do their gradients", found.within(1e-5), found)
    own, library = OwnEmbedding(500, 16, lesson.device), nn.Embedding(500, 16, device=lesson.device)
    library.load_state_dict(own.state_dict())
    found = agreement(own, library, tokens)
    lesson.check("weight[tokens] is the whole of nn.Embedding", found.within(1e-5), found)
    table[3] = torch.inf
    picked, product = F.embedding(tokens % 3, table), lookup_by_product(tokens % 3, table)
    lesson.check("one inf in an unused row spoils the product", bool(picked.isfinite().all() and product.isnan().all()),
                 "0 x inf is NaN; the lookup never reads that row")  # fmt: skip
    show_lookup_cost(lesson)


def show_lookup_cost(lesson: Lesson) -> None:
    count, width = 256, 64
    lesson.text(f"What each costs, for {count} tokens and {width} numbers a row:")
    table, flops, made, slower = [], {}, {}, {}
    for vocabulary in lesson.pick(full=[1_000, 10_000, 50_000], quick=[1_000, 5_000]):
        weight = torch.randn(vocabulary, width, device=lesson.device)
        tokens = torch.randint(vocabulary, (count,), device=lesson.device)
        with FlopCounterMode(display=False) as counter:
            lookup_by_product(tokens, weight)
        flops[vocabulary] = int(counter.get_total_flops())
        made[vocabulary] = largest_made(lookup_by_product, tokens, weight), largest_made(F.embedding, tokens, weight)
        timings = compare(
            {"product": lambda: lookup_by_product(tokens, weight), "lookup": lambda: F.embedding(tokens, weight)},
            lesson.device, rounds=5, budget_s=lesson.pick(full=0.5, quick=0.05),
        )  # fmt: skip
        for name, timing in timings.items():
            lesson.record(name, timing.median_s * 1e6, "µs", timing, vocabulary=vocabulary, tokens=count, width=width)
        slower[vocabulary] = ratio(timings["product"], timings["lookup"]).median
        table.append({"vocabulary": vocabulary, "MFLOP, product": flops[vocabulary] / 1e6,
                      "one-hot, float32": bytes_text(4 * made[vocabulary][0]),
                      "lookup makes": bytes_text(4 * made[vocabulary][1]),
                      "product": seconds_text(timings["product"].median_s),
                      "lookup": seconds_text(timings["lookup"].median_s),
                      "times as long": significant(slower[vocabulary])})  # fmt: skip
    lesson.table(table)
    largest = max(flops)
    lesson.check("the product: 2 x tokens x vocabulary x width FLOP",
                 all(flops[v] == 2 * count * v * width for v in flops), f"{flops[largest]:,}; the lookup has none")  # fmt: skip
    lesson.check("and a one-hot matrix of tokens x vocabulary", all(made[v] == (count * v, count * width) for v in made),
                 f"{made[largest][0]:,} numbers; the lookup makes {made[largest][1]:,}")  # fmt: skip
    lesson.shows(
        f"the product works on the whole vocabulary for every token, {significant(slower[largest])} times as long as "
        f"the lookup at {largest:,} tokens, and all but one in {largest:,} of its multiplications are by 0. A lookup "
        f"reads {count} rows, however many there are: memory traffic and no arithmetic."
    )


# Its gradient


class Lookup(torch.autograd.Function):
    """The lookup with its backward written out: each row of the gradient is added to the row that it came from."""

    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(tokens)
        ctx.vocabulary = len(table)
        return table[tokens]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (tokens,), (gradient,) = ctx.saved_tensors, gradients
        return add_rows(gradient.flatten(0, -2), tokens.flatten(), ctx.vocabulary), None


def add_rows(rows: torch.Tensor, tokens: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Right: (N, C) and (N,) -> (V, C), in which rows of the same token are added."""
    return rows.new_zeros(vocabulary, rows.shape[1]).index_add_(0, tokens, rows)


def add_rows_by_indexing(rows: torch.Tensor, tokens: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """The mistake: += on an index reads all rows, adds, and writes; a token that comes twice is written twice, not added."""
    total = rows.new_zeros(vocabulary, rows.shape[1])
    total[tokens] += rows
    return total


def show_gradient(lesson: Lesson) -> None:
    lesson.section(
        "The gradient: rows that were used, added up",
        "Backwards, the transposed one-hot matrix carries each gradient row to the row of the table that it came from. "
        "A token that occurs three times collects three, and a token that does not occur has a gradient of exactly "
        "zero. The gradient of the sum over all looked-up numbers therefore counts the uses:",
    )
    tokens = torch.tensor([[1, 4, 1], [4, 1, 2]], device=lesson.device)
    table = torch.randn(6, 3, device=lesson.device, requires_grad=True)
    F.embedding(tokens, table).sum().backward()
    assert table.grad is not None
    lesson.drawing(beside(grid(tokens, "tokens"), grid(table.grad, "gradient of the table", table.grad != 0)))
    uses = torch.bincount(tokens.flatten(), minlength=6)
    lesson.check("each row's gradient counts its uses", torch.equal(table.grad[:, 0], uses.to(table.grad.dtype)),
                 f"{uses.tolist()}")  # fmt: skip
    tokens = torch.randint(20, (8, 10), device=lesson.device)
    found = agreement(
        lambda table: Lookup.apply(table, tokens),
        lambda table: F.embedding(tokens, table),
        torch.randn(50, 4, device=lesson.device),
    )
    lesson.check("index_add_ is the whole of the backward", found.within(1e-5), found)
    rows = torch.ones(tokens.numel(), 4, device=lesson.device)
    right, wrong = (add(rows, tokens.flatten(), 50) for add in (add_rows, add_rows_by_indexing))
    lesson.check("total[tokens] += rows counts a repeated token once",
                 right.sum() == rows.sum() and wrong.max() == 1 and right.max() > 1,
                 f"{int(wrong.sum())} of {int(right.sum())} numbers arrive")  # fmt: skip
    scaled = torch.randn(50, 4, device=lesson.device, requires_grad=True)
    F.embedding(tokens, scaled, scale_grad_by_freq=True).sum().backward()
    assert scaled.grad is not None
    off = (scaled.grad[tokens] - 1).abs().max().item()
    lesson.check("scale_grad_by_freq divides by the number of uses", off < 1e-5, "every used row then has gradient 1")
    lesson.shows(
        f"{len(tokens.unique())} of 50 rows received a gradient from {tokens.numel()} lookups. In a large vocabulary "
        "that share is tiny: frequent tokens learn in every step, rare ones seldom. The mistake with += loses "
        f"{int(right.sum() - wrong.sum())} of {int(right.sum())} numbers without a word, in NumPy as well."
    )


# Indices


def check_tokens(tokens: torch.Tensor, vocabulary: int) -> None:
    """Raises ValueError that names the first token outside 0 … vocabulary - 1, and where it stands."""
    outside = (tokens < 0) | (tokens >= vocabulary)
    if outside.any():
        place = tuple(outside.nonzero()[0].tolist())
        raise ValueError(f"token {tokens[place].item()} at {place} is not in a vocabulary of {vocabulary:,}")


def show_errors(lesson: Lesson) -> None:
    lesson.section(
        "Indices that are not there",
        "A frequent error with embeddings: the tokenizer knows a token for which the table has no row, often because a "
        "special token was added later. On the CPU the message is short. On a GPU the check runs inside the kernel, "
        "the error arrives at some later line as a device-side assert, and the process can do nothing more with the "
        "GPU. So the calls below run on the CPU.",
    )
    embedding = nn.Embedding(10, 4)
    calls = {
        "[9]": torch.tensor([9]),
        "[10]": torch.tensor([10]),
        "[-1]": torch.tensor([-1]),
        "[1.0]": torch.tensor([1.0]),
        "[1] as int32": torch.tensor([1], dtype=torch.int32),
        "[1] as uint8": torch.tensor([1], dtype=torch.uint8),
    }
    answers = {call: complaint(lambda: embedding(tokens)) for call, tokens in calls.items()}
    lesson.table(
        [{"tokens": call, "nn.Embedding(10, 4) answers": answer or "a row"} for call, answer in answers.items()]
    )
    refused = [call for call, answer in answers.items() if answer]
    lesson.check("row 10 of 10 does not exist, nor does row -1",
                 "out of range" in answers["[10]"] and "out of range" in answers["[-1]"],
                 "negative indices do not count from the end")  # fmt: skip
    lesson.check("tokens are int64 or int32, nothing else",
                 not answers["[1] as int32"] and bool(answers["[1.0]"] and answers["[1] as uint8"]),
                 "floats and bytes are refused")  # fmt: skip
    message = complaint(lambda: check_tokens(torch.tensor([[3, 4], [1, 10]]), 10))
    lesson.check("a check of one's own says which token and where", "token 10 at (1, 1)" in message,
                 message.partition(": ")[2])  # fmt: skip
    lesson.shows(
        f"{len(refused)} of {len(calls)} calls were refused. When a GPU reports a device-side assert in an embedding, "
        "run the same batch on the CPU, or test tokens.min() and tokens.max() against num_embeddings in the data "
        "loader, where it costs nothing."
    )


def main(argv: list[str] | None = None) -> int:
    title = "Embeddings: lookups, their sparse gradients, and vectors trained from a text."
    with Lesson(__file__, argv, title=title) as lesson:
        show_lookup(lesson)
        show_gradient(lesson)
        show_errors(lesson)
        show_padding(lesson)
        show_max_norm(lesson)
        show_tied(lesson)
        show_sparse(lesson)
        show_optimizers(lesson)
        show_bags(lesson)
        corpus, vectors = show_training(lesson)
        show_held_out(lesson, corpus, vectors)
        show_neighbours(lesson, corpus, vectors)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
