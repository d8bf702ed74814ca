"""The workers run one after another; one that needs a sum it cannot have yet is stopped, and started again with it.

Compared is the mean of all workers' gradients with the gradient of all labels in one batch.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

from shared.practice import expect
from shared.traps import SavedTensors, expect_number, shown

import torch
import torch.nn.functional as F

Batches = Sequence[tuple[torch.Tensor, torch.Tensor]]
AllReduce = Callable[[torch.Tensor], torch.Tensor]
VOCABULARY, FEATURES, IGNORED, MOST_SUMS = 7, 4, -100, 2


class LanguageModel(torch.nn.Module):
    """Logits from the token alone; notes how much of earlier graphs is alive whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Embedding(VOCABULARY, FEATURES), torch.nn.Linear(FEATURES, VOCABULARY)
        ).double()
        self.saved = SavedTensors()
        self.alive: list[int] = []

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.alive.append(self.saved.alive())
        logits = self.layers(tokens)
        assert isinstance(logits, torch.Tensor)
        return logits


class Waits(BaseException):
    """Stops a worker at an all_reduce whose sum is not known yet."""


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = LanguageModel().layers

    def draw(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A micro-batch of sentences with so many labels each, padded to one length, which is at least 2."""
        longest = max(2, *lengths)
        tokens, labels = torch.randint(VOCABULARY, (2, len(lengths), longest), generator=generator)
        return tokens, labels.masked_fill(torch.arange(longest) >= torch.tensor(lengths)[:, None], IGNORED)

    alike = "each label counts the same, however many share its micro-batch"
    shared = "each label counts the same, on whichever worker it is"
    cases = [
        ("one worker, one micro-batch", [[draw(3, 1)]], "padding does not count"),
        ("one worker, micro-batches of 7 and 1 labels", [[draw(5, 2), draw(1, 0)]], alike),
        ("two workers with 4 labels each", [[draw(3, 1)], [draw(2, 2)]], "the mean over the workers still follows"),
        ("two workers with 7 and 2 labels", [[draw(4, 3)], [draw(1, 1)]], shared),
        ("one worker, a micro-batch of padding", [[draw(4, 3), draw(0, 0)]], "the mean of nothing is 0 / 0"),
        ("two workers, one with padding only", [[draw(4, 3)], [draw(0, 0)]], "the mean of nothing is 0 / 0"),
        ("three workers with 1, 3 and 2 micro-batches",
         [[draw(2, 2)], [draw(5, 1), draw(1, 1), draw(6, 4)], [draw(0, 3), draw(2, 1)]], shared),
        ("two workers and one label", [[draw(0, 0)], [draw(0, 1)]], "one label is a mean over one"),
        ("two workers and no label", [[draw(0, 0)], [draw(0, 0), draw(0)]], "0 / 0 where nothing counts"),
        ("four workers", [[draw(*torch.randint(9, (3,), generator=generator).tolist())] for _ in range(4)], shared),
    ]  # fmt: skip
    for case, batches, reason in cases:
        expect_step(answer, layers, f"train_step, {case}", batches, reason)


def expect_step(answer: Any, layers: torch.nn.Module, call: str, batches: Sequence[Batches], reason: str) -> None:
    models, losses = run_workers(answer, layers, call, batches)
    right = copy.deepcopy(layers)
    logits, labels = (
        torch.cat(parts)
        for parts in zip(*((right(x).flatten(0, 1), y.flatten()) for part in batches for x, y in part), strict=True)
    )
    right_loss = F.cross_entropy(logits, labels, reduction="sum") / max(1, int((labels != IGNORED).sum()))
    right_loss.backward()
    for number, (model, loss) in enumerate(zip(models, losses, strict=True)):
        where = f"{call}: worker {number}"
        expect(not isinstance(loss, float) or not math.isnan(loss), f"{where} returned nan: {reason}")
        expect_number(loss, where, "the loss of the whole batch, a float")
        alive = max(model.alive, default=0)
        expect(
            alive == 0,
            f"{where}: as the model is called again, {alive} tensors of earlier graphs are still in memory; call backward() "
            "for each micro-batch",
        )
        expect(
            all(weight.grad is not None for weight in model.layers.parameters()),
            f"{where} has no gradient at the end, and the others wait for it; padding too must go through backward()",
        )
    for name, wanted in right.named_parameters():
        gradients = [model.layers.get_parameter(name).grad for model in models]
        found = torch.stack([gradient for gradient in gradients if gradient is not None]).mean(0)
        assert wanted.grad is not None
        apart = ~torch.isclose(found, wanted.grad, rtol=1e-5, atol=1e-8)
        if apart.any():
            at = tuple(apart.nonzero()[0].tolist())
            expect(
                False,
                f"{call}: the mean over the workers of the gradient of {name}[{', '.join(map(str, at))}] is "
                f"{found[at].item():.4g} and should be {wanted.grad[at].item():.4g}: {reason}",
            )
    for number, loss in enumerate(losses):
        is_right = math.isclose(loss, right_loss.item(), rel_tol=1e-5, abs_tol=1e-12)  # a float32 may have summed it
        expect(
            is_right,
            f"{call}: worker {number} returned {loss:.6g}; the mean over the labels of all workers is {right_loss.item():.6g}",
        )


def run_workers(
    answer: Any, layers: torch.nn.Module, call: str, batches: Sequence[Batches]
) -> tuple[list[LanguageModel], list[float]]:
    """The workers' models and results; each time that all ask for a sum, they start again and find it there."""
    sums: list[torch.Tensor] = []
    while True:
        models, losses, given = [], list[float](), list[torch.Tensor]()
        for part in batches:
            model = LanguageModel()
            model.layers = copy.deepcopy(layers)  # type: ignore[assignment]
            all_reduce = summing(sums, given, call)
            try:
                with model.saved:
                    losses.append(answer.train_step(model, list(part), all_reduce, len(batches)))
            except Waits:
                pass
            models.append(model)
        if not given:
            return models, losses
        expect(
            len(given) == len(batches),
            f"{call}: {len(given)} of {len(batches)} workers call all_reduce once more than the others, and wait for ever; "
            "each must call it as often as every other, however many micro-batches it has",
        )
        expect(
            len(sums) < MOST_SUMS, f"{call}: all_reduce was called more than twice; count first, and sum up in between"
        )
        sums.append(torch.stack(given).sum(0))


def summing(sums: Sequence[torch.Tensor], given: list[torch.Tensor], call: str) -> AllReduce:
    """An all_reduce for one worker: knows `sums` already, and writes the next one's part into `given`."""
    known = iter(sums)

    def all_reduce(x: torch.Tensor) -> torch.Tensor:
        expect(isinstance(x, torch.Tensor), f"{call}: all_reduce was given {shown(x)}; give it a tensor")
        expect(
            not x.requires_grad, f"{call}: all_reduce was given a tensor with a graph, which cannot travel; detach it"
        )
        for found in known:
            return found.clone()
        given.append(x.clone())
        raise Waits

    return all_reduce


def summed(model: Any, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), reduction="sum")


def counted(micro_batches: Batches) -> torch.Tensor:
    return torch.tensor(sum(int((labels != IGNORED).sum()) for _, labels in micro_batches))


def averages_everything(model: Any, micro_batches: Batches, all_reduce: AllReduce, workers: int) -> float:
    mean = 0.0
    for tokens, labels in micro_batches:
        loss = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()) / len(micro_batches)
        loss.backward()
        mean += loss.item()
    return all_reduce(torch.tensor(mean)).item() / workers


def counts_its_own_labels(model: Any, micro_batches: Batches, all_reduce: AllReduce, workers: int) -> float:
    total = 0.0
    for tokens, labels in micro_batches:
        loss = summed(model, tokens, labels) / counted(micro_batches).clamp(min=1)
        loss.backward()
        total += loss.item()
    return all_reduce(torch.tensor(total)).item() / workers


def divides_by(least: int, factor: int | None, skips: bool = False) -> dict[str, object]:
    """Right but for the smallest divisor, the factor before backward(), and what it does with padding."""

    def train_step(model: Any, micro_batches: Batches, all_reduce: AllReduce, workers: int) -> float:
        count, total = all_reduce(counted(micro_batches)).clamp(min=least), 0.0
        for tokens, labels in micro_batches:
            if skips and bool((labels == IGNORED).all()):
                continue
            loss = summed(model, tokens, labels) / count
            (loss * (factor or workers)).backward()
            total += loss.item()
        return all_reduce(torch.tensor(total)).item()

    return {"train_step": train_step}


def asks_for_each_micro_batch(model: Any, micro_batches: Batches, all_reduce: AllReduce, workers: int) -> float:
    count = all_reduce(counted(micro_batches)).clamp(min=1)
    total = 0.0
    for tokens, labels in micro_batches:
        loss = summed(model, tokens, labels) / count
        (loss * workers).backward()
        total += all_reduce(loss.detach()).item()
    return total


def returns_early(model: Any, micro_batches: Batches, all_reduce: AllReduce, workers: int) -> float:
    own_count = counted(micro_batches)
    if own_count == 0:
        return 0.0
    count, total = all_reduce(own_count), 0.0
    for tokens, labels in micro_batches:
        loss = summed(model, tokens, labels) / count
        (loss * workers).backward()
        total += loss.item()
    return all_reduce(torch.tensor(total)).item()


def sums_the_losses_first(model: Any, micro_batches: Batches, all_reduce: AllReduce, workers: int) -> float:
    count = all_reduce(counted(micro_batches)).clamp(min=1)
    loss = torch.stack([summed(model, tokens, labels) for tokens, labels in micro_batches]).sum() / count
    (loss * workers).backward()
    return all_reduce(loss.detach()).item()


def returns_its_own_loss(model: Any, micro_batches: Batches, all_reduce: AllReduce, workers: int) -> float:
    count, total = all_reduce(counted(micro_batches)).clamp(min=1), 0.0
    for tokens, labels in micro_batches:
        loss = summed(model, tokens, labels) / count
        (loss * workers).backward()
        total += loss.item()
    return total


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "averages everything": ({"train_step": averages_everything}, "however many share its micro-batch"),
    "counts its own labels": ({"train_step": counts_its_own_labels}, "on whichever worker it is"),
    "forgets that a mean follows": (divides_by(1, factor=1), "the mean over the workers still follows"),
    "divides by nothing": (divides_by(0, factor=None), "0 / 0 where nothing counts"),
    "returns early without labels": ({"train_step": returns_early}, "wait for ever"),
    "skips padding": (divides_by(1, factor=None, skips=True), "padding too must go through backward()"),
    "asks for a sum for each micro-batch": ({"train_step": asks_for_each_micro_batch}, "called more than twice"),
    "sums the losses first": ({"train_step": sums_the_losses_first}, "call backward() for each micro-batch"),
    "returns its own loss": ({"train_step": returns_its_own_loss}, "the mean over the labels of all workers is"),
}
