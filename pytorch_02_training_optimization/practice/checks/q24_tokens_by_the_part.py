"""The oracle takes one sentence after the other, without padding, and one gradient of the mean over all their tokens."""

import math
from collections.abc import Sequence
from typing import Any

from shared.practice import expect
from shared.traps import SavedTensors, expect_number
from shared.units import percent, significant

import torch
import torch.nn.functional as F
from torch import nn

SIGNS, LR, IGNORED = 6, 0.5, -100
Part = tuple[torch.Tensor, torch.Tensor]


class Network(nn.Module):
    """Scores of the next sign from this one alone; notes what autograd still keeps when it is called."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(SIGNS, 4, generator=generator, dtype=torch.float64))
        self.out = nn.Parameter(torch.randn(4, SIGNS, generator=generator, dtype=torch.float64))
        self.saved: SavedTensors | None = None
        self.alive = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.saved is not None:
            self.alive = max(self.alive, self.saved.alive())
        return torch.tanh(self.table[x]) @ self.out


class Descent:
    """Plain gradient descent that counts its steps."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.steps = model, 0

    def zero_grad(self) -> None:
        self.model.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        for weight in self.model.parameters():
            if weight.grad is not None:
                weight -= LR * weight.grad


def padded(sentences: Sequence[torch.Tensor], width: int) -> Part:
    x = torch.zeros(len(sentences), width, dtype=torch.int64)
    y = torch.full((len(sentences), width), IGNORED)
    for row, sentence in enumerate(sentences):
        x[row, : len(sentence) - 1], y[row, : len(sentence) - 1] = sentence[:-1], sentence[1:]
    return x, y


def by_sentence(model: Network, parts: Sequence[Sequence[torch.Tensor]]) -> tuple[list[torch.Tensor], float]:
    """The gradients of the mean loss of a token, and that loss."""
    losses = [F.cross_entropy(model(sentence[:-1]), sentence[1:], reduction="none")
              for part in parts for sentence in part if len(sentence) > 1]  # fmt: skip
    loss = torch.cat(losses).mean()
    return list(torch.autograd.grad(loss, list(model.parameters()))), loss.item()


# Lengths of the sentences in each part; one of n signs has n - 1 tokens to guess.
CASES = {
    "one part": [[5, 7]],
    "two full parts of equal size": [[5, 5], [5, 5]],
    "a part of 3 and one of 30 tokens": [[2, 3], [11, 21]],
    "parts with 1, 2 and 3 sentences": [[9], [3, 8], [4, 2, 12]],
    "a part of nothing but padding": [[6, 4], [1, 1], [9]],
}


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, lengths in CASES.items():
        sentences = [[torch.randint(SIGNS, (n,), generator=generator) for n in part] for part in lengths]
        expect_step(answer, Network(generator), sentences, f"train_step with {name}")


def expect_step(answer: Any, model: Network, sentences: Sequence[Sequence[torch.Tensor]], call: str) -> None:
    gradients, loss = by_sentence(model, sentences)
    wanted = torch.cat([(-LR * gradient).flatten() for gradient in gradients])
    parts = [padded(part, max(2, max(map(len, part)) + 1)) for part in sentences]
    optimizer: Any = Descent(model)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)  # of the step before
    before = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    model.saved = SavedTensors()
    with model.saved:
        found = answer.train_step(model, optimizer, parts)
    moved = torch.cat([weight.detach().flatten() for weight in model.parameters()]) - before
    expect(optimizer.steps == 1, f"{call} called optimizer.step() {optimizer.steps} times; one step, after all parts")
    broken = not moved.isfinite().all() or (isinstance(found, float) and math.isnan(found))
    expect(not broken, f"{call}: the loss or a weight is no number any more; what is a mean of no tokens?")
    expect_number(found, call, "the loss, a float")
    off = ((moved - wanted).norm() / wanted.norm()).item()
    ratio = (moved.norm() / wanted.norm()).item()
    expect(off < 1e-9, f"{call}: the step is {percent(off)} off and {significant(ratio)} times as long as that of one "
                       "batch; let every token count alike, padding not at all, and old gradients not either")  # fmt: skip
    expect(math.isclose(found, loss, rel_tol=1e-9),
           f"{call} returned {significant(found, 4)}, and the mean loss of a token is {significant(loss, 4)}")  # fmt: skip
    expect(model.alive == 0, f"{call}: when a part went in, autograd still kept {model.alive} tensors of those before; "
                             "call backward() for each part")  # fmt: skip


def losses_of(model: Any, parts: Any, reduction: str) -> Any:
    for x, y in parts:
        yield F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction=reduction), y


def mean_of_means(model: Any, optimizer: Any, parts: Any) -> float:
    return step_on(model, optimizer, ((loss / len(parts), y) for loss, y in losses_of(model, parts, "mean")))


def step_on(model: Any, optimizer: Any, losses: Any) -> float:
    optimizer.zero_grad()
    total = 0.0
    for loss, _ in losses:
        loss.backward()
        total += loss.item()
    optimizer.step()
    return total


def counts_padding(model: Any, optimizer: Any, parts: Any) -> float:
    count = sum(y.numel() for _, y in parts)
    return step_on(model, optimizer, ((loss / count, y) for loss, y in losses_of(model, parts, "sum")))


def weighs_by_sentences(model: Any, optimizer: Any, parts: Any) -> float:
    rows = sum(len(y) for _, y in parts)
    return step_on(
        model, optimizer, ((loss.nan_to_num() * len(y) / rows, y) for loss, y in losses_of(model, parts, "mean"))
    )


def leaves_empty_parts_nan(model: Any, optimizer: Any, parts: Any) -> float:
    counts = [int((y != IGNORED).sum()) for _, y in parts]
    share = iter(counts)
    return step_on(
        model, optimizer, ((loss * next(share) / sum(counts), y) for loss, y in losses_of(model, parts, "mean"))
    )


def one_backward_at_the_end(model: Any, optimizer: Any, parts: Any) -> float:
    count = sum(int((y != IGNORED).sum()) for _, y in parts)
    total = sum(loss for loss, _ in losses_of(model, parts, "sum")) / count
    return step_on(model, optimizer, [(total, None)])


def steps_after_each_part(model: Any, optimizer: Any, parts: Any) -> float:
    count = sum(int((y != IGNORED).sum()) for _, y in parts)
    total = 0.0
    for loss, _ in losses_of(model, parts, "sum"):
        total += step_on(model, optimizer, [(loss / count, None)])
    return total


def sums_and_never_divides(model: Any, optimizer: Any, parts: Any) -> float:
    return step_on(model, optimizer, losses_of(model, parts, "sum"))


WRONG = {
    "a mean of means": ({"train_step": mean_of_means}, "a part of 3 and one of 30 tokens: the step is"),
    "counts padding": ({"train_step": counts_padding}, "let every token count alike, padding not at all"),
    "weighs by sentences": ({"train_step": weighs_by_sentences}, "a part of 3 and one of 30 tokens: the step is"),
    "leaves the mean of no tokens": ({"train_step": leaves_empty_parts_nan}, "what is a mean of no tokens?"),
    "one backward at the end": ({"train_step": one_backward_at_the_end}, "call backward() for each part"),
    "a step after each part": ({"train_step": steps_after_each_part}, "called optimizer.step() 2 times"),
    "never divides": ({"train_step": sums_and_never_divides}, "times as long as that of one batch"),
}
