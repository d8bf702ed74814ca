"""padding_idx, max_norm and tied weights: what each does to the table, and the mistake that goes with it."""

from collections.abc import Callable

from shared.drawing import beside, grid
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import percent, significant

import torch
import torch.nn.functional as F
from torch import nn

PAD = 0


def initialise_over_the_padding(embedding: nn.Embedding) -> None:
    """The mistake: an initialiser for the whole table. The padding row gets noise that no gradient will ever move."""
    nn.init.normal_(embedding.weight, std=0.02)


def initialise_and_clear_the_padding(embedding: nn.Embedding) -> None:
    """Right: the same, and then the row is set back to zero."""
    nn.init.normal_(embedding.weight, std=0.02)
    if embedding.padding_idx is not None:
        with torch.no_grad():
            embedding.weight[embedding.padding_idx].zero_()


def mean_with_padding(vectors: torch.Tensor) -> torch.Tensor:
    """The mistake: (B, T, C) -> (B, C), where zero rows count as words and shorten the mean."""
    return vectors.mean(dim=1)


def mean_of_words(vectors: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Right: divide by the number of words, (B, T, C) and (B, T) -> (B, C)."""
    is_word = (tokens != PAD).unsqueeze(2)
    return (vectors * is_word).sum(dim=1) / is_word.sum(dim=1).clamp(min=1)


def show_padding(lesson: Lesson) -> None:
    lesson.section(
        "padding_idx: a row that stays zero",
        "Sentences in a batch have one length, so short ones are filled up with a padding token. padding_idx does two "
        "things and no more: its row starts as zeros, and its gradient is zero, so that it stays what it is. A batch "
        "of three sentences, 0 is the padding:",
    )
    tokens = torch.tensor([[3, 1, 4], [2, 0, 0], [5, 5, 0]], device=lesson.device)
    embedding = nn.Embedding(6, 3, padding_idx=PAD, device=lesson.device)
    embedding(tokens).sum().backward()
    gradient = embedding.weight.grad
    assert gradient is not None
    lesson.drawing(beside(grid(tokens, "tokens", tokens == PAD), grid(gradient, "gradient of the sum, in the table")))
    lesson.check("the padding row is zero, and so is its gradient",
                 not embedding.weight[PAD].any() and not gradient[PAD].any(),
                 f"though it was looked up {(tokens == PAD).sum()} times")  # fmt: skip
    uses = torch.bincount(tokens.flatten(), minlength=6)
    lesson.check("every other row: once for each use", torch.equal(gradient[1:, 0], uses[1:].to(gradient.dtype)),
                 f"uses {uses[1:].tolist()}")  # fmt: skip
    wrong, right = (nn.Embedding(6, 3, padding_idx=PAD, device=lesson.device) for _ in range(2))
    initialise_over_the_padding(wrong)
    initialise_and_clear_the_padding(right)
    before = wrong.weight[PAD].detach().clone()
    for embedding in (wrong, right):
        embedding(tokens).square().sum().backward()
        with torch.no_grad():
            embedding.weight -= 0.5 * embedding.weight.grad
    lesson.check("an initialiser over the whole table fills the padding", bool(before.any()),
                 f"{before.abs().max():.3f} instead of 0")  # fmt: skip
    lesson.check("and no training removes it", torch.equal(wrong.weight[PAD], before), "its gradient is still zero")
    lesson.check("cleared after the initialiser, it stays zero", not right.weight[PAD].any(),
                 "with no_grad(): weight[padding_idx].zero_()")  # fmt: skip
    vectors = torch.randn(6, 3, device=lesson.device)
    frozen = nn.Embedding.from_pretrained(vectors, padding_idx=PAD)
    free = nn.Embedding.from_pretrained(vectors, freeze=False, padding_idx=PAD)
    lesson.check("from_pretrained freezes, unless freeze=False",
                 not frozen.weight.requires_grad and free.weight.requires_grad, "it would not learn, silently")  # fmt: skip
    lesson.check("from_pretrained(padding_idx) does not clear the row", bool(frozen.weight[PAD].any()),
                 "it keeps what was in the file")  # fmt: skip
    cleared = vectors.clone()
    cleared[PAD] = 0
    looked_up = F.embedding(tokens, cleared)
    oracle = F.embedding_bag(tokens.cpu(), cleared.cpu(), mode="mean", padding_idx=PAD).to(tokens.device)
    off = (mean_of_words(looked_up, tokens) - oracle).abs().max().item()
    short = mean_with_padding(looked_up)[1].norm() / oracle[1].norm()
    lesson.check("a mean over words must not count the padding", off < 1e-6 and abs(short - 1 / 3) < 1e-5,
                 f"one word and two paddings: {short:.3f} of its length")  # fmt: skip
    lesson.shows(
        f"padding_idx protects one row from gradients, not from you: an initialiser wrote {before.abs().max():.3f} "
        "into it, and a file may. Nor does it know what you do with the zeros afterwards; a mean, a maximum or a "
        "softmax over positions needs the mask as well."
    )


def use_the_table_before_the_lookup(embedding: nn.Embedding, tokens: torch.Tensor) -> None:
    """The mistake: the lookup rewrites rows of a table that the graph still needs."""
    scores = embedding.weight.square().sum()
    (scores + embedding(tokens).sum()).backward()


def use_a_copy_before_the_lookup(embedding: nn.Embedding, tokens: torch.Tensor) -> None:
    """Right: the graph keeps the copy."""
    scores = embedding.weight.clone().square().sum()
    (scores + embedding(tokens).sum()).backward()


def show_max_norm(lesson: Lesson) -> None:
    lesson.section(
        "max_norm writes into the weights",
        "max_norm shortens vectors that are too long. One would expect that of the result. It happens to the table: "
        "the forward pass overwrites each row that it looks up, without a gradient, and in eval mode as well. A lookup "
        "that changes parameters surprises whoever compares, checkpoints or shares them.",
    )
    embedding = nn.Embedding(6, 8, max_norm=1.0, device=lesson.device)
    with torch.no_grad():
        embedding.weight.mul_(3 / embedding.weight.norm(dim=1, keepdim=True))  # each row has length 3
    tokens = torch.tensor([1, 4], device=lesson.device)
    before = embedding.weight.detach().clone()
    embedding.eval()
    embedding(tokens)
    after = embedding.weight.detach().clone()
    lesson.table(
        [{"row": row, "length before": before[row].norm().item(), "after the lookup of 1 and 4": after[row].norm().item()}
         for row in range(6)]
    )  # fmt: skip
    changed = [row for row in range(6) if not torch.equal(before[row], after[row])]
    lesson.check("a lookup changed the parameters, in eval mode", changed == tokens.tolist(),
                 f"rows {changed}, now of length {after[1].norm():.3f}")  # fmt: skip
    direction = F.cosine_similarity(before[tokens], after[tokens]).min().item()
    lesson.check("their direction is the same", direction > 1 - 1e-5, f"cosine {direction:.6f}")

    def answer(use: Callable[[nn.Embedding, torch.Tensor], None]) -> str:
        with torch.no_grad():
            embedding.weight.mul_(3)  # too long again, so that the lookup has something to do
        return complaint(lambda: use(embedding, tokens))

    message = answer(use_the_table_before_the_lookup)
    lesson.check("a graph that had used the table is refused", "inplace" in message, "modified by an inplace operation")
    lesson.check(
        "with a clone of it, it works", answer(use_a_copy_before_the_lookup) == "", "weight.clone() comes first"
    )
    lesson.items({"it says": message, "it means": "The lookup rewrote rows that backward() needs as they were.",
                  "the cure": "use embedding.weight.clone() where the table is used apart from lookups"})  # fmt: skip
    lesson.shows(
        f"looking up {len(changed)} tokens rewrote {len(changed)} of {len(before)} rows, and the others still have "
        f"length {after[0].norm():.0f}: what is bounded depends on what was looked up. If you want short vectors, "
        "normalise the result, F.normalize(embedding(tokens)), and leave the table alone."
    )


def logits_of(table_in: torch.Tensor, table_out: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The smallest language model: the vector of a token against the vector of every token, (T,) -> (T, V)."""
    return F.embedding(tokens, table_in) @ table_out.T


def show_tied(lesson: Lesson) -> None:
    lesson.section(
        "Tied weights: two gradients in one table",
        "A language model has a table at both ends: one row for each token that it reads, and one for each that it may "
        "say. Both are vocabulary x width, so they can be one parameter (Press & Wolf 2017; GPT-2 does it). Autograd "
        "needs no telling: where a tensor is used twice, its gradients add.",
    )
    vocabulary, width = 200, 16
    tokens = torch.randint(20, (32,), device=lesson.device)  # the text uses 20 tokens of 200
    targets = tokens.roll(1)
    table = torch.randn(vocabulary, width, device=lesson.device) / width**0.5

    def gradients(*tables: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = F.cross_entropy(logits_of(tables[0], tables[-1], tokens), targets)
        return torch.autograd.grad(loss, tables)

    (tied,) = gradients(table.clone().requires_grad_())
    by_input, by_output = gradients(table.clone().requires_grad_(), table.clone().requires_grad_())
    off = (tied - by_input - by_output).abs().max().item() / tied.abs().max().item()
    lesson.check(
        "the tied gradient is the sum of the two", off < 1e-5, f"{significant(off, 2) if off else 'nothing'} off"
    )
    rows = [int(gradient.any(dim=1).sum()) for gradient in (by_input, by_output, tied)]
    lesson.table(
        [{"gradient from": name, "rows that it reaches": count, "of": vocabulary, "length": gradient.norm().item()}
         for name, count, gradient in zip(("the lookup", "the output", "both"), rows, (by_input, by_output, tied),
                                          strict=True)]
    )  # fmt: skip
    used = len(tokens.unique())
    lesson.check("the lookup reaches the rows in use, the output all", rows == [used, vocabulary, vocabulary],
                 f"{rows[0]} and {rows[1]} of {vocabulary}")  # fmt: skip
    size, whole = 50_257 * 768, 124_439_808
    model_share = size / (whole + size)
    lesson.check("untied, GPT-2 small would be almost a third larger", 0.25 < size / whole < 0.35,
                 f"{whole / 1e6:.0f} M parameters, and {size / 1e6:.1f} M more: {percent(size / whole)}")  # fmt: skip
    lesson.shows(
        f"tying saves {percent(model_share)} of an untied GPT-2 small. The output's gradient reaches every row in "
        "every step, so a tied table has no sparse gradient. And one spread must serve two ends: see the 0.02 in "
        "initialization_study.py."
    )
